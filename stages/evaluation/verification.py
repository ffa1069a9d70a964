"""Verification of pairs of images: same class or not? Exact, in bounded memory.

A pair is accepted if its distance is at most a threshold. Two error rates follow: the share of
accepted pairs of different classes (false accepts), and the share of rejected pairs of one class.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.distance import GalleryDistances
from stages.evaluation.class_jackknife import Estimate
from stages.evaluation.results import RocCurve

BLOCK = 2**20  # distances computed at once
MAX_POSITIVES = 2**22  # pairs of one class whose distances are held at once
LEVELS = 2**22  # levels to which distances are rounded if there are more of these pairs
LEFT_OUT_CELLS = 2**22  # cells of the histograms of all groups of classes together
CURVE_POINTS = 200

MEASURES = ("verification_auc", "equal_error_rate", "tar_at_far_0.01", "tar_at_far_0.001")
FALSE_ACCEPT_RATES = (0.01, 0.001)


def verify_without_each_class(
    vectors: Tensor, labels: Tensor, groups: Tensor, *, queries: Tensor | None = None
) -> tuple[dict[str, Estimate], RocCurve]:
    """Compute verification measures over all pairs, and without each group of classes.

    Distances of pairs of one class divide the scale into cells: one cell per distinct distance, and
    one between two neighbours. Pairs of different classes are counted per cell, which loses
    nothing. The measures without a group come from the same counts minus those of its pairs.

    There are two limits, to bound memory. Above 4 million pairs of one class (few very large
    classes), distances are first rounded to 4 million levels between 0 and an upper bound of the
    distances: to 5e-7 for unit vectors, where float32 resolves 1e-7. And for the measures without a
    group only, neighbouring cells are merged until the histograms of all groups fit into memory.
    The same cells are merged for each group, so that the standard error hardly changes.

    Args:
        vectors: Floating point, shape (N, D).
        labels: Class indices, int64, shape (N,).
        groups: Group of each class, int64, shape (C,), from
            :func:`stages.evaluation.class_jackknife.class_groups`.
        queries: True for queries and False for gallery images, bool, shape (N,). Pairs are then
            those of a query and a gallery image. None: all pairs of distinct images.

    Returns:
        Estimates of ``MEASURES``, and at most about 400 points of the ROC curve; none if there is
        no pair of one class or no pair of different classes.

    Example:
        >>> from stages.evaluation.class_jackknife import class_groups
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> estimates, curve = verify_without_each_class(vectors, labels, class_groups(labels))
        >>> estimates["verification_auc"].value, estimates["verification_auc"].count
        (0.5, 3)
    """
    pairs = _Pairs(vectors, labels, groups, queries)
    values = _distinct_distances(pairs)
    counts = _Counts(2 * len(values) + 1, int(groups.max()) + 1)
    for distances, group in pairs.positives():
        counts.add_positives(2 * torch.searchsorted(values, distances) + 1, group)
    for distances, group, column_groups in pairs.negatives():
        cells = torch.searchsorted(values, distances)
        if len(values):
            tied = values.take(cells.clamp(max=len(values) - 1)) == distances
            cells = cells.mul_(2).add_(tied)
        counts.add_negatives(cells, group, column_groups)
    return counts.estimates(), _thin_curve(counts.positives.numpy(), counts.negatives.numpy())


class _Pairs:
    """Distances of all pairs, class by class.

    Without queries, a pair of images is visited once, from the image that is first in the order of
    the classes.
    """

    def __init__(
        self, vectors: Tensor, labels: Tensor, groups: Tensor, queries: Tensor | None
    ) -> None:
        self.within = queries is None
        order = labels.argsort(stable=True)
        row_order = order if queries is None else order[queries[order]]
        column_order = order if queries is None else order[~queries[order]]
        self.rows, self.gallery = vectors[row_order], GalleryDistances(vectors[column_order])
        self.column_groups = groups[labels[column_order]]  # (G,)
        self.groups = groups.tolist()
        classes = len(groups)
        self.row_ends = torch.bincount(labels[row_order], minlength=classes).cumsum(0).tolist()
        self.column_ends = (
            torch.bincount(labels[column_order], minlength=classes).cumsum(0).tolist()
        )
        self.level_width = 0.0
        if self.positive_count() > MAX_POSITIVES:
            radius = (vectors - vectors.mean(0)).norm(dim=1).max()
            self.level_width = float(2 * radius / LEVELS)

    def _classes(self) -> Iterator[tuple[Tensor, slice, int]]:
        """Yield the rows and columns of each class with both, and its group."""
        starts = zip([0, *self.row_ends], [0, *self.column_ends], strict=True)
        ends = zip(self.row_ends, self.column_ends, self.groups, strict=True)
        for (row, column), (row_end, column_end, group) in zip(starts, ends, strict=False):
            if row < row_end:
                yield torch.arange(row, row_end), slice(column, column_end), group

    def positive_count(self) -> int:
        """Return the number of pairs of one class."""
        count = 0
        for rows, columns, _ in self._classes():
            size = columns.stop - columns.start
            count += len(rows) * (size - 1) // 2 if self.within else len(rows) * size
        return count

    def positives(self) -> Iterator[tuple[Tensor, int]]:
        """Yield distances of pairs of one class, float32 (n,), and the group of the class."""
        for rows, columns, group in self._classes():
            size = columns.stop - columns.start
            positions = torch.arange(columns.start, columns.stop)
            for block in rows.split(max(1, BLOCK // max(1, size))):
                distances = self._distances(block, columns)
                if self.within:
                    distances = distances[block[:, None] < positions]
                yield distances.flatten(), group

    def negatives(self) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Yield distances of pairs of two classes.

        Yields:
            Distances, float32, shape (b, n); the group of the rows; the groups of the columns,
            int64, shape (n,).
        """
        for rows, columns, group in self._classes():
            count = len(self.column_groups)
            ranges = [slice(columns.stop, count)]
            if not self.within:
                ranges.append(slice(0, columns.start))
            for others in ranges:
                if others.start < others.stop:
                    for block in rows.split(max(1, BLOCK // (others.stop - others.start))):
                        yield self._distances(block, others), group, self.column_groups[others]

    def _distances(self, rows: Tensor, columns: slice) -> Tensor:
        distances = self.gallery.to(self.rows[rows], columns)
        if self.level_width:
            distances.div_(self.level_width).round_().mul_(self.level_width)
        return distances


def _distinct_distances(pairs: _Pairs) -> Tensor:
    """Return the distinct distances of pairs of one class, ascending, float32 (V,)."""
    blocks, size = [torch.empty(0)], 0
    for distances, _ in pairs.positives():
        blocks.append(distances.unique())
        size += len(blocks[-1])
        if size > MAX_POSITIVES:
            blocks = [torch.cat(blocks).unique()]
            size = len(blocks[0])
    distinct: Tensor = torch.cat(blocks).unique()
    return distinct


class _Counts:
    """Pairs per cell of distance, of all classes and with an image of each group.

    Attributes:
        positives: Pairs of one class per cell, int64, shape (K,).
        negatives: Pairs of two classes per cell, int64, shape (K,).
        positives_of_group: The same per group in merged cells, int64, shape (G, W).
        negatives_of_group: Pairs of two classes, at least one of them in the group, int64, shape
            (G, W).
    """

    def __init__(self, cells: int, groups: int) -> None:
        self.merged = math.ceil(cells * groups / LEFT_OUT_CELLS)  # cells per merged cell
        width = math.ceil(cells / self.merged)
        self.positives = torch.zeros(cells, dtype=torch.int64)
        self.negatives = torch.zeros(cells, dtype=torch.int64)
        self.positives_of_group = torch.zeros(groups, width, dtype=torch.int64)
        self.negatives_of_group = torch.zeros(groups, width, dtype=torch.int64)

    def add_positives(self, cells: Tensor, group: int) -> None:
        """Add pairs of a class of a group; cells is (n,)."""
        _add(self.positives, cells)
        _add(self.positives_of_group[group], cells // self.merged)

    def add_negatives(self, cells: Tensor, group: int, column_groups: Tensor) -> None:
        """Add pairs of a class of a group and other classes; cells is (b, n)."""
        _add(self.negatives, cells)
        merged = cells // self.merged
        _add(self.negatives_of_group[group], merged)
        other = column_groups != group  # a pair within a group is counted once
        if not bool(other.all()):
            merged, column_groups = merged[:, other], column_groups[other]
        width = self.negatives_of_group.shape[1]
        _add(self.negatives_of_group.view(-1), merged + column_groups * width)

    def estimates(self) -> dict[str, Estimate]:
        """Return the estimates by metric."""
        positives, negatives = self.positives.numpy(), self.negatives.numpy()
        values = _measure(positives, negatives)
        starts = np.arange(0, len(positives), self.merged)
        positives = np.add.reduceat(positives, starts)  # (W,)
        negatives = np.add.reduceat(negatives, starts)  # (W,)
        left_out = np.stack(
            [
                _measure(positives - of_group, negatives - others)
                for of_group, others in zip(
                    self.positives_of_group.numpy(), self.negatives_of_group.numpy(), strict=True
                )
            ],
            axis=1,
        )  # (4, G)
        count = 0 if np.isnan(values[0]) else int(positives.sum() + negatives.sum())
        return {
            metric: Estimate(float(value), row, count)
            for metric, value, row in zip(MEASURES, values, left_out, strict=True)
        }


def _add(counts: Tensor, cells: Tensor) -> None:
    """Count cells in place; counts is (K,)."""
    cells = cells.flatten()
    counts.scatter_add_(0, cells, torch.ones(1, dtype=torch.int64).expand(len(cells)))


def _measure(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Compute the measures from pairs per cell of distance; pairs in one cell are tied.

    Args:
        positives: Pairs of one class per cell, nearest cell first, int64, shape (K,).
        negatives: Pairs of two classes per cell, int64, shape (K,).

    Returns:
        ``MEASURES``, float64, shape (4,); all NaN without a pair of either kind.
    """
    accepted, false_accepts = positives.cumsum(), negatives.cumsum()
    positive_count, negative_count = int(accepted[-1]), int(false_accepts[-1])
    if positive_count == 0 or negative_count == 0:
        return np.full(len(MEASURES), math.nan)
    closer = accepted - positives / 2  # positives closer than a negative of the cell
    auc = min(1.0, float(negatives @ closer) / positive_count / negative_count)

    # Binary search evaluates the rates of a few cells only: the arrays may be large.
    def far(cell: int) -> float:
        return int(false_accepts[cell]) / negative_count

    def balance(cell: int) -> float:
        """Return the difference of the two error rates, which rises from -1 to 1."""
        return far(cell) - (1 - int(accepted[cell]) / positive_count)

    cells = range(len(positives))
    after = bisect_left(cells, 0.0, key=balance)
    balance_before, far_before = (balance(after - 1), far(after - 1)) if after else (-1.0, 0.0)
    weight = -balance_before / (balance(after) - balance_before)
    equal_error_rate = far_before + weight * (far(after) - far_before)
    true_accept_rates = []
    for target in FALSE_ACCEPT_RATES:
        last = bisect_right(cells, target, key=far) - 1
        true_accept_rates.append(int(accepted[last]) / positive_count if last >= 0 else 0.0)
    return np.array([auc, equal_error_rate, *true_accept_rates])


def _thin_curve(positives: np.ndarray, negatives: np.ndarray) -> RocCurve:
    """Return points of the ROC curve, dense along the curve and at small false accept rates."""
    accepted, false_accepts = positives.cumsum(), negatives.cumsum()
    if accepted[-1] == 0 or false_accepts[-1] == 0:
        return RocCurve(np.empty(0), np.empty(0))
    tar, far = accepted / accepted[-1], false_accepts / false_accepts[-1]
    along = np.searchsorted(tar + far, np.linspace(0, 2, CURVE_POINTS + 1)[1:-1])
    small = np.searchsorted(far, np.geomspace(1e-4, 1, CURVE_POINTS), side="right") - 1
    points = np.unique(np.r_[along, small.clip(min=0), len(far) - 1])
    curve = np.stack([np.r_[0.0, far[points]], np.r_[0.0, tar[points]]], axis=1)  # (R, 2)
    return RocCurve(*np.unique(curve, axis=0).T)  # cells without pairs repeat a point
