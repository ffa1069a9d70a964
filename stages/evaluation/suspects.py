"""Find images whose out-of-sample class probabilities contradict their label."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.results import LabelEvidence
from stages.network.head import probability_blocks
from stages.records import Embeddings

# Images added to the counts of each pair of classes. With few images, all pairs then have a similar
# confusion rate, and the ranking depends on the probabilities alone.
PSEUDO_COUNT = 5
MAX_OTHERS = 32  # classes kept per image. The 33rd other class has a probability below 1/32.


class Suspects(NamedTuple):
    """Images with a doubtful label, the most doubtful first.

    Attributes:
        rows: Row of each image in the evidence, int64, shape (S,); with repeats the first one.
        suggested: Suggested class, int64, shape (S,).
        self_confidence: Probability of the given class, float64, shape (S,).
        score: Ratio of the probabilities of the given and the suggested class, divided by the
            confusion rate of the two classes, float64, shape (S,), ascending.
    """

    rows: np.ndarray
    suggested: np.ndarray
    self_confidence: np.ndarray
    score: np.ndarray


def label_evidence(test: Embeddings, classifier: ClassifierCheckpoint) -> dict[str, LabelEvidence]:
    """Compute the class probabilities of the images that a classifier was not trained on.

    Args:
        test: Embeddings of the test images.
        classifier: Classifier with its training and validation embeddings.

    Returns:
        Evidence on the labels by split: ``test`` and, if there are validation images, ``val``.
    """
    splits = {"test": test}
    if classifier.validation:
        splits["val"] = classifier.validation
    head, temperature = classifier.head, classifier.temperature
    evidence = {}
    for name, split in splits.items():
        labels, start, parts = split.labels.numpy(), 0, []
        trained = np.isin(labels, classifier.gallery.labels.numpy())
        for block in probability_blocks(head, split.vectors, temperature=temperature):
            rows = slice(start, start + len(block))
            parts.append(most_probable_others(block.numpy(), labels[rows], trained[rows]))
            start += len(block)
        evidence[name] = join_evidence(parts) if len(parts) != 1 else parts[0]
    return evidence


def most_probable_others(
    probabilities: np.ndarray, labels: np.ndarray, trained: np.ndarray
) -> LabelEvidence:
    """Return the probability of the given class and of the most probable other classes.

    Args:
        probabilities: Probability of each class, float32, shape (N, C).
        labels: Given class, int64, shape (N,).
        trained: True if the given class has training images, bool, shape (N,).

    Example:
        >>> evidence = most_probable_others(
        ...     np.array([[0.25, 0.125, 0.625]], np.float32), np.array([0]), np.array([True])
        ... )
        >>> evidence.others.tolist(), evidence.own.tolist()
        ([[2, 1]], [0.25])
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1  # sorts behind all others
    kept = min(MAX_OTHERS, probabilities.shape[1] - 1)
    if probabilities.shape[1] - 1 > kept:
        # Of equally probable classes, the first must be kept.
        most = others.argmax(1)[:, None]
        np.put_along_axis(others, most, 2, axis=1)
        columns = np.argpartition(-others, kept - 1, axis=1)[:, :kept]
        columns.sort(axis=1)
    else:
        columns = np.argsort(others == -1, axis=1, kind="stable")[:, :kept]
    values = np.take_along_axis(probabilities, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return LabelEvidence(
        labels=labels,
        own=probabilities[rows, labels],
        others=np.take_along_axis(columns, order, axis=1),
        probabilities=np.take_along_axis(values, order, axis=1),
        trained=trained,
    )


def join_evidence(parts: Sequence[LabelEvidence]) -> LabelEvidence:
    """Return the evidence of all parts, one after the other."""
    arrays = {}
    for field in fields(LabelEvidence):
        arrays[field.name] = np.concatenate([getattr(part, field.name) for part in parts])
    return LabelEvidence(**arrays)


def find_suspects(evidence: LabelEvidence, images: np.ndarray | None = None) -> Suspects:
    """List the images for which another class is more probable than their label.

    The most probable other class is suggested. Two equally probable classes are no contradiction.
    An image whose class has no training image is not listed.

    Images are ranked by p(given) / p(suggested) / r. If the suggested class is the true one, the
    given class was assigned by mistake. A model that was trained on labels with such mistakes
    predicts the given class for these images too, with a probability ratio of about r: the number
    of images with this label for which this class is suggested, divided by the number of images
    with the suggested class as label that are not suspects. Without r, frequent mistakes would
    look less doubtful than rare ones. The ratio depends less on calibration than p(given): another
    temperature hardly changes the order.

    Args:
        evidence: Evidence on N labels.
        images: Image of each row, int64, shape (N,), if repeats predict the same image several
            times: the mean probability counts. None: each row is another image. Above 33 classes,
            a class that a repeat does not keep counts as 0 there.

    Returns:
        The suspects. Equal scores keep the order of the rows, or of ``images``.

    References:
        Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels,
        2021: counts of pairs of given and suggested classes. https://arxiv.org/abs/1911.00068

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]], np.float32)
        >>> evidence = most_probable_others(probabilities, np.array([0, 1, 1]), np.ones(3, bool))
        >>> suspects = find_suspects(evidence)
        >>> suspects.rows.tolist(), suspects.suggested.tolist()
        ([2, 1], [0, 0])
    """
    if images is None:
        images = np.arange(len(evidence.labels))
    _, first, image = np.unique(images, return_index=True, return_inverse=True)
    repeats = np.bincount(image)
    labels = evidence.labels[first]
    own = np.bincount(image, evidence.own) / repeats
    untrained = np.bincount(image, ~evidence.trained) > 0
    suggested, other = _suggest(evidence, image, repeats)
    listed = np.flatnonzero((other > own) & ~untrained)
    given, suggested = labels[listed], suggested[listed]
    classes = int(max(labels.max(initial=0), suggested.max(initial=0))) + 1
    _, pair, frequency = np.unique(
        given * classes + suggested, return_inverse=True, return_counts=True
    )
    confirmed = PSEUDO_COUNT + np.bincount(labels[other <= own], minlength=classes)
    rate = (PSEUDO_COUNT + frequency[pair]) / confirmed[suggested]
    score = own[listed] / other[listed] / rate
    ranked = np.argsort(score, kind="stable")
    listed = listed[ranked]
    return Suspects(first[listed], suggested[ranked], own[listed], score[ranked])


def _suggest(
    evidence: LabelEvidence, image: np.ndarray, repeats: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable other class of each image, and its mean probability over repeats.

    A class that is not among the kept ones of a repeat counts as probability 0 there.

    Args:
        evidence: Evidence on N labels.
        image: Image of each of them, from 0, int64, shape (N,).
        repeats: Number of labels per image, int64, shape (I,).

    Returns:
        int64, shape (I,), and float64, shape (I,); -1 as the probability if there is one class.
    """
    suggested, other = np.zeros(len(repeats), np.int64), np.full(len(repeats), -1.0)
    if evidence.others.size == 0:
        return suggested, other
    classes = int(evidence.others.max()) + 1
    cells, cell = np.unique(image[:, None] * classes + evidence.others, return_inverse=True)
    sums = np.bincount(cell.ravel(), evidence.probabilities.ravel())
    of_image, of_class = np.divmod(cells, classes)
    means = sums / repeats[of_image]
    order = np.lexsort((of_class, -means, of_image))
    best = order[np.flatnonzero(np.diff(of_image[order], prepend=-1))]
    return of_class[best], means[best]
