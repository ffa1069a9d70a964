"""The report on unseen classes and unknown images, from files to files."""

import csv
import html
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUIET
from sample_sources import write_splits
from short_reports import QUICK, Report, train_and_report
from sklearn.metrics import average_precision_score, pairwise_distances, roc_auc_score

from pipeline.commands.report import report
from pipeline.commands.run import run
from pipeline.report.summary import verdicts
from pipeline.report.tables import text_table
from stages.settings import REJECT, ClassifySettings, ReadSettings

KNOWN = ("ash", "<i>birch", "=cedar")
UNSEEN = ("<b>oak", "pine&", "yew")
RETRIEVAL = [
    *("triplet_accuracy", "precision_at_1", "recall_at_2", "recall_at_4", "recall_at_8"),
    *("r_precision", "map_at_r", "mean_average_precision"),
]
VERIFICATION = ["verification_auc", "equal_error_rate", "tar_at_far_0.01", "tar_at_far_0.001"]
UNKNOWN = ["unknown_auroc", "unknown_fpr_at_95_tpr", "rejection_rate_unknown"]
COMPARED = ("precision_at_1", "map_at_r", "verification_auc")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Report:
    """A report on three known classes and three unseen ones."""
    root = tmp_path_factory.mktemp("unseen")
    splits = {
        "train": dict.fromkeys(KNOWN, 8),
        "val": dict.fromkeys(KNOWN, 8),
        "test": dict.fromkeys(KNOWN, 5) | dict.fromkeys(UNSEEN, 4),
    }
    source = write_splits(root / "photos", splits, noise=120)
    return train_and_report(source, root / "out")


@pytest.fixture(autouse=True)
def _without_rendering(monkeypatch):
    """Leave out the figures of pages except in `written`: they take most of the time."""
    monkeypatch.setattr("pipeline.report.page.inline_svg", lambda *_: "<svg></svg>")


def test_a_sample_of_test_images_queries_all_of_them(written, tmp_path):
    """Two runs: the second one reuses the images of the first, and draws the same ones."""
    paths = [written.folder / "e.safetensors"] * 2, [written.folder / "c.safetensors"] * 2
    runs = report(*paths, out=tmp_path, context=QUIET, queries=6)
    sampled = Report(tmp_path, written.source)
    table = sampled.scores("test")
    for metric in ("knn_accuracy", "classification_accuracy", "precision_at_1", "map_at_r"):
        assert set(table["count"][metric]) == {6}
        assert (
            table["definition"][metric].str.contains("6 of 15 test images, drawn at random").all()
        )
    assert "These are 6 of 15 test images, drawn at random" in sampled.page()
    vectors, labels, ids = written.vectors("test")
    everything = [label in KNOWN for label in labels]
    vectors, labels, ids = vectors[everything], labels[everything], np.array(ids)[everything]
    assert len(runs[0].images) == 6 and runs[0].images.ids == runs[1].images.ids
    precision = []
    for image in runs[0].images.ids:
        (row,) = np.flatnonzero(ids == image)
        similarity = vectors[row] @ vectors.T
        similarity[row] = -np.inf
        precision.append(labels[similarity.argmax()] == labels[row])
    assert runs[0].evaluation.score("precision_at_1").value == pytest.approx(np.mean(precision))
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    known = predictions[predictions["split"] == "test"]
    assert len(known) == 12 and set(known["id"]) == set(runs[0].images.ids)
    assert (predictions["split"] == "test-unseen").sum() == 24  # all of them, in both runs


def test_a_sample_of_all_images_changes_nothing(written, tmp_path):
    paths = written.folder / "e.safetensors", written.folder / "c.safetensors"
    report(*paths, out=tmp_path, context=QUIET, queries=15)
    name = "accuracy.csv"
    assert (tmp_path / name).read_bytes() == (written.folder / name).read_bytes()


