"""Distances between embedding vectors; the loss and the metrics share them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


def squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Squared Euclidean distances by one matrix product, in the inputs' precision whatever the autocast.

    queries: floating point (Q, D). gallery: the same dtype (G, D).
    Returns (Q, G), never negative. The rounding error is about the dtype's epsilon times the vectors'
    squared norms: for float32 unit vectors 1e-7. Callers that rank near-duplicates pass float64.
    """
    with torch.autocast(queries.device.type, enabled=False):
        products = queries @ gallery.T  # (Q, G)
    return products.mul_(-2).add_(queries.square().sum(1)[:, None]).add_(gallery.square().sum(1)[None, :]).clamp_(min=0)


def exact_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Euclidean distances accurate enough to rank near-duplicates: worked out in float64, returned as float32.

    queries: (Q, D). gallery: (G, D). Returns float32 (Q, G), on the CPU. Beside it, memory for a few thousand rows.
    Distances below 1e-7, which is what float32 unit vectors can't tell apart, are zero exactly.
    """
    wide = queries.cpu().double()
    distances = torch.empty(len(queries), len(gallery))
    for start in range(0, len(gallery), 4096):
        squared = squared_distances(wide, gallery[start : start + 4096].cpu().double())
        distances[:, start : start + 4096] = squared.sqrt_().masked_fill_(squared < 1e-7, 0)
    return distances


def argsort_rows(values: Tensor) -> Tensor:
    """Column indices that sort each row of float (R, C), int64 (R, C); equal values come in any order.

    On the CPU this is numpy's, on all threads: several times faster than torch's own.
    """
    if values.device.type != "cpu":
        return values.argsort(dim=1)
    workers = torch.get_num_threads() if values.numel() >= 2**16 else 1
    chunks = np.array_split(values.numpy(), workers)
    with ThreadPoolExecutor(workers) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(lambda chunk: np.argsort(chunk, axis=1), chunks))))
