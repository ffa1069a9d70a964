"""Leave each class out of the training images, so that its images are unknown.

This is optimistic for unknown images: the embedding was trained to separate the class that is left
out from the others. It needs no images of other classes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.checkpoints import ClassifierCheckpoint
from stages.distance import exact_distances
from stages.evaluation.roc import placements
from stages.evaluation.triplets_and_rankings import BLOCK
from stages.evaluation.typicality import typicality
from stages.records import Embeddings


class ClassDistances(NamedTuple):
    """Distances to the nearest training images, with each class left out.

    Attributes:
        nearest: Distance to the nearest training image, float32, shape (N,).
        label: Class of this training image, int64, shape (N,).
        other: Distance to the nearest training image of any other class, float32, shape (N,);
            infinite if there is none.
    """

    nearest: np.ndarray
    label: np.ndarray
    other: np.ndarray

    def without(self, label: int) -> np.ndarray:
        """Return the distances to the nearest training image that is not of a class, (N,)."""
        return np.where(self.label == label, self.other, self.nearest)


def class_distances(queries: Tensor, gallery: Tensor, gallery_labels: Tensor) -> ClassDistances:
    """Compute the distances to the nearest training image and to that of another class.

    Args:
        queries: Floating point, shape (N, D).
        gallery: Vectors of the training images, floating point, shape (G, D) with G > 0.
        gallery_labels: Class indices, int64, shape (G,).
    """
    parts = []
    for block in queries.split(max(1, BLOCK // len(gallery))):
        distances = exact_distances(block, gallery)  # (b, G)
        nearest, column = distances.min(dim=1)
        label = gallery_labels[column]
        distances[label[:, None] == gallery_labels] = math.inf
        parts.append((nearest, label, distances.amin(dim=1)))
    return ClassDistances(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))


def leave_classes_out(test: Embeddings, classifier: ClassifierCheckpoint) -> np.ndarray:
    """Treat each test image as unknown: leave its class out of the training images.

    Args:
        test: Embeddings of N test images of known classes.
        classifier: Classifier with its gallery and its validation images.

    Returns:
        For each image, float64, shape (3, N), NaN where undefined: the distance to the nearest
        remaining training image; the share of the test images of other classes that are nearer to
        them, where equal distances count half; and its typicality among the validation images of
        other classes.
    """
    gallery, labels = classifier.gallery, test.labels.numpy()
    of_test = class_distances(test.vectors, gallery.vectors, gallery.labels)
    of_validation, validation_labels = None, np.empty(0)
    if classifier.validation is not None:
        validation = classifier.validation
        of_validation = class_distances(validation.vectors, gallery.vectors, gallery.labels)
        validation_labels = validation.labels.numpy()
    result = np.full((3, len(labels)), np.nan)
    nearest, nearer, typical = result
    for label in np.unique(labels):
        members = labels == label
        distances = of_test.without(label)
        if np.isinf(distances).any():  # no training image of another class
            continue
        nearest[members] = distances[members]
        if not members.all():
            nearer[members] = placements(-distances[~members], -distances[members])
        if of_validation is not None:
            others = of_validation.without(label)[validation_labels != label]
            typical[members] = typicality(distances[members], others)
    return result
