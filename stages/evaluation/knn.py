"""k-nearest-neighbour classification and search."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation.retrieval import BLOCK


def default_k(gallery_labels: Tensor) -> int:
    """k of kNN where nothing chooses it: 5, or the largest odd number that does not exceed the median class size.

    gallery_labels: int64 (G,), G > 0.
    """
    sizes = torch.bincount(gallery_labels)
    return min(5, (int(sizes[sizes > 0].median()) - 1) // 2 * 2 + 1)


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
        votes = torch.bincount(cells, minlength=len(block) * classes).view(
            -1, classes
        )  # (b, classes)
        closest = torch.full((len(block) * classes,), math.inf)
        closest.scatter_reduce_(0, cells, distances[rows, columns], "amin")
        most = votes == votes.max(dim=1, keepdim=True).values
        winner = np.argmin(closest.view(-1, classes).masked_fill_(~most, math.inf).numpy(), axis=1)
        nearest = np.argmin(distances.numpy(), axis=1)
        parts.append((winner, nearest, distances.numpy()[np.arange(len(block)), nearest]))
    return Neighbours(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def nearest_rows(queries: Tensor, gallery: Tensor, *, count: int) -> np.ndarray:
    """The rows of the nearest gallery vectors, the nearest first, int64 (Q, count or all); for a few queries (Q, D)."""
    count = min(count, len(gallery))
    return np.asarray(exact_distances(queries, gallery).topk(count, largest=False).indices)
