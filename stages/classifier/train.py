"""Stage two: train a linear classifier on frozen embeddings, calibrate it, and choose k for kNN."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.classifier.calibration import MIN_CALIBRATION_VECTORS, choose_k, fit_temperature
from stages.evaluation.knn import default_k
from stages.network.head import Head
from stages.records import Embeddings, HeadLog
from stages.settings import ClassifySettings

# Weight decays from which validation chooses, strongest first: each solution is the starting point
# for the next weight decay.
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT_DECAY = 1e-3  # without validation

TOLERANCE = 1e-4  # L-BFGS has converged if no gradient component is larger

# Up to this many training vectors, each is repeated under 16 dropout masks. With one mask per
# vector, the result would depend on the random draw.
SMALL_DATA = 2000
SMALL_DATA_REPLICAS = 16
REPLICATED_ROWS = 6000  # larger data is repeated as often as fits into this many rows

MAX_LOGITS = 2**23  # logits computed at once


class TrainedClassifier(NamedTuple):
    """Result of stage two.

    Attributes:
        head: The head, on the CPU and in evaluation mode.
        epoch: Position of the chosen weight decay in ``history``, from 1.
        history: One entry per weight decay.
        temperature: Calibration temperature.
        k: Number of neighbours for kNN.
    """

    head: Head
    epoch: int
    history: tuple[HeadLog, ...]
    temperature: float
    k: int


def train_classifier(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    k: int | None = None,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> TrainedClassifier:
    """Train the head and choose its weight decay, its temperature and the k of kNN on validation.

    Without validation the weight decay is 1e-3, the temperature 1 and k its default. With fewer
    than 50 validation vectors the temperature is 1.

    Args:
        train: Training embeddings.
        validation: Validation embeddings, if there are any.
        settings: Settings of stage two.
        device: Device to train on.
        k: A value of k that was chosen before. It depends on the embeddings only.
        on_epoch: Called with the log of each weight decay.

    Returns:
        The head with its training history, temperature and k.

    Example:
        >>> train = Embeddings(torch.eye(2).repeat(10, 1), torch.arange(2).repeat(10), ("a", "b"))
        >>> trained = train_classifier(
        ...     train, None, ClassifySettings(), device=torch.device("cpu")
        ... )
        >>> trained.head(train.vectors).argmax(1).equal(train.labels)
        True
    """
    head, epoch, history = fit_head(train, validation, settings, device=device, on_epoch=on_epoch)
    temperature = 1.0
    if validation is not None and len(validation) >= MIN_CALIBRATION_VECTORS:
        with torch.inference_mode():
            temperature = fit_temperature(head(validation.vectors), validation.labels)
    if not k:
        k = (
            choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
            if validation is not None
            else default_k(train.labels)
        )
    return TrainedClassifier(head, epoch, history, temperature, k)


def fit_head(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> tuple[Head, int, tuple[HeadLog, ...]]:
    """Minimise the cross-entropy under dropout and weight decay with L-BFGS.

    The dropout masks are drawn once, so the loss is a smooth, convex function of the weights.
    L-BFGS then converges in about 30 passes over the data and can test for it. Stochastic gradient
    descent would need a learning rate schedule and about a thousand passes.

    The problem is solved once per weight decay. The solution with the highest validation accuracy
    wins. Among equals, the one with the lowest calibrated validation loss wins: strong weight decay
    shrinks all logits, and the temperature makes up for that.

    Training vectors are scaled by sqrt(D), because the effect of the weight decay would otherwise
    depend on D. The factor is multiplied into the weights afterwards.

    Args:
        train: Training embeddings.
        validation: Validation embeddings, if there are any.
        settings: Settings of stage two.
        device: Device to train on.
        on_epoch: Called with the log of each weight decay.

    Returns:
        The head on the CPU in evaluation mode, the position of the chosen weight decay in the
        history, from 1, and the history.
    """
    classes, dim = len(train.classes), train.vectors.shape[1]
    scale = math.sqrt(dim)
    weight_per_class = (
        class_weights(train.labels, classes) if settings.balance else torch.ones(classes)
    ).to(device)
    vectors, labels = dropout_replicas(train, settings.dropout, settings.seed, scale)
    vectors, labels = vectors.to(device), labels.to(device)
    head = _zero_head(dim, classes, device)
    best_key, best_epoch, best_weights = (-1.0, -math.inf), 0, _copy_weights(head)
    history: list[HeadLog] = []
    passes = 0
    for decay in DECAYS if validation else (DEFAULT_DECAY,):
        loss = _Loss(head, vectors, labels, weight_per_class, decay)
        _minimise(loss, settings.max_iter)
        passes += loss.passes
        converged = loss.passes < settings.max_iter
        val_loss, val_accuracy = _validate(head, validation, weight_per_class, scale)
        log = HeadLog(
            epoch=passes,
            loss=float(loss()),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            weight_decay=decay,
            converged=converged,
        )
        history.append(log)
        if on_epoch:
            on_epoch(log)
        key = (val_accuracy or 0.0, -(val_loss or 0.0))
        if key > best_key:
            best_key, best_epoch, best_weights = key, len(history), _copy_weights(head)
    _restore_weights(head, best_weights, scale)
    head.dropout.p = settings.dropout
    return head.cpu(), best_epoch, tuple(history)


def _zero_head(dim: int, classes: int, device: torch.device) -> Head:
    """Build a head with zero weights. It never applies dropout: the replicas are masked already."""
    head = Head(dim, classes).to(device).eval()
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    return head


def _copy_weights(head: Head) -> tuple[Tensor, Tensor]:
    return head.linear.weight.detach().clone(), head.linear.bias.detach().clone()


def _restore_weights(head: Head, weights: tuple[Tensor, Tensor], scale: float) -> None:
    """Load weights that were fitted to scaled vectors into a head for unit vectors."""
    weight, bias = weights
    with torch.no_grad():
        head.linear.weight.copy_(weight * scale)
        head.linear.bias.copy_(bias)
    head.zero_grad(set_to_none=True)


def dropout_replicas(
    train: Embeddings, dropout: float, seed: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Repeat scaled training vectors under different dropout masks.

    Args:
        train: N training embeddings.
        dropout: Probability of zeroing a coordinate. The others are divided by 1 - dropout.
        seed: Seed of the masks.
        scale: Factor for all vectors.

    Returns:
        Vectors, float32, shape (R * N, D), and labels, int64, shape (R * N,). R is 1 without
        dropout.
    """
    if not dropout:
        return train.vectors * scale, train.labels
    replicas = (
        SMALL_DATA_REPLICAS if len(train) <= SMALL_DATA else max(1, REPLICATED_ROWS // len(train))
    )
    vectors = (train.vectors * scale).repeat(replicas, 1)  # (R * N, D)
    keep = torch.rand(vectors.shape, generator=torch.Generator().manual_seed(seed)) >= dropout
    return vectors * keep / (1 - dropout), train.labels.repeat(replicas)


class _Loss:
    """Penalised cross-entropy over all vectors, as the closure that L-BFGS calls.

    A call computes the loss and the gradients in blocks of vectors. ``passes`` counts the calls.
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


def _minimise(loss: _Loss, max_iter: int) -> None:
    """Minimise the loss over the head's weights with L-BFGS, from their current values."""
    optimiser = torch.optim.LBFGS(
        (loss.head.linear.weight, loss.head.linear.bias),
        lr=1.0,
        max_iter=max_iter,
        max_eval=max_iter,
        tolerance_grad=TOLERANCE,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(loss)


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


def _validate(
    head: Head, validation: Embeddings | None, weight_per_class: Tensor, scale: float
) -> tuple[float | None, float | None]:
    """Compute loss, at the best temperature, and accuracy on validation, weighted by class."""
    if validation is None:
        return None, None
    labels = validation.labels
    with torch.inference_mode():
        log_probabilities = head((validation.vectors * scale).to(weight_per_class.device)).cpu()
    image_weights = weight_per_class.cpu()[labels]
    correct = (log_probabilities.argmax(1) == labels) * image_weights
    temperature = fit_temperature(log_probabilities, labels)
    calibrated = F.log_softmax(log_probabilities / temperature, dim=1)
    losses = -calibrated.gather(1, labels[:, None])[:, 0] * image_weights
    # The total is 0 if no validation image belongs to a training class.
    total_weight = image_weights.sum().clamp(min=1e-9)
    return float(losses.sum() / total_weight), float(correct.sum() / total_weight)
