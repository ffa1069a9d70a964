"""Distances between embedding vectors; the loss and the metrics share them."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def squared_distance_factors(points: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices whose product is the matrix of squared distances: |x|^2 - 2 x.y + |y|^2 in one multiplication.

    points: floating point (N, D). Returns left and right, both (N, D + 2); `left[i] @ right[j]` is the squared Euclidean
    distance of i and j, up to rounding of about the dtype's epsilon times the squared lengths, so perhaps just below 0.
    The first D + 1 columns of right are the points and ones.
    """
    lengths, ones = points.square().sum(1, keepdim=True), points.new_ones(len(points), 1)
    return torch.cat([-2 * points, lengths, ones], 1), torch.cat([points, ones, lengths], 1)


def exact_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Euclidean distances accurate enough to rank near-duplicates: worked out in float64, returned as float32.

    queries: (Q, D). gallery: (G, D). Returns float32 (Q, G), on the CPU. Beside it, memory for a few thousand rows.
    Distances below 1e-7, which is what float32 unit vectors can't tell apart, are zero exactly.
    """
    left, _ = squared_distance_factors(queries.cpu().double())
    distances = torch.empty(len(queries), len(gallery))
    for start in range(0, len(gallery), 4096):
        _, right = squared_distance_factors(gallery[start : start + 4096].cpu().double())
        distances[:, start : start + 4096] = torch.threshold_(left @ right.T, 1e-14, 0).sqrt_()
    return distances


def sort_rows(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in ascending order, and the columns it came from; equal values come in any order.

    distances: floating point (R, C), not negative; infinity is allowed. Returns (R, C) and int64 (R, C).
    On the CPU numpy does it, on all threads: its sort of plain numbers runs on vector instructions, several times faster
    than torch's, and faster than its own sort of indices. So a float32, whose bits are ordered as it is, travels with
    its column in one 64-bit integer.
    """
    if distances.device.type != "cpu":
        values, columns = distances.sort(dim=1)
        return values, columns
    ascending, order = torch.empty_like(distances), torch.empty(distances.shape, dtype=torch.int64)
    fill = _sort_packed if distances.dtype == torch.float32 else _sort_indices
    workers = torch.get_num_threads() if distances.numel() >= 2**16 else 1
    edges = [len(distances) * i // workers for i in range(workers + 1)]
    jobs = [
        tuple(part[a:b].numpy() for part in (distances, ascending, order))
        for a, b in pairwise(edges)
    ]
    if workers == 1:
        fill(*jobs[0])
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda job: fill(*job), jobs))
    return ascending, order


def _sort_packed(values: np.ndarray, ascending: np.ndarray, order: np.ndarray) -> None:
    packed = np.empty((*values.shape, 2), np.uint32)
    high, low = (1, 0) if np.little_endian else (0, 1)
    packed[..., high] = values.view(np.uint32)
    packed[..., low] = np.arange(values.shape[1], dtype=np.uint32)
    packed.view(np.uint64)[..., 0].sort(axis=1)
    ascending.view(np.uint32)[:] = packed[..., high]
    order[:] = packed[..., low]


def _sort_indices(values: np.ndarray, ascending: np.ndarray, order: np.ndarray) -> None:
    order[:] = np.argsort(values, axis=1)
    ascending[:] = np.take_along_axis(values, order, axis=1)
