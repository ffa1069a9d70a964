"""Receiver operating characteristic of a score that is higher for known than for unknown images."""

import math

import numpy as np

KNOWN_SHARE = 0.95  # share of known images that are accepted for `unknown_fpr_at_95_tpr`


def placements(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return the share of known images with a higher score than each unknown one.

    Equal scores count half. The mean is the area under the ROC curve.

    Args:
        known: Scores of the known images, which should be higher, shape (M,) with M > 0.
        unknown: Scores of the unknown images, shape (U,).

    Returns:
        Shares in [0, 1], float64, shape (U,).

    Example:
        >>> placements(np.array([2.0, 3.0]), np.array([1.0, 2.0, 4.0])).tolist()
        [1.0, 0.75, 0.0]
    """
    ascending = np.sort(known)
    not_above = np.searchsorted(ascending, unknown, side="right")
    below = np.searchsorted(ascending, unknown, side="left")
    return np.asarray(1 - (not_above + below) / (2 * len(known)))


def accepted_at_95(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return which unknown images are accepted if 95% of the known ones are.

    The threshold is the highest one that at least 95% of the known images reach.

    Args:
        known: Scores of the known images, which should be higher, shape (M,) with M > 0.
        unknown: Scores of the unknown images, shape (U,).

    Returns:
        True for accepted images, bool, shape (U,).
    """
    accepted = math.ceil(KNOWN_SHARE * len(known))
    threshold = np.sort(known)[len(known) - accepted]
    return np.asarray(unknown >= threshold)
