"""Distances, hardest triplets and a two-dimensional map for the report's figures."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import exact_distances
from stages.records import Embeddings

BLOCK = 2**22  # distances handled at once


DISTANCE_BINS = 50  # of [0, 2]


PAIRED_UP_TO = 10_000  # images whose distances the histogram counts


MAPPED = 2500


class Exploration(NamedTuple):
    """What the pictures show.

    positives, negatives: int64 (DISTANCE_BINS,), pairs of one class and of two by distance, bins even over [0, 2].
    triplets: int64 (T, 3), anchor, farthest positive, nearest negative; the worst first, one an anchor.
    sides: float32 (T, 2), their distances. mapped: int64 (M,), the images on the map; points: float32 (M, 2).
    """

    positives: np.ndarray
    negatives: np.ndarray
    triplets: np.ndarray
    sides: np.ndarray
    mapped: np.ndarray
    points: np.ndarray


def explore(test: Embeddings, *, triplets: int = 8) -> Exploration:
    """Distances between pairs, the worst triplets and a flat map; O(N^2) time, memory for a block of distances.

    Above 10,000 images the pairs are those of 10,000 evenly spaced ones; the map shows at most 2,500, spaced over the classes.
    """
    shown = torch.linspace(0, len(test) - 1, min(len(test), PAIRED_UP_TO)).round().long()
    vectors, labels = test.vectors[shown], test.labels[shown]
    counts = torch.zeros(2, DISTANCE_BINS, dtype=torch.int64)
    worst: list[Tensor] = []
    step = max(1, BLOCK // len(shown))
    for start in range(0, len(shown), step):
        rows = torch.arange(start, min(start + step, len(shown)))
        distances = exact_distances(vectors[rows], vectors)  # (b, N)
        same = labels[rows][:, None] == labels
        cells = (distances * (DISTANCE_BINS / 2)).long().clamp_(max=DISTANCE_BINS - 1)
        counts[1] += torch.bincount(cells[~same], minlength=DISTANCE_BINS)
        same[torch.arange(len(rows)), rows] = False
        counts[0] += torch.bincount(cells[same], minlength=DISTANCE_BINS)
        far, positive = distances.masked_fill(~same, -math.inf).max(dim=1)
        same[torch.arange(len(rows)), rows] = True
        near, negative = distances.masked_fill(same, math.inf).min(dim=1)
        worst.append(
            torch.stack([rows.float(), positive.float(), negative.float(), far, near], dim=1)
        )
    table = torch.cat(worst)
    table = table[
        torch.isfinite(table).all(1)
    ]  # without a positive, or a negative, there is no triplet
    table = table[(table[:, 4] - table[:, 3]).argsort(stable=True)[:triplets]]
    mapped = test.labels.argsort(stable=True)[
        torch.linspace(0, len(test) - 1, min(len(test), MAPPED)).round().long()
    ]
    return Exploration(
        (counts[0] // 2).numpy(),
        (counts[1] // 2).numpy(),
        shown[table[:, :3].long()].numpy(),
        table[:, 3:].numpy(),
        mapped.numpy(),
        flat_map(test.vectors[mapped].numpy()),
    )


def flat_map(vectors: np.ndarray) -> np.ndarray:
    """t-SNE of (M, D), float32 (M, 2), the same each time; principal components where there are too few or too equal points."""
    if len(vectors) < 10 or vectors.shape[1] < 3 or float(vectors.std(0).max()) < 1e-5:
        flat = np.zeros((len(vectors), 2), np.float32)
        left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        flat[:, : len(sizes[:2])] = left[:, :2] * sizes[:2]
        return flat
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(
        vectors
    )
    return np.asarray(flat, dtype=np.float32)
