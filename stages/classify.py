"""Stage two: train dropout + linear + log-softmax on the frozen embedding."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from stages.network import Head, embed_split, state_digest
from stages.records import Embeddings, HeadLog, Split
from stages.settings import ClassifySettings

BATCH = 256
EPOCHS = 100  # at least
STEPS = 1000  # at least
WEIGHT_DECAY = 1e-2


class TrainedClassifier(NamedTuple):
    """head: with the weights of `epoch`, the best on validation. gallery: the training part's embeddings."""

    head: Head
    epoch: int
    history: tuple[HeadLog, ...]
    gallery: Embeddings


def train_classifier(
    network: nn.Module,
    train: Split,
    validation: Split | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> TrainedClassifier:
    """Embed both parts once, then train the head on those vectors: nothing flows back into the network.

    Raises RuntimeError if a weight or buffer of the network moved all the same; that would be a bug.
    """
    before = state_digest(network.state_dict())
    gallery = embed_split(network, train, device=device)
    queries = embed_split(network, validation, device=device) if validation else None
    head, epoch, history = fit_head(gallery, queries, settings, device=device, on_epoch=on_epoch)
    if state_digest(network.state_dict()) != before:
        raise RuntimeError("the frozen embedding changed while the head was trained")
    return TrainedClassifier(head, epoch, history, gallery)


def fit_head(
    train: Embeddings,
    validation: Embeddings | None,
    settings: ClassifySettings,
    *,
    device: torch.device,
    on_epoch: Callable[[HeadLog], None] | None = None,
) -> tuple[Head, int, tuple[HeadLog, ...]]:
    """Train the head with cross-entropy; the epoch with the lowest validation loss wins (the last, without validation).

    The coordinates of unit vectors are small, about 1 / sqrt(D), and so would be the logits for a long time. The head is
    therefore trained on vectors times sqrt(D), and the factor folded into its weights afterwards, which changes nothing
    that it computes. Returns the head on the CPU in evaluation mode, its epoch and the history.
    """
    torch.manual_seed(settings.seed)
    scale = math.sqrt(train.vectors.shape[1])
    vectors, labels = (train.vectors * scale).to(device), train.labels.to(device)
    head = Head(vectors.shape[1], len(train.classes), dropout=settings.dropout).to(device)
    steps = math.ceil(len(vectors) / BATCH)
    epochs = settings.epochs or max(EPOCHS, math.ceil(STEPS / steps))
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    history: list[HeadLog] = []
    best, best_loss, best_epoch = head.state_dict(), math.inf, 0
    for epoch in range(1, epochs + 1):
        head.train()
        total = 0.0
        for rows in torch.randperm(len(vectors)).to(device).split(BATCH):
            loss = F.nll_loss(head(vectors[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
        log = HeadLog(epoch, total / len(vectors), *_validate(head, validation, scale, device))
        history.append(log)
        if on_epoch:
            on_epoch(log)
        if log.val_loss is None or log.val_loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(head.state_dict()), log.val_loss or 0.0, epoch
    head.load_state_dict(best)
    with torch.no_grad():
        head.linear.weight.mul_(scale)
    return head.eval().cpu(), best_epoch, tuple(history)


def _validate(head: Head, validation: Embeddings | None, scale: float, device: torch.device) -> tuple[float | None, float | None]:
    """Loss and accuracy on validation."""
    if validation is None:
        return None, None
    head.eval()
    with torch.inference_mode():
        scores = head((validation.vectors * scale).to(device)).cpu()
    right = (scores.argmax(1) == validation.labels).double().mean()
    return F.nll_loss(scores, validation.labels).item(), right.item()
