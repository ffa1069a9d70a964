"""Leave-one-class-out jackknife: intervals of measures of classes that were not trained on.

Images of one class are not independent, and each ranking mixes several classes. The classes are
the sample, so each estimate leaves out one class in all its roles: its queries, its positives, and
its images as negatives of the other classes. A bootstrap would draw a class twice, and an image
would then find its copy at distance 0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.evaluation.paired_tests import compare_shares
from stages.evaluation.results import PairedTest, Score
from stages.evaluation.statistics import LARGEST_VARIANCE, bounded_mean_interval

MAX_GROUPS = 500  # the t quantile of 499 degrees of freedom differs by 0.2% from the normal one
MIN_GROUPS = 20  # used for a few huge classes, however long it takes
CLASS_VARIANCE = 1 / 12  # of a uniform value in [0, 1]: a class is a mean over several images
FEW_QUERIES = 2  # median number per class up to which the larger variance is used
MIN_ESTIMATES = 3  # two classes are needed for a negative, and one to leave out


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure of all classes, and the same without each class.

    Attributes:
        value: The measure in [0, 1]; NaN if undefined.
        left_out: The measure without each group of classes, float64, shape (G,); NaN if undefined.
        count: Number of queries, triplets or pairs behind the value.
    """

    value: float
    left_out: np.ndarray
    count: int


def class_groups(labels: Tensor, *, queries: Tensor | None = None) -> Tensor:
    """Assign classes to the groups that the jackknife leaves out one at a time.

    Each class is one group, with two exceptions: more than 500 classes, and a few classes that hold
    most images, so that the work would exceed that of a few distance matrices. Classes are then
    divided at random into groups of the same number of classes (delete-a-group jackknife).

    Args:
        labels: Class indices, int64, shape (N,).
        queries: True for queries and False for gallery images, bool, shape (N,). None if every
            image is both.

    Returns:
        Group of each class index, int64, shape (C,); -1 for classes without an image.

    References:
        Kott 2001, "The delete-a-group jackknife" (Journal of Official Statistics 17, 521-526).

    Example:
        >>> class_groups(torch.tensor([0, 0, 2, 2, 3])).tolist()
        [0, -1, 1, 2]
    """
    sizes = torch.bincount(labels)
    present = sizes.nonzero().flatten()
    if queries is None:
        positive_pairs = int((sizes * (sizes - 1)).sum())
    else:
        query_sizes = torch.bincount(labels[queries], minlength=len(sizes))
        positive_pairs = int((query_sizes * (sizes - query_sizes)).sum())
    affordable = 4 * len(labels) ** 2 // max(1, positive_pairs)
    count = min(len(present), MAX_GROUPS, max(MIN_GROUPS, affordable))
    groups = torch.full((len(sizes),), -1)
    order = torch.arange(len(present))
    if count < len(present):
        order = torch.randperm(len(present), generator=torch.Generator().manual_seed(0))
    groups[present[order]] = torch.arange(len(present)) % count
    return groups


def class_jackknife_error(left_out: np.ndarray) -> float | None:
    """Compute the standard error of a measure from its values without each group of classes.

    Args:
        left_out: Values, float64, shape (G,). NaN values are dropped.

    Returns:
        Standard error, or None with fewer than three values.

    Example:
        >>> round(class_jackknife_error(np.array([0.5, 0.6, 0.7])), 4)
        0.1155
    """
    defined = left_out[~np.isnan(left_out)]
    count = len(defined)
    if count < MIN_ESTIMATES:
        return None
    squares = float(np.square(defined - defined.mean()).sum())
    return math.sqrt((count - 1) / count * squares)


@dataclass(frozen=True, eq=False)
class ClassSample:
    """Classes as the sample that a measure varies with.

    Attributes:
        groups: Group of each class, int64, shape (C,), from :func:`class_groups`.
        count: Number of classes with a query that has a positive. Images of other classes are
            negatives only.
        extra_variance: Variance of one additional class; see :func:`class_interval`.
    """

    groups: Tensor
    count: int
    extra_variance: float


