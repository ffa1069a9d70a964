"""The report on a classifier with enrolled images."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from enrolled_files import OLD, enrol, train_on_old_classes
from factories import QUIET
from PIL import Image

from pipeline.commands.report import report
from pipeline.report.summary import verdicts
from stages.settings import REJECT


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return train_on_old_classes(tmp_path_factory.mktemp("enroll"))


@pytest.fixture(autouse=True)
def _without_rendering(monkeypatch):
    monkeypatch.setattr("pipeline.report.page.inline_svg", lambda *_: "<svg></svg>")


@pytest.fixture(scope="module")
def enrolled_report(workspace, tmp_path_factory) -> tuple[Path, Path]:
    """A report on a classifier in which one of two unseen classes and a test image are enrolled."""
    root = tmp_path_factory.mktemp("report")
    first, second = root / "1.safetensors", root / "2.safetensors"
    shutil.copytree(workspace / "pool" / "oak", root / "one" / "oak")
    (root / "two" / "ash").mkdir(parents=True)
    shutil.copy(workspace / "photos" / "test" / "ash" / "2.png", root / "two" / "ash")
    shutil.copytree(workspace / "pool" / "birch", root / "two" / "birch")
    (root / "two" / "oak").mkdir()
    shutil.copy(workspace / "photos" / "test" / "oak" / "0.png", root / "two" / "oak")
    enrol(root / "one", workspace / "c.safetensors", first)
    enrol(root / "two", first, second)
    return root, second


def test_report_states_what_was_enrolled(workspace, enrolled_report):
    root, classifier = enrolled_report
    runs = report(workspace / "e.safetensors", classifier, out=root / "r", context=QUIET)
    scores = pd.read_csv(root / "r" / "accuracy.csv").set_index(["metric", "split"])
    predictions = pd.read_csv(root / "r" / "predictions.csv")
    split = predictions["split"].value_counts().to_dict()
    assert split == {"test": 15, "test-enrolled": 6, "test-unseen": 6}
    assert set(predictions[predictions["split"] == "test-enrolled"]["label"]) == {"oak"}
    for metric, column in (
        ("knn_accuracy", "knn_label"), ("classification_accuracy", "classifier_label")
    ):  # fmt: skip
        for name in ("test", "test-enrolled"):
            rows = predictions[predictions["split"] == name]
            row = scores.loc[metric, name]
            assert row["value"] == pytest.approx((rows["label"] == rows[column]).mean(), abs=1e-6)
            assert row["count"] == len(rows) and row["ci_low"] <= row["value"] <= row["ci_high"]
        assert scores.loc[metric, "test-unseen"]["count"] == 0
    # Only yew is unknown; retrieval still has both classes.
    assert scores.loc["rejection_rate_unknown", "test-unseen"]["count"] == 6
    assert scores.loc["unknown_auroc", "test-unseen"]["count"] == 6
    assert scores.loc["precision_at_1", "test-unseen"]["count"] == 12
    for name in ("test", "test-enrolled"):
        row = scores.loc["rejection_rate_known", name]
        typical = predictions[predictions["split"] == name]["typicality"]
        assert row["value"] == pytest.approx((typical < REJECT).mean(), abs=1e-6)
        assert row["count"] == len(typical) and row["ci_low"] <= row["value"] <= row["ci_high"]
        assert "24 validation images" in row["definition"]
        assert "9 enrolled images of such classes" in row["definition"]
    assert "were enrolled later" in row["definition"]
    classes = pd.read_csv(root / "r" / "classes.csv")
    assert set(classes["class"]) == {*OLD, "oak"}
    assert classes[classes["class"] == "oak"]["count"].tolist() == [0, 0]
    # The enrolled test image of a known class is a duplicate.
    assert runs[0].evaluation.leaked == (2,) and runs[0].evaluation.enrolled_copies == 1
    assert scores.loc["knn_accuracy", "test-without-duplicates"]["count"] == 14
    page = (root / "r" / "report.html").read_text(encoding="utf-8")
    assert "9 enrolled images of such classes" in page and "so few cannot reject" in page
    for text in ("\n".join(verdicts(runs)), page):
        assert "8 images of 1 new class (oak)" in text and str(root / "one") in text
        assert "of 2 known classes" in text or "of 3 known classes" in text
        assert str(root / "two") in text
        assert "On 6 test images of enrolled classes" in text
        assert "copy of an enrolled image" in text and "or among the enrolled images" in text


def test_report_with_all_unseen_classes_enrolled(workspace, enrolled_report):
    root, classifier = enrolled_report
    out = root / "3.safetensors"
    shutil.copytree(workspace / "pool" / "yew", root / "three" / "YEW")
    enrol(root / "three", classifier, out)
    runs = report(
        [workspace / "e.safetensors"] * 2, [out, classifier], out=root / "r3", context=QUIET
    )
    scores = pd.read_csv(root / "r3" / "accuracy.csv")
    first = scores[scores["run"] == runs[0].run].set_index(["metric", "split"])
    assert ("unknown_auroc", "test-unseen") not in first.index
    assert ("rejection_rate_unknown", "test-unseen") not in first.index
    assert first.loc["knn_accuracy", "test-enrolled"]["count"] == 12
    second = scores[scores["run"] == runs[1].run].set_index(["metric", "split"])
    assert second.loc["knn_accuracy", "test-enrolled"]["count"] == 6
    assert runs[0].evaluation.unknown_prediction is None
    assert runs[0].test.classes == (*OLD, "oak", "YEW") and runs[1].test.classes == (*OLD, "oak")
    predictions = pd.read_csv(root / "r3" / "predictions.csv")
    rows = predictions[predictions["run"] == runs[0].run]
    assert set(rows["split"]) == {"test", "test-enrolled"}


def test_wrong_predictions_for_enrolled_classes_are_shown(workspace, tmp_path):
    """Test images that are predicted as an enrolled class appear on the page."""
    generator = np.random.default_rng(0)
    (tmp_path / "new" / "lookalike").mkdir(parents=True)
    for number in range(5):  # nearly the test images of ash
        with Image.open(workspace / "photos" / "test" / "ash" / f"{number}.png") as image:
            pixels = np.array(image)
        pixels = (pixels.astype(int) + generator.integers(-2, 3, pixels.shape)).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(
            tmp_path / "new" / "lookalike" / f"{number}.png"
        )
    out = tmp_path / "out.safetensors"
    enrol(tmp_path / "new", workspace / "c.safetensors", out)
    (run,) = report(workspace / "e.safetensors", out, out=tmp_path / "r", context=QUIET)
    predicted = run.evaluation.prediction.knn[run.test.labels.numpy() == 0]
    assert 3 in set(predicted.tolist())
    suspects = pd.read_csv(tmp_path / "r" / "suspects.csv")
    assert "lookalike" in set(suspects["suggested_label"])
    assert "lookalike" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
