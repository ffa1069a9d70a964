"""The CSV files: columns, agreement with each other, and undefined scores."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from factories import QUIET, TINY, make_dataset, train_both

from pipeline.commands.report import report
from pipeline.report.summary import summary
from pipeline.report.tables import accuracy_table, comparison_table, text_table
from pipeline.report.write import write_report

CLASSES = ("cat", "dog", "newt", "owl")


def read_tables(folder):
    names = ("accuracy", "comparisons", "predictions")
    return [pd.read_csv(folder / f"{name}.csv") for name in names]


def test_the_files_have_the_documented_columns(good_report):
    accuracy, comparisons, predictions = read_tables(good_report.folder / "out")
    assert ",".join(accuracy) == "run,metric,split,value,ci_low,ci_high,count,definition"
    assert ",".join(comparisons) == (
        "run_a,metric_a,run_b,metric_b,split,difference,ci_low,ci_high,p_value,count,test,p_holm"
    )
    assert ",".join(predictions) == (
        "run,id,label,knn_label,classifier_label,classifier_probability,triplet_accuracy,"
        "nearest_id,split,typicality,known"
    )
    assert set(accuracy["split"]) == {"test", "test-without-duplicates"}
    assert set(comparisons["split"]) == {"test", "test-without-duplicates"}
    assert accuracy["value"].between(0, 1).all()
    assert set(accuracy["run"]) == {"embedding"}
    assert accuracy["value"].dtype == comparisons["p_value"].dtype == np.float64
    assert list(predictions["id"]) == list(good_report.data.test.ids)


def test_the_files_agree_with_each_other(good_report):
    accuracy, comparisons, predictions = read_tables(good_report.folder / "out")
    value = accuracy[accuracy["split"] == "test"].set_index("metric")["value"]
    for metric, column in (
        ("classification_accuracy", "classifier_label"),
        ("knn_accuracy", "knn_label"),
    ):
        correct = predictions["label"] == predictions[column]
        assert value[metric] == pytest.approx(correct.mean(), abs=1e-6)
    # The mean over anchors is the share of all triplets because the classes are equally large.
    assert value["triplet_accuracy"] == pytest.approx(
        predictions["triplet_accuracy"].mean(), abs=1e-5
    )
    for row in comparisons[comparisons["split"] == "test"].itertuples():
        assert row.difference == pytest.approx(value[row.metric_a] - value[row.metric_b], abs=2e-6)


def test_several_runs_are_compared_in_pairs(tmp_path):
    data = make_dataset(CLASSES, train=20, test=15, noise=120)
    embeddings, classifiers = [], []
    short = dataclasses.replace(TINY, epochs=1, lr=1e-5)
    for name, settings in (("long", TINY), ("short", short)):
        embedding, classifier = train_both(data, tmp_path, name=name, settings=settings)
        embeddings.append(embedding)
        classifiers.append(classifier)
    out = tmp_path / "out"
    runs = report(embeddings, classifiers, out=out, context=QUIET, source=data)
    accuracy, comparisons, _ = read_tables(out)
    assert list(accuracy["run"].unique()) == ["long", "short"]
    between = comparisons[comparisons["run_a"] != comparisons["run_b"]].set_index("metric_a")
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
    assert any("long compared with short" in finding.text for finding in summary(runs))
    assert "long" in text_table(runs)
    assert "short" in text_table(runs)


def test_classes_with_no_test_image_and_with_one(tmp_path):
    data = make_dataset(CLASSES, test={0: 0, 1: 1})
    (run,) = report(*train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data)
    score = run.evaluation.score("precision_at_1")
    assert score.count == 8
    assert "1 query without another image" in score.definition
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions["triplet_accuracy"].isna().sum() == 1
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    text = page.split("<script>")[0].replace("nanmean", "").lower()
    assert "nan" not in text.split()


def test_two_classes(tmp_path):
    data = make_dataset(("no", "yes"), test=2)
    (run,) = report(*train_both(data, tmp_path), out=tmp_path / "out", context=QUIET, source=data)
    assert run.evaluation.score("triplet_accuracy").count == 8


def with_one_lost_triplet(run):
    """Return the run with one lost triplet of four million, and a difference as small."""
    value, low, high = 1 - 1 / 4_048_884, 0.99, 1 - 1e-9
    scores = [
        dataclasses.replace(score, value=value, low=low, high=high)
        if score.value is not None
        else score
        for score in run.evaluation.scores
    ]
    tests = [
        dataclasses.replace(paired, difference=1e-8, low=1e-9, high=value, p_value=0.04999999)
        for paired in run.evaluation.paired_tests
    ]
    evaluation = dataclasses.replace(
        run.evaluation, scores=tuple(scores), paired_tests=tuple(tests)
    )
    return dataclasses.replace(run, evaluation=evaluation)


def test_one_lost_triplet_is_not_rounded_to_a_perfect_score(good_report, tmp_path):
    run = with_one_lost_triplet(good_report.runs[0])
    write_report(tmp_path, (run,))
    accuracy = pd.read_csv(tmp_path / "accuracy.csv")
    assert ((0.999 < accuracy["value"]) & (accuracy["value"] < 1)).all()
    assert ((accuracy["value"] < accuracy["ci_high"]) & (accuracy["ci_high"] < 1)).all()
    comparisons = pd.read_csv(tmp_path / "comparisons.csv")
    assert ((0 < comparisons["ci_low"]) & (comparisons["ci_low"] < comparisons["difference"])).all()
    assert (comparisons["p_value"] < 0.05).all() and (comparisons["ci_high"] < 1).all()
    page = (tmp_path / "report.html").read_text(encoding="utf-8").split("<script>")[0]
    table = page[page.index('<table class="scores">') : page.index("<details>")]
    assert "99.99998%" in table and "100.0" not in table
    assert "+0.0000001 to +99.99998" in page
    assert "1.0000" not in text_table((run,)) and "0.9999998" in text_table((run,))
    assert "1.0000" not in text_table((run, run)) and "0.9999998" in text_table((run, run))


def test_tables_are_unchanged_away_from_0_and_1(good_report):
    (run,) = good_report.runs
    for table, columns in (
        (accuracy_table((run,)), ("value", "ci_low", "ci_high")),
        (comparison_table((run,)), ("difference", "ci_low", "ci_high")),
    ):
        for column in columns:
            texts = [text for text in table[column] if text]
            assert texts and all(len(text.lstrip("-")) == 8 for text in texts)
