"""`pipeline vectors`: images to a file of vectors, from an embedding or a classifier."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import write_file
from factories import QUIET
from image_files import write_random_images
from PIL import Image

from pipeline.checkpoint import embedding_part, load_embedder
from pipeline.commands.vectors import vectors
from pipeline.data.decode import decode_files
from pipeline.failures import is_lost_process
from pipeline.tensor_files import load_tensors
from stages.errors import DataError, PipelineError
from stages.network.inference import embed_images

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
CHECKPOINT = "embedding.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return an empty folder with a checkpoint, and photos/ of two classes, as current folder."""
    monkeypatch.chdir(tmp_path)
    write_file("embedding", tmp_path / CHECKPOINT)
    for name in ("a", "b"):
        write_random_images(tmp_path / "photos" / name, 6)
    return tmp_path


def embed(*images: str, out: str = "v.npz", checkpoint: str = CHECKPOINT, **options) -> int:
    paths = [Path(image) for image in images]
    options = {"context": QUIET, **options}
    return vectors(paths, Path(checkpoint), out=Path(out), **options)


def read_npz(path: str = "v.npz") -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def expected_vectors(paths) -> np.ndarray:
    """Decode and embed one image at a time."""
    embedder, rows = load_embedder(Path(CHECKPOINT)), []
    read = {name: embedder.record["read"][name] for name in ("size", "channels", "resize")}
    for outcome in decode_files(list(paths), **read):
        pixels = np.frombuffer(outcome.pixels, np.uint8).reshape(1, *outcome.shape)
        image = torch.from_numpy(pixels.copy())
        rows.append(embed_images(embedder.network, [image], device=torch.device("cpu")))
    return torch.cat(rows).numpy()


