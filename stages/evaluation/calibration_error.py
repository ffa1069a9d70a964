"""Expected calibration error and reliability bins."""

import numpy as np

from stages.evaluation.results import Score

BINS = 15  # of confidence, as in Guo et al. 2017


def reliability(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and share right, each (15,), in even bins of confidence over (0, 1]; NaN in empty bins."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (
            counts,
            np.bincount(bins, confidence, BINS) / counts,
            np.bincount(bins, right, BINS) / counts,
        )


def calibration_score(
    metric: str, split: str, confidence: np.ndarray, right: np.ndarray, when: str
) -> Score:
    """Expected calibration error (Guo et al. 2017)."""
    definition = f"mean gap between the classifier's confidence and its share right, {BINS} even bins, {when}"
    if len(right) == 0:
        return Score(metric, split, None, None, None, 0, definition)
    counts, mean, share = reliability(confidence, right)
    return Score(
        metric,
        split,
        float(np.nansum(counts * np.abs(mean - share)) / len(right)),
        None,
        None,
        len(right),
        definition,
    )
