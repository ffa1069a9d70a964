"""Exact k-nearest-neighbour search in a gallery that need not fit into memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import SQUARED_RESOLUTION, paired_distances
from stages.errors import DataError
from stages.gallery import Gallery

PART_VALUES = 2**21  # values of the vectors or of the distances that are in memory at once
FIRST_PART = 1024  # vectors
KEPT_KEYS = 2**21  # neighbours of all queries that are in memory at once
MAX_ROWS = 2**32  # a row is half of a key
MAX_LENGTH = 1e18  # squared lengths, and sums of a few of them, are finite in float32
# Sorts behind every neighbour: the distance is infinite.
NO_NEIGHBOUR = np.int64(0x7F800000_FFFFFFFF)


class Matches(NamedTuple):
    """Nearest gallery vectors of each query, the nearest first.

    Attributes:
        rows: Rows of the gallery, int64, shape (Q, K).
        distances: Euclidean distances in [0, 2], float32, shape (Q, K).
    """

    rows: Tensor
    distances: Tensor


def search(queries: Tensor, gallery: Gallery, *, k: int) -> Matches:
    """Return the k nearest gallery vectors of each query.

    The result is exact. Distances are those of :func:`stages.distance.paired_distances`, computed
    in float64 and rounded to float32; distances below 1e-7 are 0. Equal distances are ordered by
    the row in the gallery. The result does not depend on how the gallery is divided into blocks.

    Matrix products find the few vectors per block that can be among the nearest: those whose
    squared distance is within the largest rounding error of the k-th smallest one. Only their
    distances are computed exactly. Memory is bounded, whatever the size of the gallery.

    Args:
        queries: Unit vectors, float32, shape (Q, D).
        gallery: At most 2^32 unit vectors of dimension D.
        k: Number of neighbours; values above the size of the gallery mean its size.

    Returns:
        The rows and distances of the K = min(k, G) nearest of the G gallery vectors.

    Raises:
        ValueError: If ``k`` is below 1, or a query is not finite or longer than 1e18.
        DataError: If the gallery is too large, does not have as many vectors as ids, or has a
            vector that is not finite or longer than 1e18.

    Example:
        >>> from stages.gallery import gallery_of
        >>> gallery = gallery_of(torch.eye(3), ("a", "b", "c"), embedding_digest="")
        >>> matches = search(torch.tensor([[0.0, 1.0, 0.0]]), gallery, k=2)
        >>> matches.rows.tolist(), matches.distances.tolist()
        ([[1, 0]], [[0.0, 1.4142135381698608]])
    """
    # This comparison is false for NaN and infinity too.
    if k < 1 or not bool((torch.linalg.vector_norm(queries, dim=1) <= MAX_LENGTH).all()):
        raise ValueError(f"k = {k}; give at least 1, and queries that are unit vectors")
    if len(gallery) > MAX_ROWS:
        raise DataError(f"vectors: {len(gallery):,}; search at most {MAX_ROWS:,}")
    k = min(k, len(gallery))
    if k == 0 or len(queries) == 0:
        return Matches(torch.empty(len(queries), k).long(), torch.empty(len(queries), k))
    keys = [_search_all(part, gallery, k) for part in queries.split(max(1, KEPT_KEYS // k))]
    return Matches(*_unpack(np.concatenate(keys)))


def _search_all(queries: Tensor, gallery: Gallery, k: int) -> np.ndarray:
    """Read the whole gallery once; return the keys of the neighbours, sorted, int64 (Q, k)."""
    keys = np.full((len(queries), k), NO_NEIGHBOUR)
    start = 0
    for part in _parts(gallery, max(queries.shape)):
        columns, rows = _candidates(queries, part, _to_beat(keys), k)
        if len(rows):
            distances = paired_distances(queries, part, columns, rows)
            keys = _merge(keys, columns, _pack(distances, start + rows))
        start += len(part)
    if start != len(gallery):
        raise DataError(f"vectors: {start} for {len(gallery)} ids; give one vector per id")
    return np.sort(keys, axis=1)


def _parts(gallery: Gallery, width: int) -> Iterator[Tensor]:
    """Yield the vectors in parts that are small enough to stay in the processor's cache.

    The first parts are small: without distances to beat, many of their vectors are candidates.
    """
    largest = max(1, PART_VALUES // width)
    size = min(FIRST_PART, largest)
    for block in gallery.blocks():
        start = 0
        while start < len(block):
            yield block[start : start + size]
            start += size
            size = min(2 * size, largest)


def _pack(distances: Tensor, rows: Tensor) -> np.ndarray:
    """Return integers that have the order of the distances, and of the rows where these are equal.

    The bits of a non-negative float32 number, read as an integer, have the same order as the
    number. They are the upper half of the key, and the row is the lower half.
    """
    keys: np.ndarray = (distances.view(torch.int32).long() << 32 | rows).numpy()
    return keys


def _unpack(keys: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the rows and distances of keys."""
    distances = (keys >> 32).astype(np.int32).view(np.float32)
    return torch.from_numpy(keys & 0xFFFFFFFF), torch.from_numpy(distances)


