"""`pipeline predict` as part of other programs: a stream of paths, and a fast start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import make_gallery, make_validation, write_file
from factories import make_record
from PIL import Image

from pipeline.checkpoint import save_classifier
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PIPE = subprocess.PIPE


@pytest.fixture
def process(tmp_path):
    """Start `predict` with paths on standard input, in a folder with an image, ``new.png``."""
    write_file("classifier", tmp_path / "c.safetensors")
    Image.new("L", (8, 8)).save(tmp_path / "new.png")
    command = [sys.executable, "-m", "pipeline", "predict", "-", "--classifier", "c.safetensors"]
    streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, bufsize=0, **streams) as process:
        yield process
        process.kill()


def test_rows_are_written_while_the_producer_runs(process):
    # Each read would wait forever if the program waited for 128 paths or for the end.
    process.stdin.write(b"new.png\n")
    assert process.stdout.readline().startswith(b"path,")
    row = process.stdout.readline()
    assert row.startswith(b"new.png,") and b",," not in row
    assert process.stderr.readline().startswith(b"note: no image is rejected")
    process.stdin.write(b"missing.png\n")
    assert process.stderr.readline().startswith(b"skipped: missing.png: ")
    assert process.stdout.readline() == b"missing.png,,,,,,,\n"
    process.stdin.write(b"new.png")  # the last line needs no line break
    process.stdin.close()
    assert process.stdout.readline() == row
    assert b"missing.png: " in process.stderr.read() and process.wait() == 1


def test_an_interrupt_keeps_the_rows(process):
    process.stdin.write(b"new.png\n")
    process.stdout.readline()
    assert process.stdout.readline().startswith(b"new.png,")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and process.stdout.read() == b""
    assert process.stderr.read().splitlines()[-1] == b"interrupted"


# Each takes a tenth of a second or more to import, and one image needs none of them.
SLOW_TO_IMPORT = {
    *("pandas", "scipy", "sklearn", "matplotlib", "bokeh", "jinja2", "joblib", "sympy"),
    *("torchvision", "timm", "torch._dynamo", "torch._inductor", "torch.distributed.nn.functional"),
    *("onnx", "onnxruntime", "onnxscript", "pyarrow", "multiprocessing.pool"),
}
IMPORTED = """
import sys
from pipeline.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
print(*sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("command, option", [("predict", "--classifier"), ("search", "--within")])
@pytest.mark.parametrize("channels", [1, 3])
def test_only_what_one_image_needs_is_imported(tmp_path, command, option, channels):
    network, path = EmbeddingNet(channels, 8, 8), tmp_path / "classifier.safetensors"
    record = make_record("classifier", network)
    head, gallery, validation = Head(8, 2), make_gallery(), make_validation()
    save_classifier(path, network, head, gallery, record, validation=validation)
    Image.new("RGB", (8, 8)).save(tmp_path / "new.png")
    result = subprocess.run(
        [sys.executable, "-c", IMPORTED, command, "new.png", option, path.name],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    imported = set(result.stderr.splitlines()[-1].split())
    assert "new.png" in result.stdout and {"torch", "PIL"} <= imported
    assert not SLOW_TO_IMPORT & imported
