"""Stage two: train dropout + linear + log-softmax on the frozen embedding, calibrate it, and choose kNN's k."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from stages.metrics import knn
from stages.network import Head, embed_split, state_digest
from stages.records import Embeddings, HeadLog, Split
from stages.settings import ClassifySettings

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)  # strengths of weight decay, of which validation chooses; strong first: each starts the next
DECAY = 1e-3  # without validation
MASKED = 8192  # vectors under their own dropout masks that small data is repeated to, at most 16 times
LOGITS = 2**23  # handled at once
NEIGHBOURS = (1, 3, 5, 7, 11, 15, 21)  # values of k to choose from
USUAL = 5  # k without validation, and among equally good ones the nearest to it
QUERIES = 1000  # validation vectors that choose k


class TrainedClassifier(NamedTuple):
    """head: on the CPU, in evaluation mode. epoch: entry of `history` that won on validation, from 1. temperature, k: see there."""

    head: Head
    epoch: int
    history: tuple[HeadLog, ...]
    temperature: float
    k: int


def embed_frozen(
    network: nn.Module, train: Split, validation: Split | None, *, device: torch.device
) -> tuple[Embeddings, Embeddings | None]:
    """Embed both parts once; the head is trained on these vectors, so nothing flows back into the network.

    Raises RuntimeError if a weight or buffer of the network moved all the same; that would be a bug.
    """
    before = state_digest(network.state_dict())
    gallery = embed_split(network, train, device=device)
    queries = embed_split(network, validation, device=device) if validation else None
    if state_digest(network.state_dict()) != before:
        raise RuntimeError("the frozen embedding changed while it was used")
    return gallery, queries


def train_classifier(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    k: int | None = None,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> TrainedClassifier:
    """The head, its temperature and kNN's k, all chosen on validation, never on the test part.

    k: if it has been chosen before; it depends on the vectors alone.
    """
    head, epoch, history = fit_head(train, validation, settings, device=device, on_epoch=on_epoch)
    if validation is None:
        return TrainedClassifier(head, epoch, history, 1.0, k or USUAL)
    with torch.inference_mode():
        temperature = fit_temperature(head(validation.vectors), validation.labels)
    k = k or choose_neighbours(validation.vectors, validation.labels, train.vectors, train.labels)
    return TrainedClassifier(head, epoch, history, temperature, k)


def fit_head(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> tuple[Head, int, tuple[HeadLog, ...]]:
    """Minimise cross-entropy under dropout; of four strengths of weight decay the one with the lowest validation loss wins.

    With its dropout masks drawn once, the problem is convex and smooth, so L-BFGS comes to its minimum, and knows when
    it has, in some 30 passes where stochastic steps need a schedule and a thousand. Small data is repeated under other
    masks, so that no single draw matters. Vectors are scaled by sqrt(D) in training, or their small coordinates would
    make the weight decay's strength depend on D; the factor is folded into the weights afterwards.
    Returns the head on the CPU in evaluation mode, the winner's place in the history from 1, and the history.
    """
    classes, dim = len(train.classes), train.vectors.shape[1]
    scale = math.sqrt(dim)
    generator = torch.Generator().manual_seed(settings.seed)
    repeats = max(1, min(16, MASKED // len(train))) if settings.dropout else 1
    vectors = (train.vectors * scale).repeat(repeats, 1)
    if settings.dropout:
        kept = torch.full_like(vectors, 1 - settings.dropout)
        vectors = vectors * torch.bernoulli(kept, generator=generator) / kept
    vectors, labels = vectors.to(device), train.labels.repeat(repeats).to(device)
    weights = class_weights(train.labels, classes).to(device) if settings.balance else torch.ones(classes, device=device)
    head = Head(dim, classes, dropout=settings.dropout).to(device).eval()  # the masks are in the vectors
    weight, bias = head.linear.weight, head.linear.bias
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    total, step = weights[labels].sum(), max(1, LOGITS // classes)

    history: list[HeadLog] = []
    best, best_loss, best_place = (weight.detach().clone(), bias.detach().clone()), math.inf, 0
    passes = 0
    for decay in DECAYS if validation else (DECAY,):
        optimiser = torch.optim.LBFGS(
            (weight, bias),
            lr=settings.lr,
            max_iter=settings.epochs,
            max_eval=settings.epochs,
            tolerance_grad=1e-5,
            line_search_fn="strong_wolfe",
        )

        def loss_and_gradient(decay: float = decay, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            nonlocal passes
            passes += 1
            optimiser.zero_grad(set_to_none=True)
            penalty = decay / 2 * weight.square().sum()
            penalty.backward()
            loss = penalty.detach()
            for start in range(0, len(vectors), step):
                some = slice(start, start + step)
                part = F.nll_loss(head(vectors[some]), labels[some], weight=weights, reduction="sum") / total
                part.backward()
                loss += part.detach()
            return loss

        begun = passes
        optimiser.step(loss_and_gradient)
        converged = passes - begun < settings.epochs
        log = HeadLog(passes, float(loss_and_gradient()), *_validate(head, validation, weights, scale), decay, converged)
        history.append(log)
        if on_epoch:
            on_epoch(log)
        if log.val_loss is None or log.val_loss < best_loss:
            best, best_loss = (weight.detach().clone(), bias.detach().clone()), log.val_loss or 0.0
            best_place = len(history)
    with torch.no_grad():
        weight.copy_(best[0] * scale)
        bias.copy_(best[1])
    head.zero_grad(set_to_none=True)
    return head.cpu(), best_place, tuple(history)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights under which all classes count alike and the mean image counts 1; a class without an image gets 0.

    labels: int64 (N,). Returns float32 (classes,). The same as scikit-learn's `class_weight="balanced"`.
    """
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0).float()


