"""`classes.csv` and the table of classes: values, repeats, order and untrusted names."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from pipeline.report import class_table
from pipeline.report.class_table import class_rows, class_score_table


def test_the_file_agrees_with_scikit_learn(good_report):
    classes = pd.read_csv(good_report.folder / "out" / "classes.csv")
    predictions = pd.read_csv(good_report.folder / "out" / "predictions.csv")
    assert ",".join(classes) == (
        "run,method,class,count,precision,precision_low,precision_high,"
        "recall,recall_low,recall_high,f1,f1_low,f1_high"
    )
    names = list(good_report.data.test.classes)
    for method in ("knn", "classifier"):
        rows = classes[classes["method"] == method]
        assert list(rows["class"]) == names and set(rows["run"]) == {"embedding"}
        expected = precision_recall_fscore_support(
            predictions["label"], predictions[f"{method}_label"], labels=names
        )
        for column, values in zip(("precision", "recall", "f1", "count"), expected, strict=True):
            assert list(rows[column]) == pytest.approx(list(values), abs=1e-6)
        for column in ("precision", "recall", "f1"):
            assert (rows[f"{column}_low"] <= rows[column]).all()
            assert (rows[column] <= rows[f"{column}_high"]).all()
    assert len(classes) == 2 * len(names)


def with_predictions(run, labels, predicted, classes=None):
    """Return the run with other labels and predictions of the same images."""
    images = dataclasses.replace(
        run.images, labels=torch.from_numpy(labels), classes=classes or run.images.classes
    )
    prediction = dataclasses.replace(run.evaluation.prediction, knn=predicted, classifier=predicted)
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, test=images),
        evaluation=dataclasses.replace(run.evaluation, prediction=prediction),
    )


def test_undefined_scores_and_formulas(good_report):
    (run,) = good_report.runs
    labels = run.images.labels.numpy().clip(min=1)  # no image of the first class
    run = with_predictions(run, labels, labels, classes=("=1+1", "dog", "newt", "owl"))
    table = class_score_table([run, run])
    assert len(table) == 16
    row = table.iloc[0]
    assert row["class"] == "'=1+1" and row["count"] == 0
    assert row["precision"] == row["recall"] == row["f1"] == row["f1_low"] == ""
    name, cells = class_rows(run)[0]
    assert name == "=1+1"
    assert [cell.text for cell in cells] == ["0"] + ["\u2013"] * 5
    assert [cell.value for cell in cells] == [0] + [None] * 5


def test_repeated_predictions_count_once(good_report):
    (run,) = good_report.runs
    rows = run.images.rows.repeat(2)
    images = dataclasses.replace(
        run.images, rows=rows, labels=run.images.labels.repeat(2), ids=run.images.ids * 2
    )
    prediction = run.evaluation.prediction.select(np.tile(np.arange(len(run.images)), 2))
    twice = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, test=images),
        evaluation=dataclasses.replace(run.evaluation, prediction=prediction),
    )
    pd.testing.assert_frame_equal(class_score_table([twice]), class_score_table([run]))
    for (_, cells), (_, once) in zip(class_rows(twice), class_rows(run), strict=True):
        assert [cell.text for cell in cells] == [cell.text for cell in once]


def test_the_page_has_the_worst_classes_only(good_report, monkeypatch):
    (run,) = good_report.runs
    monkeypatch.setattr(class_table, "MANY_CLASSES", 3)
    everything = class_rows(run)
    monkeypatch.setattr(class_table, "MOST_CLASSES", 2)
    assert class_rows(run) == everything[:2] and len(everything) == 4


def test_many_classes_begin_with_the_worst(good_report, monkeypatch):
    (run,) = good_report.runs
    labels = run.images.labels.numpy()  # 15 images per class
    predicted = labels.copy()
    predicted[labels == 2] = 3
    run = with_predictions(run, labels, predicted)
    assert [name for name, _ in class_rows(run)] == ["cat", "dog", "newt", "owl"]
    monkeypatch.setattr(class_table, "MANY_CLASSES", 3)
    rows = class_rows(run)
    assert [name for name, _ in rows] == ["newt", "owl", "cat", "dog"]
    assert [cells[3].text for _, cells in rows] == ["0.0%", "66.7%", "100.0%", "100.0%"]
