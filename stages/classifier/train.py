"""Stage two: train a linear classifier on frozen embeddings, calibrate it, and choose k for kNN."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.classifier.calibration import (
    calibration_rows,
    fit_temperature,
    update_temperature,
)
from stages.classifier.choose_k import choose_k
from stages.classifier.cross_fit import cross_fit
from stages.classifier.head_loss import (
    HeadLoss,
    class_weights_for,
    dropout_replicas,
    minimise,
    zero_head,
)
from stages.classifier.standardisation import Standardisation
from stages.evaluation.knn import default_k
from stages.network.head import Head, block_size
from stages.records import Embeddings, HeadLog
from stages.settings import ClassifySettings

# Weight decays from which validation chooses, strongest first: each solution is the starting point
# for the next weight decay.
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
DEFAULT_DECAY = 1e-3  # without validation
# Largest weight decay with ``one_standard_error``. Classes with few images need a stronger one than
# validation images of other classes suggest. This value is the best fixed one with 1 to 20
# images of each new class. It was chosen on MNIST, digits and photos, on images that are not among
# the test images of benchmarks/enroll.py.
STRONG_DECAY = 1e-1

# So many validation images determine the temperature alone, and cross-fitting would be slow.
MANY_VALIDATION_IMAGES = 1000
# Without cross-fitting, so many validation images are needed for a temperature.
MIN_VALIDATION_IMAGES = 50


class TrainedClassifier(NamedTuple):
    """Result of stage two.

    Attributes:
        head: The head, on the CPU and in evaluation mode.
        epoch: Position of the chosen weight decay in ``history``, from 1.
        history: One entry per weight decay.
        temperature: Calibration temperature; 1 if it could not be fitted.
        calibrated: True if the temperature was fitted.
        k: Number of neighbours for kNN.
    """

    head: Head
    epoch: int
    history: tuple[HeadLog, ...]
    temperature: float
    calibrated: bool
    k: int


def train_classifier(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    k: int | None = None,
    weight_per_class: Tensor | None = None,
    one_standard_error: bool = False,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> TrainedClassifier:
    """Train the head and choose its weight decay, its temperature and the k of kNN on validation.

    Without validation the weight decay is 1e-3, the temperature 1 and k its default.

    Args:
        train: Training embeddings.
        validation: Validation embeddings, if there are any.
        settings: Settings of stage two.
        device: Device to train on.
        k: A value of k that was chosen before. It depends on the embeddings only.
        weight_per_class: Class weights, float32, shape (C,). None: those of ``settings.balance``.
        one_standard_error: Choose the strongest weight decay, up to 0.1, whose validation accuracy
            is within one standard error of the best; without validation 0.1. If classes are
            weighted, so is the accuracy; the standard error is that of an unweighted accuracy.
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
    head, epoch, history = fit_head(
        train,
        validation,
        settings,
        device=device,
        weight_per_class=weight_per_class,
        one_standard_error=one_standard_error,
        on_epoch=on_epoch,
    )
    weight_decay = history[epoch - 1].weight_decay
    temperature = _calibrate(
        head, weight_decay, train, validation, settings, device, weight_per_class=weight_per_class
    )
    if not k:
        k = (
            choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
            if validation is not None
            else default_k(train.labels)
        )
    return TrainedClassifier(head, epoch, history, temperature or 1.0, temperature is not None, k)


def _calibrate(
    head: Head,
    weight_decay: float,
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    device: torch.device,
    *,
    weight_per_class: Tensor | None,
) -> float | None:
    """Fit the temperature on images that the head was not trained on; None if there are too few.

    Cross-fitting gives a first temperature. Validation images, which the embedding was not trained
    on either, correct it. Cross-fitting alone is not enough: after training, the training images
    are separated so well that few or none of them are classified wrongly.
    """
    if validation is None:
        return None
    prior = 1.0
    if len(validation) < MANY_VALIDATION_IMAGES:
        predictions = cross_fit(
            train, weight_decay, settings, device=device, weight_per_class=weight_per_class
        )
        if predictions:
            prior = fit_temperature(*predictions)
        elif len(validation) < MIN_VALIDATION_IMAGES:
            return None
    rows = calibration_rows(len(validation), len(validation.classes))
    with torch.inference_mode():
        log_probabilities = head(validation.vectors[rows])
    return update_temperature(log_probabilities, validation.labels[rows], prior=prior)


