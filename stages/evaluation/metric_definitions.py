"""The one table of titles, definitions and units of all metrics."""

from typing import NamedTuple

from stages.evaluation.baselines import PIXELS
from stages.evaluation.calibration_error import BINS


class Metric(NamedTuple):
    """Description of a metric.

    Attributes:
        title: Name shown to people.
        definition: Definition in one sentence, a template for ``str.format``. Its fields depend on
            the evaluation; see :func:`define_metrics`.
        unit: Unit of ``Score.count`` in the singular: ``image``, ``triplet`` or ``pair``.
        group: Where the metric is defined: ``test`` for every split of known classes, ``classes``
            and ``trunk`` for all test images of known classes, the latter with pretrained weights
            only; ``unknown`` and ``unseen`` for the scores of the modules of these names.
    """

    title: str
    definition: str
    unit: str = "image"
    group: str = "test"


# Template of a template: %s is the name of the field that describes the voting images.
_VOTE = (
    "Share of images classified correctly by a majority vote of the {%s}; all images tied at the "
    "k-th distance vote; a tie between classes goes to the nearest voter"
)

_AUROC = (
    "Share of pairs of a known test image and one of an unseen class in which the known one has "
    "the higher %s; equal values count half; interval over unseen classes and known images"
)
_FPR = (
    "Share of test images of unseen classes that are accepted if 95%% of the known test images "
    "are, by %s; interval over unseen classes and known images"
)
_ENERGY = "log-sum-exp of the classifier's logits (negative energy)"
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
            f"Baseline: recall@1 {title}", f"{_RECALL_AT_1}; {vectors}", group="unseen"
        ),
        f"{prefix}_map_at_r": Metric(
            f"Baseline: MAP@R {title}", f"{_MAP_AT_R}; {vectors}", group="unseen"
        ),
        f"{prefix}_verification_auc": Metric(
            f"Baseline: verification AUC {title}", f"{_AUC}; {vectors}", "pair", group="unseen"
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
    "balanced_accuracy": Metric(
        "Balanced accuracy",
        "Mean over classes with test images of the share of their images that are classified "
        "correctly by the classifier",
        group="classes",
    ),
    "macro_f1": Metric(
        "Macro F1",
        "Mean over classes with test images of the classifier's F1, the harmonic mean of precision "
        "and recall",
        group="classes",
    ),
    "precision_at_1": Metric(
        "Recall@1 (= precision@1)",
        _RECALL_AT_1,
    ),
    **{
        f"recall_at_{k}": Metric(
            f"Recall@{k}",
            f"Share of queries with an image of their class among the {k} nearest; {{ranking}}",
            group="unseen",
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
    "verification_auc": Metric("Verification AUC", _AUC, "pair", group="unseen"),
    "equal_error_rate": Metric(
        "Equal error rate (lower is better)",
        "Error rate of verification at the distance threshold where the share of accepted pairs of "
        "two classes equals the share of rejected pairs of one class; linear interpolation; "
        "{pairs}",
        "pair",
        group="unseen",
    ),
    "tar_at_far_0.01": Metric(
        "True accept rate at false accept rate 1%", _TAR % "1%", "pair", group="unseen"
    ),
    "tar_at_far_0.001": Metric(
        "True accept rate at false accept rate 0.1%", _TAR % "0.1%", "pair", group="unseen"
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
        group="trunk",
    ),
    "trunk_logistic_accuracy": Metric(
        "Baseline: logistic regression on trunk",
        "Share of images classified correctly by logistic regression on features of the pretrained "
        "trunk; {trunk_penalty}",
        group="trunk",
    ),
    **_unseen_baseline(
        "pixel",
        "on raw pixels",
        "Euclidean distance between raw pixels (images above {pixels} pixels are averaged down to "
        "this size)",
    ),
    **_unseen_baseline("untrained", "before training", "embeddings of the {initial_network}"),
    **_unseen_baseline("trunk", "on trunk features", "features of the pretrained trunk"),
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
    "rejection_rate_known": Metric(
        "Known images rejected",
        "Share of test images of known classes with a typicality below {reject}: {typicality}",
        group="unknown",
    ),
    "left_out_auroc": Metric(
        "AUROC with classes left out",
        "Mean over test images of the share of test images of other classes that are nearer to the "
        "training images if all training images of this class are left out; equal distances count "
        "half. Optimistic for unknown classes: the embedding was trained on this one",
        group="unknown",
    ),
    "left_out_rejection_rate": Metric(
        "Rejected with classes left out",
        "Share of test images with a typicality below {reject} if all training and validation "
        "images of their class are left out. Optimistic for unknown classes: the embedding was "
        "trained on this one",
        group="unknown",
    ),
    "rejection_rate_unknown": Metric(
        "Unknown images rejected",
        "Share of test images of unseen classes with a typicality below {reject}: {typicality}",
        group="unknown",
    ),
    "unknown_auroc": Metric(
        "Unknown AUROC: distance", _AUROC % "nearness to the training images", group="unknown"
    ),
    "unknown_auroc_max_probability": Metric(
        "Unknown AUROC: probability", _AUROC % "probability of the predicted class", group="unknown"
    ),
    "unknown_auroc_energy": Metric("Unknown AUROC: energy", _AUROC % _ENERGY, group="unknown"),
    "unknown_fpr_at_95_tpr": Metric(
        "Unknown accepted at 95% known: distance",
        _FPR % "nearness to the training images",
        group="unknown",
    ),
    "unknown_fpr_at_95_tpr_max_probability": Metric(
        "Unknown accepted at 95% known: probability",
        _FPR % "probability of the predicted class",
        group="unknown",
    ),
    "unknown_fpr_at_95_tpr_energy": Metric(
        "Unknown accepted at 95% known: energy", _FPR % _ENERGY, group="unknown"
    ),
}


def initial_network(*, pretrained: bool) -> str:
    """Describe the network before training.

    Args:
        pretrained: True if its trunk has pretrained weights.
    """
    return (
        "pretrained trunk with an untrained projection" if pretrained else "network before training"
    )


def define_metrics(
    *,
    within: bool,
    with_queries: bool = False,
    majority_class: str,
    voters: str,
    pixel_voters: str,
    untrained_voters: str | None,
    pretrained: bool = False,
    trunk_voters: str | None = None,
    trunk_penalty: str | None = None,
) -> dict[str, str]:
    """Fill in the definitions of ``METRICS`` for one evaluation.

    Args:
        within: True if test images query each other, False if they query the training images.
        with_queries: True if query images of the split query its gallery images.
        majority_class: Name of the most frequent class and where it was counted.
        voters: Description of the k nearest neighbours in the embedding.
        pixel_voters: The same for raw pixels.
        untrained_voters: The same for the network before training, or None if it is not available.
        pretrained: True if training started from a pretrained trunk. Otherwise the metrics of the
            pretrained trunk are left out.
        trunk_voters: As ``voters``, for the pretrained trunk, or None if it is not available.
        trunk_penalty: Description of C of the logistic regression, or None as above.

    Returns:
        Metric -> definition, for the metrics of known classes.
    """
    if with_queries:
        triplets = "of a query (the anchor) and two gallery images of the split"
        ranking = "each query image queries the gallery images of the split"
    elif within:
        triplets = "of the split"
        ranking = "each image queries all other images of the split"
    else:
        triplets = "of a test image with two training images, one of its class and one of another,"
        ranking = "each test image queries the training images"
    unavailable = "not available: initial weights unknown"
    no_voters = f"k nearest training images ({unavailable})"
    definitions = {}
    groups = ("test", "classes", "trunk") if pretrained else ("test", "classes")
    for name, metric in METRICS.items():
        if metric.group not in groups:
            continue
        definitions[name] = metric.definition.format(
            triplets=triplets,
            ranking=ranking,
            majority_class=majority_class,
            voters=voters,
            pixel_voters=pixel_voters,
            untrained_voters=untrained_voters or no_voters,
            trunk_voters=trunk_voters or no_voters,
            trunk_penalty=trunk_penalty or unavailable,
            initial_network=initial_network(pretrained=pretrained),
            pixels=PIXELS,
            bins=BINS,
        )
    return definitions
