"""Confidence intervals of scores."""

import math

import numpy as np
from scipy import stats

from stages.evaluation.results import Score
from stages.evaluation.retrieval import SplitMeasures


def triplet_accuracy(measures: SplitMeasures) -> tuple[float, float, float]:
    """The share of all triplets with d(a,p) < d(a,n), pooled, and its 95 % interval.

    Returns value, low, high; NaN for all three if there is no triplet. The interval comes from the jackknife that
    leaves one *image* out in all three roles: triplets share images, so they are far from independent.
    """
    total, won = int(measures.total.sum()), int(measures.won.sum())
    if total == 0:
        return math.nan, math.nan, math.nan
    value = won / total
    left = total - measures.total_any
    kept = left > 0
    without = (won - measures.won_any[kept]) / left[kept]
    count = int(kept.sum())
    if count < 2:
        return value, 0.0, 1.0
    error = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    return value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)


RESAMPLES = 1000


def share_score(metric: str, split: str, right: np.ndarray, definition: str) -> Score:
    """A share of images (1 right, 0 wrong, a share of repeats between, NaN dropped) with Wilson's interval."""
    kept, definition = _defined(right, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    value, count, z = float(kept.mean()), len(kept), normal_quantile()
    centre, half = (
        value + z * z / (2 * count),
        z * math.sqrt(value * (1 - value) / count + (z / (2 * count)) ** 2),
    )
    low, high = (
        round(bound / (1 + z * z / count), 12) for bound in (centre - half, centre + half)
    )  # 0 and 1 to the last bit
    return Score(metric, split, value, low, high, count, f"{definition}; interval: Wilson")


def mean_score(metric: str, split: str, values: np.ndarray, definition: str) -> Score:
    """A mean over queries (NaN dropped) with a percentile bootstrap over queries."""
    kept, definition = _defined(values, definition)
    if len(kept) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    value = min(1.0, math.fsum(kept) / len(kept))
    if len(kept) == 1:
        return Score(metric, split, value, None, None, 1, definition)
    generator = np.random.default_rng(0)
    means = [kept[generator.integers(len(kept), size=len(kept))].mean() for _ in range(RESAMPLES)]
    low, high = (float(bound) for bound in np.quantile(means, (0.025, 0.975)))
    return Score(
        metric,
        split,
        value,
        low,
        high,
        len(kept),
        f"{definition}; interval: bootstrap over queries",
    )


def _defined(values: np.ndarray, definition: str) -> tuple[np.ndarray, str]:
    """The values that exist, and the definition with how many don't."""
    kept = values[~np.isnan(values)]
    dropped = len(values) - len(kept)
    return (
        kept,
        f"{definition}; {dropped} queries without another image of their class dropped"
        if dropped
        else definition,
    )


def normal_quantile() -> float:
    return float(stats.norm.ppf(0.975))
