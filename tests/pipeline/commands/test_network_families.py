"""One small member of each family of networks in all commands, with random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import QUIET
from library_networks import library_settings
from PIL import Image

from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.predict import predict
from pipeline.commands.report import evaluate_run, report
from pipeline.context import RunContext
from pipeline.tensor_files import read_header
from stages.settings import ClassifySettings, ReadSettings

slow = pytest.mark.slow
SPEAKING = replace(QUIET, quiet=False)


def make_photos(root: Path) -> None:
    generator = np.random.default_rng(0)
    for name, tint in (("day", 120), ("night", 0)):
        (root / name).mkdir(parents=True)
        for index in range(5):
            pixels = generator.integers(0, 90, (40, 50, 3), dtype=np.uint8) + np.uint8(tint)
            Image.fromarray(pixels).save(root / name / f"{index}.png")


def run_commands(
    name: str, size: int, folder: Path, context: RunContext = QUIET
) -> tuple[Path, Path]:
    """Train both stages on photos, evaluate and predict; return the paths of both checkpoints."""
    make_photos(folder / "photos")
    settings = library_settings(name, trunk="frozen", epochs=2)
    read = ReadSettings(size=size, val=0.2)
    source = str(folder / "photos")
    embedding, classifier = folder / "e.safetensors", folder / "c.safetensors"
    embed(source, read, settings, out=embedding, context=context)
    classify(embedding, ClassifySettings(), out=classifier, context=context)
    run = evaluate_run("run", embedding, classifier, context=context)
    assert run.evaluation.score("classification_accuracy").count == 2
    photos = folder / "photos"
    predict([photos], classifier, out=folder / "p.csv", as_json=False, context=context)
    assert len((folder / "p.csv").read_text().splitlines()) == 11
    return embedding, classifier


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [
        ("timm:test_convnext", 32, 32),
        ("timm:test_efficientnet", 32, 32),
        ("timm:test_resnet", 32, 32),
        pytest.param("timm:mobilenetv3_small_050", 32, 32, marks=slow),
        ("timm:test_vit3", 33, 48),  # attention pooling, as SigLIP
        pytest.param("timm:vit_small_patch14_dinov2", 28, 42, marks=slow),
        pytest.param("timm:vit_tiny_patch16_dinov3_qkvb", 32, 32, marks=slow),
        pytest.param("timm:vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", 32, 32, marks=slow),
        pytest.param("timm:eva02_tiny_patch14_224", 42, 42, marks=slow),
        pytest.param("timm:swin_tiny_patch4_window7_224", 32, 32, marks=slow),
        pytest.param("torchvision:vit_b_32", 32, 32, marks=slow),
    ],
)
def test_family_in_every_command(name, size, side, tmp_path):
    embedding, classifier = run_commands(name, size, tmp_path)
    for path in (embedding, classifier):
        assert read_header(path).record["network"]["side"] == side


@slow
def test_report_and_note_on_enlarged_images(tmp_path, capsys):
    embedding, classifier = run_commands("timm:test_vit", 40, tmp_path, context=SPEAKING)
    assert capsys.readouterr().err.count("images are enlarged from 40 to 48") == 1
    report(embedding, classifier, out=tmp_path / "reports", context=QUIET)
    assert (tmp_path / "reports" / "report.html").is_file()
