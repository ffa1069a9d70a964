"""Distances between embedding vectors and sorting by them, for the loss and the scores."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")
GALLERY_BLOCK = 4096  # gallery vectors per block, to bound memory
KEPT_VALUES = 2**24  # values of a gallery up to which its float64 factors are kept: 128 MiB
PAIR_VALUES = 2**20  # values of the differences that are in memory at once
SQUARED_RESOLUTION = 1e-14  # squares below it are 0: float32 unit vectors cannot resolve them
MIN_PARALLEL = 2**16  # values from which sorting on several threads is worthwhile


def squared_distance_factors(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product holds the squared distances.

    One matrix multiplication computes |x|^2 - 2 x.y + |y|^2. Its rounding error is about the
    dtype's epsilon times the squared lengths, so the result can be slightly negative.

    Args:
        points: Floating point, shape (N, D).

    Returns:
        ``left`` and ``right``, both of shape (N, D + 2). ``left[i] @ right[j]`` is the squared
        Euclidean distance of points i and j. The first D + 1 columns of ``right`` are the points
        and a column of ones.

    Example:
        >>> left, right = squared_distance_factors(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> (left @ right.T).tolist()
        [[0.0, 25.0], [25.0, 0.0]]
    """
    squared_lengths = points.square().sum(1, keepdim=True)  # (N, 1)
    ones = points.new_ones(len(points), 1)
    left = torch.cat([-2 * points, squared_lengths, ones], 1)
    right = torch.cat([points, ones, squared_lengths], 1)
    return left, right


def exact_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return Euclidean distances that are accurate enough to rank near-duplicates.

    Distances are computed in float64, in blocks of the gallery. Distances below 1e-7, which float32
    unit vectors cannot resolve, are set to 0.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Floating point, shape (G, D).

    Returns:
        float32, shape (Q, G), on the CPU.

    Example:
        >>> exact_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[5., 0.]])
    """
    left, _ = squared_distance_factors(queries.cpu().double())
    distances = torch.empty(len(queries), len(gallery))
    for start in range(0, len(gallery), GALLERY_BLOCK):
        columns = slice(start, start + GALLERY_BLOCK)
        _, right = squared_distance_factors(gallery[columns].cpu().double())
        distances[:, columns] = _multiply(left, right)
    return distances


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Return distances from their factors; those below 1e-7 are 0."""
    return torch.threshold_(left @ right.T, SQUARED_RESOLUTION, 0).sqrt_()


