"""The one table of titles, definitions and units of all metrics."""

from typing import NamedTuple


class Metric(NamedTuple):
    """Description of a metric.

    Attributes:
        title: Name shown to people.
        definition: Definition in one sentence, a template for ``str.format``. Its fields depend on
            the evaluation; see :func:`stages.evaluation.scores.define_metrics`.
        unit: Unit of ``Score.count`` in the singular: ``image``, ``triplet`` or ``pair``.
        unseen_only: True if only classes that were not trained on have this metric.
    """

    title: str
    definition: str
    unit: str = "image"
    unseen_only: bool = False


# Template of a template: %s is the name of the field that describes the voting images.
_VOTE = (
    "Share of images classified correctly by a majority vote of the {%s}; all images tied at the "
    "k-th distance vote; a tie between classes goes to the nearest voter"
)

# Definitions that the embedding and its baselines share.
_RECALL_AT_1 = "Share of queries whose nearest image has the same class; {ranking}"
_MAP_AT_R = (
    "Mean over queries of the precision at each positive among the R nearest images, summed and "
    "divided by R; {ranking}"
)
_AUC = (
    "Probability that a pair of images of one class is closer than a pair of two classes (area "
    "under the ROC curve); ties count half; {pairs}"
)
_TAR = (
    "Share of the pairs of one class that are accepted at the largest distance threshold that "
    "accepts at most %s of the pairs of two classes; {pairs}"
)


def _unseen_baseline(prefix: str, title: str, vectors: str) -> dict[str, Metric]:
    """Return the metrics of a baseline for classes that were not trained on."""
    return {
        f"{prefix}_precision_at_1": Metric(
            f"Baseline: recall@1 {title}", f"{_RECALL_AT_1}; {vectors}", unseen_only=True
        ),
        f"{prefix}_map_at_r": Metric(
            f"Baseline: MAP@R {title}", f"{_MAP_AT_R}; {vectors}", unseen_only=True
        ),
        f"{prefix}_verification_auc": Metric(
            f"Baseline: verification AUC {title}", f"{_AUC}; {vectors}", "pair", unseen_only=True
        ),
    }


# In the order of the report.
METRICS = {
    "knn_accuracy": Metric("kNN accuracy", _VOTE % "voters"),
    "triplet_accuracy": Metric(
        "Triplet accuracy",
        "Share of all triplets {triplets} with d(anchor, positive) < d(anchor, negative); equal "
        "distances count as lost",
        unit="triplet",
    ),
    "classification_accuracy": Metric(
        "Classification accuracy",
        "Share of images classified correctly by dropout + linear + log-softmax on the frozen "
        "embedding",
    ),
    "precision_at_1": Metric(
        "Recall@1 (= precision@1)",
        _RECALL_AT_1,
    ),
    **{
        f"recall_at_{k}": Metric(
            f"Recall@{k}",
            f"Share of queries with an image of their class among the {k} nearest; {{ranking}}",
            unseen_only=True,
        )
        for k in (2, 4, 8)
    },
    "r_precision": Metric(
        "R-precision",
        "Mean share of the query's class among its R nearest images, where R is the number of "
        "images of that class; {ranking}",
    ),
    "map_at_r": Metric(
        "MAP@R",
        _MAP_AT_R,
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
    "verification_auc": Metric("Verification AUC", _AUC, "pair", unseen_only=True),
    "equal_error_rate": Metric(
        "Equal error rate (lower is better)",
        "Error rate of verification at the distance threshold where the share of accepted pairs of "
        "two classes equals the share of rejected pairs of one class; linear interpolation; "
        "{pairs}",
        "pair",
        unseen_only=True,
    ),
    "tar_at_far_0.01": Metric(
        "True accept rate at false accept rate 1%", _TAR % "1%", "pair", unseen_only=True
    ),
    "tar_at_far_0.001": Metric(
        "True accept rate at false accept rate 0.1%", _TAR % "0.1%", "pair", unseen_only=True
    ),
    **_unseen_baseline(
        "pixel",
        "on raw pixels",
        "Euclidean distance between raw pixels (images above {pixels} pixels are averaged down to "
        "this size)",
    ),
    **_unseen_baseline("untrained", "before training", "embeddings of the {initial_network}"),
    **_unseen_baseline("trunk", "on trunk features", "features of the pretrained trunk"),
}


def initial_network(*, pretrained: bool) -> str:
    """Describe the network before training.

    Args:
        pretrained: True if its trunk has pretrained weights.
    """
    return (
        "pretrained trunk with an untrained projection" if pretrained else "network before training"
    )
