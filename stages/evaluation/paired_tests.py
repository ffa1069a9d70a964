"""Significance tests that compare two metrics or two runs image by image."""

import math

import numpy as np
from scipy import stats

from stages.evaluation.results import Evaluation, PairedTest
from stages.evaluation.statistics import jackknife_error, normal_quantile
from stages.evaluation.triplets_and_rankings import SplitMeasures


def mcnemar_test(
    metric_a: str, metric_b: str, split: str, a: np.ndarray, b: np.ndarray
) -> PairedTest:
    """Compare two classifiers of the same images with the exact McNemar test.

    For means over repeats this is the exact sign test over images. The interval of the difference
    keeps its coverage when few images differ.

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
        McNemar 1947, in its exact binomial form, for the test. Bonett and Price 2012
        (doi 10.3102/1076998611411915), the adjusted Wald interval, for the interval.

    Example:
        >>> a = np.array([True, True, True, True, True, True, False])
        >>> b = np.array([False, False, False, False, False, False, False])
        >>> test = mcnemar_test("classification_accuracy", "knn_accuracy", "test", a, b)
        >>> test.p_value, test.count
        (0.03125, 7)
    """
    differences = a.astype(float) - b
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    if a.dtype == bool:
        test = f"exact McNemar test: {only_a} images correct only in a, {only_b} only in b"
    else:
        test = f"exact sign test over images: {only_a} more often correct in a, {only_b} in b"
    test += "; interval: Bonett-Price"
    count = len(a)
    if count == 0:
        return PairedTest.undefined(metric_a, metric_b, split, test)
    p_value = 1.0
    if only_a + only_b:
        p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
    # Bonett and Price add one image to each kind of disagreement.
    share_a = (differences.clip(min=0).sum() + 1) / (count + 2)
    share_b = ((-differences).clip(min=0).sum() + 1) / (count + 2)
    centre = share_a - share_b
    variance = (share_a + share_b - centre**2) / (count + 2)
    half_width = normal_quantile() * math.sqrt(variance)
    return PairedTest(
        metric_a=metric_a,
        metric_b=metric_b,
        split=split,
        difference=float(differences.mean()),
        low=max(-1.0, centre - half_width),
        high=min(1.0, centre + half_width),
        p_value=p_value,
        count=count,
        test=test,
    )


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
    distribution = stats.t(degrees)
    half_width = float(distribution.ppf(0.975)) * error
    if error:
        p_value = 2 * float(distribution.sf(abs(difference) / error))
    else:
        p_value = float(difference == 0)
    return PairedTest(
        metric_a=metric,
        metric_b=metric,
        split="test",
        difference=difference,
        low=max(-1.0, difference - half_width),
        high=min(1.0, difference + half_width),
        p_value=p_value,
        count=count,
        test=test,
    )
