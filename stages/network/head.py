"""Classification head: dropout, linear layer, log-softmax."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """Dropout + linear + log-softmax on unit vectors."""

    def __init__(self, dim: int, classes: int, *, dropout: float = 0.5):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, classes)

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors: float32 (N, D). Returns log-probabilities, float32 (N, classes)."""
        return F.log_softmax(self.linear(self.dropout(vectors)), dim=1)


def probabilities(head: nn.Module, vectors: Tensor, *, temperature: float) -> Tensor:
    """Calibrated class probabilities, float32 (N, classes), of unit vectors (N, D): softmax of the head's output / temperature."""
    with torch.inference_mode():
        scores: Tensor = head(vectors)
        return F.softmax(scores / temperature, dim=1)
