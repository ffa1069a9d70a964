"""Predict the classes of embedded images."""

import numpy as np
from torch import Tensor, nn

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.knn import knn
from stages.evaluation.left_out import leave_classes_out
from stages.evaluation.results import Predictions
from stages.evaluation.typicality import classifier_typicality
from stages.network.head import energies, probability_blocks
from stages.records import Embeddings


def predict(
    test: Embeddings,
    classifier: ClassifierCheckpoint,
    triplet_accuracy: np.ndarray,
    *,
    known: bool = True,
) -> Predictions:
    """Predict the classes of embedded images, and how typical they are.

    Args:
        test: Embeddings of N images.
        classifier: Classifier with its gallery of training images.
        triplet_accuracy: Triplet accuracy of each image, float64, shape (N,).
        known: False for images of unseen classes: no class can be left out for them.

    Returns:
        Predictions per image.
    """
    gallery = classifier.gallery
    neighbours = knn(test.vectors, gallery.vectors, gallery.labels, k=classifier.k)
    head, temperature = classifier.head, classifier.temperature
    predicted, calibrated = _most_probable(head, test.vectors, temperature)
    uncalibrated = _probability_of(head, test.vectors, predicted)
    left_out = np.full((3, len(test)), np.nan)
    if known:
        left_out = leave_classes_out(test, classifier)
    return Predictions(
        knn=neighbours.labels,
        classifier=predicted,
        probability=calibrated,
        uncalibrated=uncalibrated,
        triplet_accuracy=triplet_accuracy,
        nearest=neighbours.nearest,
        distance=neighbours.distance,
        typicality=classifier_typicality(neighbours.distance, neighbours.nearest, classifier),
        energy=energies(head, test.vectors).numpy(),
        left_out_distance=left_out[0],
        left_out_nearer=left_out[1],
        left_out_typicality=left_out[2],
    )


def _most_probable(
    head: nn.Module, vectors: Tensor, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable class, int64 (N,), and its probability, float32 (N,)."""
    classes, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for block in probability_blocks(head, vectors, temperature=temperature):
        array = block.numpy()
        classes.append(array.argmax(1))
        values.append(array.max(1))
    return np.concatenate(classes), np.concatenate(values)


def _probability_of(head: nn.Module, vectors: Tensor, classes: np.ndarray) -> np.ndarray:
    """Return the uncalibrated probability of one class per image, float32 (N,)."""
    values, start = [np.empty(0, np.float32)], 0
    for block in probability_blocks(head, vectors, temperature=1.0):
        rows = np.arange(len(block))
        values.append(block.numpy()[rows, classes[start : start + len(block)]])
        start += len(block)
    return np.concatenate(values)
