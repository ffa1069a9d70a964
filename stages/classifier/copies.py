"""Copies of images, found by their vectors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation.query_blocks import BLOCK
from stages.records import Embeddings

# Vectors at most so far apart are of the same image. Other batches and machines change a vector of
# unit length by some 1e-6.
SAME_IMAGE = 1e-5


class Copies(NamedTuple):
    """Gallery images that are the same image as a query, -1 where there is none.

    Attributes:
        same_class: Row of the first such image with the class of the query, int64, shape (Q,).
        other_class: Row of the first such image with another class, int64, shape (Q,).
    """

    same_class: np.ndarray
    other_class: np.ndarray


def find_copies(
    queries: Embeddings, gallery: Embeddings, *, only_earlier_rows: bool = False
) -> Copies:
    """Find the gallery images whose vectors are within 1e-5 of a query.

    Args:
        queries: Q embeddings.
        gallery: G embeddings with the same classes.
        only_earlier_rows: Compare each query with the gallery rows before its own row only, where
            both are the same embeddings.

    Example:
        >>> gallery = Embeddings(torch.eye(3), torch.tensor([0, 1, 1]), ("cat", "dog"))
        >>> queries = Embeddings(torch.eye(3)[:2], torch.tensor([0, 0]), ("cat", "dog"))
        >>> [rows.tolist() for rows in find_copies(queries, gallery)]
        [[0, -1], [-1, 1]]
    """
    rows = torch.arange(len(queries))
    columns = torch.arange(len(gallery))
    same, other = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in rows.split(max(1, BLOCK // max(1, len(gallery)))):
        close = exact_distances(queries.vectors[block], gallery.vectors) <= SAME_IMAGE  # (b, G)
        if only_earlier_rows:
            close &= columns < block[:, None]
        same_class = queries.labels[block, None] == gallery.labels
        same.append(_first_true(close & same_class))
        other.append(_first_true(close & ~same_class))
    return Copies(np.concatenate(same), np.concatenate(other))


def _first_true(matrix: Tensor) -> np.ndarray:
    """Return the first column that is True in each row, int64 (b,); -1 if there is none."""
    values = matrix.numpy()
    if values.shape[1] == 0:
        return np.full(len(values), -1)
    return np.where(values.any(axis=1), values.argmax(axis=1), -1)