def _merge(keys: np.ndarray, columns: Tensor, new_keys: np.ndarray) -> np.ndarray:
    """Return the k smallest keys of each query, in any order except that the largest is last.

    Args:
        keys: Keys so far, int64, shape (Q, k).
        columns: Query of each new key, int64, ascending, shape (P,).
        new_keys: int64, shape (P,).
    """
    counts = torch.bincount(columns, minlength=len(keys))
    starts = counts.cumsum(0) - counts
    places = torch.arange(len(columns)) - starts[columns]  # of the new keys among their query's
    table = np.full((len(keys), int(counts.max())), NO_NEIGHBOUR)
    table[columns.numpy(), places.numpy()] = new_keys
    k = keys.shape[1]
    return np.partition(np.concatenate([keys, table], axis=1), k - 1, axis=1)[:, :k]


def _to_beat(keys: np.ndarray) -> Tensor:
    """Return the squared distance that a later vector must not exceed, float64 (Q,).

    A later vector is a neighbour only if its float32 distance is smaller than the k-th one, since
    equal distances are ordered by the row. So it must be below the middle of the k-th distance and
    the float32 number before it. Nothing is smaller than 0.
    """
    _, distances = _unpack(keys[:, -1])
    before = torch.nextafter(distances, torch.zeros_like(distances))
    middle = (distances.double() + before.double()) / 2
    squared = middle.square().clamp_(min=SQUARED_RESOLUTION)
    return torch.where(distances > 0, squared, -torch.inf)


def _candidates(queries: Tensor, part: Tensor, to_beat: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return all pairs of a query and a gallery vector that can be neighbours, and few others.

    float32 products are fast. If they leave many pairs, because most distances are equal to within
    their rounding error, float64 products decide.

    Args:
        queries: float32, shape (Q, D).
        part: Gallery vectors, float32, shape (n, D).
        to_beat: Largest squared distance of a new neighbour of each query, float64, shape (Q,).
        k: Number of neighbours.

    Returns:
        Indices of the queries, ascending, and of the gallery vectors, both int64, shape (P,).
    """
    few = 4 * k * len(queries)
    lengths = queries.double().square().sum(1)  # (Q,) squared
    for dtype in (torch.float32, torch.float64):
        scores, error = _scores(queries.to(dtype), part.to(dtype))
        within = _at_most(scores, to_beat - lengths + error)
        if k < len(part) and np.count_nonzero(within) > few:
            # k vectors of this part are nearer than this. Others are neighbours only if their
            # float32 distance is not larger; rounding both changes squares by up to 2^-22.
            nearest = scores.T.topk(k, dim=1, largest=False).values  # (Q, k), ascending
            kth = nearest[:, -1].double() + lengths + error
            largest = (kth * (1 + 2**-21)).clamp(min=SQUARED_RESOLUTION)
            within = _at_most(scores, torch.minimum(to_beat, largest) - lengths + error)
        if np.count_nonzero(within) <= few:
            break
    rows, columns = np.divmod(np.flatnonzero(within), len(queries))
    order = np.argsort(columns, kind="stable")
    return torch.from_numpy(columns[order]), torch.from_numpy(rows[order])


def _at_most(scores: Tensor, limits: Tensor) -> np.ndarray:
    """Compare (n, Q) with (Q,). numpy does this several times as fast as torch."""
    # Rounded up to the dtype of the scores, so that no candidate is lost.
    above = torch.nextafter(limits.to(scores.dtype), torch.tensor(torch.inf, dtype=scores.dtype))
    within: np.ndarray = scores.numpy() <= above.numpy()
    return within


def _scores(queries: Tensor, part: Tensor) -> tuple[Tensor, float]:
    """Return |y|^2 - 2 x.y of queries x and vectors y, and a bound on its error.

    The squared distance is |x|^2 plus this. One matrix product computes all scores of a part.

    With the unit roundoff u, a product or a squared length has an error of at most 1.01 D u times
    the lengths of its two vectors, in any order of summation (Higham, "Accuracy and Stability of
    Numerical Algorithms", section 3.1). The squared distance consists of two squared lengths, twice
    a product, and three additions. With s, the sum of the largest squared lengths, these errors add
    up to less than (4.1 D + 20) u s. Exact distances, which come from float64 differences, have
    squares with an error of at most 2 (D + 2) u s. 8 (D + 4) u s covers both.

    Args:
        queries: Floating point, shape (Q, D).
        part: Gallery vectors of the same dtype, shape (n, D).

    Returns:
        Scores, shape (n, Q), and the largest error of a squared distance.

    Raises:
        DataError: If a gallery vector is not finite or longer than 1e18.
    """
    lengths = torch.linalg.vector_norm(part, dim=1).square_()  # (n,) squared
    longest = float(lengths.max())
    if not longest <= MAX_LENGTH**2:  # NaN too
        raise DataError("vectors: not finite, or too long; give unit vectors")
    # The product with one column takes four times as long as that with two.
    columns = queries if len(queries) > 1 else queries.repeat(2, 1)
    scores = torch.addmm(lengths[:, None], part, columns.T, alpha=-2)[:, : len(queries)]
    scale = longest + float(queries.square().sum(1).max())
    return scores, 4 * (part.shape[1] + 4) * torch.finfo(part.dtype).eps * scale