def paired_distances(a: Tensor, b: Tensor, rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """Return Euclidean distances of pairs of vectors, from their differences in float64.

    The relative error is that of float32, also for near-duplicates, and the distance of a pair does
    not depend on the other pairs. :func:`exact_distances` is faster per pair; it differs where its
    float64 rounding error counts, at distances far below 1e-3. Distances below 1e-7 are 0.

    Args:
        a: Floating point, shape (A, D).
        b: Floating point, shape (B, D).
        rows_a: Rows of ``a``, int64, shape (P,).
        rows_b: Rows of ``b``, int64, shape (P,).

    Returns:
        float32, shape (P,), on the CPU.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> paired_distances(points, points, torch.tensor([0, 1]), torch.tensor([1, 1]))
        tensor([5., 0.])
    """
    distances = torch.empty(len(rows_a))
    size = max(1, PAIR_VALUES // max(1, a.shape[1]))
    for start in range(0, len(rows_a), size):
        pairs = slice(start, start + size)
        differences = a[rows_a[pairs]].cpu().double() - b[rows_b[pairs]].cpu().double()  # (p, D)
        squared = differences.square_().sum(1)
        distances[pairs] = torch.threshold_(squared, SQUARED_RESOLUTION, 0).sqrt_()
    return distances


class GalleryDistances:
    """Exact distances from many blocks of queries to one gallery.

    Blocks of few queries would spend most of their time on converting the gallery to float64, so
    it is converted once, unless it is large.

    Args:
        gallery: Floating point, shape (G, D).
        device: Device to compute on, which must support float64.

    Example:
        >>> distances = GalleryDistances(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]]))
        >>> distances.to(torch.tensor([[0.0, 0.0]]), slice(1, 3))
        tensor([[0., 1.]])
    """

    def __init__(self, gallery: Tensor, device: torch.device = CPU) -> None:
        self.device = device
        self._gallery = gallery.to(device)
        self._factors = None
        if gallery.numel() <= KEPT_VALUES:
            _, self._factors = squared_distance_factors(self._gallery.double())  # (G, D + 2)

    def __len__(self) -> int:
        return len(self._gallery)

    def to(self, queries: Tensor, columns: slice) -> Tensor:
        """Return the distances of :func:`exact_distances` to a slice of the gallery.

        Args:
            queries: Floating point, shape (Q, D).
            columns: Slice of the gallery with n vectors.

        Returns:
            float32, shape (Q, n), on the device.
        """
        left, _ = squared_distance_factors(queries.to(self.device).double())
        gallery = self._gallery[columns]
        factors = None if self._factors is None else self._factors[columns]
        distances = torch.empty(len(queries), len(gallery), device=self.device)
        for start in range(0, len(gallery), GALLERY_BLOCK):
            block = slice(start, start + GALLERY_BLOCK)
            if factors is None:
                _, right = squared_distance_factors(gallery[block].double())
            else:
                right = factors[block]
            distances[:, block] = _multiply(left, right)
        return distances


def sort_rows(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row in ascending order. The order of equal values is arbitrary.

    On the CPU, numpy sorts on all threads. See ``_sort_packed`` for why this is faster than
    ``torch.sort``.

    Args:
        distances: Floating point, shape (R, C). Not negative; infinity is allowed.

    Returns:
        The sorted values, shape (R, C), and the column of each, int64, shape (R, C).

    Example:
        >>> ascending, order = sort_rows(torch.tensor([[2.0, 0.5, 1.0]]))
        >>> ascending.tolist(), order.tolist()
        ([[0.5, 1.0, 2.0]], [[1, 2, 0]])
    """
    if distances.device.type != "cpu":
        values, columns = distances.sort(dim=1)
        return values, columns
    ascending = torch.empty_like(distances)
    order = torch.empty(distances.shape, dtype=torch.int64)
    sort = _sort_packed if distances.dtype == torch.float32 else _sort_indices
    workers = torch.get_num_threads() if distances.numel() >= MIN_PARALLEL else 1
    edges = [len(distances) * worker // workers for worker in range(workers + 1)]

    def sort_block(edge: tuple[int, int]) -> None:
        rows = slice(*edge)
        sort(distances[rows].numpy(), ascending[rows].numpy(), order[rows].numpy())

    if workers == 1:
        sort_block((0, len(distances)))
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(sort_block, pairwise(edges)))  # `list` raises a thread's exception
    return ascending, order


def _sort_packed(values: np.ndarray, ascending: np.ndarray, order: np.ndarray) -> None:
    """Sort rows of non-negative float32 values as 64-bit integers.

    The bits of a non-negative IEEE 754 number, read as an unsigned integer, have the same order as
    the number: the sign bit is 0, and the exponent comes before the mantissa. A 64-bit integer with
    these bits in its upper half and the column in its lower half therefore sorts by value, and
    carries its column along. For example, [2.0, 0.5] becomes [0x40000000_00000000,
    0x3f000000_00000001]. numpy sorts integers with vector instructions, several times faster than
    torch sorts floats or `numpy.argsort` sorts indices.

    Args:
        values: float32, shape (R, C).
        ascending: Output for the sorted values, float32, shape (R, C).
        order: Output for their columns, int64, shape (R, C).
    """
    packed = np.empty((*values.shape, 2), np.uint32)
    upper, lower = (1, 0) if np.little_endian else (0, 1)
    packed[..., upper] = values.view(np.uint32)
    packed[..., lower] = np.arange(values.shape[1], dtype=np.uint32)
    packed.view(np.uint64)[..., 0].sort(axis=1)
    ascending.view(np.uint32)[:] = packed[..., upper]
    order[:] = packed[..., lower]


def _sort_indices(values: np.ndarray, ascending: np.ndarray, order: np.ndarray) -> None:
    """Sort rows of any dtype; arguments as for `_sort_packed`."""
    order[:] = np.argsort(values, axis=1)
    ascending[:] = np.take_along_axis(values, order, axis=1)
