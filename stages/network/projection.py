"""Projection of the features of a frozen trunk: a linear path plus a hidden layer."""

import math

import torch
from torch import Tensor, nn

from stages.network.pretrained import HIDDEN_UNITS

RESIDUAL = "residual"  # name of this form of projection in a network's config
# Chosen on the validation images of seven public sets; 0.5 of the features was worse.
FEATURE_DROPOUT, HIDDEN_DROPOUT = 0.2, 0.5


class ResidualProjection(nn.Module):
    """Sum of a linear projection of standardised features and of a layer with hidden units.

    The features of a pretrained trunk separate other classes nearly linearly. So training starts
    from their principal components: the linear path computes them, and the path with hidden units
    starts at 0. It learns what a linear path cannot.

    The features are centred and divided by one number, so that their mean variance is 1. Dividing
    each feature by its own deviation would amplify features that hardly vary.

    Args:
        features: Number of trunk features.
        dim: Dimension of the embedding.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(1))
        self.dropout = nn.Dropout(FEATURE_DROPOUT)
        self.linear = nn.Linear(features, dim, bias=False)
        nn.init.uniform_(self.linear.weight, -1, 1)
        # Weights of size 1 suit AdamW's learning rate, whatever the number of features.
        self.linear_factor = 1 / math.sqrt(features)
        output = nn.Linear(HIDDEN_UNITS, dim)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.hidden = nn.Sequential(
            nn.Linear(features, HIDDEN_UNITS),
            nn.BatchNorm1d(HIDDEN_UNITS),
            nn.ReLU(),
            nn.Dropout(HIDDEN_DROPOUT),
            output,
        )

    def standardise(self, features: Tensor) -> Tensor:
        """Return standardised features, shape (N, F)."""
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Project trunk features, shape (N, F), to ``dim`` dimensions."""
        standardised = self.dropout(self.standardise(features))
        linear: Tensor = self.linear(standardised) * self.linear_factor
        hidden: Tensor = self.hidden(standardised)
        return linear + hidden

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Compute the standardisation and the initial linear path from the features of images.

        If there are fewer principal components than dimensions, because there are few images, the
        weights of the other dimensions stay random.

        Args:
            features: Features of training images, float32, shape (N, F), on the CPU.
        """
        from sklearn.decomposition import PCA  # slow to import

        values = features.double()
        mean = values.mean(0)
        deviation = float((values - mean).square().mean().sqrt())
        # Equal images have no deviation to divide by. Values that are not finite fail later, with
        # a message, when the loss is not finite.
        if not deviation > 1e-6 * float(1 + mean.abs().mean()):
            return
        self.mean.copy_(mean)
        self.scale.fill_(deviation)
        count = min(len(self.linear.weight), len(features) - 1, features.shape[1])
        standardised = ((values - mean) / deviation).float().numpy()
        components = PCA(count, random_state=0).fit(standardised).components_  # unit rows
        self.linear.weight[:count] = torch.from_numpy(components) / self.linear_factor