def test_accuracy_has_every_metric_of_unseen_and_unknown_images(written):
    table = written.scores()
    baselines = [f"{name}_{metric}" for name in ("pixel", "untrained") for metric in COMPARED]
    assert set(table.index) >= {*RETRIEVAL, *VERIFICATION, *UNKNOWN, *baselines}
    for metric in ("classification_accuracy", "knn_accuracy"):
        assert np.isnan(table["value"][metric]) and table["count"][metric] == 0
    defined = table.drop(["classification_accuracy", "knn_accuracy"])
    assert defined["value"].between(0, 1).all() and (defined["count"] > 0).all()
    assert (defined["ci_low"] <= defined["value"]).all()
    assert (defined["value"] <= defined["ci_high"]).all()
    assert table["count"]["verification_auc"] == 12 * 11 / 2
    assert table["definition"].str.len().gt(10).all()
    known = written.scores("test")["count"]
    assert known["rejection_rate_known"] == 15
    assert "rejection_rate_unknown" not in known and "unknown_auroc" not in known


def test_values_equal_those_of_scikit_learn(written):
    table = written.scores()["value"]
    vectors, labels, _ = written.vectors("test")
    train, validation = written.vectors("train")[0], written.vectors("val")[0]
    is_unseen = np.isin(labels, UNSEEN)
    unseen, names = vectors[is_unseen], labels[is_unseen]
    distances = pairwise_distances(unseen)
    same = names[:, None] == names
    others = ~np.eye(len(names), dtype=bool)
    nearest = np.where(others, distances, np.inf).argmin(axis=1)
    recall = (names[nearest] == names).mean()
    assert 0 < recall < 1
    pairs = np.triu_indices(len(names), 1)
    precisions = [
        average_precision_score(same[row][others[row]], -distances[row][others[row]])
        for row in range(len(names))
    ]
    to_train = pairwise_distances(vectors, train).min(axis=1)
    calibration = pairwise_distances(validation, train).min(axis=1)
    farther = (calibration >= to_train[:, None] - 1e-6).sum(axis=1)
    rejected = (1 + farther) / (1 + len(calibration)) < REJECT
    expected = {
        "precision_at_1": recall,
        "verification_auc": roc_auc_score(same[pairs], -distances[pairs]),
        "mean_average_precision": np.mean(precisions),
        "unknown_auroc": roc_auc_score(~is_unseen, -to_train),
        "rejection_rate_unknown": rejected[is_unseen].mean(),
    }
    for metric, value in expected.items():
        assert table[metric] == pytest.approx(value, abs=1e-6), metric
    known = written.scores("test")["value"]["rejection_rate_known"]
    assert known == pytest.approx(rejected[~is_unseen].mean(), abs=1e-6)


def test_predictions_have_one_row_per_test_image_and_equal_predict(written, run_command):
    table = pd.read_csv(written.folder / "predictions.csv", dtype=str)
    ids = written.vectors("test")[2]
    assert sorted(table["id"]) == ids and len(table) == 27
    parts = [name.split("/")[1] in UNSEEN for name in table["id"]]
    assert list(table["split"] == "test-unseen") == parts
    paths = [written.source / name for name in table["id"]]
    command = ("predict", *paths, "--classifier", written.folder / "c.safetensors")
    status, out, errors = run_command(*command)
    assert status == 0, errors
    for row, predicted in zip(
        table.to_dict("records"), csv.DictReader(out.splitlines()), strict=True
    ):
        assert float(row["typicality"]) == pytest.approx(float(predicted["typicality"]), abs=1e-6)
        assert row["known"] == predicted["known"]
        assert row["classifier_label"] == predicted["label"]
        assert row["knn_label"] == predicted["knn_label"]
    assert set(table["known"]) == {"true", "false"}


