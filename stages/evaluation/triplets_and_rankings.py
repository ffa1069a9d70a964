"""Triplet and retrieval measures of an embedding: exact, in bounded memory.

Ties are never broken by the order of the rows. A triplet with two equal distances is lost, and in a
ranking a negative comes before a positive at the same distance. Hence an embedding that maps every
image to one point scores 0, and permuting the rows permutes the results.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances, sort_rows

BLOCK = 2**21  # distances computed at once


class SplitMeasures(NamedTuple):
    """Measures per query, in row order. A query is the anchor of its triplets.

    Attributes:
        won: Triplets with d(anchor, positive) < d(anchor, negative), int64, shape (Q,).
        tied: Triplets with two equal distances, int64, shape (Q,).
        total: All triplets, int64, shape (Q,).
        won_by_margin: Triplets with d(anchor, positive) + margin < d(anchor, negative), int64,
            shape (Q,).
        won_any: Won triplets that contain the image in any of the three roles, int64, shape (Q,).
            Against a gallery, equal to ``won``.
        total_any: All triplets that contain the image in any role, int64, shape (Q,). Against a
            gallery, equal to ``total``.
        first_hit: Rank of the nearest positive, from 1, or 0 without a positive, int64, shape (Q,).
            Recall@k is the share of queries with 1 <= first_hit <= k.
        precision_at_1: 1 if the nearest image is a positive, else 0, float64, shape (Q,). This and
            the following measures are NaN for a query without a positive.
        r_precision: Share of positives among the R nearest images, where R is the number of
            positives, float64, shape (Q,).
        map_at_r: Mean average precision at R, float64, shape (Q,).
        average_precision: Average precision over the whole ranking, float64, shape (Q,).

    References:
        Musgrave et al. 2020, "A metric learning reality check" (arXiv 2003.08505), section 3.2, for
        R-precision and MAP@R.
    """

    won: np.ndarray
    tied: np.ndarray
    total: np.ndarray
    won_by_margin: np.ndarray
    won_any: np.ndarray
    total_any: np.ndarray
    first_hit: np.ndarray
    precision_at_1: np.ndarray
    r_precision: np.ndarray
    map_at_r: np.ndarray
    average_precision: np.ndarray


def measure_split(vectors: Tensor, labels: Tensor, *, margin: float = 0.0) -> SplitMeasures:
    """Compute all triplet and retrieval measures of a split: every image queries all others.

    The time is O(N^2 log N); the memory is bounded by a few blocks of 2 million distances.

    Args:
        vectors: Floating point, shape (N, D).
        labels: Class indices, int64, shape (N,).
        margin: Margin for ``won_by_margin``, a Euclidean distance.

    Returns:
        Measures per image.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> measures = measure_split(vectors, torch.tensor([0, 0, 1]))
        >>> measures.won.tolist(), measures.total.tolist()
        ([1, 0, 0], [1, 1, 0])
        >>> measures.first_hit.tolist()
        [1, 2, 0]
    """
    return _measure(vectors, labels, vectors, labels, margin, within=True)


def measure_gallery(
    queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, *, margin: float = 0.0
) -> SplitMeasures:
    """Compute all triplet and retrieval measures of queries against a gallery of other images.

    Args:
        queries: Floating point, shape (Q, D).
        labels: Class indices of the queries, int64, shape (Q,).
        gallery: Floating point, shape (G, D); the source of all positives and negatives.
        gallery_labels: Class indices of the gallery, int64, shape (G,).
        margin: Margin for ``won_by_margin``, a Euclidean distance.

    Returns:
        Measures per query.
    """
    return _measure(queries, labels, gallery, gallery_labels, margin, within=False)


def _measure(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    margin: float,
    within: bool,
) -> SplitMeasures:
    columns = gallery_labels.argsort(stable=True)  # class by class: positives are a slice
    gallery = gallery[columns]
    counts = torch.zeros(5, len(labels), dtype=torch.int64)
    won, tied, won_by_margin, won_any, first_hit = counts
    rankings = torch.full((4, len(labels)), math.nan, dtype=torch.float64)
    for block, begin, end in query_blocks(labels, gallery_labels, within):
        distances = exact_distances(queries[block], gallery)  # (b, G)
        to_positives = distances[:, begin:end]
        positives = columns[begin:end].expand(len(block), -1)
        if within:  # a query is not its own positive
            others = positives != block[:, None]
            positives = positives[others].view(len(block), -1)  # (b, P)
            to_positives = to_positives[others].view(len(block), -1)  # (b, P)
        to_negatives = torch.cat([distances[:, :begin], distances[:, end:]], dim=1)  # (b, N)
        to_negatives, negative_order = sort_rows(to_negatives)
        # Sorted positives make the binary searches walk through memory in order.
        to_positives, positive_order = sort_rows(to_positives)
        # Number of negatives at most as far as each positive: its lost triplets.
        lost = torch.searchsorted(to_negatives, to_positives, right=True)  # (b, P)
        wins = to_negatives.shape[1] - lost  # (b, P)
        won[block] = wins.sum(1)
        tied[block] = _count_ties(to_negatives, to_positives, lost)
        lost_by_margin = lost
        if margin:
            lost_by_margin = torch.searchsorted(to_negatives, to_positives + margin, right=True)
        won_by_margin[block] = (to_negatives.shape[1] - lost_by_margin).sum(1)
        first_hit[block], rankings[:, block] = measure_rankings(lost)
        if within:
            negatives = torch.cat([columns[:begin], columns[end:]])
            won_any[block] += won[block]
            won_any.scatter_add_(0, positives.gather(1, positive_order).flatten(), wins.flatten())
            won_any[negatives] += _wins_by_negative(lost, negative_order)
    total, total_any = _count_triplets(labels, gallery_labels, within)
    precision_at_1, r_precision, map_at_r, average_precision = rankings
    return SplitMeasures(
        won=won.numpy(),
        tied=tied.numpy(),
        total=total.numpy(),
        won_by_margin=won_by_margin.numpy(),
        won_any=(won_any if within else won).numpy(),
        total_any=total_any.numpy(),
        first_hit=first_hit.numpy(),
        precision_at_1=precision_at_1.numpy(),
        r_precision=r_precision.numpy(),
        map_at_r=map_at_r.numpy(),
        average_precision=average_precision.numpy(),
    )


def query_blocks(
    labels: Tensor, gallery_labels: Tensor, within: bool
) -> Iterator[tuple[Tensor, int, int]]:
    """Yield blocks of queries of one class, and the range of the class in the sorted gallery.

    Classes without a query or without a positive are skipped.

    Args:
        labels: Class indices of the queries, int64, shape (Q,).
        gallery_labels: Class indices of the gallery, int64, shape (G,).
        within: True if the queries are the gallery, so that a query is not its own positive.

    Yields:
        Rows of queries, int64, shape (b,), with b * G at most about 2 million; and the first
        position of the class in a gallery sorted by class, and the position after its last.
    """
    classes = len(torch.bincount(torch.cat([labels, gallery_labels])))
    query_counts = torch.bincount(labels, minlength=classes).tolist()
    gallery_counts = torch.bincount(gallery_labels, minlength=classes).tolist()
    class_rows = labels.argsort(stable=True).split(query_counts)
    end = 0
    for rows, gallery_count in zip(class_rows, gallery_counts, strict=True):
        begin, end = end, end + gallery_count
        if len(rows) and gallery_count > int(within):
            for block in rows.split(max(1, BLOCK // len(gallery_labels))):
                yield block, begin, end


def _count_triplets(labels: Tensor, gallery_labels: Tensor, within: bool) -> tuple[Tensor, Tensor]:
    """Return the triplets with each query as anchor and in any role, int64 (Q,) each."""
    classes = len(torch.bincount(torch.cat([labels, gallery_labels])))
    class_sizes = torch.bincount(gallery_labels, minlength=classes)
    same_class = class_sizes[labels]  # (Q,)
    positives = same_class - int(within)
    total = positives * (len(gallery_labels) - same_class)
    if not within:
        return total, total
    # An image is the anchor of `total` triplets, the positive of as many, and the negative of every
    # ordered pair of another class.
    pairs = class_sizes * (class_sizes - 1)
    return total, 2 * total + pairs.sum() - pairs[labels]


def _count_ties(to_negatives: Tensor, to_positives: Tensor, lost: Tensor) -> Tensor:
    """Count the pairs of a positive and a negative at equal distance per row, int64 (b,)."""
    none = torch.zeros(len(to_negatives), dtype=torch.int64)
    if to_negatives.shape[1] == 0:
        return none
    # A tied positive equals the last negative that is at most as far. Ties are rare, so this cheap
    # check mostly saves the second search.
    last = to_negatives.gather(1, (lost - 1).clamp(min=0))
    if not bool((last == to_positives).any()):
        return none
    return (lost - torch.searchsorted(to_negatives, to_positives)).sum(1)


def _wins_by_negative(lost: Tensor, negative_order: Tensor) -> Tensor:
    """Count the triplets of a block that are won against each negative.

    Example with one anchor, 3 positives and 3 negatives: ``lost`` = [0, 1, 1] means that no
    negative is ahead of the first positive and one is ahead of the other two. One triplet is won
    against the nearest negative (that of the first positive) and 3 against each of the others.
    These are the cumulative counts [1, 3, 3] of the values 0, 1, 2 in ``lost``. ``negative_order``
    then moves them from rank to column.

    Args:
        lost: Negatives at most as far as each positive, int64, shape (b, P).
        negative_order: Column of the negative at each rank, int64, shape (b, N).

    Returns:
        Won triplets per column, summed over the block, shape (N,).
    """
    rows, negatives = negative_order.shape
    steps = torch.zeros(rows, negatives + 1, dtype=torch.int32)
    steps.scatter_add_(1, lost, torch.ones_like(lost, dtype=torch.int32))
    by_rank = steps[:, :-1].cumsum(1, dtype=torch.int32)  # (b, N)
    return torch.empty_like(by_rank).scatter_(1, negative_order, by_rank).sum(0)


def measure_rankings(ahead: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the measures of rankings.

    Args:
        ahead: Negatives ranked ahead of each positive, nearest positive first, int64, shape (b, R).

    Returns:
        Rank of the first positive, int64, shape (b,), and precision@1, R-precision, MAP@R and
        average precision, float64, shape (4, b).
    """
    relevant = ahead.shape[1]
    hits = torch.arange(1, relevant + 1)  # positives up to and including each positive
    ranks = ahead + hits  # (b, R), from 1
    precision = hits / ranks.double()
    in_first_r = ranks <= relevant
    precision_at_1 = (ranks[:, 0] == 1).double()
    r_precision = in_first_r.sum(1) / relevant
    map_at_r = (precision * in_first_r).sum(1) / relevant
    average_precision = precision.mean(1)
    return ranks[:, 0], torch.stack([precision_at_1, r_precision, map_at_r, average_precision])
