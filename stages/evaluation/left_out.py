"""Leave each class out of the training images, so that its images are unknown.

This is optimistic for unknown images: the embedding was trained to separate the class that is left
out from the others. It needs no images of other classes.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.nearest import query_blocks_of
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
    columns = gallery_labels.argsort(stable=True)  # class by class: a class is a slice
    sizes = np.bincount(gallery_labels.numpy())
    ends = sizes.cumsum()
    starts = ends - sizes
    sorted_labels = gallery_labels[columns].numpy()
    parts = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32))]
    for block in query_blocks_of(queries, gallery[columns]):
        first = block.nearest(1).first()
        label = sorted_labels[first.columns]
        other = np.full(len(block), np.inf, np.float32)
        if np.count_nonzero(sizes) > 1:
            for row, own in enumerate(label):
                block.scores[row, starts[own] : ends[own]] = np.inf
            other = block.nearest(1).first().distances
        parts.append((first.distances, label, other))
    return ClassDistances(*(np.concatenate(part) for part in zip(*parts, strict=True)))


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
    own = np.where(of_test.label == labels, of_test.other, of_test.nearest)
    if np.isinf(of_test.other).any():  # one class has all training images, and is not left out
        own[labels == of_test.label] = np.inf
    defined = np.isfinite(own)
    nearest[defined] = own[defined]
    below, tied, count = _compare_with_others(of_test, labels, own, labels)
    with np.errstate(invalid="ignore"):  # no image of another class
        share = 1 - (2 * (count - below - tied) + tied) / (2 * count)
    nearer[defined] = share[defined]
    if of_validation is not None:
        below, _, count = _compare_with_others(of_validation, validation_labels, own, labels)
        typical[defined] = ((1 + count - below) / (count + 1))[defined]
    return result


def _compare_with_others(
    of_images: ClassDistances, image_labels: np.ndarray, distances: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare distances with those of all images of other classes, with the class left out.

    Leaving out a class changes the distances of the images whose nearest training image is of this
    class only. Hence all other distances are sorted once, not once per class.

    Args:
        of_images: Distances of M images.
        image_labels: Their classes, int64, shape (M,).
        distances: Distances to compare with them, float32, shape (N,).
        labels: Class that is left out for each of them, int64, shape (N,).

    Returns:
        Number of images of other classes that are nearer, number of those that are equally far, and
        number of images of other classes, int64, shape (N,) each.
    """
    nearest, nearest_class, other = of_images.nearest, of_images.label, of_images.other
    moved = nearest_class != image_labels  # without the nearest class they are farther
    every, no_label = np.zeros(len(nearest), np.int64), np.zeros(len(labels), np.int64)
    below, up_to = count_smaller(nearest, every, distances, no_label)  # all images
    for sign, (images_below, images_up_to) in (
        (-1, count_smaller(nearest, image_labels, distances, labels)),  # of the class
        (-1, count_smaller(nearest[moved], nearest_class[moved], distances, labels)),
        (1, count_smaller(other[moved], nearest_class[moved], distances, labels)),
    ):
        below += sign * images_below
        up_to += sign * images_up_to
    sizes = np.bincount(image_labels, minlength=int(labels.max(initial=0)) + 1)
    return below, up_to - below, len(image_labels) - sizes[labels]


def count_smaller(
    values: np.ndarray, groups: np.ndarray, limits: np.ndarray, limit_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the values of the same group that are below, and at most, each limit.

    Args:
        values: Shape (M,).
        groups: Group of each value, int64, shape (M,).
        limits: Shape (N,).
        limit_groups: Group of each limit, int64, shape (N,).

    Returns:
        Numbers of values below and at most each limit, int64, shape (N,).

    Example:
        >>> below, up_to = count_smaller(
        ...     np.array([1, 2, 2]), np.array([0, 0, 1]), np.array([2, 2]), np.array([0, 1])
        ... )
        >>> below.tolist(), up_to.tolist()
        ([1, 0], [2, 1])
    """
    # Ranks among the distinct numbers make one integer of a group and a number.
    distinct, ranks = np.unique(np.concatenate([values, limits]), return_inverse=True)
    keys = np.sort(groups * len(distinct) + ranks[: len(values)])
    starts = np.searchsorted(keys, limit_groups * len(distinct))
    limit_keys = limit_groups * len(distinct) + ranks[len(values) :]
    below = np.searchsorted(keys, limit_keys, side="left") - starts
    return below, np.searchsorted(keys, limit_keys, side="right") - starts