def _validate(head: Head, validation: Embeddings | None, weights: Tensor, scale: float) -> tuple[float | None, float | None]:
    """Loss and accuracy on validation."""
    if validation is None:
        return None, None
    with torch.inference_mode():
        scores = head((validation.vectors * scale).to(weights.device))
    right = (scores.argmax(1).cpu() == validation.labels).double().mean()
    # A class without weight, absent from training, can't be validated on.
    loss = F.nll_loss(scores, validation.labels.to(weights.device), weight=weights).item()
    return loss if math.isfinite(loss) else math.inf, right.item()


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature that makes the head's probabilities fit best: softmax(log-probabilities / T), by cross-entropy.

    log_probabilities: float32 (N, C), of validation images; labels: int64 (N,). Returns T in [0.05, 20].
    Guo et al. 2017 (arXiv 1706.04599), with Platt's targets (1999): of N right answers, the next is expected right with
    (N + 1) / (N + 2), not for certain. Otherwise a validation part without an error would make the head certain.
    """
    scores, targets = log_probabilities.double().numpy(), labels.numpy()
    count, classes = scores.shape
    wrong = 1 / (count + 2)
    soft = np.full((count, classes), wrong / max(1, classes - 1))
    soft[np.arange(count), targets] = 1 - wrong

    def loss(log_temperature: float) -> float:
        scaled = scores / math.exp(log_temperature)
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - (soft * scaled).sum(1)))

    bound = math.log(20)
    return math.exp(float(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4}).x))


def choose_neighbours(queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> int:
    """The k of kNN with the most right validation images; of equally good ones the nearest to 5, then the smaller.

    queries: (Q, D), of which at most 1,000, evenly spaced, are asked. gallery: (G, D). labels, gallery_labels: int64.
    """
    rows = torch.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).round().long()
    asked, truth = queries[rows], labels[rows].numpy()
    right = {k: int((knn(asked, gallery, gallery_labels, k=k).labels == truth).sum()) for k in NEIGHBOURS if k <= len(gallery)}
    return max(right, key=lambda k: (right[k], -abs(k - USUAL), -k))
