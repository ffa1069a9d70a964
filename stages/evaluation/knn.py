"""k-nearest-neighbour classification and search."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation.nearest import Pairs, query_blocks_of


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
    for block in query_blocks_of(queries, gallery):
        voters = block.nearest(min(k, len(gallery)))
        labels.append(_majority_vote(voters, gallery_labels.numpy()))
        first = voters.first()
        nearest.append(first.columns)
        distance.append(first.distances)
    return Neighbours(
        labels=np.concatenate([np.empty(0, np.int64), *labels]),
        nearest=np.concatenate([np.empty(0, np.int64), *nearest]),
        distance=np.concatenate([np.empty(0, np.float32), *distance]),
    )


def knn_labels(
    queries: Tensor, gallery: Tensor, gallery_labels: Tensor, *, ks: Collection[int]
) -> dict[int, np.ndarray]:
    """Classify queries with several values of k; the gallery is searched once.

    Args:
        queries: As for :func:`knn`.
        gallery: As for :func:`knn`.
        gallery_labels: As for :func:`knn`.
        ks: Numbers of neighbours, each of them at least 1 and at most G.

    Returns:
        Predicted classes, int64, shape (Q,), by k.
    """
    predicted: dict[int, list[np.ndarray]] = {k: [np.empty(0, np.int64)] for k in ks}
    for block in query_blocks_of(queries, gallery):
        neighbours = block.nearest(max(ks))
        for k, labels in predicted.items():
            labels.append(_majority_vote(neighbours.within(k), gallery_labels.numpy()))
    return {k: np.concatenate(labels) for k, labels in predicted.items()}


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
    for block in query_blocks_of(vectors[rows], vectors):
        own = rows[block.start : block.start + len(block)].numpy()
        block.scores[np.arange(len(block)), own] = np.inf
        predicted.append(_majority_vote(block.nearest(min(k, len(vectors) - 1)), labels.numpy()))
    return np.concatenate(predicted)


def _majority_vote(voters: Pairs, gallery_labels: np.ndarray) -> np.ndarray:
    """Return the class with the most voters of each query, int64 (b,).

    Of several such classes, the one with the nearest voter wins, then that with the lowest index.
    """
    labels = gallery_labels[voters.columns]
    order = np.lexsort((voters.distances, labels, voters.rows))
    rows, labels, distances = voters.rows[order], labels[order], voters.distances[order]
    # One entry per query and class: the nearest voter is the first.
    starts = np.flatnonzero((np.diff(rows, prepend=-1) != 0) | (np.diff(labels, prepend=-1) != 0))
    votes = np.diff(starts, append=len(rows))
    rows, labels, distances = rows[starts], labels[starts], distances[starts]
    best = np.lexsort((labels, distances, -votes, rows))
    rows, labels = rows[best], labels[best]
    return np.asarray(labels[np.diff(rows, prepend=-1) != 0])


def nearest_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the distance of each query to the nearest gallery vector.

    Args:
        queries: Floating point, shape (Q, D).
        gallery: Floating point, shape (G, D) with G > 0.

    Returns:
        Euclidean distances, float32, shape (Q,).
    """
    blocks = query_blocks_of(queries, gallery)
    distances = [block.nearest(1).first().distances for block in blocks]
    return torch.from_numpy(np.concatenate([np.empty(0, np.float32), *distances]))


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
