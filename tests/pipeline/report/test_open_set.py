"""Unseen classes and unknown images in unusual reports: few images, roles, folds, copies."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories import QUIET
from library_networks import library_settings, save_small_weights
from sample_sources import write_splits
from short_reports import QUICK, Report, run_once

from pipeline.commands.folds import run_folds
from pipeline.commands.run import run
from pipeline.report.summary import verdicts
from pipeline.report.tables import text_table
from stages.settings import REJECT, ClassifySettings, ReadSettings

COMPARED = ("precision_at_1", "map_at_r", "verification_auc")


@pytest.fixture(autouse=True)
def _without_rendering(monkeypatch):
    """Leave out the figures of the pages: they take most of the time."""
    monkeypatch.setattr("pipeline.report.page.inline_svg", lambda *_: "<svg></svg>")


@pytest.mark.parametrize(
    ("known", "unseen", "retrieval"),
    [
        ({}, {"oak": 3, "yew": 3}, True),  # as in CUB-200-2011
        ({"ash": 3, "elm": 2}, {"oak": 4}, False),
        ({"ash": 3}, {"oak": 1, "yew": 1}, False),
        ({}, {"oak": 1}, False),
    ],
)
def test_degenerate_unseen_classes_are_reported(tmp_path, monkeypatch, known, unseen, retrieval):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 6, "elm": 6}, "test": {**known, **unseen}}
    evaluated = run_once(write_splits(Path("photos"), splits))
    written = Report(Path(), Path("photos"))
    table, test = written.scores(), written.scores("test")
    # A ranking needs another image of the class, and an image of another class.
    images = sum(unseen.values()) if retrieval else 0
    assert table["count"]["precision_at_1"] == images
    assert (table["count"]["verification_auc"] > 0) == retrieval
    assert table["count"]["rejection_rate_unknown"] == sum(unseen.values())
    assert (table["count"]["unknown_auroc"] > 0) == bool(known)
    if not known:
        assert test["value"].isna().all() and (test["count"] == 0).all()
    assert len(pd.read_csv("predictions.csv")) == sum(known.values()) + sum(unseen.values())
    page, lines = written.page(), verdicts([evaluated])
    assert ("Scores by class" in page) == bool(known)
    assert ("Verification: do two images" in page) == retrieval
    text = " ".join(lines)
    assert ("Classification accuracy" in text) == bool(known)
    assert ("cannot be measured" in text) != retrieval
    assert "No image can be rejected as unknown with 2 validation images" in text
    assert "nan" not in text and "None" not in text
    assert not [word for word in ("1 images", "1 classes") if word in text + page]
    assert text_table([evaluated])


def test_queries_search_the_gallery_of_unseen_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 8, "elm": 8}, "test": {"ash": 3, "oak": 4, "yew": 4, "fir": 1}}
    write_splits(Path("photos"), splits, noise=150)
    rows = ["path,label,split,role"]
    for path in sorted(Path("photos").rglob("*.png")):
        _, split, label, name = path.parts
        role = "" if split == "train" else ("gallery" if name in ("2.png", "3.png") else "query")
        rows.append(f"{path},{label},{split},{role}")
    Path("list.csv").write_text("\n".join(rows))
    evaluated = run_once(Path("list.csv"))
    written = Report(Path(), Path("photos"))
    table = written.scores()
    assert table["count"]["precision_at_1"] == 4  # fir has no gallery image
    assert table["count"]["verification_auc"] == 5 * 4
    assert table["count"]["rejection_rate_unknown"] == 9
    page = written.page()
    assert "Each query searches the gallery images" in page and "Each image searches" not in page
    assert "5 queries" in page
    assert evaluated.evaluation.unseen.neighbours.shape == (9, 4)


@pytest.mark.parametrize(
    ("share", "sentence"), [(0, "there are none"), (0.2, "needs at least 20 validation images")]
)
def test_few_validation_images_are_explained(tmp_path, monkeypatch, share, sentence):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 9, "elm": 9, "lone": 1}, "test": {"ash": 3, "elm": 3, "oak": 3}}
    source = write_splits(Path("photos"), splits)
    evaluated = run_once(source, ReadSettings(val=share))
    written = Report(Path(), source)
    rejected = written.scores()["value"]["rejection_rate_unknown"]
    assert np.isnan(rejected) if share == 0 else rejected == 0
    assert sentence in written.page()
    count = evaluated.embedding["counts"]["val"]
    text = " ".join(verdicts([evaluated]))
    assert f"rejected as unknown with {count} validation images: that needs 20" in text
    assert "AUROC" in text
    assert set(pd.read_csv("predictions.csv")["known"]) == {True}


def test_folds_pool_rejections_and_have_no_unseen_classes(tmp_path):
    source = write_splits(tmp_path / "photos", {"": dict.fromkeys("abc", 32)}, noise=200)
    settings = ReadSettings(val=0.5), QUICK, ClassifySettings()
    (pooled,) = run_folds(str(source), *settings, folds=2, out=tmp_path, context=QUIET)
    assert "validation images of the fold" in Report(tmp_path, source).page()
    table = pd.read_csv(tmp_path / "accuracy.csv").set_index(["run", "metric", "split"])
    assert not (table.index.get_level_values("split") == "test-unseen").any()
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    for metric in ("rejection_rate_known", "left_out_auroc", "left_out_rejection_rate"):
        row = table.loc["pooled", metric, "test"]
        folds = [table.loc[f"fold-{fold}", metric, "test"] for fold in (1, 2)]
        assert row["count"] == sum(fold["count"] for fold in folds) == 96
        weighted = sum(fold["value"] * fold["count"] for fold in folds) / 96
        assert row["value"] == pytest.approx(weighted, abs=1e-6)
    rejected = predictions["typicality"] < REJECT
    assert table.loc["pooled", "rejection_rate_known", "test"]["value"] == pytest.approx(
        rejected.mean(), abs=1e-6
    )
    assert rejected.any()
    assert "Classes that were not trained on" not in Report(tmp_path, source).page()
    assert "unseen" not in " ".join(verdicts([pooled]))


def test_copies_of_training_images_among_unseen_classes_are_leaked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 8, "elm": 8}, "test": {"ash": 4, "elm": 4, "oak": 4, "yew": 4}}
    source = write_splits(Path("photos"), splits, noise=150)
    shutil.copy(source / "train" / "ash" / "0.png", source / "test" / "ash" / "0.png")
    shutil.copy(source / "train" / "elm" / "0.png", source / "test" / "oak" / "0.png")
    shutil.copy(source / "test" / "yew" / "0.png", source / "test" / "yew" / "1.png")
    run_once(source)
    written = Report(Path(), source)
    assert written.scores("test-without-duplicates")["count"]["knn_accuracy"] == 7
    assert written.scores()["count"]["precision_at_1"] == 8
    predictions = pd.read_csv("predictions.csv").set_index("id")
    assert predictions["nearest_id"]["test/oak/0.png"] == "train/elm/0.png"
    assert predictions["typicality"]["test/oak/0.png"] == 1
    page = written.page()
    assert "1 of the 8 test images" in page and "1 image of unseen classes also occurs" in page


def test_trunk_baselines_of_unseen_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {"train": {"ash": 4, "elm": 4}, "test": {"ash": 2, "fir": 2, "oak": 2, "yew": 2}}
    source = write_splits(Path("photos"), splits, colour=True)
    weights = save_small_weights(tmp_path)
    settings = library_settings(weights=str(weights), trunk="frozen")
    read = ReadSettings(size=32)
    files = {"embedding": Path("e.safetensors"), "classifier": Path("c.safetensors")}
    (evaluated,) = run(
        str(source), read, settings, ClassifySettings(), **files, out=Path(), context=QUIET
    )
    table = Report(Path(), source).scores()
    for metric in COMPARED:
        assert table["count"][f"trunk_{metric}"] == table["count"][metric] > 0
        paired = evaluated.evaluation.paired_test(metric, f"trunk_{metric}", "test-unseen")
        difference = table["value"][metric] - table["value"][f"trunk_{metric}"]
        assert paired.difference == pytest.approx(difference, abs=2e-6)
    assert '<th class="number">trunk</th>' in Report(Path(), source).page()