def test_vectors_ids_and_labels(folder):
    shutil.copy("photos/a/00000.png", "single.png")
    shutil.copy("photos/a/00001.png", "photos/loose.png")
    assert embed("single.png", "photos") == 14
    file = read_npz()
    names = [f"photos/{label}/{row:05}.png" for label in "ab" for row in range(6)]
    assert file["ids"].tolist() == ["single.png", "photos/loose.png", *names]
    assert file["labels"].tolist() == ["", "", *"aaaaaabbbbbb"]
    np.testing.assert_allclose(file["vectors"], expected_vectors(file["ids"]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(file["vectors"], axis=1), 1, atol=1e-6)
    assert str(file["embedding_digest"]) == load_embedder(Path(CHECKPOINT)).digest


def test_labels_across_blocks_and_unreadable_images(folder, monkeypatch):
    monkeypatch.setattr("pipeline.image_vectors.BLOCK_SIZE", 5)
    for name in ("a/00004.png", "b/00000.png", "b/00005.png"):
        (Path("photos") / name).write_bytes(b"no image")
    assert embed("photos") == 9
    file = read_npz()
    assert file["labels"].tolist() == list("aaaaabbbb")
    assert file["labels"].tolist() == [Path(name).parent.name for name in file["ids"]]


def test_images_without_labels(folder):
    assert embed("photos/a", "photos/b/00003.png", out="w.npz") == 7
    assert set(read_npz("w.npz")) == {"vectors", "ids", "embedding_digest"}


def test_a_classifier_gives_its_embedding(folder):
    write_file("classifier", folder / "c.safetensors")
    embed("photos", out="v.safetensors", checkpoint="c.safetensors")
    header, tensors = load_tensors(Path("v.safetensors"), "gallery")
    network, others = embedding_part(Path("v.safetensors"), header, tensors)
    assert header.record["embedding_digest"] == load_embedder(Path("c.safetensors")).digest
    assert set(others) == {"vectors", "labels"} and header.record["classes"] == ["a", "b"]
    embed("photos", out="w.npz")  # the network of the embedding is the same
    assert np.array_equal(others["vectors"].numpy(), read_npz("w.npz")["vectors"])
    assert not network.training


def test_unreadable_images_have_no_row(folder, capsys):
    Path("photos/b/00002.png").write_bytes(b"no image")
    Path("broken.png").write_bytes(b"")
    messages = replace(QUIET, quiet=False)
    assert embed("photos", context=messages) == 11
    assert "photos/b/00002.png" not in read_npz()["ids"]
    assert len(read_npz()["labels"]) == len(read_npz()["vectors"]) == 11
    assert capsys.readouterr().err.startswith("skipped: photos/b/00002.png: ")
    with pytest.raises(
        DataError, match=r"^broken.png: empty file; 1 of 13 .*w\.npz is written without"
    ):
        embed("photos", "broken.png", out="w.npz")
    assert np.array_equal(read_npz("w.npz")["vectors"], read_npz()["vectors"])


@pytest.mark.parametrize("images", [["empty"], ["missing.png"], ["notes.txt"], ["broken"]])
def test_nothing_readable_writes_nothing(folder, images):
    Path("empty").mkdir()
    Path("notes.txt").write_text("notes")
    Path("broken").mkdir()
    Path("broken/1.png").write_bytes(b"no image")
    before = sorted(folder.rglob("*"))
    for out in ("v.npz", "v.csv", "new/v.safetensors"):
        with pytest.raises(DataError, match=f"^{images[0]}"):
            embed(*images, out=out)
        assert sorted(folder.rglob("*")) == before


def test_existing_output(folder):
    embed("photos")
    before = Path("v.npz").read_bytes()
    with pytest.raises(PipelineError, match=r"^v\.npz: exists; .*--force"):
        embed("photos/a")
    assert Path("v.npz").read_bytes() == before
    embed("photos/a", force=True)
    assert len(read_npz()["ids"]) == 6
    embed("photos", force=True)
    assert Path("v.npz").read_bytes() == before  # the same images give the same file


def test_output_that_is_an_input(folder):
    content = Path(CHECKPOINT).read_bytes()
    with pytest.raises(PipelineError, match="input"):
        embed("photos", out=CHECKPOINT, force=True)
    assert Path(CHECKPOINT).read_bytes() == content
    embed("photos", out="photos/v.npz")
    embed("photos", out="photos/v.npz", force=True)  # no image
    assert len(read_npz("photos/v.npz")["ids"]) == 12


def run(*arguments: object, text: bytes = b"", launcher: tuple[str, ...] = ("-m",)):
    command = [sys.executable, *launcher, "pipeline", "vectors", *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, input=text)


def test_paths_on_standard_input(folder):
    name = os.fsdecode(b"photos/a/caf\xe9 \n.png")
    shutil.copy("photos/a/00000.png", name.replace("\n", ""))
    text = os.fsencode(f"{name}\nphotos/b\n\nmissing.png\n".replace(" \n.", " ."))
    result = run("-", "--embedding", CHECKPOINT, "--out", "v.npz", "--quiet", text=text)
    assert result.returncode == 1 and b"missing.png" in result.stderr
    assert read_npz()["ids"].tolist()[0] == name.replace("\n", "")
    assert len(read_npz()["ids"]) == 7


def test_no_path_on_standard_input(folder, run_command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    status, _, errors = run_command("vectors", "-", "--embedding", CHECKPOINT, "--out", "v.npz")
    assert status == 1 and "error: -: " in errors and not Path("v.npz").exists()


def test_command_line(folder, run_command):
    command = ("vectors", "photos", "--embedding", CHECKPOINT, "--out")
    status, output, errors = run_command(*command, "out/v.safetensors")
    assert status == 0 and errors == ""
    expected = "out/v.safetensors written: 12 vectors; next: pipeline search IMAGE... --within"
    assert output.startswith(expected)
    assert [path.name for path in Path("out").iterdir()] == ["v.safetensors"]
    status, _, errors = run_command(*command, "v.bin")
    assert status == 1 and ".npz" in errors
    status, _, errors = run_command(*command, "v.npz", "--classifier", "c.safetensors")
    assert status == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("ending", ["safetensors", "csv"])
@pytest.mark.slow
def test_interrupted_command_leaves_nothing(folder, number, ending):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save("photos/large.png")
    names = "photos/large.png\n" * 3000
    Path("list.txt").write_text(names)
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "pipeline", "vectors", "-", "--embedding", CHECKPOINT]
    out = folder / "new" / f"v.{ending}"
    with open("list.txt") as stdin:
        process = subprocess.Popen(
            [*command, "--out", out], env=ENVIRONMENT, stdin=stdin, stderr=subprocess.PIPE
        )
    while not out.parent.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(getattr(signal, number))
    errors = process.communicate(timeout=20)[1].decode()
    if number == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
        embed("photos/a", out=str(out))  # the next run removes what is left
        assert [path.name for path in out.parent.iterdir()] == [out.name]
    else:
        assert process.returncode == 130 and errors.strip() == "interrupted"
        assert sorted(folder.rglob("*")) == before


def run_rank(rank: int, port: int, folder: Path) -> None:
    """Embed in one of two processes."""
    os.chdir(folder)
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = "2"
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    context = replace(QUIET, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        decoded: list[int] = []
        decode = "pipeline.image_vectors._decode"
        from pipeline.image_vectors import _decode

        def count_and_decode(paths, read):
            decoded.append(len(paths))
            return _decode(paths, read)

        patch.setattr(decode, count_and_decode)
        if rank == 1:
            patch.setattr("pipeline.commands.vectors.write_vectors", lambda *_: pytest.fail())
        assert embed("many", out="two.npz", context=context) == 298
        assert Path("two.npz").is_file()  # complete before any process returns
        assert sum(decoded) == (172, 128)[rank]  # blocks of 128 each, the last one smaller
    with pytest.raises(PipelineError, match=r"^two\.npz: exists"):
        embed("many", out="two.npz", context=context)
    with pytest.raises(PipelineError, match=r"^-: .*several processes"):
        embed("-", out="new.npz", context=context)
    with pytest.raises(DataError, match=r"^empty: contains no image"):
        embed("empty", out="new.npz", context=context)
    with pytest.raises(PipelineError, match="images: differs between processes"):
        embed(f"rank{rank}", out="new.npz", context=context)
    assert not Path("new.npz").exists()
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr("pipeline.image_vectors._decode", lambda *_: os._exit(3))
        with pytest.raises(RuntimeError) as lost:
            embed("many", out="new.npz", context=context)
    assert is_lost_process(lost.value)
    assert not Path("new.npz").exists()


def test_two_processes_share_the_work(folder, warm_processes):
    write_random_images(folder / "many" / "x", 300)
    for row in (0, 299):
        (folder / "many" / "x" / f"{row:05}.png").write_bytes(b"no image")
    Path("empty").mkdir()
    write_random_images(folder / "rank0", 2)
    write_random_images(folder / "rank1", 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        warm_processes.Process(target=run_rank, args=(rank, port, folder)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 3]
    embed("many", out="one.npz")
    one, two = read_npz("one.npz"), read_npz("two.npz")
    assert one["ids"].tolist() == two["ids"].tolist() and len(one["ids"]) == 298
    assert one["labels"].tolist() == two["labels"].tolist() == ["x"] * 298
    np.testing.assert_allclose(one["vectors"], two["vectors"], atol=1e-6)


@pytest.mark.slow
def test_an_error_of_the_writing_process_is_reported_once(folder):
    """torchrun's processes end with the message of the first one."""
    write_random_images(folder / "many", 300)
    Path("many/caf\udce9.png").write_bytes(Path("many/00000.png").read_bytes())
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m")
    options = ("--embedding", CHECKPOINT, "--quiet", "--out")
    result = run("many", *options, "v.parquet", launcher=launcher)
    assert result.returncode == 1
    assert len(re.findall(r"v\.parquet: the file name", result.stderr.decode())) == 1
    assert not Path("v.parquet").exists()
    result = run("many", *options, "v.npz", launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().startswith("v.npz written: 301 vectors")
    assert result.stdout.count(b"written") == 1