def fit_head(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    weight_per_class: Tensor | None = None,
    one_standard_error: bool = False,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> tuple[Head, int, tuple[HeadLog, ...]]:
    """Minimise the cross-entropy under dropout and weight decay with L-BFGS.

    The dropout masks are drawn once, so the loss is a smooth, convex function of the weights.
    L-BFGS then converges in about 30 passes over the data and can test for it. Stochastic gradient
    descent would need a learning rate schedule and about a thousand passes.

    The problem is solved once per weight decay. The solution with the highest validation accuracy
    wins. Among equals, the one with the lowest calibrated validation loss wins: strong weight decay
    shrinks all logits, and the temperature makes up for that.

    The vectors are standardised; see
    :class:`stages.classifier.standardisation.Standardisation`. The head that is returned has the
    standardisation in its weights.

    Args:
        train: Training embeddings.
        validation: Validation embeddings, if there are any.
        settings: Settings of stage two.
        device: Device to train on.
        weight_per_class: As for :func:`train_classifier`.
        one_standard_error: As for :func:`train_classifier`.
        on_epoch: Called with the log of each weight decay.

    Returns:
        The head on the CPU in evaluation mode, the position of the chosen weight decay in the
        history, from 1, and the history.
    """
    classes, dim = len(train.classes), train.vectors.shape[1]
    standardisation = Standardisation.of(train.vectors)
    if weight_per_class is None:
        weight_per_class = class_weights_for(train.labels, classes, balance=settings.balance)
    weight_per_class = weight_per_class.to(device)
    vectors, labels = dropout_replicas(train, settings.dropout, settings.seed, standardisation)
    vectors, labels = vectors.to(device), labels.to(device)
    head = zero_head(dim, classes, device)
    weights: list[tuple[Tensor, Tensor]] = []
    history: list[HeadLog] = []
    passes = 0
    for decay in _decays(validation, one_standard_error):
        loss = HeadLoss(head, vectors, labels, weight_per_class, decay)
        minimise(loss, settings.max_iter)
        passes += loss.passes
        converged = loss.passes < settings.max_iter
        val_loss, val_accuracy = _validate(head, validation, weight_per_class, standardisation)
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
        weights.append(_copy_weights(head))
    best = _choose_decay(history, len(validation) if validation and one_standard_error else None)
    _load_weights(head, weights[best])
    head = head.cpu()
    standardisation.fold_into(head)
    head.zero_grad(set_to_none=True)
    head.dropout.p = settings.dropout
    return head, best + 1, tuple(history)


def _decays(validation: Embeddings | None, one_standard_error: bool) -> tuple[float, ...]:
    """Return the weight decays to try, strongest first."""
    if validation:
        return tuple(decay for decay in DECAYS if not one_standard_error or decay <= STRONG_DECAY)
    return (STRONG_DECAY if one_standard_error else DEFAULT_DECAY,)


def _choose_decay(history: Sequence[HeadLog], validation_count: int | None) -> int:
    """Return the position of the best weight decay.

    Args:
        history: Logs of the weight decays, strongest first.
        validation_count: Number of validation images, if the first accuracy within one standard
            error of the best one is chosen (Breiman et al. 1984, the one-standard-error rule); at
            least one image counts as a standard error. None: the best one is chosen.
    """
    accuracies = [log.val_accuracy or 0.0 for log in history]
    if validation_count:
        best = max(accuracies)
        variance = max(0.0, best * (1 - best)) / validation_count
        error = max(math.sqrt(variance), 1 / validation_count)
        return next(i for i, value in enumerate(accuracies) if value >= best - error - 1e-9)
    keys = [
        (accuracy, -(log.val_loss or 0.0))
        for accuracy, log in zip(accuracies, history, strict=True)
    ]
    return keys.index(max(keys))


def _copy_weights(head: Head) -> tuple[Tensor, Tensor]:
    return head.linear.weight.detach().clone(), head.linear.bias.detach().clone()


def _load_weights(head: Head, weights: tuple[Tensor, Tensor]) -> None:
    weight, bias = weights
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)


def _validate(
    head: Head,
    validation: Embeddings | None,
    weight_per_class: Tensor,
    standardisation: Standardisation,
) -> tuple[float | None, float | None]:
    """Compute loss, at the best temperature, and accuracy on validation, weighted by class."""
    if validation is None:
        return None, None
    labels, device = validation.labels, weight_per_class.device
    rows = calibration_rows(len(labels), len(weight_per_class))
    with torch.inference_mode():
        vectors = standardisation.apply(validation.vectors).to(device)
        predicted = [head(block).argmax(1).cpu() for block in vectors.split(block_size(head))]
        log_probabilities = head(vectors[rows.to(device)]).cpu()
    weights = weight_per_class.cpu()[labels]
    correct = (torch.cat(predicted) == labels) * weights
    temperature = fit_temperature(log_probabilities, labels[rows])
    calibrated = F.log_softmax(log_probabilities / temperature, dim=1)
    losses = -calibrated.gather(1, labels[rows, None])[:, 0] * weights[rows]
    # A total is 0 if no validation image belongs to a training class.
    loss = losses.sum() / weights[rows].sum().clamp(min=1e-9)
    return float(loss), float(correct.sum() / weights.sum().clamp(min=1e-9))
