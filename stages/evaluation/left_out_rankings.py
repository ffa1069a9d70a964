"""Triplet and retrieval measures with each class left out: exact, in bounded memory.

A loop over classes would rank all images again for each class. Instead, one pass counts for each
positive how many negatives of each class are ahead of it. Without a class, exactly these are not
ahead any more.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distance import GalleryDistances, sort_rows
from stages.evaluation.class_jackknife import Estimate
from stages.evaluation.query_blocks import query_blocks, query_count
from stages.evaluation.triplets_and_rankings import measure_rankings

COUNTS = 2**19  # counts of negatives ahead of a positive, held at once

MEASURES = (
    *("precision_at_1", "recall_at_2", "recall_at_4", "recall_at_8"),
    *("r_precision", "map_at_r", "mean_average_precision"),
)


def rank_without_each_class(
    vectors: Tensor, labels: Tensor, groups: Tensor, *, queries: Tensor | None = None
) -> tuple[dict[str, Estimate], np.ndarray]:
    """Compute triplet and retrieval measures of all classes and without each group of classes.

    A group is left out in all roles: its queries are dropped, and its images are dropped from the
    rankings of the others. A query without a negative is dropped. Ties are handled as in
    :mod:`stages.evaluation.triplets_and_rankings`.
    The time is O(N^2 log N) for classes of similar size.

    Args:
        vectors: Floating point, shape (N, D).
        labels: Class indices, int64, shape (N,).
        groups: Group of each class, int64, shape (C,), from
            :func:`stages.evaluation.class_jackknife.class_groups`.
        queries: True for queries and False for gallery images, bool, shape (N,). None if every
            image queries all others.

    Returns:
        Estimates of ``triplet_accuracy`` and ``MEASURES``, and the share of won triplets per
        anchor, float64, shape (N,), NaN without a triplet.

    Example:
        >>> from stages.evaluation.class_jackknife import class_groups
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> labels = torch.tensor([0, 0, 1])
        >>> estimates, _ = rank_without_each_class(vectors, labels, class_groups(labels))
        >>> estimates["precision_at_1"].value, estimates["precision_at_1"].left_out.tolist()
        (0.5, [nan, nan])
    """
    within = queries is None
    query_rows = torch.arange(len(labels)) if queries is None else queries.nonzero().flatten()
    gallery_rows = query_rows if queries is None else (~queries).nonzero().flatten()
    query_labels, gallery_labels = labels[query_rows], labels[gallery_rows]
    columns = gallery_labels.argsort(stable=True)  # class by class: positives are a slice
    gallery, column_groups = vectors[gallery_rows][columns], groups[gallery_labels[columns]]
    group_sizes = torch.bincount(column_groups, minlength=int(groups.max()) + 1)  # (G,)
    gallery_distances, sums = GalleryDistances(gallery), _Sums(len(group_sizes))
    triplet_accuracy = torch.full((len(labels),), math.nan, dtype=torch.float64)
    size = query_count(len(gallery_labels))
    for block, begin, end in query_blocks(query_labels, gallery_labels, within, size):
        distances = gallery_distances.to(vectors[query_rows[block]], slice(None))  # (b, N)
        to_positives = distances[:, begin:end]
        if within:  # a query is not its own positive
            others = columns[begin:end] != block[:, None]
            to_positives = to_positives[others].view(len(block), -1)  # (b, P)
        to_positives, _ = sort_rows(to_positives.contiguous())
        negatives = torch.cat([distances[:, :begin], distances[:, end:]], dim=1)
        negative_groups = torch.cat([column_groups[:begin], column_groups[end:]])
        own_group = int(groups[query_labels[block[0]]])
        lost = []
        step = max(1, COUNTS // (len(group_sizes) * (to_positives.shape[1] + 1)))
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            ahead = _count_ahead(
                to_positives[part], negatives[part], negative_groups, len(group_sizes)
            )
            lost.append(ahead.sum(1))  # (b, P)
            sums.add(
                ahead,
                lost[-1],
                negatives=negatives.shape[1],
                group_sizes=group_sizes,
                own_group=own_group,
            )
        total = to_positives.shape[1] * negatives.shape[1]
        if total:
            triplet_accuracy[query_rows[block]] = 1 - torch.cat(lost).sum(1).double() / total
    return sums.estimates(), triplet_accuracy.numpy()


def _count_ahead(
    to_positives: Tensor, to_negatives: Tensor, negative_groups: Tensor, groups: int
) -> Tensor:
    """Count the negatives of each group that are ahead of each positive, per query.

    Example with positives at [1, 3] and negatives at [0, 2, 2, 4] of the groups [0, 0, 1, 1]: the
    first negative is ahead of both positives, the next two of the second positive only, the last
    one of none. Their slots are [0, 1, 1, 2], group 0 has the slots [0, 1] and the counts [1, 2],
    and group 1 has the counts [0, 1].

    Args:
        to_positives: Distances of the positives, nearest first, float32, shape (b, P).
        to_negatives: Distances of the negatives, float32, shape (b, N).
        negative_groups: Group of each negative, int64, shape (N,).
        groups: Number of groups G.

    Returns:
        int64, shape (b, G, P).
    """
    rows, positives = to_positives.shape
    slots = torch.searchsorted(to_positives, to_negatives)  # (b, N), in [0, P]
    rankings = torch.arange(rows)[:, None] * groups + negative_groups  # (b, N)
    cells = (rankings * (positives + 1)).add_(slots).flatten()
    counts = torch.bincount(cells, minlength=rows * groups * (positives + 1))
    return counts.view(rows, groups, positives + 1)[..., :-1].cumsum(2)


class _Sums:
    """Sums over queries, for all classes (the last column) and without each group."""

    def __init__(self, groups: int) -> None:
        self.rankings = torch.zeros(len(MEASURES), groups + 1, dtype=torch.float64)
        self.queries = torch.zeros(groups + 1, dtype=torch.int64)
        self.won = torch.zeros(groups + 1, dtype=torch.int64)
        self.triplets = torch.zeros(groups + 1, dtype=torch.int64)

    def add(
        self, ahead: Tensor, lost: Tensor, *, negatives: int, group_sizes: Tensor, own_group: int
    ) -> None:
        """Add queries of one class.

        Args:
            ahead: Negatives of each group ahead of each positive, int64, shape (b, G, P).
            lost: The same for all groups, int64, shape (b, P).
            negatives: Number of negatives of each query.
            group_sizes: Gallery images per group, int64, shape (G,).
            own_group: Group of the class. Without it, these queries are dropped.
        """
        rows, groups, positives = ahead.shape
        left = torch.cat([lost[:, None] - ahead, lost[:, None]], dim=1)  # (b, G + 1, P)
        first, rankings = measure_rankings(left.view(-1, positives))
        precision_at_1, r_precision, map_at_r, average_precision = rankings
        recalls = [(first <= k).double() for k in (2, 4, 8)]
        values = torch.stack([precision_at_1, *recalls, r_precision, map_at_r, average_precision])
        remaining = negatives - F.pad(group_sizes, (0, 1))  # (G + 1,)
        # Without a negative every ranking would be perfect.
        kept = (torch.arange(groups + 1) != own_group) & (remaining > 0)
        self.rankings += values.view(-1, rows, groups + 1).sum(1) * kept
        self.queries += rows * kept
        triplets = rows * positives * remaining
        self.triplets += triplets * kept
        self.won += (triplets - left.sum((0, 2))) * kept

    def estimates(self) -> dict[str, Estimate]:
        """Return the estimates by metric."""
        estimates = {"triplet_accuracy": _divide(self.won, self.triplets)}
        for metric, sums in zip(MEASURES, self.rankings, strict=True):
            estimates[metric] = _divide(sums, self.queries)
        return estimates


def _divide(sums: Tensor, counts: Tensor) -> Estimate:
    """Divide sums by counts, both of shape (G + 1,); the last entry is for all classes."""
    shares = (sums.double() / counts).clamp(max=1)  # rounding errors could exceed 1; 0 / 0 is NaN
    return Estimate(float(shares[-1]), shares[:-1].numpy(), int(counts[-1]))
