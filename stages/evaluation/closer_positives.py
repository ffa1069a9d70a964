"""Count the positives that are closer than each negative, without sorting the negatives."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import MIN_PARALLEL

BUCKETS_PER_POSITIVE = 4
MIN_BUCKETS, MAX_BUCKETS = 2**8, 2**16
STEPS = 4  # steps from positive to positive within a bucket, then a binary search
SMALLEST_SPAN = 1e-30  # of distances: its reciprocal is finite in float32


class BlockCounts(NamedTuple):
    """Counts for b queries with P positives and N negatives each.

    All are on the device of the distances.

    Attributes:
        lost: Negatives at most as far as each positive, nearest positive first, int64, shape
            (b, P).
        tied: Pairs of a positive and a negative at equal distance, int64, shape (b,).
        closer: Pairs of a query and a positive of it that is closer than the negative, summed over
            the queries, int64, shape (N,).
    """

    lost: Tensor
    tied: Tensor
    closer: Tensor


def count_block(to_positives: Tensor, to_negatives: Tensor) -> BlockCounts:
    """Compare all distances to positives with all distances to negatives.

    On a CPU all threads share the queries. A GPU sorts faster than it follows branches, so it sorts
    the negatives.

    Args:
        to_positives: Ascending distances of each query, float32, shape (b, P).
        to_negatives: Distances in any order, float32, shape (b, N), on the same device.

    Example:
        >>> counts = count_block(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0, 3.0]]))
        >>> counts.lost.tolist(), counts.tied.tolist(), counts.closer.tolist()
        ([[0, 2]], [1], [1, 2, 1])
    """
    if to_negatives.device.type != "cpu":
        return count_sorted(to_positives, to_negatives)
    rows, columns = to_negatives.shape
    lost = np.empty(to_positives.shape, np.int64)
    tied = np.empty(rows, np.int64)
    positives, negatives = to_positives.numpy(), to_negatives.numpy()

    def count_rows(edge: tuple[int, int]) -> np.ndarray:
        closer = np.zeros(columns, np.int32)  # a block has fewer than 2^31 pairs
        for row in range(*edge):
            slots, tied[row] = closer_positives(positives[row], negatives[row])
            lost[row] = np.bincount(slots, minlength=lost.shape[1] + 1)[:-1].cumsum()
            closer += slots
        return closer

    workers = min(torch.get_num_threads(), rows) if to_negatives.numel() >= MIN_PARALLEL else 1
    if workers <= 1:
        closer = count_rows((0, rows)).astype(np.int64)
    else:
        edges = [rows * worker // workers for worker in range(workers + 1)]
        with ThreadPoolExecutor(workers) as pool:
            closer = sum(pool.map(count_rows, pairwise(edges)), np.zeros(columns, np.int64))
    return BlockCounts(torch.from_numpy(lost), torch.from_numpy(tied), torch.from_numpy(closer))


def count_sorted(to_positives: Tensor, to_negatives: Tensor) -> BlockCounts:
    """Compute what :func:`count_block` does by sorting and binary searches, on any device."""
    ascending = to_negatives.sort(dim=1).values
    lost = torch.searchsorted(ascending, to_positives, right=True)
    closer_negatives = torch.searchsorted(ascending, to_positives)
    closer = torch.searchsorted(to_positives, to_negatives)  # (b, N)
    return BlockCounts(lost, (lost - closer_negatives).sum(1), closer.sum(0))


def closer_positives(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, int]:
    """Count the positives that are closer than each negative.

    A binary search takes log2(P) steps per negative, each with a branch that is hard to predict.
    Instead, the range of the positives is divided into buckets of equal width. A table says how
    many positives are in earlier buckets, and few are in the same bucket.

    Example: positives at [1.0, 1.2, 3.0] and 3 buckets from 1 to 3 with the table [0, 2, 2]. A
    negative at 1.1 is in the first bucket, so its count starts at 0. The next positive, at 1.0, is
    closer, and the one after it, at 1.2, is not. The count is 1.

    Buckets are exact: the arithmetic that assigns them is the same for positives and negatives and
    does not decrease with the distance, so a positive in an earlier bucket is closer.

    Args:
        positives: Ascending distances, float32, shape (P,).
        negatives: Distances, float32, shape (N,).

    Returns:
        Number of positives closer than each negative, in [0, P], int32, shape (N,), and the number
        of pairs at equal distance.

    Example:
        >>> counts, tied = closer_positives(
        ...     np.array([1, 1.2, 3], np.float32), np.array([1.1, 0, 3, 4], np.float32)
        ... )
        >>> counts.tolist(), tied
        ([1, 0, 2, 3], 1)
    """
    count = len(positives)
    if count == 0 or len(negatives) == 0:
        return np.zeros(len(negatives), np.int32), 0
    buckets = min(max(BUCKETS_PER_POSITIVE * count, MIN_BUCKETS), MAX_BUCKETS)
    lowest = positives[0]
    scale = np.float32((buckets - 2) / max(float(positives[-1] - lowest), SMALLEST_SPAN))

    def bucket(distances: np.ndarray) -> np.ndarray:
        """Return the bucket of each distance; the last one is beyond all positives."""
        scaled = distances - lowest
        scaled *= scale
        np.clip(scaled, 0, np.float32(buckets - 1), out=scaled)
        return np.asarray(scaled.astype(np.intp))

    in_bucket = np.bincount(bucket(positives), minlength=buckets)
    earlier = (in_bucket.cumsum() - in_bucket).astype(np.int32)
    following = np.append(positives, np.float32(np.inf))
    counts = earlier[bucket(negatives)]
    is_closer = following.take(counts, mode="clip") < negatives
    counts += is_closer
    unfinished = np.flatnonzero(is_closer)
    for _ in range(STEPS):
        if len(unfinished) == 0:
            break
        is_closer = following[counts[unfinished]] < negatives[unfinished]
        unfinished = unfinished[is_closer]
        counts[unfinished] += 1
    else:
        counts[unfinished] = positives.searchsorted(negatives[unfinished])
    tied = np.flatnonzero(following.take(counts, mode="clip") == negatives)
    if len(tied) == 0:
        return counts, 0
    up_to = positives.searchsorted(negatives[tied], side="right")
    return counts, int((up_to - counts[tied]).sum())
