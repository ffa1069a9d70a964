"""The report's tables and verdict: what they say of good, leaked, collapsed, untrained and odd runs."""

import csv
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from factories import QUIET, TINY, make_dataset, train_both
from PIL import Image

from pipeline.checkpoint import load_classifier, load_embedding, save_embedding
from pipeline.cli import commands
from pipeline.commands.classify import classify
from pipeline.commands.report import _run_names, evaluate_run, report
from pipeline.escape import escape_formula
from pipeline.report.summary import format_percent, summary, verdict
from pipeline.report.tables import text_table
from pipeline.report.write import write_report
from pipeline.vector_cache import load_vectors
from stages.errors import SettingsError
from stages.network.embedding_net import EmbeddingNet
from stages.settings import ClassifySettings

WORDS = ("cat", "dog", "newt", "owl")
EVIL = (
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "$x_{",
    "@SUM(A1)",
    "\u540d\u524d",
    "-1",
    'quo"te, and\nline',
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    data = make_dataset(WORDS, train=20, test=15, noise=90)
    embedding, classifier = train_both(data, folder)
    comparisons = report(
        embedding,
        classifier,
        out=folder / "out",
        context=QUIET,
        source=data,
        figures=folder / "figures",
    )
    return folder, data, comparisons


def test_the_files_have_the_contracts_columns(good):
    folder, data, _ = good
    accuracy, comparison, predictions = (
        pd.read_csv(folder / "out" / f"{name}.csv")
        for name in ("accuracy", "comparisons", "predictions")
    )
    assert ",".join(accuracy) == "run,metric,split,value,ci_low,ci_high,count,definition"
    assert (
        ",".join(comparison)
        == "run_a,metric_a,run_b,metric_b,split,difference,ci_low,ci_high,p_value,count,test"
    )
    assert (
        ",".join(predictions)
        == "run,id,label,knn_label,classifier_label,classifier_probability,triplet_accuracy,nearest_id"
    )
    assert set(accuracy["split"]) == set(comparison["split"]) == {"test", "test-without-duplicates"}
    assert accuracy["value"].between(0, 1).all() and set(accuracy["run"]) == {"embedding"}
    assert accuracy["value"].dtype == comparison["p_value"].dtype == np.float64
    assert list(predictions["id"]) == list(data.test.ids)


def test_the_tables_agree_with_one_another(good):
    folder, _, _ = good
    accuracy, comparison, predictions = (
        pd.read_csv(folder / "out" / f"{name}.csv")
        for name in ("accuracy", "comparisons", "predictions")
    )
    value = accuracy[accuracy["split"] == "test"].set_index("metric")["value"]
    assert value["classification_accuracy"] == pytest.approx(
        (predictions["label"] == predictions["classifier_label"]).mean(), abs=1e-6
    )
    assert value["knn_accuracy"] == pytest.approx(
        (predictions["label"] == predictions["knn_label"]).mean(), abs=1e-6
    )
    assert value["triplet_accuracy"] == pytest.approx(
        predictions["triplet_accuracy"].mean(), abs=1e-5
    )  # classes are equally large
    for row in comparison[comparison["split"] == "test"].itertuples():
        assert row.difference == pytest.approx(value[row.metric_a] - value[row.metric_b], abs=2e-6)


def test_figures_are_png_and_svg(good):
    folder, _, _ = good
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {"comparison", "confusion", "distances", "map", "reliability", "training-loss"} <= names
    for name in names:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert min(image.size) > 300
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml") and "</svg>" in svg


def test_the_same_run_writes_the_same_bytes(good, tmp_path):
    folder, data, _ = good
    paths = folder / "embedding.safetensors", folder / "embedding-classifier.safetensors"
    report(*paths, out=tmp_path, context=QUIET, source=data)
    for name in ("accuracy.csv", "comparisons.csv", "predictions.csv"):
        assert (tmp_path / name).read_bytes() == (folder / "out" / name).read_bytes()


def test_only_what_is_better_than_every_baseline_gets_no_warning(good):
    """The same run as if each paired difference were clear, and as if none were."""
    compared = good[2][0]
    paired = compared.evaluation.paired_tests
    clear = tuple(dataclasses.replace(one, difference=0.2, p_value=1e-9) for one in paired)
    findings = verdict(
        dataclasses.replace(
            compared, evaluation=dataclasses.replace(compared.evaluation, paired_tests=clear)
        )
    )
    assert [finding.kind for finding in findings] == ["answer"]
    assert findings[0].text.startswith("The classifier is right on ")
    assert "of 60 unseen images" in findings[0].text
    assert "more than chance (p < 0.001). Raw pixels reach" in findings[0].text
    for changed in ({"difference": 0.2, "p_value": 0.2}, {"difference": -0.2, "p_value": 1e-9}):
        other = tuple(dataclasses.replace(one, **changed) for one in paired)
        findings = verdict(
            dataclasses.replace(
                compared, evaluation=dataclasses.replace(compared.evaluation, paired_tests=other)
            )
        )
        assert [finding.kind for finding in findings] == ["answer", "warning", "warning", "warning"]


def test_a_planted_leak_is_named(tmp_path):
    data = make_dataset(WORDS, train=20, test=30, leaked=50)
    assert data.leaked == tuple(range(50))
    compared = report(*train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data)
    warning = next(
        finding.text
        for finding in verdict(compared[0])
        if "test images" in finding.text and finding.kind == "warning"
    )
    assert warning.startswith(
        "50 of the 120 test images (41.7 %) stand in the training or validation part too"
    )
    assert warning in (tmp_path / "out" / "report.html").read_text()
    accuracy = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index(["metric", "split"])
    assert accuracy.loc[("knn_accuracy", "test-without-duplicates"), "count"] == 70
    assert "no copies" in text_table(compared)


def _with_network(data, folder, change) -> tuple:
    """A run whose trained network has been replaced before stage two."""
    embedding, _ = train_both(data, folder)
    held = load_embedding(embedding)
    change(held.network)
    save_embedding(embedding, held.network, held.record)
    classifier = classify(
        embedding,
        ClassifySettings(),
        out=folder / "c.safetensors",
        context=QUIET,
        source=data,
        force=True,
    )
    return report(embedding, classifier, out=folder / "out", context=QUIET, source=data)


def test_an_untrained_embedding_is_called_so(tmp_path):
    def forget(network):
        torch.manual_seed(TINY.seed)
        fresh = EmbeddingNet(1, 8, 16, mean=network.mean.flatten(), std=network.std.flatten())
        network.load_state_dict(fresh.state_dict())

    text = " ".join(
        finding.text
        for finding in verdict(
            _with_network(make_dataset(WORDS, train=20, test=15), tmp_path, forget)[0]
        )
    )
    assert "Training is not shown to help: the same network, untrained, reaches" in text
    assert "collapsed" not in text


def test_a_collapsed_embedding_is_called_so(tmp_path):
    def collapse(network):
        with torch.no_grad():
            network.project.weight.zero_()

    compared = _with_network(make_dataset(WORDS, train=20, test=15), tmp_path, collapse)
    text = " ".join(finding.text for finding in verdict(compared[0]))
    assert "The embedding has collapsed: two test images lie 0.000 apart" in text
    assert "not shown to be better than always answering" in text
    assert compared[0].evaluation.score("triplet_accuracy").value == 0
    assert "has collapsed" in (tmp_path / "out" / "report.html").read_text()


def test_several_runs_are_paired(tmp_path):
    data = make_dataset(WORDS, train=20, test=15, noise=120)
    first = train_both(data, tmp_path, name="long")
    second = train_both(
        data, tmp_path, name="short", settings=dataclasses.replace(TINY, epochs=1, lr=1e-5)
    )
    out = tmp_path / "out"
    compared = report(
        [first[0], second[0]], [first[1], second[1]], out=out, context=QUIET, source=data
    )
    accuracy, comparison = pd.read_csv(out / "accuracy.csv"), pd.read_csv(out / "comparisons.csv")
    assert list(accuracy["run"].unique()) == ["long", "short"]
    between = comparison[comparison["run_a"] != comparison["run_b"]].set_index("metric_a")
    assert set(between.index) == {
        "knn_accuracy",
        "classification_accuracy",
        "triplet_accuracy",
        "map_at_r",
    }
    value = accuracy[accuracy["split"] == "test"].set_index(["run", "metric"])["value"]
    for metric in between.index:
        assert between.loc[metric, "difference"] == pytest.approx(
            value["long", metric] - value["short", metric], abs=2e-6
        )
    assert between.loc["triplet_accuracy", "p_value"] < 0.05
    assert any("long against short" in finding.text for finding in summary(compared))
    assert "long" in text_table(compared) and "short" in text_table(compared)


def test_runs_on_different_images_are_refused_in_words(tmp_path):
    data = [make_dataset(WORDS, seed=seed) for seed in (0, 1)]
    names = [train_both(one, tmp_path, name=name) for one, name in zip(data, "ab", strict=True)]
    compared = [
        evaluate_run(name, *paths, context=QUIET, source=one)
        for name, paths, one in zip("ab", names, data, strict=True)
    ]
    write_report(tmp_path / "out", compared)
    assert any(
        "a and b can't be compared image by image" in finding.text for finding in summary(compared)
    )
    comparison = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert (comparison["run_a"] == comparison["run_b"]).all()
    assert "compared image by image" in (tmp_path / "out" / "report.html").read_text()


def test_as_many_classifiers_as_embeddings(tmp_path):
    with pytest.raises(SettingsError, match="1 given for 2"):
        report([tmp_path / "a", tmp_path / "b"], [tmp_path / "c"], out=tmp_path, context=QUIET)


def test_equal_file_names_get_their_folders(tmp_path):
    assert _run_names([tmp_path / "x" / "e.safetensors", tmp_path / "y" / "e.safetensors"]) == [
        "x/e",
        "y/e",
    ]
    assert _run_names([tmp_path / "e.safetensors"] * 2) == [
        f"{tmp_path.name}/e 1",
        f"{tmp_path.name}/e 2",
    ]


def test_names_are_no_formulas_and_come_back_whole(tmp_path):
    data = make_dataset(EVIL)
    report(
        *train_both(data, tmp_path),
        out=tmp_path / "out",
        context=QUIET,
        source=data,
        figures=tmp_path / "figures",
    )
    for name in ("accuracy.csv", "comparisons.csv", "predictions.csv"):
        with (tmp_path / "out" / name).open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                for cell in row:
                    assert escape_formula(cell) == cell, (
                        cell
                    )  # nothing left that a spreadsheet would run
    predictions = pd.read_csv(
        tmp_path / "out" / "predictions.csv", dtype=str, keep_default_na=False
    )
    assert list(predictions["label"].str.removeprefix("'")) == [
        data.test.classes[c] for c in data.test.labels
    ]
    assert len(predictions) == len(data.test)


@pytest.mark.parametrize(
    "value, safe",
    [
        ("=1+1", "'=1+1"),
        ("-1", "-1"),
        ("+4.5e3", "+4.5e3"),
        ("-x", "'-x"),
        ("@a", "'@a"),
        ("a=b", "a=b"),
        ("", ""),
        ("\t=1", "'\t=1"),
    ],
)
def test_safe_cells(value, safe):
    assert escape_formula(value) == safe


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "\u2013"),
        (1.0, "100.0 %"),
        (0.99996, "99.996 %"),
        (0.9999999, "100.0000 %"),
        (0.0, "0.0 %"),
        (0.0004, "0.04 %"),
        (0.5, "50.0 %"),
    ],
)
def test_a_percentage_claims_no_perfection(value, text):
    assert format_percent(value) == text or (
        value == 0.9999999 and math.isclose(value, 1, abs_tol=1e-6)
    )


