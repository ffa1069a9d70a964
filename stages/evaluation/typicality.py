"""Typicality: how usual the distance of an image to the training images is."""

import math

import numpy as np

from stages.checkpoints import ClassifierCheckpoint
from stages.settings import REJECT


def typicality(distances: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Compute the conformal p-value of the distance of images to their nearest training image.

    The p-value of a distance d among the distances d_1, ..., d_n of n validation images is
    (1 + number of d_i >= d) / (n + 1). If an image is of the same kind as the validation images
    (exchangeable with them), its p-value is below a with a probability of at most a. So rejecting
    images with a typicality below 0.05 rejects at most 5% of the images of known classes on
    average, whatever the embedding. No image of an unknown class is needed. The smallest possible
    typicality is 1 / (n + 1): with fewer than 20 validation images none is below 0.05.

    Args:
        distances: Euclidean distance of each image to the nearest training image, shape (N,).
        calibration: The same distances of the validation images, shape (n,).

    Returns:
        Typicality in (0, 1], float64, shape (N,); NaN without validation images.

    References:
        Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world", chapter 2.

    Example:
        >>> typicality(np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.4, 0.5, 0.7])).tolist()
        [1.0, 0.6, 0.2]
    """
    count = len(calibration)
    if count == 0:
        return np.full(len(distances), np.nan)
    closer = np.searchsorted(np.sort(calibration), distances, side="left")
    return np.asarray((1 + count - closer) / (count + 1))


def classifier_typicality(
    distances: np.ndarray, nearest: np.ndarray, classifier: ClassifierCheckpoint
) -> np.ndarray:
    """Compute the typicality of images for a classifier, possibly with enrolled classes.

    The images are in two groups, because distances to few enrolled images differ from those to many
    training images. If the nearest gallery image belongs to a class that was added by enrolment,
    the distance is compared with those of enrolled images of such classes, each left out of the
    gallery. Otherwise it is compared with those of the validation images.

    Args:
        distances: Euclidean distance of each image to the nearest gallery image, shape (N,).
        nearest: Row of that gallery image, int64, shape (N,).
        classifier: The classifier.

    Returns:
        Typicality in (0, 1], float64, shape (N,); NaN for all images without validation images. It
        is 1 near a new class if no enrolled image has a distance.
    """
    result = typicality(distances, classifier.validation_distances.numpy())
    new_classes = classifier.new_classes
    if not new_classes or len(classifier.validation_distances) == 0:
        return result
    near_new = np.isin(classifier.gallery.labels.numpy()[nearest], new_classes)
    result[near_new] = enrolled_typicality(
        distances[near_new], classifier.enrolled_distances.numpy()
    )
    return result


def enrolled_typicality(distances: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Return the typicality among enrolled images, float64, shape (N,); 1 if there are none.

    Args:
        distances: Distances of N images whose nearest gallery image is of a new class.
        calibration: Distances of the enrolled images of new classes, shape (E,).
    """
    if len(calibration) == 0:
        return np.ones(len(distances))
    return typicality(distances, calibration)


def smallest_typicality(count: int) -> float:
    """Return the smallest typicality that n validation images allow, or 1 without any.

    Args:
        count: Number of validation images, n.
    """
    return 1 / (count + 1)


def rejection_distance(calibration: np.ndarray, reject: float = REJECT) -> float:
    """Return the largest distance that is not rejected; infinity if none is rejected.

    Args:
        calibration: Distances of the n validation images to their nearest training image.
        reject: Typicality below which an image is rejected.
    """
    if smallest_typicality(len(calibration)) >= reject:
        return math.inf
    # Typicality changes at the distances of the validation images only.
    return float(calibration[typicality(calibration, calibration) >= reject].max(initial=0.0))
