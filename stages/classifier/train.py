"""Stage two: train dropout + linear + log-softmax on the frozen embedding, calibrate it, and choose kNN's k."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.classifier.calibration import CALIBRATING, choose_k, fit_temperature
from stages.evaluation.knn import default_k
from stages.network.head import Head
from stages.records import Embeddings, HeadLog
from stages.settings import ClassifySettings

DECAYS = (
    1.0,
    1e-1,
    1e-2,
    1e-3,
    1e-4,
)  # strengths of weight decay, of which validation chooses; strong first: each starts the next


DECAY = 1e-3  # without validation


TOLERANCE = 1e-4  # largest gradient at which a minimum is one


SMALL = 2000  # vectors; up to here each is used under 16 dropout masks, since the draw of a single one would show in the result


MASKED = 6000  # vectors that larger data is repeated to


LOGITS = 2**23  # handled at once


class TrainedClassifier(NamedTuple):
    """head: on the CPU, in evaluation mode. epoch: entry of `history` that won on validation, from 1. temperature, k: see there."""

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
    """The head, its temperature and kNN's k, all chosen on validation, never on the test part; without it fixed.

    k: if it has been chosen before; it depends on the vectors alone. The temperature is 1 below 50 validation vectors.
    """
    head, epoch, history = fit_head(train, validation, settings, device=device, on_epoch=on_epoch)
    if validation is None:
        return TrainedClassifier(head, epoch, history, 1.0, k or default_k(train.labels))
    with torch.inference_mode():
        temperature = (
            fit_temperature(head(validation.vectors), validation.labels)
            if len(validation) >= CALIBRATING
            else 1.0
        )
    k = k or choose_k(validation.vectors, validation.labels, train.vectors, train.labels)
    return TrainedClassifier(head, epoch, history, temperature, k)


def fit_head(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> tuple[Head, int, tuple[HeadLog, ...]]:
    """Minimise cross-entropy under dropout and weight decay, of which validation chooses the strength.

    Of the candidates the one with the most right validation images wins, among equals the one with the lowest loss there
    once calibrated: a strong penalty shrinks all scores, which temperature makes good again.

    With its dropout masks drawn once, the problem is convex and smooth, so L-BFGS comes to its minimum, and knows when
    it has, in some 30 passes where stochastic steps need a schedule and a thousand. Small data is repeated under other
    masks, so that no single draw matters. Vectors are scaled by sqrt(D) in training, or their small coordinates would
    make the weight decay's strength depend on D; the factor is folded into the weights afterwards.
    Returns the head on the CPU in evaluation mode, the winner's place in the history from 1, and the history.
    """
    classes, dim = len(train.classes), train.vectors.shape[1]
    scale = math.sqrt(dim)
    weights = (
        class_weights(train.labels, classes).to(device)
        if settings.balance
        else torch.ones(classes, device=device)
    )
    head = Head(dim, classes).to(device).eval()  # the masks are in the vectors
    weight, bias = head.linear.weight, head.linear.bias
    vectors, labels = (
        part.to(device) for part in _under_masks(train, settings.dropout, settings.seed, scale)
    )
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)

    history: list[HeadLog] = []
    best, best_key, best_place = (
        (weight.detach().clone(), bias.detach().clone()),
        (-1.0, -math.inf),
        0,
    )
    passes = 0
    for decay in DECAYS if validation else (DECAY,):
        optimiser = torch.optim.LBFGS(
            (weight, bias),
            lr=1.0,
            max_iter=settings.max_iter,
            max_eval=settings.max_iter,
            tolerance_grad=TOLERANCE,
            line_search_fn="strong_wolfe",
        )
        loss = _Loss(head, vectors, labels, weights, decay)
        optimiser.step(loss)
        converged = loss.passes < settings.max_iter
        passes += loss.passes
        log = HeadLog(
            passes, float(loss()), *_validate(head, validation, weights, scale), decay, converged
        )
        history.append(log)
        if on_epoch:
            on_epoch(log)
        if (key := (log.val_accuracy or 0.0, -(log.val_loss or 0.0))) > best_key:
            best, best_key, best_place = (
                (weight.detach().clone(), bias.detach().clone()),
                key,
                len(history),
            )
    with torch.no_grad():
        weight.copy_(best[0] * scale)
        bias.copy_(best[1])
    head.zero_grad(set_to_none=True)
    head.dropout.p = settings.dropout
    return head.cpu(), best_place, tuple(history)


def _under_masks(
    train: Embeddings, dropout: float, seed: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Scaled vectors with some of their coordinates zeroed, the others raised in return, and labels."""
    if not dropout:
        return train.vectors * scale, train.labels
    repeats = 16 if len(train) <= SMALL else max(1, MASKED // len(train))
    vectors = (train.vectors * scale).repeat(repeats, 1)
    kept = torch.rand(vectors.shape, generator=torch.Generator().manual_seed(seed)) >= dropout
    return vectors * kept / (1 - dropout), train.labels.repeat(repeats)


class _Loss:
    """The penalised loss over all vectors and its gradient, a part of them at a time; counts the passes."""

    def __init__(self, head: Head, vectors: Tensor, labels: Tensor, weights: Tensor, decay: float):
        self.head, self.vectors, self.labels, self.weights, self.decay = (
            head,
            vectors,
            labels,
            weights,
            decay,
        )
        self.total = weights[labels].sum()
        self.passes = 0

    def __call__(self) -> Tensor:
        self.passes += 1
        self.head.zero_grad(set_to_none=True)
        weight = self.head.linear.weight
        loss = self.decay / 2 * weight.detach().square().sum()
        weight.grad = self.decay * weight.detach()
        step = max(1, LOGITS // len(self.weights))
        for vectors, labels in zip(self.vectors.split(step), self.labels.split(step), strict=True):
            part = (
                F.nll_loss(self.head(vectors), labels, weight=self.weights, reduction="sum")
                / self.total
            )
            part.backward()
            loss += part.detach()
        return loss


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights under which all classes count alike and the mean image counts 1; a class without an image gets 0.

    labels: int64 (N,). Returns float32 (classes,). The same as scikit-learn's `class_weight="balanced"`.
    """
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0).float()


def _validate(
    head: Head, validation: Embeddings | None, weights: Tensor, scale: float
) -> tuple[float | None, float | None]:
    """Loss at the best temperature, and accuracy, on validation; each class weighs as in training."""
    if validation is None:
        return None, None
    with torch.inference_mode():
        scores = head((validation.vectors * scale).to(weights.device)).cpu()
    each = weights.cpu()[validation.labels]
    right = (scores.argmax(1) == validation.labels) * each
    calibrated = F.log_softmax(scores / fit_temperature(scores, validation.labels), dim=1)
    loss = -calibrated.gather(1, validation.labels[:, None])[:, 0] * each
    total = each.sum().clamp(
        min=1e-9
    )  # no validation image of a class that training has: nothing to tell them apart by
    return float(loss.sum() / total), float(right.sum() / total)
