"""Decoding: the right pixels, or a named reason; never an exception. The store: the same bits, whatever happens to the build."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import BAD, COLOUR, GOOD, RAMP, _directory, _sparse, bits, build, encode, fill
from PIL import Image

from pipeline.data.decode import decode_files, decode_image, fit_to_square
from stages.errors import DataError
from stages.settings import ReadSettings

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("name", GOOD)
def test_images_as_they_come(name: str, tmp_path: Path) -> None:
    content, wanted, tolerance = GOOD[name]
    path = tmp_path / "image.JPG"  # whatever the ending says
    path.write_bytes(content)
    (outcome,) = decode_files([str(path)], size=None, channels=None, resize="pad-repeat")
    assert not isinstance(outcome, str), outcome
    wanted = wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)
    assert outcome.shape == wanted.shape
    assert (
        np.abs(
            np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape).astype(int) - wanted
        ).mean()
        <= tolerance
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stands_upright(orientation: int) -> None:
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),  # shown turned right by 90 degrees, so stored turned left
        7: lambda a: np.rot90(a.T, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = RAMP[:, :16].copy()
    upright[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(
        Image.fromarray(np.ascontiguousarray(undo[orientation](upright))), "PNG", exif=exif
    )
    assert np.array_equal(np.asarray(decode_image(content)), upright)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_reason(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    (tmp_path / "image.png").write_bytes(content)
    (outcome,) = decode_files([str(tmp_path / "image.png")], size=32, channels=3, resize="crop")
    assert isinstance(outcome, str) and outcome and reason in outcome.lower()
    assert str(tmp_path) not in outcome and "\n" not in outcome


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "missing"),
        (lambda path: path.symlink_to(path), "links"),
        (_directory, "folder"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (_sparse, "2.1 gb"),
    ],
    ids=["missing", "broken link", "link to itself", "folder", "pipe", "device", "2 GB"],
)
def test_what_is_no_file_is_a_reason_and_no_hang(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "image.png")
    (outcome,) = decode_files([str(tmp_path / "image.png")], size=32, channels=3, resize="crop")
    assert isinstance(outcome, str) and reason in outcome.lower()


@pytest.mark.parametrize("resize", ["pad-repeat", "pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1), (7, 90), (64, 64), (300, 200)])
def test_any_shape_fits_the_square(shape: tuple[int, int], resize: str) -> None:
    pixels = fit_to_square(Image.fromarray(np.full(shape, 77, np.uint8)), 64, resize)
    assert pixels.shape == (64, 64) and (pixels == 77).all()


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((32, 96), np.uint8)
    wide[:, 32:64] = 200
    assert (fit_to_square(Image.fromarray(wide), 16, "crop")[:, 1:-1] == 200).all()


@pytest.mark.slow
def test_fuzzed_files_are_pixels_or_a_reason(tmp_path: Path) -> None:
    """Thousands of random, truncated and damaged files of every format."""
    chance = random.Random(4)
    kinds = [content for content, _, _ in GOOD.values()]
    outcomes = []
    for case in range(6000):
        content = bytearray(chance.choice(kinds))
        if case % 3 == 0:
            content = content[: chance.randrange(len(content))]
        elif case % 3 == 1:
            for _ in range(chance.choice((1, 3, 20))):
                content[chance.randrange(len(content))] = chance.randrange(256)
        else:
            content = content[: chance.randrange(20)] + chance.randbytes(chance.randrange(400))
        path = tmp_path / "fuzzed.png"
        path.write_bytes(content)
        (outcome,) = decode_files([str(path)], size=16, channels=3, resize="pad-repeat")
        assert isinstance(outcome, str) or (
            outcome.shape == (3, 16, 16) and len(outcome.pixels) == 768
        )
        outcomes.append(isinstance(outcome, str))
    assert 0.2 < np.mean(outcomes) < 0.95  # both kinds were met


# The store


def test_the_store_is_found_again_and_opens_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "photos", 20)
    (folder / "00003.png").write_bytes(b"broken")
    first = build(folder, tmp_path / "cache")
    monkeypatch.setattr(
        "pipeline.data.decoding_pool.decode_files", lambda *a, **k: pytest.fail("decoded again")
    )
    second = build(folder, tmp_path / "cache")
    assert np.array_equal(first.images, second.images) and np.array_equal(first.facts, second.facts)
    assert first.images.shape == (19, 1, 12, 12) and 3 not in first.origin
    assert first.skipped == second.skipped == ((3, "not an image that can be read"),)
    # Stage two asks by the size and channels that stage one chose.
    build(folder, tmp_path / "cache", ReadSettings(size=12, channels=1))


@pytest.mark.parametrize("change", ["content", "time", "added", "removed"])
def test_a_changed_folder_is_another_store(change: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 4)
    build(folder, tmp_path / "cache")
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
    after = build(folder, tmp_path / "cache")
    for row, place in enumerate(sorted(folder.iterdir())):
        assert np.array_equal(after.images[row, 0], np.asarray(Image.open(place)))


def test_another_way_of_reading_is_another_store(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 4, (12, 9))
    shapes = {
        build(folder, tmp_path / "cache", read).images.tobytes()
        for read in (
            ReadSettings(),
            ReadSettings(resize="crop"),
            ReadSettings(size=10),
            ReadSettings(channels=3),
        )
    }
    assert len(shapes) == 4


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
    folder = fill(tmp_path / "photos", 4)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, last, np.uint8)).save(
        folder / "last.png"
    )
    assert build(folder, tmp_path / "cache").images.shape == shape


def test_grey_images_among_coloured_ones_are_repeated(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 3)
    Image.fromarray(COLOUR[:12, :12]).save(folder / "00000.png")
    images = build(folder, tmp_path / "cache").images
    assert np.array_equal(images[0], COLOUR[:12, :12].transpose(2, 0, 1))
    for row in (1, 2):
        assert np.array_equal(
            images[row], np.stack([np.asarray(Image.open(folder / f"0000{row}.png"))] * 3)
        )


def test_a_damaged_store_is_built_anew(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 6)
    build(folder, tmp_path / "cache")
    whole = bits(tmp_path / "cache")
    for name in whole:
        for content in (b"", whole[name][: len(whole[name]) // 2], b"rubbish" * 3):
            (tmp_path / "cache" / name).write_bytes(content)
            build(folder, tmp_path / "cache")
            assert bits(tmp_path / "cache") == whole


def test_what_killed_builds_left_goes_when_it_is_old(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 3)
    old, young = tmp_path / "cache" / "a.partial", tmp_path / "cache" / "b.partial"
    for left in (old, young):
        left.mkdir(parents=True)
        (left / "images").write_bytes(b"half")
    for path in (old / "images", old):
        os.utime(path, (0, 0))
    build(folder, tmp_path / "cache")
    assert young.exists() and not old.exists()


def test_a_cache_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 3)
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(DataError, match="--cache"):
        build(folder, tmp_path / "cache")


BUILD = """
import resource, sys
from pathlib import Path
if __name__ == "__main__":
    sys.path[:0] = [{repository!r}, {tests!r}]
    if {limit}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    from image_files import build
    from stages.errors import DataError
    try:
        build(Path({folder!r}), Path({cache!r}))
    except DataError as error:
        print(error)
