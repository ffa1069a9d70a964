"""Sections of the page about unseen classes and unknown images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.galleries import image_view
from stages.evaluation.metric_definitions import METRICS
from stages.evaluation.results import UNSEEN, PairedTest, Score
from stages.evaluation.typicality import smallest_typicality
from stages.settings import REJECT
from stages.subset import evenly_spaced

QUERIES = 12  # queries of unseen classes that are shown
METHODS = {  # ending of the metrics -> method
    "": "distance to the nearest training image",
    "_max_probability": "probability of the predicted class",
    "_energy": "energy of the logits",
}


def unseen_view(run: EvaluatedRun) -> dict[str, Any] | None:
    """Return the template's variables for unseen classes, or None if none are tested.

    Args:
        run: Evaluated run.
    """
    unseen, images = run.evaluation.unseen, run.data.unseen
    if unseen is None or images is None:
        return None
    scores = {score.metric: score for score in unseen.scores}
    rows = []
    for score in unseen.scores:
        if score.count and not METRICS[score.metric].title.startswith("Baseline"):
            row = {"score": score, "title": METRICS[score.metric].title}
            for name in ("untrained", "pixel", "trunk"):
                row[name] = scores.get(f"{name}_{score.metric}")
            rows.append(row)
    return {
        "images": len(images),
        "classes": len(images.classes),
        "with_roles": images.queries is not None,
        "rows": rows,
        "with_trunk": any(row["trunk"] for row in rows),
        "queries": _queries(run),
        "nearest": unseen.neighbours.shape[1],
    }


def _queries(run: EvaluatedRun) -> list[dict[str, Any]]:
    """Return queries, evenly spaced over the classes, with their nearest images."""
    unseen, images = run.evaluation.unseen, run.data.unseen
    assert unseen is not None
    assert images is not None
    source = run.data.origin
    if unseen.neighbours.shape[1] == 0:
        return []
    by_class = images.labels.argsort(stable=True).numpy()
    by_class = by_class[unseen.neighbours[by_class, 0] >= 0]  # without gallery images
    views = []
    for row in by_class[evenly_spaced(len(by_class), QUERIES).numpy()].tolist():
        nearest = []
        for neighbour in unseen.neighbours[row].tolist():
            hit = bool(images.labels[neighbour] == images.labels[row])
            nearest.append({**image_view(images, neighbour, source), "hit": hit})
        views.append({**image_view(images, row, source), "nearest": nearest})
    return views


def unknown_view(run: EvaluatedRun) -> dict[str, Any]:
    """Return the template's variables for unknown images.

    Args:
        run: Evaluated run.
    """
    evaluation = run.evaluation
    scores = {(score.metric, score.split): score for score in evaluation.scores}
    count = run.calibration_count
    methods = []
    for ending, name in METHODS.items():
        key = (f"unknown_auroc{ending}", UNSEEN)
        if key in scores and scores[key].count:
            paired = _against_distance(run, f"unknown_auroc{ending}") if ending else None
            paired = paired if paired and paired.count else None
            fpr = scores[f"unknown_fpr_at_95_tpr{ending}", UNSEEN]
            methods.append({"name": name, "auroc": scores[key], "fpr": fpr, "paired": paired})
    return {
        "known": scores["rejection_rate_known", "test"],
        "unknown": scores.get(("rejection_rate_unknown", UNSEEN)),
        "left_out": _left_out(scores),
        "methods": methods,
        "validation": count,
        "enrolled": run.enrolled_calibration_count,
        "enrolled_smallest": smallest_typicality(run.enrolled_calibration_count or 0),
        "smallest": smallest_typicality(count),
        "reject": REJECT,
    }


def _left_out(scores: Mapping[tuple[str, str], Score]) -> dict[str, Score] | None:
    auroc = scores["left_out_auroc", "test"]
    if not auroc.count:
        return None
    return {"auroc": auroc, "rejected": scores["left_out_rejection_rate", "test"]}


def _against_distance(run: EvaluatedRun, metric: str) -> PairedTest:
    return run.evaluation.paired_test("unknown_auroc", metric, UNSEEN)


def unknown_distances(run: EvaluatedRun) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the distances of known and of unknown images to the nearest training image.

    Args:
        run: Evaluated run. Without images of unseen classes, each test image is also an unknown
            one, with its class left out.

    Returns:
        Distances of the known images, those of the unknown ones, and a name for the latter.
    """
    evaluation = run.evaluation
    known = evaluation.prediction.distance
    if evaluation.unknown_prediction is not None:
        return known, evaluation.unknown_prediction.distance, "unseen classes"
    return known, evaluation.prediction.left_out_distance, "class left out"
