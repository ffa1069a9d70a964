"""Significance tests that compare two methods or two runs image by image."""

import math

import numpy as np
from scipy import stats

from stages.evaluation.results import Evaluation, PairedTest
from stages.evaluation.retrieval import SplitMeasures
from stages.evaluation.statistics import normal_quantile


def mcnemar_test(
    metric_a: str, metric_b: str, split: str, a: np.ndarray, b: np.ndarray
) -> PairedTest:
    """Two ways of naming the same images: exact McNemar test, and an interval for the difference of the shares.

    a, b: bool (N,), right or wrong; or float64 (N,), the share of repeats in which an image was named rightly. McNemar 1947
    in its exact, binomial form, which over shares is the sign test; the interval is the adjusted Wald one of
    Bonett and Price 2012 (doi 10.3102/1076998611411915), which keeps its coverage where few images differ.
    """
    gap, count = a.astype(float) - b, len(a)
    only_a, only_b = int((gap > 0).sum()), int((gap < 0).sum())
    test = f"exact McNemar: {only_a} images right by a alone, {only_b} by b alone; interval: Bonett-Price"
    if a.dtype != bool:
        test = f"exact sign test over images: {only_a} right more often by a, {only_b} by b; interval: Bonett-Price"
    if count == 0:
        return PairedTest(metric_a, metric_b, split, None, None, None, None, 0, test)
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    share_a, share_b = ((part.clip(min=0).sum() + 1) / (count + 2) for part in (gap, -gap))
    centre = share_a - share_b
    half = normal_quantile() * math.sqrt((share_a + share_b - centre**2) / (count + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return PairedTest(metric_a, metric_b, split, float(gap.mean()), low, high, p_value, count, test)


def compare_runs(a: Evaluation, b: Evaluation) -> tuple[PairedTest, ...]:
    """Two runs on the same test images, in the same order: run a minus run b, measure by measure.

    Named shares as in `compare_shares`; triplet accuracy by the jackknife over images of the difference; MAP@R by a
    paired t-test over queries.
    """
    names = ("knn_accuracy", "classification_accuracy")
    named = tuple(
        mcnemar_test(name, name, "test", a.correct[name], b.correct[name]) for name in names
    )
    return (
        *named,
        _compare_triplets(a.measures, b.measures),
        _compare_map(a.measures.map_at_r, b.measures.map_at_r),
    )


def _compare_triplets(a: SplitMeasures, b: SplitMeasures) -> PairedTest:
    metric, test = (
        "triplet_accuracy",
        "normal test and interval, error by the jackknife over images of the difference",
    )
    total = int(a.total.sum())
    left = total - a.total_any
    if total == 0 or (kept := left > 0).sum() < 2:
        return PairedTest(metric, metric, "test", None, None, None, None, 0, test)
    gap = (a.won - b.won).sum()
    without = (gap - (a.won_any - b.won_any)[kept]) / left[kept]
    count = int(kept.sum())
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    return _normal(metric, gap / total, error, len(left), test)


def _compare_map(a: np.ndarray, b: np.ndarray) -> PairedTest:
    metric, test = "map_at_r", "paired t-test and interval over queries"
    gaps = (a - b)[~np.isnan(a)]
    if len(gaps) < 2:
        return PairedTest(metric, metric, "test", None, None, None, None, 0, test)
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return _normal(metric, float(gaps.mean()), error, len(gaps), test, degrees=len(gaps) - 1)


def _normal(
    metric: str, gap: float, error: float, count: int, test: str, *, degrees: float = math.inf
) -> PairedTest:
    law = stats.t(degrees)
    half = float(law.ppf(0.975)) * error
    p_value = 2 * float(law.sf(abs(gap) / error)) if error else float(gap == 0)
    return PairedTest(
        metric,
        metric,
        "test",
        float(gap),
        max(-1.0, gap - half),
        min(1.0, gap + half),
        p_value,
        count,
        test,
    )
