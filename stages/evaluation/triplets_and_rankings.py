"""Triplet and retrieval measures of an embedding: exact, in bounded memory.

Ties are never broken by the order of the rows. A triplet with two equal distances is lost, and in a
ranking a negative comes before a positive at the same distance. Hence an embedding that maps every
image to one point scores 0, and permuting the rows permutes the results.
"""

import math
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import CPU, GalleryDistances, sort_rows
from stages.distributed import all_reduce, rank_and_world_size
from stages.evaluation.closer_positives import count_block
from stages.evaluation.query_blocks import distance_blocks, query_blocks, query_count


class SplitMeasures(NamedTuple):
    """Measures per query, in row order. A query is the anchor of its triplets.

    Attributes:
        won: Triplets with d(anchor, positive) < d(anchor, negative), int64, shape (Q,).
        tied: Triplets with two equal distances, int64, shape (Q,).
        total: All triplets, int64, shape (Q,).
        won_by_margin: Triplets with d(anchor, positive) + margin < d(anchor, negative), int64,
            shape (Q,).
        won_any: Won triplets that contain the image in any of the three roles, int64, shape (N,)
            for all images of the split. Against a gallery, equal to ``won``.
        total_any: All triplets that contain the image in any role, int64, shape (N,). Against a
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


def measure_split(
    vectors: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.0,
    queries: Tensor | None = None,
    device: torch.device = CPU,
) -> SplitMeasures:
    """Compute all triplet and retrieval measures of a split: every image queries all others.

    The time is O(N^2); the memory is bounded by a few blocks of 2 million distances, or of 64
    queries if that is more; on a GPU by a few blocks of 64 million. Several ranks divide the
    queries among them, so all of them must call this function with the same arguments.

    Args:
        vectors: Floating point, shape (N, D).
        labels: Class indices, int64, shape (N,).
        margin: Margin for ``won_by_margin``, a Euclidean distance.
        queries: Positions of the images that query all others, int64, shape (Q,). None: all.
        device: Device to compute on. Anything but a CUDA device means the CPU.

    Returns:
        Measures per query.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> measures = measure_split(vectors, torch.tensor([0, 0, 1]))
        >>> measures.won.tolist(), measures.total.tolist()
        ([1, 0, 0], [1, 1, 0])
        >>> measures.first_hit.tolist()
        [1, 2, 0]
    """
    own = torch.arange(len(labels)) if queries is None else queries
    return _measure(vectors[own], labels[own], vectors, labels, margin, own, device)


def measure_gallery(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    margin: float = 0.0,
    device: torch.device = CPU,
) -> SplitMeasures:
    """Compute all triplet and retrieval measures of queries against a gallery of other images.

    Several ranks divide the queries among them, as in :func:`measure_split`.

    Args:
        queries: Floating point, shape (Q, D).
        labels: Class indices of the queries, int64, shape (Q,).
        gallery: Floating point, shape (G, D); the source of all positives and negatives.
        gallery_labels: Class indices of the gallery, int64, shape (G,).
        margin: Margin for ``won_by_margin``, a Euclidean distance.
        device: As for :func:`measure_split`.

    Returns:
        Measures per query.
    """
    return _measure(queries, labels, gallery, gallery_labels, margin, None, device)


def _measure(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    margin: float,
    own: Tensor | None,
    device: torch.device,
) -> SplitMeasures:
    """Compute the measures; ``own`` is the gallery image that is the query itself, int64 (Q,)."""
    device = device if device.type == "cuda" else CPU
    sums = _sum_blocks(queries, labels, gallery, gallery_labels, margin, own, device)
    counts, won_any, rankings = (values.cpu() for values in sums)
    for values in (counts, won_any, rankings):
        all_reduce(values)
    won, tied, won_by_margin, first_hit = counts
    rankings[:, first_hit == 0] = math.nan  # queries without a positive
    total, total_any = _count_triplets(labels, gallery_labels, own)
    precision_at_1, r_precision, map_at_r, average_precision = rankings
    return SplitMeasures(
        won=won.numpy(),
        tied=tied.numpy(),
        total=total.numpy(),
        won_by_margin=won_by_margin.numpy(),
        won_any=(won if own is None else won_any).numpy(),
        total_any=total_any.numpy(),
        first_hit=first_hit.numpy(),
        precision_at_1=precision_at_1.numpy(),
        r_precision=r_precision.numpy(),
        map_at_r=map_at_r.numpy(),
        average_precision=average_precision.numpy(),
    )


def _sum_blocks(
    queries: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    margin: float,
    own: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Measure this rank's blocks of queries.

    Returns:
        On the device, with 0 for the queries of other ranks: ``won``, ``tied``, ``won_by_margin``
        and ``first_hit``, int64, shape (4, Q); won triplets of each gallery image in any role,
        int64, shape (G,), if the queries are in the gallery; and precision@1, R-precision, MAP@R
        and average precision, float64, shape (4, Q).
    """
    columns = gallery_labels.argsort(stable=True)  # class by class: positives are a slice
    place = torch.empty_like(columns).scatter_(0, columns, torch.arange(len(columns)))
    gallery_distances = GalleryDistances(gallery[columns], device)
    columns = columns.to(device)
    counts = torch.zeros(4, len(labels), dtype=torch.int64, device=device)
    won, tied, won_by_margin, first_hit = counts
    won_any = torch.zeros(len(gallery_labels), dtype=torch.int64, device=device)
    rankings = torch.zeros(4, len(labels), dtype=torch.float64, device=device)
    size = query_count(len(gallery), device)
    blocks = query_blocks(labels, gallery_labels, own is not None, size)
    rank, world_size = rank_and_world_size()
    blocks = islice(blocks, rank, None, world_size)
    for rows, distances, begin, end in distance_blocks(queries, gallery_distances, blocks, size):
        block = rows.to(device)
        to_positives = distances[:, begin:end]  # (b, P)
        positives = columns[begin:end].expand(len(block), -1)
        if own is not None:  # a query is not its own positive
            others = _others(place[own[rows]] - begin, end - begin).to(device)  # (b, P)
            positives, to_positives = positives.gather(1, others), to_positives.gather(1, others)
        to_negatives = torch.cat([distances[:, :begin], distances[:, end:]], dim=1)  # (b, N)
        to_positives, positive_order = sort_rows(to_positives)
        compared = count_block(to_positives, to_negatives)
        wins = to_negatives.shape[1] - compared.lost  # (b, P)
        won[block] = wins.sum(1)
        tied[block] = compared.tied
        won_by_margin[block] = won[block]
        if margin:
            lost_by_margin = count_block(to_positives + margin, to_negatives).lost
            won_by_margin[block] = (to_negatives.shape[1] - lost_by_margin).sum(1)
        first_hit[block], rankings[:, block] = measure_rankings(compared.lost)
        if own is not None:
            won_any[own[rows].to(device)] += won[block]
            won_any.scatter_add_(0, positives.gather(1, positive_order).flatten(), wins.flatten())
            won_any[columns[:begin]] += compared.closer[:begin]
            won_any[columns[end:]] += compared.closer[begin:]
    return counts, won_any, rankings