def class_sample(labels: Tensor, *, queries: Tensor | None = None) -> ClassSample:
    """Describe the classes of a split.

    Args:
        labels: Class indices, int64, shape (N,).
        queries: True for queries and False for gallery images, bool, shape (N,). None if every
            image is both.

    Example:
        >>> class_sample(torch.tensor([0, 0, 0, 1, 1, 1, 2])).count
        2
    """
    sizes = torch.bincount(labels)
    query_sizes, positives = sizes, sizes - 1
    if queries is not None:
        query_sizes = torch.bincount(labels[queries], minlength=len(sizes))
        positives = sizes - query_sizes
    query_sizes = query_sizes[(query_sizes > 0) & (positives > 0)]
    count = len(query_sizes)
    few = count == 0 or int(query_sizes.median()) <= FEW_QUERIES
    variance = LARGEST_VARIANCE if few else CLASS_VARIANCE
    return ClassSample(class_groups(labels, queries=queries), count, variance)


def class_interval(
    value: float, error: float, classes: int, *, extra_variance: float = CLASS_VARIANCE
) -> tuple[float, float]:
    """Compute a 95% interval of a measure from its standard error over classes.

    The interval is that of :func:`stages.evaluation.statistics.bounded_mean_interval`. The
    additional value has the variance 1/12: with 1/4, the interval of a high AUC is too wide. With
    one or two queries per class, a class is often right or wrong as a whole, which needs 1/4.
    ``benchmarks/coverage.py`` compares it with other intervals.

    Args:
        value: Measure in [0, 1].
        error: Standard error over classes.
        classes: Number of classes.
        extra_variance: Variance of the additional class.

    Returns:
        Lower and upper bound in [0, 1]. They differ.

    Example:
        >>> low, high = class_interval(0.99, error=0.005, classes=30)
        >>> round(low, 3), round(high, 3)
        (0.948, 0.998)
    """
    return bounded_mean_interval(value, error, classes, extra_variance=extra_variance)


def jackknife_score(
    metric: str, split: str, estimate: Estimate, sample: ClassSample, definition: str
) -> Score:
    """Return a measure as a score with an interval over classes.

    The interval is that of :func:`class_interval` with the standard error of the jackknife.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        estimate: The measure of all classes and without each group of classes.
        sample: The classes.
        definition: Definition stored with the score.

    Returns:
        The score. It is undefined if the measure is. Its interval is undefined with fewer than
        three estimates.
    """
    if estimate.count == 0:
        return Score.undefined(metric, split, definition)
    error = class_jackknife_error(estimate.left_out)
    if error is None or sample.count < MIN_ESTIMATES:
        definition += "; no interval: fewer than three classes"
        return Score(metric, split, estimate.value, None, None, estimate.count, definition)
    low, high = class_interval(
        estimate.value, error, sample.count, extra_variance=sample.extra_variance
    )
    definition += f"; interval: Wilson with the effective number of the {sample.count} classes"
    definition += f" ({_describe_jackknife(sample.groups)})"
    return Score(metric, split, estimate.value, low, high, estimate.count, definition)


def compare_estimates(
    names: tuple[str, str, str], a: Estimate, b: Estimate, sample: ClassSample
) -> PairedTest:
    """Compare two measures of the same classes.

    Args:
        names: First metric, second metric and split.
        a: First measure.
        b: Second measure, without the same groups of classes.
        sample: The classes.

    Returns:
        The test of the difference ``a`` minus ``b``, where ``count`` is the number of classes;
        undefined with fewer than three estimates.
    """
    test = f"score test over classes; {_describe_jackknife(sample.groups)}; interval: Tango"
    error = class_jackknife_error(a.left_out - b.left_out)
    if error is None or sample.count < MIN_ESTIMATES:
        return PairedTest.undefined(*names, "not available: fewer than three classes")
    return compare_shares(
        names,
        (a.value, b.value),
        error,
        count=sample.count,
        test=test,
        extra_variance=sample.extra_variance,
    )


def _describe_jackknife(groups: Tensor) -> str:
    classes, count = int((groups >= 0).sum()), int(groups.max()) + 1
    if count == classes:
        return f"leave-one-class-out jackknife over {classes} classes"
    return f"jackknife over {count} groups of {classes} classes"
