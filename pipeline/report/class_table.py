"""Scores of each class: `classes.csv` and the table on the page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.escape import escape_formula
from pipeline.numbers import format_share
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.formats import format_percent
from stages.evaluation.class_scores import ClassScores, Estimate, class_scores

CLASS_COLUMNS = [
    *("run", "method", "class", "count", "precision", "precision_low", "precision_high"),
    *("recall", "recall_low", "recall_high", "f1", "f1_low", "f1_high"),
]
# With more classes the worst come first, and the table scrolls.
MANY_CLASSES = 30
MOST_CLASSES = 1000  # on the page; all of them are in the file


class Cell(NamedTuple):
    """A number in the table: its text, its title (the interval) and the value to sort by."""

    text: str
    value: float | None
    title: str = ""


def class_score_table(runs: Sequence[EvaluatedRun]) -> pd.DataFrame:
    """Return `classes.csv`: one row per run, method and class.

    Args:
        runs: Evaluated runs. Folds have the rows of the pooled run only.
    """
    rows = []
    for run in runs:
        for method in ("knn", "classifier"):
            for name, scores in zip(run.images.classes, _scores(run, method), strict=True):
                row = [escape_formula(run.run), method, escape_formula(name), scores.count]
                for estimate in (scores.precision, scores.recall, scores.f1):
                    row += ["" if share is None else format_share(share, 6) for share in estimate]
                rows.append(row)
    return pd.DataFrame(rows, columns=CLASS_COLUMNS, dtype=object)


def class_rows(run: EvaluatedRun) -> list[tuple[str, list[Cell]]]:
    """Return the rows of the table on the page: name of the class, and its numbers.

    The numbers are the test images, precision, recall and F1 of the classifier, recall of kNN and
    triplet accuracy. Many classes are sorted from the lowest F1 to the highest; those without a
    test image or a prediction are last. At most 1,000 classes are returned.

    Args:
        run: Evaluated run.
    """
    triplets = _triplet_accuracies(run)
    rows = []
    for name, classifier, knn, triplet in zip(
        run.images.classes, _scores(run, "classifier"), _scores(run, "knn"), triplets, strict=True
    ):
        cells = [
            Cell(f"{classifier.count:,}", classifier.count),
            *map(_cell, (classifier.precision, classifier.recall, classifier.f1, knn.recall)),
            Cell(format_percent(triplet), triplet),
        ]
        rows.append((name, cells))
    if len(rows) > MANY_CLASSES:
        rows.sort(key=lambda row: (row[1][3].value is None, row[1][3].value))
    return rows[:MOST_CLASSES]


def _scores(run: EvaluatedRun, method: str) -> list[ClassScores]:
    predicted = getattr(run.evaluation.prediction, method)
    labels, images = run.images.labels.numpy(), run.images.rows.numpy()
    return class_scores(predicted, labels, len(run.images.classes), images=images)


def _triplet_accuracies(run: EvaluatedRun) -> list[float | None]:
    """Return the mean triplet accuracy of each class's images; None without a triplet."""
    labels, values = run.images.labels.numpy(), run.evaluation.prediction.triplet_accuracy
    accuracies: list[float | None] = []
    by_class = values[np.argsort(labels, kind="stable")]
    ends = np.bincount(labels, minlength=len(run.images.classes)).cumsum()
    for of_class in np.split(by_class, ends[:-1]):
        defined = of_class[~np.isnan(of_class)]
        accuracies.append(float(defined.mean()) if len(defined) else None)
    return accuracies


def _cell(estimate: Estimate) -> Cell:
    text = format_percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return Cell(text, estimate.value)
    low = format_percent(estimate.low).removesuffix("%")
    return Cell(text, estimate.value, f"95% CI {low}\u2013{format_percent(estimate.high)}")
