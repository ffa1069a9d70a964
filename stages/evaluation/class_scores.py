"""Precision, recall and F1 per class, and their means over classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.evaluation.results import Score
from stages.evaluation.statistics import bounded_mean_interval, wilson_interval

CLASS_MEANS = ("balanced_accuracy", "macro_f1")
MIN_CLASS_SIZE = 3  # harmonic mean of the class sizes below which macro F1 has no interval


class Estimate(NamedTuple):
    """A share with its 95% confidence interval; all three are None if it is undefined."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class.

    Attributes:
        count: Number of test images of the class.
        precision: Share of the images predicted as this class that belong to it; undefined if
            there are none.
        recall: Share of the images of this class that are predicted as it; undefined without one.
        f1: Harmonic mean of both, ``2 TP / (2 TP + FP + FN)``; undefined if no image belongs to the
            class or is predicted as it.
    """

    count: int
    precision: Estimate
    recall: Estimate
    f1: Estimate


class _ClassCounts(NamedTuple):
    """Counts of images per class; a prediction repeated R times counts as 1 / R images.

    All arrays have shape (C,) but the last three, which have one entry per pair of an image and a
    class that it is predicted as, shape (P,).
    """

    images: np.ndarray  # of the class
    hits: np.ndarray  # of the class and predicted as it
    predicted: np.ndarray  # predicted as the class
    pair_image: np.ndarray
    pair_class: np.ndarray
    pair_weight: np.ndarray  # share of the repeats
    image_label: np.ndarray  # shape (N,)


def class_scores(
    predicted: np.ndarray, labels: np.ndarray, classes: int, *, images: np.ndarray | None = None
) -> list[ClassScores]:
    """Compute precision, recall and F1 of each class with 95% confidence intervals.

    Precision and recall have Wilson intervals over images. F1 increases with the Jaccard index
    J = TP / (TP + FP + FN): F1 = 2 J / (1 + J). J is a share of the images that belong to the class
    or are predicted as it, so its Wilson interval, transformed in the same way, is an interval of
    F1. In simulations of 3 to 10 classes with 5 to 50 images per class, it contains the true F1 in
    94-98% of samples.

    Repeated predictions of an image count once: scores use the mean over repeats, and intervals
    the effective number of images (Kish).

    Args:
        predicted: Predicted class, int64, shape (M,).
        labels: True class, int64, shape (M,).
        classes: Number of classes, C.
        images: Index of the image of each prediction, int64, shape (M,), if images are predicted
            several times, all equally often. None: each prediction is another image.

    Returns:
        One entry per class.

    References:
        Lam, Gopal and Qian 2023 (arXiv 2309.14621): the interval of F1, "Wilson indirect".

    Example:
        >>> scores = class_scores(np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1]), 2)
        >>> scores[1].count, scores[1].precision.value, scores[1].recall.value
        (2, 1.0, 0.5)
        >>> round(scores[1].f1.value, 3)
        0.667
    """
    counts = _count(predicted, labels, classes, images)
    wrong = counts.image_label[counts.pair_image] != counts.pair_class
    weights, squares = counts.pair_weight, np.square(counts.pair_weight)
    predicted_squares = np.bincount(counts.pair_class, squares, classes)
    false = np.bincount(counts.pair_class[wrong], weights[wrong], classes)
    false_squares = np.bincount(counts.pair_class[wrong], squares[wrong], classes)
    scores = []
    for label in range(classes):
        count, hits = int(counts.images[label]), float(counts.hits[label])
        jaccard = _share(hits, count + false[label], count + false_squares[label])
        scores.append(
            ClassScores(
                count=count,
                precision=_share(hits, counts.predicted[label], predicted_squares[label]),
                recall=_share(hits, count, count),
                f1=Estimate(
                    *(None if share is None else 2 * share / (1 + share) for share in jaccard)
                ),
            )
        )
    return scores


def _count(
    predicted: np.ndarray, labels: np.ndarray, classes: int, images: np.ndarray | None
) -> _ClassCounts:
    if images is None:
        images = np.arange(len(labels))
    _, first, images = np.unique(images, return_index=True, return_inverse=True)
    image_label = labels[first]
    repeats = len(labels) // max(1, len(image_label))
    cells, frequency = np.unique(images * classes + predicted, return_counts=True)
    pair_image, pair_class = cells // classes, cells % classes
    pair_weight = frequency / max(1, repeats)
    hit = image_label[pair_image] == pair_class
    return _ClassCounts(
        images=np.bincount(image_label, minlength=classes),
        hits=np.bincount(pair_class[hit], pair_weight[hit], classes),
        predicted=np.bincount(pair_class, pair_weight, classes),
        pair_image=pair_image,
        pair_class=pair_class,
        pair_weight=pair_weight,
        image_label=image_label,
    )


def _share(hits: float, total: float, squares: float) -> Estimate:
    """Return a share of weighted images with the Wilson interval of their effective number.

    Args:
        hits: Sum of the weights that count as correct.
        total: Sum of all weights.
        squares: Sum of their squares.
    """
    if total == 0:
        return Estimate()
    value = min(1.0, float(hits / total))
    return Estimate(value, *wilson_interval(value, float(total * total / squares)))


def class_mean_scores(
    predicted: np.ndarray,
    labels: np.ndarray,
    split: str,
    definitions: Mapping[str, str],
    *,
    images: np.ndarray | None = None,
) -> dict[str, Score]:
    """Compute balanced accuracy and macro F1: means of recall and F1 over the classes with images.

    The standard errors are those of the delta method over images. The variance of a class with one
    image cannot be estimated, so the largest one for the same mean is taken. The intervals are
    Wilson intervals of the effective number of images. In simulations of 3 to 100 classes with 5 to
    50 images per class they contain the true value in 95% of samples on average, and in at least
    90% except for balanced accuracy of 15 images (81%). F1 of one or two images is biased, so macro
    F1 has no interval if the harmonic mean of the class sizes is below 3.

    Args:
        predicted: As for :func:`class_scores`.
        labels: As for :func:`class_scores`.
        split: Name of the split.
        definitions: Metric -> definition; at least those of ``CLASS_MEANS``.
        images: As for :func:`class_scores`.

    Returns:
        Metric -> score, for ``CLASS_MEANS``; undefined without an image.

    References:
        Takahashi, Yamamoto, Kuchiba and Koyama 2022 (doi 10.1007/s10489-021-02635-5): the delta
        method for macro F1.
    """
    classes = int(np.concatenate([predicted, labels]).max(initial=-1)) + 1
    counts = _count(predicted, labels, classes, images)
    present = counts.images > 0
    if not present.any():
        return {name: Score.undefined(name, split, definitions[name]) for name in CLASS_MEANS}
    recall = np.divide(counts.hits, counts.images, out=np.zeros(classes), where=present)
    # Denominators of F1, 2 TP + FP + FN. Classes without images are no part of the mean.
    totals = np.where(present, counts.images + counts.predicted, np.inf)
    f1 = 2 * counts.hits / totals
    # Derivatives of the sums over classes by the weight of each image, shape (N,).
    label, pair_class = counts.image_label, counts.pair_class
    hit = label[counts.pair_image] == pair_class
    image_hits = np.bincount(counts.pair_image[hit], counts.pair_weight[hit], len(label))
    recall_change = (image_hits - recall[label]) / counts.images[label]
    f1_change = 2 * image_hits / totals[label] - (f1 / totals)[label]
    f1_change -= np.bincount(counts.pair_image, counts.pair_weight * (f1 / totals)[pair_class])
    return {
        "balanced_accuracy": _mean_over_classes(
            "balanced_accuracy", split, definitions, recall[present], recall_change, counts
        ),
        "macro_f1": _mean_over_classes(
            "macro_f1", split, definitions, f1[present], f1_change, counts
        ),
    }


def _mean_over_classes(
    metric: str,
    split: str,
    definitions: Mapping[str, str],
    values: np.ndarray,
    change: np.ndarray,
    counts: _ClassCounts,
) -> Score:
    """Return the mean of one value per class as a score.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        definitions: Metric -> definition.
        values: Value of each class with images.
        change: Derivative of the sum of the values by the weight of each image, shape (N,).
        counts: Counts per class.
    """
    value, definition = min(1.0, math.fsum(values) / len(values)), definitions[metric]
    sizes = counts.images[counts.image_label]  # (N,) images of the same class
    several = sizes > 1
    variance = float((np.square(change[several]) * sizes[several] / (sizes[several] - 1)).sum())
    variance += int((~several).sum()) * value * (1 - value)
    # The number of images of equally large classes whose mean would vary as much as this one.
    effective = len(values) ** 2 / float((1 / counts.images[counts.images > 0]).sum())
    if metric == "macro_f1" and effective < MIN_CLASS_SIZE * len(values):
        definition += f"; no interval: on average fewer than {MIN_CLASS_SIZE} images per class"
        return Score(metric, split, value, None, None, len(sizes), definition)
    low, high = bounded_mean_interval(value, math.sqrt(variance) / len(values), effective)
    definition += "; interval: Wilson with the effective number of images (delta method)"
    return Score(metric, split, value, low, high, len(sizes), definition)
