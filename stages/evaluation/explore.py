"""Pair distances, hardest triplets and a two-dimensional map for the figures of the report."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.distance import GalleryDistances
from stages.records import Embeddings
from stages.subset import evenly_spaced

BLOCK = 2**22  # distances computed at once
DISTANCE_BINS = 50  # bins of the histogram over [0, 2]
MAX_PAIR_IMAGES = 10_000  # images used for the histogram and the triplets
MAX_MAP_IMAGES = 2500  # images shown on the map


class Exploration(NamedTuple):
    """Data behind the figures of one embedding.

    Attributes:
        positives: Histogram of distances between images of one class, int64, shape
            (DISTANCE_BINS,). The bins divide [0, 2] evenly.
        negatives: The same for images of different classes.
        triplets: Indices of anchor, farthest positive and nearest negative, int64, shape (T, 3).
            The hardest triplet comes first; an anchor occurs once.
        sides: Distances from the anchor to the positive and to the negative, float32, shape (T, 2).
        mapped: Indices of the images on the map, int64, shape (M,).
        points: Their coordinates on the map, float32, shape (M, 2).
    """

    positives: np.ndarray
    negatives: np.ndarray
    triplets: np.ndarray
    sides: np.ndarray
    mapped: np.ndarray
    points: np.ndarray


def explore(test: Embeddings, *, triplets: int = 8) -> Exploration:
    """Compute pair distances, the hardest triplets and a two-dimensional map of an embedding.

    Above 10,000 images, distances and triplets are taken among 10,000 evenly spaced images. The map
    shows at most 2,500 images, evenly spaced after sorting by class. The time is O(N^2); the memory
    is bounded by blocks of distances.

    Args:
        test: Embeddings of N > 0 images.
        triplets: Maximum number of triplets to return.

    Returns:
        Histograms, triplets and map. ``triplets`` is empty if no image has both a positive and a
        negative.
    """
    images = evenly_spaced(len(test), MAX_PAIR_IMAGES)
    vectors, labels = test.vectors[images], test.labels[images]
    columns = torch.arange(len(images))
    counts = torch.zeros(2 * DISTANCE_BINS, dtype=torch.int64)  # of positives, then negatives
    block_triplets, block_sides = [], []
    gallery = GalleryDistances(vectors)
    for rows in columns.split(max(1, BLOCK // len(images))):
        distances = gallery.to(vectors[rows], slice(None))  # (b, N)
        negative = labels[rows][:, None] != labels  # (b, N)
        bins = (distances * (DISTANCE_BINS / 2)).int().clamp_(max=DISTANCE_BINS - 1)
        bins += negative.int() * DISTANCE_BINS
        counts += torch.bincount(bins.flatten(), minlength=2 * DISTANCE_BINS)
        own = bins[torch.arange(len(rows)), rows]  # an image is not its own positive
        counts -= torch.bincount(own, minlength=2 * DISTANCE_BINS)
        nearest = distances.masked_fill(~negative, math.inf).min(dim=1)
        to_positives = distances.masked_fill_(negative, -math.inf)
        to_positives[torch.arange(len(rows)), rows] = -math.inf
        farthest = to_positives.max(dim=1)
        block_triplets.append(torch.stack([rows, farthest.indices, nearest.indices], dim=1))
        block_sides.append(torch.stack([farthest.values, nearest.values], dim=1))
    positive_counts, negative_counts = counts.split(DISTANCE_BINS)
    hardest, sides = _hardest_triplets(torch.cat(block_triplets), torch.cat(block_sides), triplets)
    mapped = test.labels.argsort(stable=True)[evenly_spaced(len(test), MAX_MAP_IMAGES)]
    return Exploration(
        positives=(positive_counts // 2).numpy(),  # each pair was counted from both ends
        negatives=(negative_counts // 2).numpy(),
        triplets=images[hardest].numpy(),
        sides=sides.numpy(),
        mapped=mapped.numpy(),
        points=flat_map(test.vectors[mapped].numpy()),
    )


def _hardest_triplets(triplets: Tensor, sides: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the triplets whose negative is closest compared with the positive."""
    complete = torch.isfinite(sides).all(1)  # an anchor may lack a positive or a negative
    triplets, sides = triplets[complete], sides[complete]
    order = (sides[:, 1] - sides[:, 0]).argsort(stable=True)[:count]
    return triplets[order], sides[order]


def flat_map(vectors: np.ndarray) -> np.ndarray:
    """Project vectors to two dimensions with t-SNE.

    Principal components are used instead for fewer than 10 vectors, fewer than 3 dimensions or
    nearly equal vectors. The result is deterministic.

    Args:
        vectors: Floating point, shape (M, D).

    Returns:
        Coordinates, float32, shape (M, 2).
    """
    if len(vectors) < 10 or vectors.shape[1] < 3 or float(vectors.std(0).max()) < 1e-5:
        points = np.zeros((len(vectors), 2), np.float32)
        left, sizes, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        points[:, : len(sizes[:2])] = left[:, :2] * sizes[:2]
        return points
    from sklearn.manifold import TSNE  # slow to import

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", max_iter=500, angle=0.8, random_state=0)
    return np.asarray(tsne.fit_transform(vectors), dtype=np.float32)
