"""The figures of a run."""

from typing import Any

import numpy as np

from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.plots import (
    draw_confusion,
    draw_curves,
    draw_distances,
    draw_map,
    draw_reliability,
    draw_scores,
)
from pipeline.report.summary import format_percent
from pipeline.report.tables import score_title
from stages.evaluation.calibration_error import reliability
from stages.evaluation.explore import Exploration


def draw_figures(comparison: EvaluatedRun, explored: Exploration | None) -> dict[str, Any]:
    """The figures of a run by name; those of distances and the map only where it was explored."""
    scored, labels = comparison.evaluation, comparison.test.labels.numpy()
    right, prediction = scored.correct["classification_accuracy"], scored.prediction
    errors = [
        scored.score(name).value or 0
        for name in ("calibration_error_uncalibrated", "calibration_error")
    ]
    lines = [
        (f"{when} temperature, error {format_percent(error)}", reliability(confidence, right))
        for when, error, confidence in zip(
            ("before", "after"),
            errors,
            (prediction.uncalibrated, prediction.probability),
            strict=True,
        )
    ]
    shown = [
        s
        for s in scored.scores
        if s.split == "test" and s.value is not None and not s.metric.startswith("calibration")
    ]
    figures = {
        "comparison": draw_scores([(score_title(s), s.value or 0.0, s.low, s.high) for s in shown]),
        **draw_curves(comparison.embedding["history"], comparison.embedding["epoch"]),
        "reliability": draw_reliability(lines),
        "confusion": draw_confusion(confusion_matrix(comparison), comparison.test.classes),
    }
    if explored:
        figures["distances"] = draw_distances(explored.positives, explored.negatives)
        figures["map"] = draw_map(explored.points, labels[explored.mapped], comparison.test.classes)
    return figures


def confusion_matrix(comparison: EvaluatedRun) -> np.ndarray:
    size = len(comparison.test.classes)
    confusion = np.zeros((size, size), dtype=int)
    np.add.at(
        confusion, (comparison.test.labels.numpy(), comparison.evaluation.prediction.classifier), 1
    )
    return confusion
