"""Loss of the head: cross-entropy under dropout and weight decay, and its minimisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.classifier.standardisation import Standardisation
from stages.eager_optimiser import EagerOptimiser
from stages.network.head import Head
from stages.records import Embeddings

TOLERANCE = 1e-4  # L-BFGS has converged if no gradient component is larger

# Up to this many training vectors, each is repeated under 16 dropout masks. With one mask per
# vector, the result would depend on the random draw.
SMALL_DATA = 2000
SMALL_DATA_REPLICAS = 16
REPLICATED_ROWS = 6000  # larger data is repeated as often as fits into this many rows

MAX_LOGITS = 2**23  # logits computed at once

# Steps that L-BFGS remembers. Each takes two copies of the weights: 256 MiB in all, if many classes
# do not make the minimum larger.
HISTORY_VALUES = 2**25
MIN_HISTORY, MAX_HISTORY = 10, 100


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Compute class weights inversely proportional to the class frequencies.

    The mean weight of an image is 1. The weights equal scikit-learn's ``class_weight="balanced"``.

    Args:
        labels: Class indices, int64, shape (N,).
        classes: Number of classes.

    Returns:
        Weights, float32, shape (classes,); 0 for a class without images.

    Example:
        >>> class_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0).float()


def class_weights_for(labels: Tensor, classes: int, *, balance: bool) -> Tensor:
    """Return balanced class weights, or 1 for every class, float32, shape (classes,)."""
    return class_weights(labels, classes) if balance else torch.ones(classes)


def dropout_replicas(
    train: Embeddings, dropout: float, seed: int, standardisation: Standardisation
) -> tuple[Tensor, Tensor]:
    """Repeat standardised training vectors under different dropout masks.

    Args:
        train: N training embeddings.
        dropout: Probability of zeroing a coordinate. The others are divided by 1 - dropout.
        seed: Seed of the masks.
        standardisation: Mean and factor of the training vectors.

    Returns:
        Vectors, float32, shape (R * N, D), and labels, int64, shape (R * N,). R is 1 without
        dropout.
    """
    if not dropout:
        return standardisation.apply(train.vectors), train.labels
    replicas = (
        SMALL_DATA_REPLICAS if len(train) <= SMALL_DATA else max(1, REPLICATED_ROWS // len(train))
    )
    vectors = standardisation.apply(train.vectors).repeat(replicas, 1)  # (R * N, D)
    keep = torch.rand(vectors.shape, generator=torch.Generator().manual_seed(seed)) >= dropout
    return vectors * keep / (1 - dropout), train.labels.repeat(replicas)


def zero_head(dim: int, classes: int, device: torch.device) -> Head:
    """Build a head with zero weights. It never applies dropout: the replicas are masked already."""
    head = Head(dim, classes).to(device).eval()
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    return head


class HeadLoss:
    """Penalised cross-entropy over all vectors, as the closure that L-BFGS calls.

    A call computes the loss and the gradients in blocks of vectors. ``passes`` counts the calls.

    Args:
        head: Head without dropout, whose gradients are set.
        vectors: Standardised vectors, float32, shape (N, D).
        labels: Class indices, int64, shape (N,).
        weight_per_class: Class weights, float32, shape (classes,).
        decay: Weight decay.
    """

    def __init__(
        self, head: Head, vectors: Tensor, labels: Tensor, weight_per_class: Tensor, decay: float
    ):
        self.head = head
        self.vectors = vectors
        self.labels = labels
        self.weight_per_class = weight_per_class
        self.decay = decay
        self.total_weight = weight_per_class[labels].sum()
        self.passes = 0

    def __call__(self) -> Tensor:
        """Compute the loss and set the gradients."""
        self.passes += 1
        self.head.zero_grad(set_to_none=True)
        weight = self.head.linear.weight
        loss = self.decay / 2 * weight.detach().square().sum()
        weight.grad = self.decay * weight.detach()
        block_size = max(1, MAX_LOGITS // len(self.weight_per_class))
        blocks = zip(self.vectors.split(block_size), self.labels.split(block_size), strict=True)
        for vectors, labels in blocks:
            log_probabilities = self.head(vectors)
            block_loss = (
                F.nll_loss(log_probabilities, labels, weight=self.weight_per_class, reduction="sum")
                / self.total_weight
            )
            block_loss.backward()
            loss += block_loss.detach()
        return loss


class LBFGS(EagerOptimiser, torch.optim.LBFGS):
    """L-BFGS of torch."""


def minimise(loss: HeadLoss, max_iter: int) -> None:
    """Minimise the loss over the head's weights with L-BFGS, from their current values."""
    size = sum(parameter.numel() for parameter in loss.head.linear.parameters())
    optimiser = LBFGS(
        (loss.head.linear.weight, loss.head.linear.bias),
        lr=1.0,
        max_iter=max_iter,
        max_eval=max_iter,
        tolerance_grad=TOLERANCE,
        history_size=max(MIN_HISTORY, min(MAX_HISTORY, HISTORY_VALUES // size)),
        line_search_fn="strong_wolfe",
    )
    optimiser.step(loss)


def fit_weighted(
    vectors: Tensor,
    labels: Tensor,
    weight_per_class: Tensor,
    decay: float,
    max_iter: int,
    *,
    device: torch.device,
    start: Head | None = None,
) -> Head:
    """Fit a head to standardised vectors with one weight decay.

    Args:
        vectors: Standardised vectors, float32, shape (N, D).
        labels: Class indices, int64, shape (N,).
        weight_per_class: Class weights, float32, shape (classes,).
        decay: Weight decay.
        max_iter: Largest number of L-BFGS iterations.
        device: Device to train on.
        start: Head to start from; it is not changed. None: zero weights.

    Returns:
        The head for standardised vectors, on ``device``.
    """
    head = zero_head(vectors.shape[1], len(weight_per_class), device)
    if start is not None:
        head.load_state_dict(start.state_dict())
    loss = HeadLoss(head, vectors.to(device), labels.to(device), weight_per_class.to(device), decay)
    minimise(loss, max_iter)
    return head