def test_page_has_the_sections_and_escapes_names(written):
    page = written.page()
    for title in ("Classes that were not trained on", "Unknown images", "Scores by class"):
        assert f">{title}</h2>" in page
    for name in (*KNOWN, *UNSEEN):
        assert html.escape(name) in page
    assert "<b>oak" not in page and "<i>birch" not in page
    assert "12 test images of 3 classes without a training image" in page
    for name in ("roc", "unknown"):
        assert (written.folder / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        assert (written.folder / "figures" / f"{name}.png").stat().st_size > 1000


def test_source_may_have_moved(written, tmp_path, run_command):
    moved = shutil.copytree(written.source, tmp_path / "moved")
    shutil.copytree(written.folder, tmp_path / "copy")
    command = ("report", "--embedding", "copy/e.safetensors", "--classifier", "copy/c.safetensors")
    status, _, errors = run_command(*command, "--data", moved, "--out", "copy")
    assert status == 0, errors
    for name in ("accuracy.csv", "predictions.csv"):
        first = (written.folder / name).read_bytes()
        assert (tmp_path / "copy" / name).read_bytes() == first
    (moved / "test" / "yew" / "0.png").unlink()
    status, _, errors = run_command(*command, "--data", moved, "--out", "copy")
    assert status == 1 and "moved" in errors


def test_runs_with_and_without_unseen_classes_share_a_report(written, tmp_path):
    shutil.copytree(written.source, tmp_path / "photos")
    for name in UNSEEN:
        shutil.rmtree(tmp_path / "photos" / "test" / name)
    plain = train_and_report(tmp_path / "photos", tmp_path / "plain")
    order = (plain.folder, written.folder)
    files = ([folder / f"{kind}.safetensors" for folder in order] for kind in "ec")
    runs = report(*files, out=tmp_path / "both", context=QUIET)
    both = Report(tmp_path / "both", tmp_path)
    assert set(both.scores()["run"]) == {"out/e"}
    page = both.page()
    assert page.count(">Classes that were not trained on</h3>") == 1
    assert page.count(">Unknown images</h3>") == 2
    for shown in (runs, runs[::-1]):
        lines = text_table(shown).splitlines()
        recall = next(line for line in lines if line.startswith("Recall@2, unseen classes"))
        measured = [value != "-" for value in recall.split()[-2:]]
        assert measured == [run.run == "out/e" for run in shown]
    counts = pd.read_csv(both.folder / "predictions.csv")["run"].value_counts()
    assert counts.to_dict() == {"plain/e": 15, "out/e": 27}
    assert any("cannot be compared" in line for line in verdicts(runs))


def test_seeds_with_unseen_classes_are_averaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write_splits(Path("photos"), {"": dict.fromkeys("abcdef", 8)}, noise=180)
    settings = ReadSettings(unseen_classes=2), QUICK, ClassifySettings()
    files = {"embedding": Path("e.safetensors"), "classifier": Path("c.safetensors")}
    runs = run(str(source), *settings, **files, out=Path(), context=QUIET, seeds=(0, 1))
    table = pd.read_csv("accuracy.csv").set_index(["run", "metric", "split"])["value"]
    for metric in ("precision_at_1", "unknown_auroc", "verification_auc"):
        values = [table[f"seed-{seed}", metric, "test-unseen"] for seed in (0, 1)]
        mean = table["mean", metric, "test-unseen"]
        assert mean == pytest.approx(np.mean(values), abs=1e-6)
        deviation = table["std", metric, "test-unseen"]
        assert deviation == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    assert np.isnan(table["mean", "knn_accuracy", "test-unseen"])
    assert runs[0].data.unseen.classes == runs[1].data.unseen.classes
    assert text_table(runs, pooled=True)
    assert "Recall@1 (= precision@1), unseen classes" in verdicts(runs, pooled=True)[0]


def test_runs_without_known_test_images_are_summarized_by_unseen_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 6, "elm": 6}, "test": dict.fromkeys(("oak", "yew", "fir"), 3)}
    source = write_splits(Path("photos"), splits, noise=120)
    settings = ReadSettings(), QUICK, ClassifySettings()
    files = {"embedding": Path("e.safetensors"), "classifier": Path("c.safetensors")}
    runs = run(str(source), *settings, **files, out=Path(), context=QUIET, seeds=(0, 1))
    first = verdicts(runs, pooled=True)[0]
    assert first.startswith("Mean") and "unseen classes" in first and "accuracy" not in first
    assert "\u2013 \u00b1 \u2013" not in first
    page = Report(Path(), source).page()
    assert "<td>Recall@2, unseen classes</td>" in page and "Significance tests" not in page
    assert "All scores are measured on the same test images" not in page
    lines = verdicts(runs)  # as for two separate embeddings
    assert not [line for line in lines if "undefined" in line or "compared with seed" in line]
