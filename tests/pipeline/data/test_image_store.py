"""The image store has the same bytes, whatever interrupts or accompanies the build."""

import os
import subprocess
import sys
import time
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from image_files import COLOUR, build_store, read_all_files, write_random_images
from PIL import Image

from pipeline.data import decoding_pool
from stages.errors import DataError
from stages.settings import ReadSettings

ROOT = Path(__file__).parents[3]
# Without `if __name__ == "__main__"`: the worker processes must not run the script again.
BUILD = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from image_files import build_store
from pipeline.data import decoding_pool
from stages.errors import DataError
decoding_pool.POOL_FILES = 1000  # starts worker processes for few images
decoding_pool._available_cpus = lambda: 2
try:
    build_store(Path({folder!r}), Path({cache!r}))
except DataError as error:
    print(error)
"""


def start_build(script: Path, folder: Path, cache: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Start another process that builds a store. limit: largest file size in bytes."""
    script.write_text(
        BUILD.format(
            root=str(ROOT),
            tests=str(ROOT / "tests"),
            folder=str(folder),
            cache=str(cache),
            limit=limit,
        )
    )
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_store_is_opened_again_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random_images(tmp_path / "photos", 20)
    (folder / "00003.png").write_bytes(b"broken")
    first = build_store(folder, tmp_path / "cache")
    monkeypatch.setattr(
        "pipeline.data.decoding_pool.decode_files", lambda *a, **k: pytest.fail("decoded again")
    )
    second = build_store(folder, tmp_path / "cache")
    assert np.array_equal(first.images, second.images) and np.array_equal(first.facts, second.facts)
    assert first.images.shape == (19, 1, 12, 12) and 3 not in first.origin
    assert first.skipped == second.skipped == ((3, "not an image that can be read"),)
    # Stage two asks for the size and channels that stage one has chosen.
    build_store(folder, tmp_path / "cache", ReadSettings(size=12, channels=1))


@pytest.mark.parametrize("change", ["content", "time", "added", "removed"])
def test_changed_folder_has_another_store(change: str, tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 4)
    build_store(folder, tmp_path / "cache")
    path = folder / "00001.png"
    if change == "content":
        Image.fromarray(np.zeros((12, 12), np.uint8)).save(path)
    elif change == "time":
        path.write_bytes((folder / "00002.png").read_bytes())
        os.utime(path, ns=(1, 1))
    elif change == "added":
        (folder / "new.png").write_bytes(path.read_bytes())
    else:
        path.unlink()
    store = build_store(folder, tmp_path / "cache")
    for row, path in enumerate(sorted(folder.iterdir())):
        assert np.array_equal(store.images[row, 0], np.asarray(Image.open(path)))


