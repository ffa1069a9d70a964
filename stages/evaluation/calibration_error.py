"""Expected calibration error and the bins of a reliability diagram."""

import numpy as np

from stages.evaluation.results import Score

BINS = 15  # bins of confidence, as in Guo et al. 2017


def reliability(
    confidence: np.ndarray, correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the reliability diagram in 15 bins of equal width over (0, 1].

    Args:
        confidence: Probability of the predicted class, floating point, shape (N,).
        correct: True where the prediction is correct, bool, shape (N,).

    Returns:
        Image count (int64), mean confidence and accuracy (float64) of each bin, each of shape
        (15,). Mean confidence and accuracy of an empty bin are NaN.
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, confidence, BINS) / counts
        accuracy = np.bincount(bins, correct, BINS) / counts
    return counts, mean_confidence, accuracy


def calibration_score(
    metric: str, split: str, confidence: np.ndarray, correct: np.ndarray, definition: str
) -> Score:
    """Compute the expected calibration error: the mean gap between confidence and accuracy.

    Args:
        metric: Name of the metric.
        split: Name of the split.
        confidence: Probability of the predicted class, floating point, shape (N,).
        correct: True where the prediction is correct, bool, shape (N,).
        definition: Definition stored with the score.

    Returns:
        The score, without an interval; undefined if there is no image.

    References:
        Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599).
    """
    if len(correct) == 0:
        return Score.undefined(metric, split, definition)
    counts, mean_confidence, accuracy = reliability(confidence, correct)
    error = float(np.nansum(counts * np.abs(mean_confidence - accuracy)) / len(correct))
    return Score(
        metric=metric,
        split=split,
        value=error,
        low=None,
        high=None,
        count=len(correct),
        definition=definition,
    )
