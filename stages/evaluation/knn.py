"""k-nearest-neighbour classification and search."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation.triplets_and_rankings import BLOCK


def default_k(gallery_labels: Tensor) -> int:
    """Return the default k: the largest odd number up to 5 and up to the median class size.

    Args:
        gallery_labels: Class indices, int64, shape (G,) with G > 0.

    Returns:
        1, 3 or 5.
    """
    sizes = torch.bincount(gallery_labels)
    return min(5, (int(sizes[sizes > 0].median()) - 1) // 2 * 2 + 1)


class Neighbours(NamedTuple):
    """Result of a kNN classification.

    Attributes:
        labels: Predicted class of each query, int64, shape (Q,).
        nearest: Row of the nearest gallery vector, int64, shape (Q,).
        distance: Euclidean distance to it, float32, shape (Q,).
    """

    labels: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray


def knn(queries: Tensor, gallery: Tensor, gallery_labels: Tensor, *, k: int) -> Neighbours:
    """Classify queries by a majority vote of their k nearest gallery vectors.

    All gallery vectors tied at the k-th distance vote, so the result does not depend on the order
    of the gallery. If several classes have equally many votes, the class with the nearest voter
    wins; if their nearest voters are equally far, the lowest class index wins.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Floating point, shape (G, D) with G > 0.
        gallery_labels: Class indices, int64, shape (G,).
        k: Number of neighbours; values above G mean G.

    Returns:
        Predicted classes and nearest neighbours.

    Raises:
        ValueError: If ``k`` is below 1 or the gallery is empty.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> neighbours = knn(torch.tensor([[0.6, 0.8]]), gallery, torch.tensor([0, 1, 1]), k=1)
        >>> neighbours.labels.tolist(), neighbours.nearest.tolist()
        ([1], [1])
    """
    if k < 1 or len(gallery) == 0:
        raise ValueError(f"k = {k} with {len(gallery)} gallery vectors; both must be at least 1")
    labels, nearest, distance = [], [], []
    for block in queries.split(max(1, BLOCK // len(gallery))):
        distances = exact_distances(block, gallery)  # (b, G)
        labels.append(_majority_vote(distances, gallery_labels, min(k, len(gallery))))
        nearest.append(np.argmin(distances.numpy(), axis=1))
        distance.append(np.min(distances.numpy(), axis=1))
    return Neighbours(
        labels=np.concatenate(labels),
        nearest=np.concatenate(nearest),
        distance=np.concatenate(distance),
    )


def classify_left_out(vectors: Tensor, labels: Tensor, rows: Tensor, *, k: int) -> np.ndarray:
    """Classify gallery images by the other gallery images; see :func:`knn`.

    Args:
        vectors: Gallery, floating point, shape (G, D) with G > 1.
        labels: Class indices, int64, shape (G,).
        rows: Rows of the R images to classify, int64, shape (R,).
        k: Number of neighbours; values above G - 1 mean G - 1.

    Returns:
        Predicted classes, int64, shape (R,).

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
        >>> classify_left_out(vectors, torch.tensor([0, 0, 1]), torch.tensor([0, 2]), k=1).tolist()
        [0, 0]
    """
    predicted = [np.empty(0, np.int64)]
    for block in rows.split(max(1, BLOCK // len(vectors))):
        distances = exact_distances(vectors[block], vectors)  # (b, G)
        distances[torch.arange(len(block)), block] = math.inf
        predicted.append(_majority_vote(distances, labels, min(k, len(vectors) - 1)))
    return np.concatenate(predicted)


def _majority_vote(distances: Tensor, gallery_labels: Tensor, k: int) -> np.ndarray:
    """Return the winning class of each row of distances (b, G), int64 (b,)."""
    classes = int(gallery_labels.max()) + 1
    kth_distance = distances.kthvalue(k, dim=1, keepdim=True).values
    rows, columns = (distances <= kth_distance).nonzero(as_tuple=True)
    cells = rows * classes + gallery_labels[columns]
    votes = torch.bincount(cells, minlength=len(distances) * classes)
    votes = votes.view(-1, classes)  # (b, classes)
    closest = torch.full((len(distances) * classes,), math.inf)
    closest.scatter_reduce_(0, cells, distances[rows, columns], "amin")
    closest = closest.view(-1, classes)  # (b, classes) distance of the nearest voter
    outvoted = votes < votes.max(dim=1, keepdim=True).values
    return np.asarray(closest.masked_fill_(outvoted, math.inf).numpy().argmin(axis=1))


def nearest_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the distance of each query to the nearest gallery vector.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Floating point, shape (G, D) with G > 0.

    Returns:
        Euclidean distances, float32, shape (Q,).
    """
    blocks = queries.split(max(1, BLOCK // len(gallery)))
    return torch.cat([exact_distances(block, gallery).amin(dim=1) for block in blocks])


def nearest_rows(queries: Tensor, gallery: Tensor, *, count: int) -> np.ndarray:
    """Return the nearest gallery rows of each query, nearest first.

    All distances are held in memory at once, so this suits a few queries.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Floating point, shape (G, D).
        count: Number of rows to return; values above G mean G.

    Returns:
        Gallery rows, int64, shape (Q, min(count, G)).
    """
    count = min(count, len(gallery))
    return np.asarray(exact_distances(queries, gallery).topk(count, largest=False).indices)
