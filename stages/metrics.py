"""Measures of an embedding: functions of vectors and labels only, exact, in bounded memory.

Ties. Equal distances are never broken by the order of the rows. A triplet whose two distances are equal is lost, and
in a ranking a negative stands before a positive at the same distance. So an embedding that maps every image to one
point scores 0, and permuting the rows changes nothing.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances, sort_rows

BLOCK = 2**21  # distances handled at once


class SplitMeasures(NamedTuple):
    """Every image of a split as a query (and anchor) against all the others, itself left out; arrays in row order.

    won, tied, total: int64 (N,), triplets with this image as anchor: d(a,p) < d(a,n), d(a,p) = d(a,n), all.
    won_any, total_any: int64 (N,), triplets in which this image stands in any of the three roles.
    precision_at_1, r_precision, map_at_r, average_precision: float64 (N,), in [0, 1]; NaN for a query without a
    positive. MAP@R and R-precision as in Musgrave et al. 2020 (arXiv 2003.08505, section 3.2); average precision
    over the whole ranking.
    """

    won: np.ndarray
    tied: np.ndarray
    total: np.ndarray
    won_any: np.ndarray
    total_any: np.ndarray
    precision_at_1: np.ndarray
    r_precision: np.ndarray
    map_at_r: np.ndarray
    average_precision: np.ndarray


def measure_split(vectors: Tensor, labels: Tensor) -> SplitMeasures:
    """All triplets and all rankings of one split, in one pass over blocks of distances.

    vectors: floating point (N, D). labels: int64 (N,). O(N^2 log N) time; memory for a block of about 2 million
    distances beside the input.

    For each anchor the negatives are sorted once, and a binary search a positive counts the negatives at most as
    far as it: what remains are the triplets it wins, and its rank follows from that count too.
    """
    count = len(labels)
    order = labels.argsort(stable=True)  # classes in a row, so that positives and negatives are slices
    points = vectors[order]
    sizes = torch.bincount(labels)
    won, tied, total, won_any, total_any = (torch.zeros(count, dtype=torch.int64) for _ in range(5))
    ranked = torch.full((4, count), math.nan, dtype=torch.float64)
    pairs_elsewhere = int((sizes * (sizes - 1)).sum())
    begin = 0
    for size in sizes[sizes > 0].tolist():
        end, positives, negatives = begin + size, size - 1, count - size
        total[begin:end] = positives * negatives
        # Anchor and positive in its own class; negative to every pair of another.
        total_any[begin:end] = 2 * positives * negatives + pairs_elsewhere - size * positives
        step = max(1, BLOCK // count)
        for start in range(begin, end if positives else begin, step):
            rows = torch.arange(start, min(start + step, end))
            distances = exact_distances(points[rows], points)  # (b, N)
            inside, outside = _without_class(distances, begin, end)
            others = (torch.arange(begin, end) != rows[:, None]).nonzero()[:, 1].view(len(rows), positives)
            to_positives = inside.gather(1, others)  # (b, positives)
            ascending, by_distance = sort_rows(outside)
            ahead = torch.searchsorted(ascending, to_positives, right=True)  # (b, positives) as far, or closer
            wins = negatives - ahead
            won[rows] = wins.sum(1)
            tied[rows] = (ahead - torch.searchsorted(ascending, to_positives)).sum(1)
            won_any[rows] += won[rows]
            won_any.scatter_add_(0, (others + begin).flatten(), wins.flatten())
            won_any += _wins_against(ahead, by_distance, begin, end)
            ranked[:, rows] = _rankings(ahead)
        begin = end
    back = torch.empty_like(order).scatter_(0, order, torch.arange(count))
    return SplitMeasures(*(part[back].numpy() for part in (won, tied, total, won_any, total_any, *ranked)))


def _without_class(distances: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The columns of the class, and the others."""
    return distances[:, begin:end], torch.cat([distances[:, :begin], distances[:, end:]], dim=1)


def _wins_against(ahead: Tensor, by_distance: Tensor, begin: int, end: int) -> Tensor:
    """How many of the block's triplets are won against each image as the negative, int64 (N,).

    The negative of rank r loses to the positives with at most r negatives ahead of (or level with) them.
    """
    rows, negatives = by_distance.shape
    steps = torch.zeros(rows, negatives + 1, dtype=torch.int32)
    steps.scatter_add_(1, ahead, torch.ones_like(ahead, dtype=torch.int32))
    by_rank = steps[:, :-1].cumsum(1, dtype=torch.int32)  # (b, negatives)
    by_column = torch.empty_like(by_rank).scatter_(1, by_distance, by_rank).sum(0)
    inside = torch.zeros(end - begin, dtype=torch.int64)
    return torch.cat([by_column[:begin], inside, by_column[begin:]])


def _rankings(ahead: Tensor) -> Tensor:
    """Precision@1, R-precision, MAP@R and average precision from the negatives ahead of each positive, (4, b)."""
    relevant = ahead.shape[1]
    hits = torch.arange(1, relevant + 1)  # the i-th positive found
    ranks = ahead.sort(dim=1).values + hits  # (b, R), from 1
    precision = hits / ranks.double()
    within = ranks <= relevant
    return torch.stack(
        [
            (ranks[:, 0] == 1).double(),
            within.sum(1) / relevant,
            (precision * within).sum(1) / relevant,
            precision.mean(1),
        ]
    )


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


class Neighbours(NamedTuple):
    """labels: int64 (Q,), the vote. nearest: int64 (Q,), the closest gallery row. distance: float32 (Q,), to it."""

    labels: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray


def knn(queries: Tensor, gallery: Tensor, gallery_labels: Tensor, *, k: int) -> Neighbours:
    """Classify queries by a majority vote of their k nearest gallery vectors.

    queries: floating point (Q, D). gallery: (G, D), G > 0. gallery_labels: int64 (G,). k is clipped to G.
    All vectors as far as the k-th vote, so that no tie at the edge is broken by row order. Of classes with equally
    many votes the one with the nearest voter wins; if those are equally near, the lower label.
    """
    if k < 1 or len(gallery) == 0:
        raise ValueError(f"k = {k} with {len(gallery)} gallery vectors; both must be at least 1")
    k, classes = min(k, len(gallery)), int(gallery_labels.max()) + 1
    parts = []
    for block in queries.split(max(1, BLOCK // len(gallery))):
        distances = exact_distances(block, gallery)  # (b, G)
        edge = distances.kthvalue(k, dim=1, keepdim=True).values
        rows, columns = (distances <= edge).nonzero(as_tuple=True)
        cells = rows * classes + gallery_labels[columns]
        votes = torch.bincount(cells, minlength=len(block) * classes).view(-1, classes)  # (b, classes)
        closest = torch.full((len(block) * classes,), math.inf)
        closest.scatter_reduce_(0, cells, distances[rows, columns], "amin")
        most = votes == votes.max(dim=1, keepdim=True).values
        winner = np.argmin(closest.view(-1, classes).masked_fill_(~most, math.inf).numpy(), axis=1)
        nearest = np.argmin(distances.numpy(), axis=1)
        parts.append((winner, nearest, distances.numpy()[np.arange(len(block)), nearest]))
    return Neighbours(*(np.concatenate(column) for column in zip(*parts, strict=True)))