def _others(skipped: Tensor, count: int) -> Tensor:
    """Return for each row the numbers from 0 to ``count - 1`` without the skipped one.

    Args:
        skipped: int64, shape (b,), in [0, count).
        count: Positive number.

    Returns:
        int64, shape (b, count - 1).
    """
    numbers = torch.arange(count - 1)
    return numbers + (numbers >= skipped[:, None])


def _count_triplets(
    labels: Tensor, gallery_labels: Tensor, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the triplets with each query as anchor, and with each image of a split in any role.

    Both are int64, of shapes (Q,) and (G,), or (Q,) twice if the queries are not in the gallery.
    """
    classes = len(torch.bincount(torch.cat([labels, gallery_labels])))
    class_sizes = torch.bincount(gallery_labels, minlength=classes)
    same_class = class_sizes[labels]  # (Q,)
    positives = same_class - int(own is not None)
    total = positives * (len(gallery_labels) - same_class)
    if own is None:
        return total, total
    # An image is the positive of the other queries of its class with each negative, the negative of
    # every pair of a query of another class and its positive, and as a query the anchor.
    query_sizes = torch.bincount(labels, minlength=classes)
    pairs = query_sizes * (class_sizes - 1)  # of a query and a positive, by class
    is_query = torch.zeros(len(gallery_labels), dtype=torch.int64)
    is_query[own] = 1
    anchors = query_sizes[gallery_labels] - is_query  # (G,)
    total_any = anchors * (len(gallery_labels) - class_sizes[gallery_labels])
    total_any += pairs.sum() - pairs[gallery_labels]
    total_any[own] += total
    return total, total_any


def measure_rankings(ahead: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the measures of rankings.

    Args:
        ahead: Negatives ranked ahead of each positive, nearest positive first, int64, shape (b, R).

    Returns:
        Rank of the first positive, int64, shape (b,), and precision@1, R-precision, MAP@R and
        average precision, float64, shape (4, b).
    """
    relevant = ahead.shape[1]
    # Positives up to and including each positive.
    hits = torch.arange(1, relevant + 1, device=ahead.device)
    ranks = ahead + hits  # (b, R), from 1
    precision = hits / ranks.double()
    in_first_r = ranks <= relevant
    precision_at_1 = (ranks[:, 0] == 1).double()
    r_precision = in_first_r.sum(1) / relevant
    map_at_r = (precision * in_first_r).sum(1) / relevant
    average_precision = precision.mean(1)
    return ranks[:, 0], torch.stack([precision_at_1, r_precision, map_at_r, average_precision])
