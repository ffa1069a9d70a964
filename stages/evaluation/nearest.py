"""Nearest gallery vectors of queries, with all ties: exact, in blocks of queries.

A float32 product of a block of queries and the gallery finds the few pairs that can be among the
nearest, as in :mod:`stages.search`. Only their distances are computed exactly. Here, the gallery is
in memory, all pairs tied at the k-th distance are returned, and pairs can be excluded.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import SQUARED_RESOLUTION, exact_distances, paired_distances
from stages.errors import DataError

BLOCK = 2**23  # scores computed at once
MIN_QUERIES = 32  # queries at once: a matrix product of fewer would wait for memory
GROUPS = 32  # parts of the gallery per neighbour, whose minima bound the k-th smallest score
CONVERTED_VALUES = 2**22  # of a gallery that are converted at once
KEPT_VALUES = 2**26  # of a gallery up to which the converted values are kept: 256 MiB
FEW = 4  # candidates per neighbour that are always compared one by one
MANY = 1 / 64  # share of all pairs from which one float64 product of all is faster


class Pairs(NamedTuple):
    """Pairs of a query of a block and a gallery vector, sorted by query, distance and column.

    Attributes:
        rows: Query in the block, int64, shape (P,).
        columns: Row of the gallery, int64, shape (P,).
        distances: Euclidean distances, float32, shape (P,).
    """

    rows: np.ndarray
    columns: np.ndarray
    distances: np.ndarray

    def first(self) -> "Pairs":
        """Return the nearest pair of each query; of equal ones that with the lowest column."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        return self.select(starts)

    def select(self, index: np.ndarray) -> "Pairs":
        """Return some of the pairs, by index or mask."""
        return Pairs(self.rows[index], self.columns[index], self.distances[index])

    def within(self, k: int) -> "Pairs":
        """Return the pairs up to the k-th distance of each query; at most as many as there are."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        sizes = np.diff(starts, append=len(self.rows))
        kth_distances = self.distances[starts + np.minimum(k, sizes) - 1]
        return self.select(self.distances <= np.repeat(kth_distances, sizes))


class _Gallery:
    """A gallery around its mean, which makes products smaller and rounding errors too.

    Large galleries are converted block by block for each block of queries, to bound memory.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors  # (G, D)
        size = max(1, CONVERTED_VALUES // max(1, vectors.shape[1]))
        self._slices = [slice(start, start + size) for start in range(0, len(vectors), size)]
        total = torch.zeros(vectors.shape[1], dtype=torch.float64)
        for rows in self._slices:
            total += vectors[rows].double().sum(0)
        if not bool(total.isfinite().all()):
            raise DataError("vectors: not finite; train the embedding again")
        self.mean = (total / len(vectors)).float()  # (D,)
        self._blocks: list[Tensor] | None = None
        if vectors.numel() <= KEPT_VALUES:
            self._blocks = [self._centred(rows) for rows in self._slices]
        lengths = [block.square().sum(1) for block in self._centred_blocks()]
        self.lengths = torch.cat(lengths)  # (G,) squared

    def scores(self, queries: Tensor) -> Tensor:
        """Return |y|^2 - 2 x.y of each query x and gallery vector y, float32 (b, G).

        Args:
            queries: Queries minus the mean, float32, shape (b, D).
        """
        scores = torch.empty(len(queries), len(self.vectors))
        for rows, block in zip(self._slices, self._centred_blocks(), strict=True):
            product = torch.addmm(self.lengths[None, rows], queries, block.T, alpha=-2)
            scores[:, rows] = product
        return scores

    def _centred(self, rows: slice) -> Tensor:
        return self.vectors[rows].float() - self.mean  # (n, D)

    def _centred_blocks(self) -> Iterable[Tensor]:
        return self._blocks or map(self._centred, self._slices)


class Block:
    """A block of queries, and which pairs with the gallery are excluded.

    Attributes:
        start: Position of the first query of the block among all queries.
        queries: Shape (b, D).
        scores: |y|^2 - 2 x.y of each query x and gallery vector y, without the mean of the gallery,
            float32, shape (b, G). Infinity excludes a pair.
    """

    def __init__(self, start: int, queries: Tensor, gallery: "_Gallery") -> None:
        self.start, self.queries, self._gallery = start, queries, gallery.vectors
        centred = queries.float() - gallery.mean
        self._lengths = centred.double().square().sum(1)  # (b,) squared
        self.scores: np.ndarray = gallery.scores(centred).numpy()
        scale = float(self._lengths.max()) + float(gallery.lengths.max())
        # The bound of `stages.search`, where it is explained. It leaves room for the rounding of
        # the differences to the mean, which changes squared distances by at most 8 u s.
        self._error = 4 * (queries.shape[1] + 8) * torch.finfo(torch.float32).eps * scale

    def __len__(self) -> int:
        return len(self.queries)

    def nearest(self, k: int) -> Pairs:
        """Return the k nearest pairs of each query that are not excluded, with all ties.

        Args:
            k: Number of neighbours, at least 1; at most as many pairs as each query has.
        """
        limits = self._limits(_kth_bound(self.scores, k))
        within = self.scores <= limits[:, None]
        if np.count_nonzero(within) > max(FEW * k * len(self), MANY * within.size):
            return self._nearest_in_float64(k)
        rows, columns = np.divmod(np.flatnonzero(within), self.scores.shape[1])
        distances = paired_distances(
            self.queries, self._gallery, torch.from_numpy(rows), torch.from_numpy(columns)
        )
        return _sorted(rows, columns, distances.numpy()).within(k)

    def _limits(self, kth_scores: np.ndarray) -> np.ndarray:
        """Return the largest score of a neighbour, float32 (b,), from a bound of the k-th score.

        A pair is a neighbour if its float32 distance is at most the k-th. Rounding both distances
        changes their squares by up to 2^-22.
        """
        lengths = self._lengths.numpy()
        kth = kth_scores.astype(np.float64) + lengths + self._error
        largest = np.maximum(kth * (1 + 2**-21), SQUARED_RESOLUTION)
        limits = (largest - lengths + self._error).astype(np.float32)
        return np.asarray(np.nextafter(limits, np.float32(np.inf)))

    def _nearest_in_float64(self, k: int) -> Pairs:
        """Return the nearest pairs if float32 cannot tell many of them apart."""
        distances = exact_distances(self.queries, self._gallery).numpy()
        distances[np.isinf(self.scores)] = np.inf
        kth_distances = np.partition(distances, k - 1, axis=1)[:, k - 1]
        rows, columns = np.nonzero(distances <= kth_distances[:, None])
        return _sorted(rows, columns, distances[rows, columns])


def query_blocks_of(queries: Tensor, gallery: Tensor) -> Iterator[Block]:
    """Yield blocks of queries with about 8 million scores each.

    Args:
        queries: Shape (Q, D), of any dtype: bytes are converted in blocks.
        gallery: Shape (G, D) with G > 0.

    Raises:
        DataError: If a vector is not finite.
    """
    queries, gallery = queries.cpu(), gallery.cpu()
    prepared, start = _Gallery(gallery), 0
    for block in queries.split(max(MIN_QUERIES, BLOCK // len(gallery))):
        if not bool(block.isfinite().all()):
            raise DataError("vectors: not finite; train the embedding again")
        if len(block):
            yield Block(start, block, prepared)
        start += len(block)


def _kth_bound(scores: np.ndarray, k: int) -> np.ndarray:
    """Return an upper bound of the k-th smallest score of each row, float32 (b,).

    Each row is divided into groups. The k-th smallest of the groups' minima is the minimum of a
    group, and k - 1 other groups have one that is not larger.
    """
    rows, columns = scores.shape
    groups = GROUPS * k
    depth = columns // groups
    if depth < 2:
        return np.asarray(np.partition(scores, k - 1, axis=1)[:, k - 1])
    minima = scores[:, : groups * depth].reshape(rows, depth, groups).min(axis=1)
    rest = scores[:, groups * depth :]
    return np.asarray(np.partition(np.hstack([minima, rest]), k - 1, axis=1)[:, k - 1])


def _sorted(rows: np.ndarray, columns: np.ndarray, distances: np.ndarray) -> Pairs:
    order = np.lexsort((columns, distances, rows))
    return Pairs(rows[order], columns[order], distances[order])
