"""`pipeline predict`: paths on standard input, and what a first row waits for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import make_gallery, make_validation
from factories import QUIET, TINY, make_record
from PIL import Image

from pipeline.checkpoint import save_classifier
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.settings import ClassifySettings, ReadSettings

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Train on a folder of digits."""
    root = tmp_path_factory.mktemp("run")
    for index, (image, label) in enumerate(zip(digits[0][:400], digits[1], strict=False)):
        path = root / "elsewhere" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    photos = str(root / "elsewhere")
    embedding = embed(photos, ReadSettings(), TINY, out=root / "e.safetensors", context=QUIET)
    classify(embedding, ClassifySettings(), out=root / "c.safetensors", context=QUIET)
    return root


@pytest.fixture
def classifier(trained) -> Path:
    return trained / "c.safetensors"


def test_paths_are_read_from_standard_input(trained, classifier, tmp_path):
    good = next((trained / "elsewhere" / "3").iterdir())
    command = [sys.executable, "-m", "pipeline", "predict", "-", "--classifier", str(classifier)]
    lines = f"{good}\nmissing.png\n".encode()
    result = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, input=lines, capture_output=True
    )
    assert result.returncode == 1 and result.stdout.splitlines()[2] == b"missing.png,,,,,,,"


def start_stream(classifier: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start `predict` with paths on standard input."""
    command = [sys.executable, "-m", "pipeline", "predict", "-", "--classifier", str(classifier)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
    )


def test_rows_are_written_while_the_producer_runs(trained, classifier, tmp_path):
    good = str(next((trained / "elsewhere" / "3").iterdir())).encode()
    with start_stream(classifier, tmp_path) as process:
        # Each read would wait forever if the program waited for 128 paths or for the end.
        process.stdin.write(good + b"\n")
        assert process.stdout.readline().startswith(b"path,")
        assert process.stdout.readline().startswith(good + b",3,")
        process.stdin.write(b"missing.png\n")
        assert process.stderr.readline().startswith(b"skipped: missing.png: ")
        assert process.stdout.readline() == b"missing.png,,,,,,,\n"
        process.stdin.write(good)  # the last line needs no line break
        process.stdin.close()
        assert process.stdout.readline().startswith(good + b",3,")
        assert b"missing.png: " in process.stderr.read() and process.wait() == 1


def test_interrupt_of_a_stream_keeps_the_rows(trained, classifier, tmp_path):
    good = str(next((trained / "elsewhere" / "3").iterdir())).encode()
    with start_stream(classifier, tmp_path) as process:
        process.stdin.write(good + b"\n")
        process.stdout.readline()
        row = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130 and row.startswith(good)
        assert process.stderr.read().strip() == b"interrupted" and process.stdout.read() == b""


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


@pytest.mark.parametrize("command, option", [("predict", "--classifier")])
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