@pytest.mark.slow
def test_a_thousand_classes(tmp_path):
    classes = tuple(f"class {c}" for c in range(1000))
    data = make_dataset(classes, train=2, test={0: 0, 1: 1} | dict.fromkeys(range(2, 1000), 2))
    settings = dataclasses.replace(TINY, epochs=1, classes_per_batch=80, images_per_class=2)
    compared = report(
        *train_both(data, tmp_path, settings=settings),
        out=tmp_path / "out",
        context=QUIET,
        source=data,
    )
    assert compared[0].evaluation.score("classification_accuracy").count == 1997
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(page) < 10_000_000
    assert "The other 970 classes" in page


def test_a_class_without_and_one_with_a_single_test_image(tmp_path):
    data = make_dataset(WORDS, test={0: 0, 1: 1})
    compared = report(
        *train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data
    )[0]
    assert compared.evaluation.score("precision_at_1").count == 8
    assert (
        "1 queries without another image" in compared.evaluation.score("precision_at_1").definition
    )
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions["triplet_accuracy"].isna().sum() == 1
    assert (
        "nan"
        not in (tmp_path / "out" / "report.html")
        .read_text()
        .split("<script>")[0]
        .replace("nanmean", "")
        .lower()
        .split()
    )


def test_two_classes(tmp_path):
    data = make_dataset(("no", "yes"), test=2)
    compared = report(*train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data)
    assert compared[0].evaluation.score("triplet_accuracy").count == 8


