"""Find images whose out-of-sample class probabilities contradict their label."""

from typing import NamedTuple

import numpy as np

from stages.evaluation.results import LabelEvidence


class Suspects(NamedTuple):
    """Images with a doubtful label, the most doubtful first.

    Attributes:
        rows: Row of each image in the evidence, int64, shape (S,); with repeats the first one.
        suggested: Suggested class, int64, shape (S,).
        self_confidence: Probability of the given class, float64, shape (S,).
        ratio: Probability of the given class divided by that of the suggested class, float64,
            shape (S,), in [0, 1) and ascending.
    """

    rows: np.ndarray
    suggested: np.ndarray
    self_confidence: np.ndarray
    ratio: np.ndarray


def find_suspects(evidence: LabelEvidence, images: np.ndarray | None = None) -> Suspects:
    """List the images for which another class is more probable than their label.

    The most probable other class is suggested. Images are ranked by the ratio of both
    probabilities. Compared with the probability of the label alone, the ratio depends less on
    calibration: another temperature changes it in the same direction for all images of a model.
    Two equally probable classes are no contradiction. An image whose class has no training image
    is not listed.

    Args:
        evidence: Evidence on N labels.
        images: Image of each row, int64, shape (N,), if repeats predict the same image several
            times: the mean probability counts. None: each row is another image.

    Returns:
        The suspects. Equal ratios keep the order of the rows, or of ``images``.

    References:
        Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels,
        2021, list fewer images: the suggested class must exceed its mean over the images with
        that label. https://arxiv.org/abs/1911.00068

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
    _, first, image = np.unique(images, return_index=True, return_inverse=True)
    means = np.zeros((len(first), classes))  # (images, classes)
    np.add.at(means, image, evidence.probabilities)
    means /= np.bincount(image)[:, None]
    untrained = np.bincount(image, weights=~evidence.trained) > 0
    order, labels = np.arange(len(first)), evidence.labels[first]
    own = means[order, labels].copy()
    means[order, labels] = -1
    suggested = means.argmax(1)
    other = means[order, suggested]
    listed = np.flatnonzero((other > own) & ~untrained)
    ratio = own[listed] / other[listed]
    ranked = np.argsort(ratio, kind="stable")
    listed = listed[ranked]
    return Suspects(first[listed], suggested[listed], own[listed], ratio[ranked])
