"""The figures of a run."""

from typing import Any

import numpy as np

from pipeline.report.comparison_plots import COMPARISON_FIGURES
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.formats import format_percent
from pipeline.report.open_set import unknown_distances
from pipeline.report.open_set_plots import draw_roc, draw_unknown
from pipeline.report.plots import (
    CURVES,
    draw_confusion,
    draw_curves,
    draw_distances,
    draw_map,
    draw_reliability,
    draw_scores,
)
from pipeline.report.tables import score_title
from stages.evaluation.calibration_error import reliability
from stages.evaluation.explore import Exploration
from stages.evaluation.results import Evaluation

FIGURES = (
    "comparison",
    *(f"training-{name.replace('_', '-')}" for name in CURVES),
    *("reliability", "confusion", "distances", "map", "roc", "unknown"),
    *COMPARISON_FIGURES,
)


# The matrix of more classes has cells smaller than a pixel, and takes gigabytes of 10,000 classes.
MATRIX_CLASSES = 500


def draw_figures(run: EvaluatedRun, exploration: Exploration | None) -> dict[str, Any]:
    """Draw the figures of a run.

    Args:
        run: Evaluated run.
        exploration: Its distances and map. Without it these two figures are omitted.

    Returns:
        Matplotlib figures by name, one of ``FIGURES``.
    """
    classes = run.test.classes
    figures = draw_curves(run.embedding["history"], run.embedding["epoch"])
    if run.test:
        figures |= {
            "comparison": draw_scores(_score_rows(run.evaluation)),
            "reliability": draw_reliability(_reliability_lines(run)),
        }
        if len(classes) <= MATRIX_CLASSES:
            figures["confusion"] = draw_confusion(confusion_matrix(run), classes)
    unseen = run.evaluation.unseen
    if unseen and unseen.score("verification_auc").count:
        figures["roc"] = draw_roc(unseen.curves)
    known, unknown, name = unknown_distances(run)
    figures["unknown"] = draw_unknown(known, unknown, run.rejection_distance, name)
    if exploration:
        labels = run.test.labels.numpy()[exploration.mapped]
        figures["distances"] = draw_distances(exploration.positives, exploration.negatives)
        figures["map"] = draw_map(exploration.points, labels, classes)
    return figures


def confusion_matrix(run: EvaluatedRun) -> np.ndarray:
    """Return the number of test images by true class (row) and predicted class (column).

    Returns:
        Counts, int64, shape (classes, classes).
    """
    size = len(run.test.classes)
    confusion = np.zeros((size, size), dtype=int)
    true, predicted, counts = count_predictions(run)
    confusion[true, predicted] = counts
    return confusion


def count_predictions(run: EvaluatedRun) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells of the confusion matrix that are not 0, row by row.

    Returns:
        True class, predicted class and number of test images, int64, shape (P,) each.
    """
    size = len(run.test.classes)
    cells = run.test.labels.numpy() * size + run.evaluation.prediction.classifier
    cells, counts = np.unique(cells, return_counts=True)
    return cells // size, cells % size, counts


def _score_rows(
    evaluation: Evaluation,
) -> list[tuple[str, float, float | None, float | None]]:
    return [
        (score_title(score), score.value, score.low, score.high)
        for score in evaluation.scores
        if score.split == "test"
        and score.value is not None
        # Errors do not belong on a scale where higher is better.
        and not score.metric.startswith("calibration_error")
    ]


def _reliability_lines(
    run: EvaluatedRun,
) -> list[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    evaluation, prediction = run.evaluation, run.evaluation.prediction
    correct = evaluation.correct["classification_accuracy"]
    before = format_percent(evaluation.score("calibration_error_uncalibrated").value or 0)
    after = format_percent(evaluation.score("calibration_error").value or 0)
    lines = [
        (
            f"uncalibrated: calibration error {before}",
            reliability(prediction.uncalibrated, correct),
        )
    ]
    if run.calibrated:
        calibrated = reliability(prediction.probability, correct)
        lines.append((f"calibrated: calibration error {after}", calibrated))
    return lines