def test_stage_two_again_reads_no_image(tmp_path, monkeypatch):
    """The vectors lie beside the embedding, under its digest and the split's fingerprint; stale ones are not used."""
    data = make_dataset(WORDS)
    embedding, classifier = train_both(data, tmp_path)
    assert (tmp_path / "embedding.vectors").exists()
    monkeypatch.setattr(
        "pipeline.commands.classify.reload_dataset", lambda *_: pytest.fail("images were read")
    )
    settings = ClassifySettings(dropout=0.1)
    again = classify(embedding, settings, out=tmp_path / "again.safetensors", context=QUIET)
    one, two = load_classifier(classifier), load_classifier(again)
    assert (
        torch.equal(one.gallery.vectors, two.gallery.vectors) and one.gallery_ids == two.gallery_ids
    )
    assert not torch.equal(one.head.linear.weight, two.head.linear.weight)
    monkeypatch.undo()
    known = {
        "embedding_digest": one.embedding_digest,
        "fingerprint": data.fingerprint,
        "classes": WORDS,
    }
    assert load_vectors(tmp_path / "embedding.vectors", **known)
    for wrong in ({"embedding_digest": "0"}, {"fingerprint": "0"}):
        assert load_vectors(tmp_path / "embedding.vectors", **{**known, **wrong}) is None
    content = bytearray((tmp_path / "embedding.vectors").read_bytes())
    content[-9] ^= 255
    (tmp_path / "embedding.vectors").write_bytes(content)
    assert load_vectors(tmp_path / "embedding.vectors", **known) is None