def test_other_read_settings_have_another_store(tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 4, (12, 9))
    settings = [
        ReadSettings(),
        ReadSettings(resize="crop"),
        ReadSettings(size=10),
        ReadSettings(channels=3),
    ]
    contents = {build_store(folder, tmp_path / "cache", read).images.tobytes() for read in settings}
    assert len(contents) == 4


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        ((12, 12), (5, 1, 12, 12)),
        ((12, 11), (5, 1, 64, 64)),
        ((90, 90), (5, 1, 64, 64)),
        ((12, 12, 3), (5, 3, 12, 12)),
    ],
    ids=["like the others", "another size", "larger", "colour"],
)
def test_size_and_channels_are_chosen_from_all_images(
    last: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    folder = write_random_images(tmp_path / "photos", 4)
    pixels = np.random.default_rng(1).integers(0, 256, last, np.uint8)
    Image.fromarray(pixels).save(folder / "last.png")
    assert build_store(folder, tmp_path / "cache").images.shape == shape


def test_grey_images_are_repeated_to_three_channels_among_colour_images(tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 3)
    Image.fromarray(COLOUR[:12, :12]).save(folder / "00000.png")
    images = build_store(folder, tmp_path / "cache").images
    assert np.array_equal(images[0], COLOUR[:12, :12].transpose(2, 0, 1))
    for row in (1, 2):
        grey = np.asarray(Image.open(folder / f"0000{row}.png"))
        assert np.array_equal(images[row], np.stack([grey] * 3))


def test_damaged_store_is_rebuilt(tmp_path: Path) -> None:
    folder, cache = write_random_images(tmp_path / "photos", 6), tmp_path / "cache"
    build_store(folder, cache)
    complete = read_all_files(cache)
    for name, content in complete.items():
        for damaged in (b"", content[: len(content) // 2], b"rubbish" * 3):
            (cache / name).write_bytes(damaged)
            build_store(folder, cache)
            assert read_all_files(cache) == complete


def test_abandoned_builds_are_removed(tmp_path: Path) -> None:
    folder, cache = write_random_images(tmp_path / "photos", 3), tmp_path / "cache"
    old, recent, old_file = cache / "a.partial", cache / "b.partial", cache / ".c.json.x.partial"
    for partial in (old, recent):
        partial.mkdir(parents=True)
        (partial / "images").write_bytes(b"half")
    old_file.touch()
    for path in (old / "images", old, old_file):
        os.utime(path, (0, 0))
    build_store(folder, cache)
    assert recent.exists() and not old.exists() and not old_file.exists()


def test_unwritable_cache_is_a_data_error(tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 3)
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(DataError, match=rf"^{tmp_path}/cache: .*File exists.*--cache"):
        build_store(folder, tmp_path / "cache")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_umask_decides_who_can_read_a_store(umask: int, mode: int, tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 3)
    earlier = os.umask(umask)
    try:
        build_store(folder, tmp_path / "cache")
    finally:
        os.umask(earlier)
    (store,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert store.stat().st_mode & 0o777 == mode
    assert all(path.stat().st_mode & 0o777 == mode & 0o666 for path in store.iterdir())


def test_private_store_of_another_user_is_reported_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = write_random_images(tmp_path / "photos", 3), tmp_path / "cache"
    build_store(folder, cache)
    (store,) = (path for path in cache.iterdir() if path.is_dir())
    before = read_all_files(cache)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", deny)
    monkeypatch.setattr(os, "access", lambda path, mode: path != store)
    monkeypatch.setattr(decoding_pool, "decode_files", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match=rf"^{store}: .*--cache"):
        build_store(folder, cache)
    assert read_all_files(cache) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits the file size with a POSIX function")
def test_full_disk_is_one_message_and_leaves_no_file(tmp_path: Path) -> None:
    folder, cache = write_random_images(tmp_path / "photos", 300), tmp_path / "cache"
    # Writing beyond the limit raises an OSError, as on a full disk.
    process = start_build(tmp_path / "build.py", folder, cache, limit=20_000)
    output, errors = process.communicate(timeout=60)
    assert output.startswith(f"{cache}: ") and "File too large" in output and "--cache" in output
    assert output.count("\n") == 1 and not errors
    assert read_all_files(cache) == {}
    assert len(build_store(folder, cache).images) == 300


def test_two_processes_build_the_same_store(tmp_path: Path) -> None:
    folder = write_random_images(tmp_path / "photos", 1500)
    processes = [
        start_build(tmp_path / f"{name}.py", folder, tmp_path / "cache") for name in ("a", "b")
    ]
    for process in processes:
        assert process.communicate(timeout=60) == ("", "")
    together = read_all_files(tmp_path / "cache")
    build_store(folder, tmp_path / "alone")
    assert together == read_all_files(tmp_path / "alone")
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_worker_processes_do_not_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random_images(tmp_path / "photos", 1200)
    (folder / "00100.png").write_bytes(b"broken")
    build_store(folder, tmp_path / "single")
    pools = []

    def start_pool(workers: int) -> AbstractContextManager[Executor]:
        pools.append(workers)
        return worker_pool(workers)

    worker_pool = decoding_pool.worker_pool
    monkeypatch.setattr(decoding_pool, "worker_pool", start_pool)
    monkeypatch.setattr(decoding_pool, "POOL_FILES", 1000)
    monkeypatch.setattr(decoding_pool, "_available_cpus", lambda: 2)
    build_store(folder, tmp_path / "several")
    assert pools == [2]
    assert read_all_files(tmp_path / "several") == read_all_files(tmp_path / "single")


def assert_session_ends(process_id: int) -> None:
    """Wait up to ten seconds for all processes of a session to end."""
    for _ in range(100):
        try:
            os.killpg(process_id, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker process outlives its parent")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to kill")
def test_store_is_the_same_after_a_killed_build(tmp_path: Path) -> None:
    folder, cache = write_random_images(tmp_path / "photos", 1500), tmp_path / "cache"
    process = start_build(tmp_path / "build.py", folder, cache)
    while not list(cache.glob("*.partial/images")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()  # kills only the parent: its workers must notice
    process.communicate(timeout=20)
    assert_session_ends(process.pid)
    build_store(folder, cache)
    build_store(folder, tmp_path / "whole")
    files = read_all_files(cache)
    complete = {name: files[name] for name in files if ".partial/" not in name}
    assert complete == read_all_files(tmp_path / "whole")
