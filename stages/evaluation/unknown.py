"""Unknown images: how well the distance to the training images separates them from known ones.

Unknown images are those of classes without a training image (``test-unseen``), or known images
whose class is left out of the training images (:mod:`stages.evaluation.left_out`).
"""

import math
from collections.abc import Mapping

import numpy as np

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.class_jackknife import (
    CLASS_VARIANCE,
    class_interval,
    class_jackknife_error,
)
from stages.evaluation.metric_definitions import METRICS
from stages.evaluation.paired_tests import compare_shares
from stages.evaluation.results import UNSEEN, PairedTest, Predictions, Score
from stages.evaluation.roc import accepted_at_95, placements
from stages.evaluation.statistics import share_score
from stages.settings import REJECT

KNOWN_GROUPS = 20  # groups of known images that the jackknife leaves out


def define_unknown(classifier: ClassifierCheckpoint | None = None) -> dict[str, str]:
    """Fill in the definitions of the metrics of unknown images.

    Args:
        classifier: Classifier of the run; None for several classifiers of folds.
    """
    text = "the share of validation images that are at least as far from the training images, "
    if classifier is None:
        text += "in the fold"
    else:
        count = len(classifier.validation_distances)
        text += f"a multiple of 1/{count + 1} with {count} validation images"
        if count and classifier.new_classes:
            enrolled = len(classifier.enrolled_distances)
            text += (
                "; for an image whose nearest training image is of an enrolled class, the share of "
                f"{enrolled} enrolled images of such classes that are at least as far from the "
                f"nearest other one, a multiple of 1/{enrolled + 1}"
            )
    return {
        name: metric.definition.format(reject=REJECT, typicality=text)
        for name, metric in METRICS.items()
        if metric.group == "unknown"
    }


def rejection_scores(
    prediction: Predictions, labels: np.ndarray, order: np.ndarray, definitions: Mapping[str, str]
) -> list[Score]:
    """Compute how many known images are rejected, and the scores with classes left out.

    Args:
        prediction: Predictions of the test images of known classes, one per image and repeat.
        labels: Class index of each image, int64, shape (N,).
        order: Predictions of each image, int64, shape (N, R) for R repeats.
        definitions: Metric -> definition.

    Returns:
        Scores ``rejection_rate_known``, ``left_out_auroc`` and ``left_out_rejection_rate`` with
        split ``test``.
    """
    scores = []
    for metric, values in (
        ("rejection_rate_known", rejected(prediction.typicality)),
        ("left_out_auroc", prediction.left_out_nearer),
        ("left_out_rejection_rate", rejected(prediction.left_out_typicality)),
    ):
        values = values[order].mean(axis=1)
        if metric == "rejection_rate_known":
            values = values[~np.isnan(values)]  # of folds without validation images
            scores.append(share_score(metric, "test", values, definitions[metric]))
        else:
            scores.append(_class_score(metric, "test", values, labels, definitions[metric]))
    return scores


def rejected(typical: np.ndarray) -> np.ndarray:
    """Return 1 for rejected images, 0 for others, NaN where typicality is undefined, (N,)."""
    return np.where(np.isnan(typical), np.nan, typical < REJECT)


def _class_score(
    metric: str, split: str, values: np.ndarray, labels: np.ndarray, definition: str
) -> Score:
    """Return a mean over images as a score whose interval is over classes."""
    definition += "; interval over classes"
    defined = ~np.isnan(values)
    values, labels = values[defined], labels[defined]
    if len(values) == 0:
        return Score.undefined(metric, split, definition)
    return _score(metric, split, values, class_error(values, labels), labels, definition)


def _score(
    metric: str,
    split: str,
    values: np.ndarray,
    error: float | None,
    labels: np.ndarray,
    definition: str,
) -> Score:
    mean = min(1.0, math.fsum(values) / len(values))
    if error is None:
        definition += "; no interval: fewer than three classes"
        return Score(metric, split, mean, None, None, len(values), definition)
    low, high = class_interval(mean, error, len(np.unique(labels)))
    return Score(metric, split, mean, low, high, len(values), definition)


def class_error(values: np.ndarray, labels: np.ndarray) -> float | None:
    """Compute the standard error of a mean over images if classes are the sampling unit.

    It is the jackknife that leaves one class out. Images of one class are not independent.

    Args:
        values: Value of each image, floating point, shape (N,) with N > 0.
        labels: Class indices, int64, shape (N,).

    Returns:
        Standard error, or None with fewer than three classes.
    """
    _, classes = np.unique(labels, return_inverse=True)
    if classes.max() == 0:
        return None
    sums, sizes = np.bincount(classes, values), np.bincount(classes)
    return class_jackknife_error((values.sum() - sums) / (len(values) - sizes))


