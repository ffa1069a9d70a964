"""The one table of titles, definitions and units of all metrics."""

from typing import NamedTuple


class Metric(NamedTuple):
    """Description of a metric.

    Attributes:
        title: Name shown to people.
        definition: Definition in one sentence, a template for ``str.format``. Its fields depend on
            the evaluation; see :func:`stages.evaluation.scores.define_metrics`.
        unit: Unit of ``Score.count`` in the singular: ``image`` or ``triplet``.
    """

    title: str
    definition: str
    unit: str = "image"


# Template of a template: %s is the name of the field that describes the voting images.
_VOTE = (
    "Share of images classified correctly by a majority vote of the {%s}; all images tied at the "
    "k-th distance vote; a tie between classes goes to the nearest voter"
)

# In the order of the report.
METRICS = {
    "knn_accuracy": Metric("kNN accuracy", _VOTE % "voters"),
    "triplet_accuracy": Metric(
        "Triplet accuracy",
        "Share of all triplets {triplets} with d(anchor, positive) < d(anchor, negative); equal "
        "distances count as lost; interval: Wilson with the effective number of images (jackknife)",
        unit="triplet",
    ),
    "classification_accuracy": Metric(
        "Classification accuracy",
        "Share of images classified correctly by dropout + linear + log-softmax on the frozen "
        "embedding",
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        "Mean over classes with test images of the share of their images that are classified "
        "correctly by the classifier",
    ),
    "macro_f1": Metric(
        "Macro F1",
        "Mean over classes with test images of the classifier's F1, the harmonic mean of precision "
        "and recall",
    ),
    "precision_at_1": Metric(
        "Recall@1 (= precision@1)",
        "Share of queries whose nearest image has the same class; {ranking}",
    ),
    "r_precision": Metric(
        "R-precision",
        "Mean share of the query's class among its R nearest images, where R is the number of "
        "images of that class; {ranking}",
    ),
    "map_at_r": Metric(
        "MAP@R",
        "Mean over queries of the precision at each positive among the R nearest images, summed "
        "and divided by R; {ranking}",
    ),
    "mean_average_precision": Metric(
        "Mean average precision",
        "Mean over queries of the average precision of the whole ranking; {ranking}",
    ),
    "majority_accuracy": Metric(
        "Baseline: most frequent class",
        "Share of images of the most frequent {majority_class}",
    ),
    "pixel_knn_accuracy": Metric(
        "Baseline: kNN on raw pixels",
        _VOTE % "pixel_voters" + "; Euclidean distance between raw pixels (images above {pixels} "
        "pixels are averaged down to this size)",
    ),
    "untrained_knn_accuracy": Metric(
        "Baseline: kNN before training",
        _VOTE % "untrained_voters" + "; embeddings of the {initial_network}",
    ),
    "trunk_knn_accuracy": Metric(
        "Baseline: kNN on pretrained trunk",
        _VOTE % "trunk_voters" + "; cosine distance between features of the pretrained trunk",
    ),
    "trunk_logistic_accuracy": Metric(
        "Baseline: logistic regression on trunk",
        "Share of images classified correctly by logistic regression on features of the pretrained "
        "trunk; {trunk_penalty}",
    ),
    "calibration_error": Metric(
        "Calibration error (lower is better)",
        "Mean gap between confidence and accuracy of the classifier in {bins} bins of equal width; "
        "after temperature scaling",
    ),
    "calibration_error_uncalibrated": Metric(
        "Calibration error before temperature",
        "Mean gap between confidence and accuracy of the classifier in {bins} bins of equal width; "
        "before temperature scaling",
    ),
}

TRUNK_METRICS = ("trunk_knn_accuracy", "trunk_logistic_accuracy")  # need pretrained weights


def initial_network(*, pretrained: bool) -> str:
    """Describe the network before training.

    Args:
        pretrained: True if its trunk has pretrained weights.
    """
    return (
        "pretrained trunk with an untrained projection" if pretrained else "network before training"
    )
