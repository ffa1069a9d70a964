"""Find images whose out-of-sample class probabilities contradict their label."""

from typing import NamedTuple

import numpy as np

from stages.checkpoints import ClassifierCheckpoint
from stages.evaluation.results import LabelEvidence
from stages.network.head import probabilities
from stages.records import Embeddings

# Images added to the counts of each pair of classes. With few images, all pairs then have a similar
# confusion rate, and the ranking depends on the probabilities alone.
PSEUDO_COUNT = 5


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
        labels = split.labels.numpy()
        evidence[name] = LabelEvidence(
            labels=labels,
            probabilities=probabilities(head, split.vectors, temperature=temperature).numpy(),
            trained=np.isin(labels, classifier.gallery.labels.numpy()),
        )
    return evidence


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
            times: the mean probability counts. None: each row is another image.

    Returns:
        The suspects. Equal scores keep the order of the rows, or of ``images``.

    References:
        Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels,
        2021: counts of pairs of given and suggested classes. https://arxiv.org/abs/1911.00068

    Example:
        >>> evidence = LabelEvidence(
        ...     labels=np.array([0, 1, 1]),
        ...     probabilities=np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]], np.float32),
        ...     trained=np.array([True, True, True]),
        ... )
        >>> suspects = find_suspects(evidence)
        >>> suspects.rows.tolist(), suspects.suggested.tolist()
        ([2, 1], [0, 0])
    """
    count, classes = evidence.probabilities.shape
    if images is None:
        images = np.arange(count)
    _, first, repeats = np.unique(images, return_index=True, return_counts=True)
    by_image = np.argsort(images, kind="stable")
    starts = np.cumsum(repeats) - repeats  # of each image in this order
    sums = np.add.reduceat(evidence.probabilities[by_image], starts, axis=0, dtype=np.float64)
    means = sums / repeats[:, None]  # (images, classes)
    trained = np.logical_and.reduceat(evidence.trained[by_image], starts)
    order, labels = np.arange(len(first)), evidence.labels[first]
    own = means[order, labels].copy()
    means[order, labels] = -1
    suggested = means.argmax(1)
    other = means[order, suggested]
    listed = np.flatnonzero((other > own) & trained)
    given, suggested = labels[listed], suggested[listed]
    pairs = np.full((classes, classes), PSEUDO_COUNT)  # given x suggested
    np.add.at(pairs, (given, suggested), 1)
    confirmed = PSEUDO_COUNT + np.bincount(labels[other <= own], minlength=classes)
    rate = pairs[given, suggested] / confirmed[suggested]
    score = own[listed] / other[listed] / rate
    ranked = np.argsort(score, kind="stable")
    listed = listed[ranked]
    return Suspects(first[listed], suggested[ranked], own[listed], score[ranked])
