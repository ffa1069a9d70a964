"""Standardisation of the vectors on which the head is trained."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stages.network.head import Head

# Vectors whose root-mean-square distance to their mean is smaller are taken as equal: it is the
# rounding of float32 unit vectors.
EQUAL_VECTORS = 1e-6


class Standardisation(NamedTuple):
    """Mean and factor with which vectors have mean 0 and, on average, variance 1 per coordinate.

    Without it, the effect of dropout and of the weight decay would depend on the dimension and on
    the spread of the vectors. Some losses leave all vectors in a small part of the sphere; dropout
    would then mostly change their common mean, and hide the differences between classes.

    Attributes:
        mean: Mean vector, float32, shape (D,).
        factor: Factor for the difference to the mean.
    """

    mean: Tensor
    factor: float

    @classmethod
    def of(cls, vectors: Tensor) -> "Standardisation":
        """Compute mean and factor of vectors, float32, shape (N, D).

        Example:
            >>> round(Standardisation.of(torch.tensor([[0.6, 0.8], [0.8, 0.6]])).factor, 3)
            10.0
        """
        mean = vectors.mean(dim=0)
        spread = float((vectors - mean).square().sum(dim=1).mean().sqrt())
        factor = math.sqrt(vectors.shape[1]) / (spread if spread > EQUAL_VECTORS else 1.0)
        return cls(mean, factor)

    def apply(self, vectors: Tensor) -> Tensor:
        """Standardise vectors, float32, shape (N, D)."""
        return (vectors - self.mean) * self.factor

    def fold_into(self, head: Head) -> None:
        """Change a head for standardised vectors into the same head for unit vectors.

        Args:
            head: Head on the CPU: it is computed in float64, which not every device has.
        """
        linear = head.linear
        with torch.no_grad():
            weight = linear.weight.double() * self.factor
            linear.bias.copy_(linear.bias - weight @ self.mean.double())
            linear.weight.copy_(weight)
