"""Confidence intervals of scores."""

import math
from statistics import NormalDist

import numpy as np

from stages.evaluation.results import Score
from stages.evaluation.triplets_and_rankings import SplitMeasures

LARGEST_VARIANCE = 0.25  # of values in [0, 1]


NORMAL_QUANTILE = NormalDist().inv_cdf(0.975)  # 97.5% of the standard normal distribution


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Compute the 95% Wilson score interval of a binomial share.

    Args:
        share: Observed share in [0, 1].
        count: Number of observations above 0. It may be an effective number, not an integer.

    Returns:
        Lower and upper bound in [0, 1].

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> low, high = wilson_interval(0.9, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    z = NORMAL_QUANTILE
    centre = share + z * z / (2 * count)
    half_width = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    low, high = (centre - half_width) / scale, (centre + half_width) / scale
    # Rounding errors would leave the bounds at shares of 0 and 1 slightly outside [0, 1].
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def bounded_mean_interval(
    mean: float, error: float, count: float, *, extra_variance: float = LARGEST_VARIANCE
) -> tuple[float, float]:
    """Compute a 95% interval of a mean of values in [0, 1] from its standard error.

    The interval is the Wilson interval of the effective number of values: the number of binary
    values whose mean has the same standard error. Unlike mean +- 1.96 errors it stays within
    [0, 1]. One more value, by default with the largest possible variance, 1/4, is added to both
    variances: where all values are equal, other images could still have other values. For binary
    values this is the Wilson interval itself.

    Args:
        mean: Mean in [0, 1].
        error: Standard error of the mean.
        count: Number of independent values, at least 1. It may be an effective number.
        extra_variance: Variance of the additional value, above 0.

    Returns:
        Lower and upper bound in [0, 1]. They differ.

    Example:
        >>> low, high = bounded_mean_interval(1.0, error=0.0, count=9)
        >>> round(low, 3), high
        (0.701, 1.0)
    """
    # Variances summed over the values, and the ratio of the two: Kish's design effect.
    variance = (count * error) ** 2
    binary_variance = count * mean * (1 - mean)
    design_effect = (variance + extra_variance) / (binary_variance + extra_variance)
    return wilson_interval(mean, count / design_effect)


def jackknife_error(
    won: int, won_any: np.ndarray, total: int, total_any: np.ndarray
) -> float | None:
    """Compute the jackknife standard error of a share of triplets.

    Each estimate leaves out one image in all its roles (anchor, positive, negative). Triplets share
    images, so an error that treats triplets as independent would be far too small.

    Args:
        won: Number of won triplets, or the difference of two such numbers.
        won_any: Won triplets that contain each image, int64, shape (N,).
        total: Number of triplets.
        total_any: Triplets that contain each image, int64, shape (N,).

    Returns:
        Standard error of ``won / total``, or None with fewer than two estimates.
    """
    remaining = total - total_any
    defined = remaining > 0
    count = int(defined.sum())
    if count < 2:
        return None
    estimates = (won - won_any[defined]) / remaining[defined]
    squares = float(np.square(estimates - estimates.mean()).sum())
    return math.sqrt((count - 1) / count * squares)


def triplet_accuracy(measures: SplitMeasures) -> tuple[float, float, float]:
    """Compute the share of triplets with d(anchor, positive) < d(anchor, negative).

    The share is over all triplets, not a mean over anchors. The interval is that of
    :func:`bounded_mean_interval` over images, with the standard error of the jackknife.

    Args:
        measures: Measures of a split.

    Returns:
        Value, lower and upper bound of the 95% confidence interval; all NaN without a triplet.

    Example:
        >>> import torch
        >>> from stages.evaluation.triplets_and_rankings import measure_split
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> triplet_accuracy(measure_split(vectors, torch.tensor([0, 0, 1])))
        (0.5, 0.0, 1.0)
    """
    total, won = int(measures.total.sum()), int(measures.won.sum())
    if total == 0:
        return math.nan, math.nan, math.nan
    value = won / total
    error = jackknife_error(won, measures.won_any, total, measures.total_any)
    if error is None:
        return value, 0.0, 1.0
    return value, *bounded_mean_interval(value, error, independent_images(measures))


def independent_images(measures: SplitMeasures) -> int:
    """Return the number of images in a triplet; if some images are queries, those that are."""
    every_image = len(measures.total) == len(measures.total_any)
    return int(((measures.total_any if every_image else measures.total) > 0).sum())


def triplet_score(metric: str, split: str, measures: SplitMeasures, definition: str) -> Score:
    """Return triplet accuracy as a score.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        measures: Measures of the split.
        definition: Definition stored with the score.

    Returns:
        The score; undefined without a triplet.
    """
    count = int(measures.total.sum())
    if count == 0:
        return Score.undefined(metric, split, definition)
    value, low, high = triplet_accuracy(measures)
    definition += "; interval: Wilson with the effective number of images (jackknife)"
    return Score(metric, split, value, low, high, count, definition)


def share_score(metric: str, split: str, correct: np.ndarray, definition: str) -> Score:
    """Return a share of images as a score with a Wilson interval.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        correct: 1 (correct), 0 (wrong) or a mean over repeats per image, float64, shape (N,). NaN
            values are dropped.
        definition: Definition stored with the score.

    Returns:
        The score; undefined without a value.
    """
    values, definition = _drop_undefined(correct, definition)
    if len(values) == 0:
        return Score.undefined(metric, split, definition)
    value = float(values.mean())
    low, high = wilson_interval(value, len(values))
    return Score(metric, split, value, low, high, len(values), f"{definition}; interval: Wilson")


def mean_score(metric: str, split: str, values: np.ndarray, definition: str) -> Score:
    """Return a mean over queries as a score with the interval of :func:`bounded_mean_interval`.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        values: Value of each query in [0, 1], float64, shape (Q,). NaN values are dropped.
        definition: Definition stored with the score.

    Returns:
        The score; undefined without a value.
    """
    values, definition = _drop_undefined(values, definition)
    if len(values) == 0:
        return Score.undefined(metric, split, definition)
    mean = min(1.0, math.fsum(values) / len(values))
    error = float(values.std()) / math.sqrt(len(values))
    low, high = bounded_mean_interval(mean, error, len(values))
    definition = f"{definition}; interval: Wilson with the effective number of queries"
    return Score(metric, split, mean, low, high, len(values), definition)


def _drop_undefined(values: np.ndarray, definition: str) -> tuple[np.ndarray, str]:
    """Drop NaN values and add their number to the definition."""
    defined = values[~np.isnan(values)]
    dropped = len(values) - len(defined)
    if dropped:
        queries = "query" if dropped == 1 else "queries"
        definition += f"; {dropped} {queries} without another image of the same class dropped"
    return defined, definition
