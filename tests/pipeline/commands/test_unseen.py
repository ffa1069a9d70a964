"""The stages on data with classes that are tested but not trained on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.checkpoint import load_classifier
from pipeline.tensor_files import read_header

EMBEDDING = Path("checkpoints/embedding.safetensors")
CLASSIFIER = Path("checkpoints/classifier.safetensors")
QUICK = ("--epochs", 3, "--dim", 8, "--precision", "fp32", "--threads", 1, "--device", "cpu")


@pytest.fixture
def many_classes(tmp_path) -> Path:
    """Write 26 classes with 6 small images each."""
    generator = np.random.default_rng(0)
    for label in range(26):
        pattern = generator.integers(0, 200, (8, 8))
        folder = tmp_path / "photos" / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = (pattern + generator.integers(0, 50, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def test_stages_hold_out_classes(run_command, many_classes):
    source = ("--data", many_classes, "--unseen-classes", 4)
    status, out, _ = run_command("data", many_classes, "--unseen-classes", 4, "--json")
    audit = json.loads(out)
    unseen, held_out = audit["unseen_classes"], audit["held_out_classes"]
    assert (
        status == 0 and (len(unseen), len(held_out)) == (4, 4) and not set(unseen) & set(held_out)
    )
    assert all(audit["classes"][label] == {"train": 0, "val": 0, "test": 6} for label in unseen)

    status, out, errors = run_command("embed", *source, *QUICK)
    assert status == 0 and "unseen: 4 classes" in out + errors and "24 test images" in out + errors
    assert "held out to choose the epoch: 4 classes" in out + errors and "recall@1" in out + errors
    record = read_header(EMBEDDING).record
    assert record["held_out_classes"] == held_out and record["read"]["unseen_classes"] == 4
    assert record["unseen"] == {"classes": unseen, "images": 24}
    assert set(record["classes"]) == set(audit["classes"]) - set(unseen)
    recalls = [log["val_recall"] for log in record["history"]]
    assert recalls[record["epoch"] - 1] == max(recalls)
    history = pd.read_csv("checkpoints/embedding.history.csv")
    assert list(history.columns)[-2:] == ["images_per_second", "val_recall"]

    status, out, errors = run_command("embed", *source, *QUICK, "--resume")
    assert status == 0 and "nothing to resume" in out + errors
    assert run_command("classify", "--threads", 1)[0] == 0
    classifier = load_classifier(CLASSIFIER)
    assert classifier.classes == tuple(record["classes"])
    names = {classifier.classes[label] for label in classifier.gallery.labels.tolist()}
    assert names >= set(held_out)  # they belong to the gallery and the head
    assert classifier.record["unseen"] == record["unseen"]
    assert run_command("report", "--threads", 1)[0] == 0
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "the latest one whose recall@1 on 4 held-out classes is not clearly below" in page


def test_unseen_classes_change_no_weights_by_themselves(run_command, many_classes):
    """Test images of unseen classes alone, below the limit for held-out classes."""
    root = many_classes.parent / "split"
    for label in range(5):
        (root / "train").mkdir(parents=True, exist_ok=True)
        (many_classes / f"class-{label}").rename(root / "train" / f"class-{label}")
    digests = []
    for name in ("class-20", "class-21", ""):
        status, _, errors = run_command("embed", "--data", root, *QUICK, "--test", 0, "--force")
        assert status == 0, errors
        digests.append(read_header(EMBEDDING).digest)
        if name:
            (root / "test").mkdir(exist_ok=True)
            (many_classes / name).rename(root / "test" / name)
    assert len(set(digests)) == 1
    status, out, errors = run_command("run", "--data", root, *QUICK, "--test", 0, "--force")
    assert status == 0 and "that were not trained on" in out
    assert not {"class-20", "class-21"} & set(load_classifier(CLASSIFIER).classes)


def test_folds_do_not_hold_out_classes(run_command, many_classes, tmp_path):
    folds = ("run", "--data", many_classes, "--folds", 2)
    status, _, errors = run_command(*folds, "--unseen-classes", 3)
    assert status == 2 and "--unseen-classes" in errors
    config = tmp_path / "settings.toml"
    config.write_text("[embed]\nunseen-classes = 0.5\n")
    status, _, errors = run_command("--config", config, *folds)
    assert status == 1 and "--unseen-classes 0.5" in errors
