"""Classification head: dropout, linear layer, log-softmax."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCORES = 2**23  # scores of images and classes that are in memory at once


class Head(nn.Module):
    """Dropout, linear layer and log-softmax on unit vectors.

    Args:
        dim: Dimension D of the vectors.
        classes: Number of classes.
        dropout: Probability of zeroing a coordinate in training.
    """

    def __init__(self, dim: int, classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """Compute log-probabilities.

        Args:
            vectors: Unit vectors, float32, shape (N, D).

        Returns:
            Log-probabilities, float32, shape (N, classes).
        """
        return F.log_softmax(self.linear(self.dropout(vectors)), dim=1)


def probabilities(head: nn.Module, vectors: Tensor, *, temperature: float) -> Tensor:
    """Compute calibrated class probabilities: softmax of the head's output over the temperature.

    Args:
        head: Classification head in evaluation mode.
        vectors: Unit vectors, float32, shape (N, D).
        temperature: Calibration temperature; 1 leaves the head's probabilities unchanged.

    Returns:
        Probabilities, float32, shape (N, classes).

    Example:
        >>> head = Head(2, 3).eval()
        >>> vectors = torch.tensor([[0.6, 0.8]])
        >>> probabilities(head, vectors, temperature=2.0).sum().isclose(torch.tensor(1.0)).item()
        True
    """
    with torch.inference_mode():
        log_probabilities: Tensor = head(vectors)
        return F.softmax(log_probabilities / temperature, dim=1)


def probability_blocks(head: nn.Module, vectors: Tensor, *, temperature: float) -> Iterator[Tensor]:
    """Yield the rows of :func:`probabilities` in blocks, whatever the number of classes.

    Args:
        head: Classification head in evaluation mode.
        vectors: Unit vectors, float32, shape (N, D).
        temperature: Calibration temperature.
    """
    for block in vectors.split(block_size(head)):
        yield probabilities(head, block, temperature=temperature)


def block_size(head: nn.Module) -> int:
    """Return the number of images whose scores of all classes are computed at once."""
    weight = head.get_parameter("linear.weight")
    return max(1, MAX_SCORES // len(weight))


def energies(head: nn.Module, vectors: Tensor) -> Tensor:
    """Compute the log-sum-exp of the logits, the negative energy: low for unusual images.

    Args:
        head: Classification head.
        vectors: Unit vectors, float32, shape (N, D).

    Returns:
        Negative energies, float32, shape (N,).

    References:
        Liu et al. 2020, "Energy-based out-of-distribution detection" (arXiv 2010.03759).
    """
    linear = head.get_submodule("linear")
    with torch.inference_mode():
        blocks = vectors.split(block_size(head))
        return torch.cat([linear(block).logsumexp(dim=1) for block in blocks])
