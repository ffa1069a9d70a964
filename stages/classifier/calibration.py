"""Temperature scaling, on images that the head was not trained on."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from stages.subset import evenly_spaced

MAX_TEMPERATURE = 20.0
MAX_SCORES = 2**25  # scores of images and classes on which a temperature is fitted: 128 MiB
MIN_TEMPERATURE_IMAGES = 1000
BLOCK_SCORES = 2**20  # of them that are in memory in float64 at once

# Standard deviation of log T between training images and new images. Over 32 splits of digits and
# photos, the root mean square of log(best T on test / T of cross-fitting) is 0.38.
PRIOR_WIDTH = 0.4


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """Fit the temperature T for which softmax(log-probabilities / T) has the lowest cross-entropy.

    Targets are smoothed as in Platt scaling: among N images the true class has probability
    (N + 1) / (N + 2). Without smoothing, a validation split that is classified without an error
    would push the temperature towards 0.

    Args:
        log_probabilities: Output of the head for the validation images, float32, shape (N, C).
        labels: Class indices, int64, shape (N,).

    Returns:
        The temperature, in [0.05, 20].

    References:
        Guo et al., On calibration of modern neural networks, 2017.
        https://arxiv.org/abs/1706.04599
        Platt, Probabilistic outputs for support vector machines, 1999.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]])
        >>> labels = torch.tensor([0, 1, 0, 1])  # confident, but one label in four is different
        >>> fit_temperature(scores.log_softmax(1), labels) > 1
        True
    """
    count, classes = log_probabilities.shape
    targets = labels.numpy()
    error_share = 1 / (count + 2)

    def cross_entropy(log_temperature: float) -> float:
        losses = []
        for rows, scores in _centred_blocks(log_probabilities):
            smoothed = np.full(scores.shape, error_share / max(1, classes - 1))
            smoothed[np.arange(len(scores)), targets[rows]] = 1 - error_share
            scaled = scores / math.exp(log_temperature)
            losses.append(np.log(np.exp(scaled).sum(1)) - (smoothed * scaled).sum(1))
        return float(np.mean(np.concatenate(losses)))

    return _minimise_over_log_temperature(cross_entropy)


def update_temperature(log_probabilities: Tensor, labels: Tensor, *, prior: float) -> float:
    """Correct a temperature by validation images: the maximum a posteriori estimate.

    The prior of log T is normal around log(prior) with standard deviation 0.4. A few images move
    the temperature little, even if all of them are classified correctly; many determine it.

    Args:
        log_probabilities: Output of the head for the validation images, float32, shape (N, C).
        labels: Class indices, int64, shape (N,).
        prior: Temperature expected before the validation images are seen, in [0.05, 20].

    Returns:
        The temperature, in [0.05, 20].

    Example:
        >>> import torch
        >>> scores = torch.tensor([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 0.0]])
        >>> labels = torch.tensor([0, 1, 0, 1])  # confident, but one label in four is different
        >>> 1 < update_temperature(scores.log_softmax(1), labels, prior=1.0) < 2
        True
    """
    targets = labels.numpy()

    def negative_log_posterior(log_temperature: float) -> float:
        losses = []
        for rows, scores in _centred_blocks(log_probabilities):
            true_scores = scores[np.arange(len(scores)), targets[rows]]
            scaled = scores / math.exp(log_temperature)
            losses.append(np.log(np.exp(scaled).sum(1)) - true_scores / math.exp(log_temperature))
        distance = (log_temperature - math.log(prior)) / PRIOR_WIDTH
        return float(np.concatenate(losses).sum() + distance**2 / 2)

    return _minimise_over_log_temperature(negative_log_posterior)


def calibration_rows(count: int, classes: int) -> Tensor:
    """Return the rows of images on which a temperature is fitted: evenly spaced, not too many.

    One number needs no more than some thousand images, and the scores of all classes take memory.

    Args:
        count: Number of images.
        classes: Number of classes.
    """
    return evenly_spaced(count, max(MIN_TEMPERATURE_IMAGES, MAX_SCORES // max(1, classes)))


def _centred_blocks(log_probabilities: Tensor) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield float64 scores with a maximum of 0 per row: their exponentials cannot overflow."""
    count, classes = log_probabilities.shape
    size = max(1, BLOCK_SCORES // max(1, classes))
    for start in range(0, max(1, count), size):
        rows = slice(start, start + size)
        scores: np.ndarray = log_probabilities[rows].double().numpy()
        yield rows, scores - scores.max(axis=1, keepdims=True, initial=-math.inf)


def _minimise_over_log_temperature(loss: Callable[[float], float]) -> float:
    bound = math.log(MAX_TEMPERATURE)
    result = minimize_scalar(
        loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-3}
    )
    return math.exp(float(result.x))
