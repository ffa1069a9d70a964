"""Overlapping clusters of unit vectors for the tests of stage two."""

import numpy as np
import torch
import torch.nn.functional as F

from stages.records import Embeddings


def make_clusters(
    count: int, classes: int = 4, *, dim: int = 16, noise: float = 0.35, seed: int = 0
) -> Embeddings:
    """Return unit vectors around one centre per class. The centres do not depend on the seed."""
    centres = F.normalize(
        torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    vectors = F.normalize(
        centres[labels] + noise * torch.randn(count, dim, generator=generator), dim=1
    )
    return Embeddings(vectors, labels, tuple(map(str, range(classes))))


def standardise(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) with mean 0 and, on average, variance 1 per coordinate."""
    centred = vectors - vectors.mean(axis=0)
    return centred / np.sqrt(np.square(centred).mean())


def make_first_class_rare(embeddings: Embeddings, keep_every: int) -> Embeddings:
    """Return the vectors of class 0 whose row is a multiple of a number, and all others."""
    rows = torch.arange(len(embeddings))
    keep = (embeddings.labels != 0) | (rows % keep_every == 0)
    return Embeddings(embeddings.vectors[keep], embeddings.labels[keep], embeddings.classes)
