"""Significance tests that compare two metrics or two runs image by image."""

import math

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from stages.evaluation.results import Evaluation, PairedTest
from stages.evaluation.statistics import jackknife_error, normal_quantile
from stages.evaluation.triplets_and_rankings import SplitMeasures


def mcnemar_test(
    metric_a: str, metric_b: str, split: str, a: np.ndarray, b: np.ndarray
) -> PairedTest:
    """Compare two classifiers of the same images with McNemar's test and Tango's interval.

    The interval contains every difference that the score test does not reject. For a difference
    of 0 the score test is McNemar's test, so the interval excludes 0 exactly if p < 0.05. The
    interval has a width even if no image distinguishes the classifiers.

    A mean over repeats counts as a fraction of an image. The test is then conservative: it assumes
    the variance of whole images, which is larger.

    Args:
        metric_a: Name of the first metric.
        metric_b: Name of the second metric.
        split: Name of the split.
        a: True where the first classifier is correct, bool, shape (N,); or the mean over repeats,
            float64, shape (N,).
        b: The same for the second classifier.

    Returns:
        The test of the difference ``a`` minus ``b``; undefined without an image.

    References:
        McNemar 1947 for the test, without continuity correction; Tango 1998 for the interval
        (doi 10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B). Fagerland,
        Lydersen and Laake 2014 (doi 10.1002/sim.6148) recommend both.

    Example:
        >>> a = np.array([True, True, True, True, True, True, False])
        >>> b = np.array([False, False, False, False, False, False, False])
        >>> test = mcnemar_test("classification_accuracy", "knn_accuracy", "test", a, b)
        >>> round(test.p_value, 4), test.count
        (0.0143, 7)
    """
    differences = a.astype(float) - b
    count = len(a)
    only_a, only_b = differences.clip(min=0).sum(), (-differences).clip(min=0).sum()
    if a.dtype == bool:
        images = f"{only_a:.0f} images correct only in a, {only_b:.0f} only in b"
    else:
        images = f"{only_a:.2f} images more correct in a, {only_b:.2f} in b (fractions: repeats)"
    test = f"McNemar test: {images}; interval: Tango"
    if count == 0:
        return PairedTest.undefined(metric_a, metric_b, split, test)
    low, high = tango_interval(only_a, only_b, count)
    return PairedTest(
        metric_a=metric_a,
        metric_b=metric_b,
        split=split,
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=2 * float(stats.norm.sf(abs(_tango_statistic(0, only_a, only_b, count)))),
        count=count,
        test=test,
    )


def tango_interval(only_a: float, only_b: float, count: int) -> tuple[float, float]:
    """Compute Tango's 95% score interval of the difference of two paired shares.

    Args:
        only_a: Number of images that only the first classifier classifies correctly.
        only_b: Number of images that only the second classifier classifies correctly.
        count: Number of images, at least 1.

    Returns:
        Lower and upper bound of the difference, first minus second, in [-1, 1].

    References:
        Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
        the paired-sample design".

    Example:
        >>> low, high = tango_interval(12, 2, 100)
        >>> round(low, 3), round(high, 3)
        (0.031, 0.182)
    """
    difference = (only_a - only_b) / count
    quantile = normal_quantile()

    def excess(delta: float, quantile: float) -> float:
        return _tango_statistic(delta, only_a, only_b, count) - quantile

    # The statistic falls from the lower to the upper end of the range, and is 0 at the difference.
    low, high = -1.0, 1.0
    if excess(-1.0, quantile) > 0:
        low = brentq(excess, -1.0, difference, args=(quantile,), xtol=1e-14)
    if excess(1.0, -quantile) < 0:
        high = brentq(excess, difference, 1.0, args=(-quantile,), xtol=1e-14)
    return low, high


def _tango_statistic(delta: float, only_a: float, only_b: float, count: int) -> float:
    """Return the score statistic of the hypothesis that the true difference is ``delta``.

    Its variance contains the share of images that only b classifies correctly, estimated by maximum
    likelihood under the hypothesis: the positive root of a quadratic equation.
    """
    surplus = only_a - only_b - count * delta
    linear = -only_a - only_b + (2 * count - only_a + only_b) * delta
    constant = -only_b * delta * (1 - delta)
    root = math.sqrt(max(0.0, linear**2 - 8 * count * constant))
    share_only_b = (root - linear) / (4 * count)
    variance = count * (2 * share_only_b + delta * (1 - delta))
    if variance <= 0:  # at a difference of -1 or 1, or without an image that distinguishes a and b
        return 0.0 if abs(surplus) < 1e-9 else math.copysign(math.inf, surplus)
    return surplus / math.sqrt(variance)


def compare_runs(a: Evaluation, b: Evaluation) -> tuple[PairedTest, ...]:
    """Compare two runs on the same test images in the same order.

    kNN and classification accuracy are compared with :func:`mcnemar_test`, triplet accuracy with a
    normal test whose standard error is the jackknife over images, and MAP@R with a paired t-test
    over queries.

    Args:
        a: First run.
        b: Second run.

    Returns:
        One test per metric of the difference ``a`` minus ``b``.
    """
    tests = []
    for metric in ("knn_accuracy", "classification_accuracy"):
        tests.append(mcnemar_test(metric, metric, "test", a.correct[metric], b.correct[metric]))
    tests.append(_compare_triplets(a.measures, b.measures))
    tests.append(_compare_map(a.measures.map_at_r, b.measures.map_at_r))
    return tuple(tests)


def _compare_triplets(a: SplitMeasures, b: SplitMeasures) -> PairedTest:
    metric = "triplet_accuracy"
    test = "normal test and interval; standard error: jackknife over images"
    total = int(a.total.sum())
    won = int((a.won - b.won).sum())
    error = jackknife_error(won, a.won_any - b.won_any, total, a.total_any)
    if error is None:
        return PairedTest.undefined(metric, metric, "test", test)
    return _test_mean(metric, won / total, error, math.inf, len(a.total), test)


def _compare_map(a: np.ndarray, b: np.ndarray) -> PairedTest:
    metric = "map_at_r"
    test = "paired t-test and interval over queries"
    differences = (a - b)[~np.isnan(a)]
    count = len(differences)
    if count < 2:
        return PairedTest.undefined(metric, metric, "test", test)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return _test_mean(metric, float(differences.mean()), error, count - 1, count, test)


def _test_mean(
    metric: str, difference: float, error: float, degrees: float, count: int, test: str
) -> PairedTest:
    """Test a mean difference with Student's t; infinite degrees of freedom mean a normal test."""
    if not error:  # all images have the same difference, so its spread is unknown
        p_value = 1.0 if difference == 0 else None
        low = high = None
    else:
        distribution = stats.t(degrees)
        half_width = float(distribution.ppf(0.975)) * error
        low, high = max(-1.0, difference - half_width), min(1.0, difference + half_width)
        p_value = 2 * float(distribution.sf(abs(difference) / error))
    return PairedTest(
        metric_a=metric,
        metric_b=metric,
        split="test",
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        count=count,
        test=test,
    )
