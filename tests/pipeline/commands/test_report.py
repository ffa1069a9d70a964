"""The report on unseen classes and unknown images, from files to files."""

import csv
import html
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from factories import QUIET
from library_networks import library_settings, save_small_weights
from PIL import Image
from sample_sources import write_splits
from sklearn.metrics import average_precision_score, pairwise_distances, roc_auc_score

from pipeline.checkpoint import load_embedding
from pipeline.commands.classify import classify
from pipeline.commands.embed import embed
from pipeline.commands.folds import run_folds
from pipeline.commands.report import report
from pipeline.commands.run import run
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.summary import verdicts
from pipeline.report.tables import text_table
from stages.settings import REJECT, ClassifySettings, EmbedSettings, ReadSettings

QUICK = EmbedSettings(dim=8, epochs=2, augment=False)
KNOWN = ("ash", "<i>birch", "=cedar")
UNSEEN = ("<b>oak", "pine&", "yew")
RETRIEVAL = [
    *("triplet_accuracy", "precision_at_1", "recall_at_2", "recall_at_4", "recall_at_8"),
    *("r_precision", "map_at_r", "mean_average_precision"),
]
VERIFICATION = ["verification_auc", "equal_error_rate", "tar_at_far_0.01", "tar_at_far_0.001"]
UNKNOWN = ["unknown_auroc", "unknown_fpr_at_95_tpr", "rejection_rate_unknown"]
COMPARED = ("precision_at_1", "map_at_r", "verification_auc")


class Report(NamedTuple):
    """A report and its checkpoints in a folder, and the images they come from."""

    folder: Path
    source: Path

    def scores(self, split: str = "test-unseen") -> pd.DataFrame:
        table = pd.read_csv(self.folder / "accuracy.csv")
        return table[table["split"] == split].set_index("metric")

    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")

    def vectors(self, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Embed the files of a split: vectors, class names and ids."""
        files = sorted((self.source / split).rglob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
        with torch.no_grad():
            network = load_embedding(self.folder / "e.safetensors").network.eval()
            vectors = network(pixels[:, None])  # (N, 1, 8, 8)
        ids = [file.relative_to(self.source).as_posix() for file in files]
        return vectors.double().numpy(), np.array([file.parent.name for file in files]), ids


def train_and_report(
    source: Path, folder: Path, read: ReadSettings | None = None, **options: object
) -> Report:
    """Train both stages on files and write a report with figures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "e.safetensors", folder / "c.safetensors"
    embed(str(source), read or ReadSettings(), QUICK, out=paths[0], context=QUIET)
    classify(paths[0], ClassifySettings(), out=paths[1], context=QUIET)
    report(*paths, out=folder, context=QUIET, figures=folder / "figures", **options)
    return Report(folder, source)


def run_once(source: Path, read: ReadSettings | None = None, **options: object) -> EvaluatedRun:
    """Run all stages in the current folder and return the only run."""
    settings = read or ReadSettings(), QUICK, ClassifySettings()
    files = {"embedding": Path("e.safetensors"), "classifier": Path("c.safetensors")}
    (evaluated,) = run(str(source), *settings, **files, out=Path(), context=QUIET, **options)
    return evaluated


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Report:
    """A report on three known classes and three unseen ones."""
    root = tmp_path_factory.mktemp("unseen")
    splits = {
        "train": dict.fromkeys(KNOWN, 8),
        "val": dict.fromkeys(KNOWN, 8),
        "test": dict.fromkeys(KNOWN, 5) | dict.fromkeys(UNSEEN, 4),
    }
    source = write_splits(root / "photos", splits, noise=180)
    return train_and_report(source, root / "out")


@pytest.fixture(autouse=True)
def _without_rendering(monkeypatch):
    """Leave out the figures of the pages, most of the time, except those of `written`."""
    monkeypatch.setattr("pipeline.report.page.inline_svg", lambda *_: "<svg></svg>")


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
    lone = set(unseen.values()) == {1}
    images = 0 if lone else sum(unseen.values())
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


@pytest.mark.parametrize(("share", "sentence"), [(0, "there are none"), (0.2, "multiple of 0.2")])
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
    assert text_table(runs, pooled=True) and verdicts(runs, pooled=True)


def test_folds_pool_rejections_and_have_no_unseen_classes(tmp_path):
    source = write_splits(tmp_path / "photos", {"": dict.fromkeys("abc", 10)}, noise=200)
    settings = ReadSettings(val=0.3), QUICK, ClassifySettings()
    (pooled,) = run_folds(str(source), *settings, folds=2, out=tmp_path, context=QUIET)
    table = pd.read_csv(tmp_path / "accuracy.csv").set_index(["run", "metric", "split"])
    assert not (table.index.get_level_values("split") == "test-unseen").any()
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    for metric in ("rejection_rate_known", "left_out_auroc", "left_out_rejection_rate"):
        row = table.loc["pooled", metric, "test"]
        folds = [table.loc[f"fold-{fold}", metric, "test"] for fold in (1, 2)]
        assert row["count"] == sum(fold["count"] for fold in folds) == 30
        weighted = sum(fold["value"] * fold["count"] for fold in folds) / 30
        assert row["value"] == pytest.approx(weighted, abs=1e-6)
    rejected = predictions["typicality"] < REJECT
    assert table.loc["pooled", "rejection_rate_known", "test"]["value"] == rejected.mean()
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
    assert "1 of the 8 test images" in written.page()


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
