"""Significance tests that compare two metrics or two runs image by image.

All tests are score tests, and their intervals are score intervals: the differences that the same
test does not reject. So the 95% interval of a difference excludes 0 exactly if p < 0.05.
"""

import math

import numpy as np

from stages.evaluation.results import Evaluation, PairedTest
from stages.evaluation.statistics import (
    LARGEST_VARIANCE,
    NORMAL_QUANTILE,
    independent_images,
    jackknife_error,
)
from stages.evaluation.triplets_and_rankings import SplitMeasures

BISECTIONS = 60  # halvings of an interval no longer than 2, down to the precision of float64


def tango_z(difference: float, only_a: float, only_b: float, count: float) -> float:
    """Compute Tango's score statistic for a difference of two paired shares.

    Args:
        difference: Difference under the null hypothesis, in [-1, 1].
        only_a: Number of pairs where only a is correct.
        only_b: Number of pairs where only b is correct.
        count: Number of pairs, at least 1.

    Returns:
        The statistic, standard normal under the null hypothesis. It decreases in ``difference``.
        For a difference of 0 it is McNemar's, ``(only_a - only_b) / sqrt(only_a + only_b)``.

    References:
        Tango 1998, "Equivalence test and confidence interval for the difference in proportions for
        the paired-sample design" (Statistics in Medicine 17, 891-908).
    """
    distance = only_a - only_b - count * difference
    if difference == 0:
        variance = only_a + only_b  # exact, so that p-value and interval agree
    else:
        # Share of pairs where only b is correct, by maximum likelihood under the null hypothesis.
        linear = (2 * count - only_a + only_b) * difference - only_a - only_b
        constant = -only_b * difference * (1 - difference)
        root = math.sqrt(max(0.0, linear**2 - 8 * count * constant))
        share_b = (root - linear) / (4 * count)
        variance = count * (2 * share_b + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def tango_interval(only_a: float, only_b: float, count: float) -> tuple[float, float]:
    """Compute the 95% confidence interval of a difference of two paired shares.

    Args:
        only_a: Number of pairs where only a is correct. It may be an effective number, not an
            integer.
        only_b: The same for b.
        count: Number of pairs, at least 1.

    Returns:
        Lower and upper bound in [-1, 1]. They differ. The interval contains 0 exactly if
        :func:`tango_z` of 0 is at most 1.96 in size.

    Example:
        >>> low, high = tango_interval(1, 7, 21)
        >>> round(low, 3), round(high, 3)
        (-0.517, -0.026)
    """
    quantile = NORMAL_QUANTILE
    observed = (only_a - only_b) / count

    def bound(end: float, target: float) -> float:
        """Find the difference between the observed one and an end with the target statistic."""
        inside, outside = observed, end
        # Start at 0 if it is in between, so that the bound is on the right side of 0.
        middle = 0.0 if min(inside, outside) < 0 < max(inside, outside) else (inside + outside) / 2
        for _ in range(BISECTIONS):
            if abs(tango_z(middle, only_a, only_b, count)) <= target:
                inside = middle
            else:
                outside = middle
            middle = (inside + outside) / 2
        return inside

    return bound(-1.0, quantile), bound(1.0, quantile)


def mcnemar_test(
    metric_a: str, metric_b: str, split: str, a: np.ndarray, b: np.ndarray
) -> PairedTest:
    """Compare two classifiers of the same images with McNemar's test and Tango's interval.

    The test is the asymptotic one without continuity correction. The exact one is conservative and
    has no interval of positive width where no image differs. For means over repeats the test is
    the score test of :func:`compare_runs`.

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
        McNemar 1947 for the test, Tango 1998 for the interval. Fagerland, Lydersen and Laake 2013
        (doi 10.1186/1471-2288-13-91) recommend this test for paired shares, and Fagerland,
        Lydersen and Laake 2014 (doi 10.1002/sim.6148) this interval.

    Example:
        >>> a = np.array([True, True, True, True, True, True, False])
        >>> b = np.array([False, False, False, False, False, False, False])
        >>> test = mcnemar_test("classification_accuracy", "knn_accuracy", "test", a, b)
        >>> round(test.p_value, 4), test.count
        (0.0143, 7)
    """
    differences = a.astype(float) - b
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    if a.dtype == bool:
        test = f"McNemar test; images correct only in a: {only_a}, only in b: {only_b}"
    else:
        test = f"score test; images more often correct in a: {only_a}, in b: {only_b}"
    test += "; interval: Tango"
    return _test_differences(metric_a, metric_b, split, differences, test)


def compare_runs(a: Evaluation, b: Evaluation) -> tuple[PairedTest, ...]:
    """Compare two runs on the same test images in the same order.

    kNN and classification accuracy are compared with :func:`mcnemar_test`. MAP@R and triplet
    accuracy are compared with the same score test of the effective number of images: the number
    of binary differences whose mean has the same standard error. The standard error of triplet
    accuracy is that of the jackknife over images.

    Args:
        a: First run.
        b: Second run.

    Returns:
        One test per metric of the difference ``a`` minus ``b``.
    """
    tests = []
    for metric in ("knn_accuracy", "classification_accuracy"):
        tests.append(mcnemar_test(metric, metric, "test", a.correct[metric], b.correct[metric]))
    if np.array_equal(a.measures.total, b.measures.total):
        tests.append(_compare_triplets(a.measures, b.measures))
        tests.append(_compare_map(a.measures.map_at_r, b.measures.map_at_r))
    else:  # only one of them has queries and gallery images
        for metric in ("triplet_accuracy", "map_at_r"):
            test = "not available: the queries of the runs differ"
            tests.append(PairedTest.undefined(metric, metric, "test", test))
    return tuple(tests)


def _compare_triplets(a: SplitMeasures, b: SplitMeasures) -> PairedTest:
    metric = "triplet_accuracy"
    test = "score test over images; standard error: jackknife; interval: Tango"
    total = int(a.total.sum())
    won_a, won_b = int(a.won.sum()), int(b.won.sum())
    error = jackknife_error(won_a - won_b, a.won_any - b.won_any, total, a.total_any)
    if error is None:
        return PairedTest.undefined(metric, metric, "test", test)
    count = independent_images(a)
    return compare_shares(
        (metric, metric, "test"), (won_a / total, won_b / total), error, count=count, test=test
    )


def compare_shares(
    names: tuple[str, str, str],
    shares: tuple[float, float],
    error: float,
    *,
    count: int,
    test: str,
    extra_variance: float = LARGEST_VARIANCE,
) -> PairedTest:
    """Compare two shares by the standard error of their difference.

    It is Tango's score test of the effective number of values: see :func:`compare_runs`.

    Args:
        names: First metric, second metric and split.
        shares: First and second share, in [0, 1].
        error: Standard error of the difference.
        count: Number of independent values behind a share: images or classes.
        test: Description of the test.
        extra_variance: Variance of one additional value; see
            :func:`stages.evaluation.statistics.bounded_mean_interval`.

    Returns:
        The test of the first share minus the second.
    """
    a, b = shares
    return _score_test(
        names,
        a - b,
        # The numbers of values if each were won or lost as a whole, and independently in a and b.
        only=(count * a * (1 - b), count * b * (1 - a)),
        squares=(count * error) ** 2 + count * (a - b) ** 2,
        count=count,
        test=test,
        extra_variance=extra_variance,
    )


def _compare_map(a: np.ndarray, b: np.ndarray) -> PairedTest:
    metric = "map_at_r"
    test = "score test over queries; interval: Tango"
    return _test_differences(metric, metric, "test", (a - b)[~np.isnan(a)], test)


def _test_differences(
    metric_a: str, metric_b: str, split: str, differences: np.ndarray, test: str
) -> PairedTest:
    """Test the mean of differences in [-1, 1], one per image."""
    count = len(differences)
    if count == 0:
        return PairedTest.undefined(metric_a, metric_b, split, test)
    only_a, only_b = differences.clip(min=0), (-differences).clip(min=0)
    return _score_test(
        (metric_a, metric_b, split),
        # Rounding makes differences that cancel out exactly 0.
        round(math.fsum(differences) / count, 12),
        only=(math.fsum(only_a), math.fsum(only_b)),
        squares=math.fsum(np.square(differences)),
        count=count,
        test=test,
    )


def _score_test(
    names: tuple[str, str, str],
    difference: float,
    *,
    only: tuple[float, float],
    squares: float,
    count: int,
    test: str,
    extra_variance: float = LARGEST_VARIANCE,
) -> PairedTest:
    """Test a difference of two means of values in [0, 1] with Tango's score statistic.

    Args:
        names: First metric, second metric and split.
        difference: First mean minus second mean.
        only: Sums over images of the differences in favour of a and of b.
        squares: Sum of the squared differences.
        count: Number of images.
        test: Description of the test.
        extra_variance: Variance of one additional value.
    """
    # Differences below 1 vary less than binary ones of the same size: see `bounded_mean_interval`.
    design_effect = (squares + extra_variance) / (sum(only) + extra_variance)
    only_a, only_b = only[0] / design_effect, only[1] / design_effect
    effective_count = count / design_effect
    low, high = tango_interval(only_a, only_b, effective_count)
    z = tango_z(0.0, only_a, only_b, effective_count)
    return PairedTest(
        *names,
        difference=difference,
        low=low,
        high=high,
        p_value=math.erfc(abs(z) / math.sqrt(2)),
        count=count,
        test=test,
    )
