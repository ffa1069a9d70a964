"""METRICS: the one table of titles, units and definitions of all scores."""

from typing import NamedTuple


class Metric(NamedTuple):
    """Description of a metric.

    Attributes:
        title: Name shown to people.
        unit: What ``Score.count`` counts: ``images`` or ``triplets``.
    """

    title: str
    unit: str = "images"


# In the order of the report.
METRICS = {
    "knn_accuracy": Metric("kNN accuracy"),
    "triplet_accuracy": Metric("Triplet accuracy", unit="triplets"),
    "classification_accuracy": Metric("Classification accuracy"),
    "precision_at_1": Metric("Recall@1 (= precision@1)"),
    "r_precision": Metric("R-precision"),
    "map_at_r": Metric("MAP@R"),
    "mean_average_precision": Metric("Mean average precision"),
    "majority_accuracy": Metric("Baseline: most frequent class"),
    "pixel_knn_accuracy": Metric("Baseline: kNN on raw pixels"),
    "untrained_knn_accuracy": Metric("Baseline: kNN, untrained network"),
    "calibration_error": Metric("Calibration error (lower is better)"),
    "calibration_error_uncalibrated": Metric("Calibration error before temperature"),
}
