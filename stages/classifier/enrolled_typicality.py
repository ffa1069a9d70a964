"""Typicality of enrolled images, each left out of the gallery."""

import math

import numpy as np
import torch
from torch import Tensor

from stages.classifier.enrolment import EnrolledGallery
from stages.distance import exact_distances
from stages.evaluation.query_blocks import BLOCK
from stages.evaluation.typicality import typicality


def enrolled_distances(gallery: EnrolledGallery) -> tuple[Tensor, Tensor]:
    """Return the distance of enrolled images of new classes to the nearest other gallery image.

    An image that is the only one of its class has no such distance: it would be that to an image
    of another class.

    Args:
        gallery: Old and enrolled embeddings.

    Returns:
        Distances, float32, shape (R,), and the rows of the images, int64, shape (R,).
    """
    rows = gallery.repeated_rows(gallery.enrolled)
    rows = rows[_is_new(gallery, gallery.embeddings.labels[rows])]
    distances, _ = _nearest_others(gallery, rows)
    return distances, rows


def left_out_typicality(gallery: EnrolledGallery, validation: Tensor) -> np.ndarray:
    """Return the typicality of the added images if each is left out of the gallery.

    It is computed as :func:`stages.evaluation.typicality.classifier_typicality` does for other
    images, so the distance of an image itself is not among those that it is compared with.

    Args:
        gallery: Old and enrolled embeddings.
        validation: Distances of the validation images to the nearest gallery image, float32, shape
            (V,).

    Returns:
        Typicality of the added images of classes with at least two images, float64, shape (R,);
        NaN without validation images.
    """
    rows = gallery.repeated_rows(gallery.added)
    labels = gallery.embeddings.labels
    distances, nearest = _nearest_others(gallery, rows)
    result = typicality(distances.numpy(), validation.numpy())
    near_new = _is_new(gallery, labels[nearest]).numpy()
    if len(validation) == 0 or not near_new.any():
        return result
    enrolled = np.sort(enrolled_distances(gallery)[0].numpy())
    closer = np.searchsorted(enrolled, distances.numpy()[near_new], side="left")
    own = _is_new(gallery, labels[rows]).numpy()[near_new].astype(int)  # among the distances
    result[near_new] = (1 + len(enrolled) - closer - own) / (1 + len(enrolled) - own)
    return result


def _is_new(gallery: EnrolledGallery, labels: Tensor) -> Tensor:
    """Return True where a label is that of a new class, bool, of the shape of the labels."""
    return torch.isin(labels, torch.tensor(gallery.new_classes, dtype=torch.int64))


def _nearest_others(gallery: EnrolledGallery, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of rows to the nearest other row, float32 (R,), and that row, int64."""
    vectors = gallery.embeddings.vectors
    distances, nearest = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    for block in rows.split(max(1, BLOCK // len(vectors))):
        block_distances = exact_distances(vectors[block], vectors)  # (b, G)
        block_distances[torch.arange(len(block)), block] = math.inf
        values, columns = block_distances.min(dim=1)
        distances.append(values)
        nearest.append(columns)
    return torch.cat(distances), torch.cat(nearest)