"""


def start(script: Path, folder: Path, cache: Path, limit: int = 0) -> subprocess.Popen[str]:
    script.write_text(
        BUILD.format(
            repository=str(REPOSITORY),
            tests=str(REPOSITORY / "tests"),
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


@pytest.mark.skipif(sys.platform == "win32", reason="the full disk is imitated by a limit of POSIX")
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 300)
    process = start(
        tmp_path / "build.py", folder, tmp_path / "cache", limit=20_000
    )  # bytes a file: as a full disk, an OSError in a write
    output, errors = process.communicate(timeout=60)
    assert "can't be kept there" in output and output.count("\n") == 1 and not errors
    assert bits(tmp_path / "cache") == {}
    assert len(build(folder, tmp_path / "cache").images) == 300


def test_two_builders_at_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 4200)  # enough for several processes each
    two = [start(tmp_path / f"{name}.py", folder, tmp_path / "cache") for name in "ab"]
    for process in two:
        assert process.communicate(timeout=60) == ("", "")
    together = bits(tmp_path / "cache")
    build(folder, tmp_path / "alone")
    assert together == bits(tmp_path / "alone")
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_several_processes_decode_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "photos", 4200)
    (folder / "00100.png").write_bytes(b"broken")
    build(folder, tmp_path / "several")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    build(folder, tmp_path / "one")
    assert bits(tmp_path / "several") == bits(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes to kill")
def test_killed_at_any_moment_the_next_run_gives_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "photos", 4500)
    began = time.monotonic()
    assert start(tmp_path / "build.py", folder, tmp_path / "whole").communicate(timeout=60) == (
        "",
        "",
    )
    took = time.monotonic() - began
    whole = bits(tmp_path / "whole")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    chance = random.Random(0)
    left = 0
    for attempt in range(20):
        cache = tmp_path / f"cache-{attempt}"
        process = start(tmp_path / "build.py", folder, cache)
        time.sleep(chance.uniform(0.3 * took, 1.05 * took))
        process.send_signal(signal.SIGKILL)  # the parent alone: its workers must notice
        process.communicate(timeout=20)
        left += bool(list(cache.glob("*.partial")))
        build(folder, cache)
        found = {name: content for name, content in bits(cache).items() if ".partial/" not in name}
        assert found == whole
        for _ in range(100):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("a decoding process outlives its parent")
    assert left >= 3  # some were killed in the middle
