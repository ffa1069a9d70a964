"""Measures of an embedding: functions of vectors and labels only, exact, in bounded memory.

Ties. Equal distances are never broken by the order of the rows. A triplet whose two distances are equal is lost, and
in a ranking a negative stands before a positive at the same distance. So an embedding that maps every image to one
point scores 0, and permuting the rows changes nothing.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances, sort_rows

BLOCK = 2**21  # distances handled at once


class SplitMeasures(NamedTuple):
    """One entry a query (which is the anchor of its triplets), in row order.

    won, tied, total: int64 (Q,), its triplets with d(a,p) < d(a,n), with d(a,p) = d(a,n), and all.
    won_by_margin: int64 (Q,), those with d(a,p) + margin < d(a,n).
    won_any, total_any: int64 (Q,), triplets in which the image stands in any of the three roles; against a gallery those
    are its own, as anchor.
    first_hit: int64 (Q,), rank of the nearest positive, from 1; 0 without a positive. Recall@k is the share of queries
    with 1 <= first_hit <= k.
    precision_at_1, r_precision, map_at_r, average_precision: float64 (Q,), in [0, 1]; NaN for a query without a
    positive. MAP@R and R-precision as in Musgrave et al. 2020 (arXiv 2003.08505, section 3.2); average precision
    over the whole ranking.
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
    """All triplets and all rankings of one split: every image queries the others, itself left out.

    vectors: floating point (N, D). labels: int64 (N,). margin: a Euclidean distance.
    One pass over blocks of distances: O(N^2 log N) time; memory for a few blocks of 2 million distances.
    """
    return _measure(vectors, labels, vectors, labels, margin, within=True)


def measure_gallery(
    queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, *, margin: float = 0.0
) -> SplitMeasures:
    """The same of queries against a gallery of other images, from which their positives and negatives come.

    queries: floating point (Q, D). labels: int64 (Q,). gallery: (G, D). gallery_labels: int64 (G,).
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
    """For each query the negatives are sorted once, and a binary search a positive counts the negatives at most as far
    as it: what remains are the triplets it wins, and its rank follows from that count too.
    """
    count, size = len(labels), len(gallery_labels)
    # Classes in a row, so that positives and negatives are slices of the columns.
    row_order, column_order = labels.argsort(stable=True), gallery_labels.argsort(stable=True)
    rows_by_class, points = queries[row_order], gallery[column_order]
    classes = 1 + max(
        (int(part.max()) for part in (labels, gallery_labels) if len(part)), default=-1
    )
    row_ends, column_ends = (
        torch.bincount(part, minlength=classes).cumsum(0).tolist()
        for part in (labels, gallery_labels)
    )
    integers = torch.zeros(7, count, dtype=torch.int64)
    won, tied, total, won_by_margin, won_any, total_any, first_hit = integers
    shares = torch.full((4, count), math.nan, dtype=torch.float64)
    elsewhere = sum(
        (b - a) * (b - a - 1) for a, b in pairwise([0, *row_ends])
    )  # ordered pairs of all classes
    step = max(1, BLOCK // max(1, size))
    for (top, bottom), (begin, end) in zip(
        pairwise([0, *row_ends]), pairwise([0, *column_ends]), strict=True
    ):
        positives, negatives = end - begin - within, size - (end - begin)
        total[top:bottom] = max(0, positives) * negatives
        if within:  # anchor and positive in its own class; negative to every pair of another
            total_any[top:bottom] = (
                2 * positives * negatives + elsewhere - (end - begin) * positives
            )
        for start in range(top, bottom if positives > 0 else top, step):
            rows = torch.arange(start, min(start + step, bottom))
            distances = exact_distances(rows_by_class[rows], points)  # (b, G)
            to_positives = distances[:, begin:end]
            kept = torch.arange(begin, end).expand(len(rows), -1)  # (b, positives) columns
            if within:
                others = kept[0] != rows[:, None]
                kept, to_positives = (
                    part[others].view(len(rows), positives) for part in (kept, to_positives)
                )
            ascending, by_distance = sort_rows(
                torch.cat([distances[:, :begin], distances[:, end:]], dim=1)
            )
            # Nearest first: then the searches walk through memory, and what they find is in order too.
            to_positives, nearest = sort_rows(to_positives)
            ahead = torch.searchsorted(
                ascending, to_positives, right=True
            )  # (b, positives) negatives as far, or closer
            won[rows] = negatives * positives - ahead.sum(1)
            tied[rows] = _ties(ascending, to_positives, ahead)
            beyond = (
                torch.searchsorted(ascending, to_positives + margin, right=True)
                if margin
                else ahead
            )
            won_by_margin[rows] = negatives * positives - beyond.sum(1)
            first_hit[rows], shares[:, rows] = _rankings(ahead)
            if within:
                won_any[rows] += won[rows]
                won_any.scatter_add_(
                    0, kept.gather(1, nearest).flatten(), (negatives - ahead).flatten()
                )
                against = _wins_against(ahead, by_distance)
                won_any[:begin] += against[:begin]
                won_any[end:] += against[begin:]
    if not within:
        integers[4:6] = integers[[0, 2]]
    back = torch.empty_like(row_order).scatter_(0, row_order, torch.arange(count))
    return SplitMeasures(*integers[:, back].numpy(), *shares[:, back].numpy())


def _ties(ascending: Tensor, to_positives: Tensor, ahead: Tensor) -> Tensor:
    """For each row, pairs of a positive and a negative at exactly its distance, int64 (b,). Mostly there are none."""
    if ascending.shape[1] == 0 or not bool(
        (ascending.gather(1, (ahead - 1).clamp(min=0)) == to_positives).any()
    ):
        return torch.zeros(len(ascending), dtype=torch.int64)
    return (ahead - torch.searchsorted(ascending, to_positives)).sum(1)


def _wins_against(ahead: Tensor, by_distance: Tensor) -> Tensor:
    """How many of the block's triplets are won against each negative, int64 (negatives,) in column order.

    The negative of rank r loses to the positives with at most r negatives ahead of (or level with) them.
    """
    rows, negatives = by_distance.shape
    steps = torch.zeros(rows, negatives + 1, dtype=torch.int32)
    steps.scatter_add_(1, ahead, torch.ones_like(ahead, dtype=torch.int32))
    by_rank = steps[:, :-1].cumsum(1, dtype=torch.int32)  # (b, negatives)
    return torch.empty_like(by_rank).scatter_(1, by_distance, by_rank).sum(0)


def _rankings(ahead: Tensor) -> tuple[Tensor, Tensor]:
    """From the negatives ahead of each positive, nearest first (b, R): the rank of the first hit, int64 (b,), and precision@1,
    R-precision, MAP@R and average precision, float64 (4, b).
    """
    relevant = ahead.shape[1]
    hits = torch.arange(1, relevant + 1)  # the i-th positive found
    ranks = ahead + hits  # (b, R), from 1
    precision = hits / ranks.double()
    within = ranks <= relevant
    shares = [
        (ranks[:, 0] == 1).double(),
        within.sum(1) / relevant,
        (precision * within).sum(1) / relevant,
        precision.mean(1),
    ]
    return ranks[:, 0], torch.stack(shares)