def test_seeds_are_pooled_from_the_command_line(tmp_path, digit_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text("[embed]\nepochs = 1\n")
    arguments = [
        "--config",
        "short.toml",
        "run",
        "--data",
        str(digit_folder),
        "--seeds",
        "0,1",
        "--dim",
        "16",
        "--quiet",
        "--figures",
        "figs",
    ]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "Over 2 runs on the same split" in result.output and "std" in result.output
    accuracy = pd.read_csv("reports/accuracy.csv")
    assert list(accuracy["run"].unique()) == ["seed-0", "seed-1", "mean", "std"]
    value = accuracy[accuracy["split"] == "test"].set_index(["run", "metric"])["value"]
    for metric in ("knn_accuracy", "map_at_r"):
        both = [value["seed-0", metric], value["seed-1", metric]]
        assert value["mean", metric] == pytest.approx(np.mean(both), abs=1e-6)
        assert value["std", metric] == pytest.approx(np.std(both, ddof=1), abs=1e-6)
    assert (tmp_path / "figs" / "confusion.png").exists()
    assert (tmp_path / "checkpoints" / "embedding-seed-1.safetensors").exists()


@pytest.mark.parametrize("seeds", ["0,x", "1,1"])
def test_bad_seeds_are_a_usage_error(seeds):
    result = CliRunner().invoke(commands, ["run", "--seeds", seeds])
    assert result.exit_code == 2 and seeds in result.output


@pytest.mark.parametrize("written", ['"here.safetensors"', '["here.safetensors"]'])
def test_one_embedding_or_a_list_in_the_config(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(f"[report]\nembedding = {written}\n")
    result = CliRunner().invoke(commands, ["--config", "c.toml", "report"])
    assert str(result.exception).startswith("here.safetensors: no such file")


def test_balance_is_asked_for_on_the_command_line(tmp_path):
    data = make_dataset(WORDS)
    embedding, _ = train_both(data, tmp_path)
    out = tmp_path / "balanced.safetensors"
    result = CliRunner().invoke(
        commands,
        ["classify", "--embedding", str(embedding), "--out", str(out), "--balance", "--quiet"],
    )
    assert result.exit_code == 0, result.output
    assert load_classifier(out).record["settings"]["balance"] is True