def _certainties(prediction: Predictions) -> dict[str, np.ndarray]:
    """Return the scores of each method by the ending of its metrics; high means known."""
    return {
        "": -prediction.distance,
        "_max_probability": prediction.probability,
        "_energy": prediction.energy,
    }


def unknown_scores(
    known: Predictions,
    unknown: Predictions,
    unknown_labels: np.ndarray,
    definitions: Mapping[str, str],
) -> tuple[list[Score], list[PairedTest]]:
    """Compute how well three methods separate unknown from known images.

    The methods are the distance to the nearest training image, the probability of the predicted
    class, and the energy of the classifier's logits. Known images are the positive class.

    Args:
        known: Predictions of the test images of known classes.
        unknown: Predictions of U > 0 test images of unknown classes.
        unknown_labels: Their classes, int64, shape (U,).
        definitions: Metric -> definition.

    Returns:
        Scores with split ``test-unseen``, and tests of the distance against the other methods.

    References:
        Hendrycks and Gimpel 2017, "A baseline for detecting misclassified and out-of-distribution
        examples in neural networks" (arXiv 1610.02136), for the probability.
        Liu et al. 2020, "Energy-based out-of-distribution detection" (arXiv 2010.03759).
    """
    scores = [_rejected_unknown(unknown, unknown_labels, definitions)]
    tests: list[PairedTest] = []
    known_methods, unknown_methods = _certainties(known), _certainties(unknown)
    for metric, compute in (
        ("unknown_auroc", _auroc_parts),
        ("unknown_fpr_at_95_tpr", _accepted_parts),
    ):
        parts = {}
        for ending, values in unknown_methods.items():
            name, text = f"{metric}{ending}", definitions[f"{metric}{ending}"]
            if len(known_methods[ending]) == 0:
                scores.append(Score.undefined(name, UNSEEN, text))
                continue
            parts[ending] = compute(known_methods[ending], values)
            error = _two_sample_error(*parts[ending], unknown_labels)
            of_unknown = parts[ending][0]
            scores.append(_score(name, UNSEEN, of_unknown, error, unknown_labels, text))
        for ending in list(parts)[1:]:
            names = (metric, f"{metric}{ending}", UNSEEN)
            tests.append(_compare(names, parts[""], parts[ending], unknown_labels))
    return scores, tests


def _rejected_unknown(
    unknown: Predictions, labels: np.ndarray, definitions: Mapping[str, str]
) -> Score:
    metric = "rejection_rate_unknown"
    return _class_score(metric, UNSEEN, rejected(unknown.typicality), labels, definitions[metric])


# A value per unknown image whose mean is the score, and one per known image that varies with it.
_Parts = tuple[np.ndarray, np.ndarray]


def _auroc_parts(known: np.ndarray, unknown: np.ndarray) -> _Parts:
    return placements(known, unknown), 1 - placements(unknown, known)


def _accepted_parts(known: np.ndarray, unknown: np.ndarray) -> _Parts:
    """Return accepted unknown images, and pseudo-values of groups of known images.

    The threshold is a quantile of the known images. Leaving out one image hardly moves it, so the
    jackknife leaves out one of 20 groups of them.
    """
    accepted = accepted_at_95(known, unknown).astype(float)
    groups = np.arange(len(known)) % KNOWN_GROUPS
    count = min(KNOWN_GROUPS, len(known))
    if count < 2:
        return accepted, np.zeros(1)
    left_out = [accepted_at_95(known[groups != g], unknown).mean() for g in range(count)]
    return accepted, count * accepted.mean() - (count - 1) * np.array(left_out)


def _two_sample_error(
    of_unknown: np.ndarray, of_known: np.ndarray, labels: np.ndarray
) -> float | None:
    """Combine the errors of the unknown images, by class, and of the known images."""
    error = class_error(of_unknown, labels)
    if error is None:
        return None
    return math.hypot(error, of_known.std() / math.sqrt(len(of_known)))


def _compare(names: tuple[str, str, str], a: _Parts, b: _Parts, labels: np.ndarray) -> PairedTest:
    """Test the difference of a score between two methods on the same images."""
    test = "score test over unseen classes and known images; interval: Tango"
    error = _two_sample_error(a[0] - b[0], a[1] - b[1], labels)
    if error is None:
        return PairedTest.undefined(*names, "not available: fewer than three classes")
    means = math.fsum(a[0]) / len(labels), math.fsum(b[0]) / len(labels)
    return compare_shares(
        names,
        means,
        error,
        count=len(np.unique(labels)),
        test=test,
        extra_variance=CLASS_VARIANCE,
    )
