"""Cross-fitting: out-of-sample predictions of the head for training images."""

import torch
from torch import Tensor

from stages.classifier.calibration import calibration_rows
from stages.classifier.head_loss import (
    class_weights_for,
    dropout_replicas,
    fit_weighted,
)
from stages.classifier.standardisation import Standardisation
from stages.records import Embeddings
from stages.settings import ClassifySettings

FOLDS = 3
REPLICAS = 4  # dropout masks per vector: with 16 the log-loss is the same and it takes longer

# Folds are left out until so many training images have predictions.
ENOUGH_PREDICTIONS = 400


def cross_fit(
    train: Embeddings,
    weight_decay: float,
    settings: ClassifySettings,
    *,
    device: torch.device,
    weight_per_class: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Predict training images by heads that were not trained on them.

    One third of each class is left out, a head is fitted to the rest as in
    :func:`stages.classifier.train.fit_head`, and the head predicts the third. The embedding was
    trained on all of these images, so they are separated better than new images.

    Args:
        train: Training embeddings.
        weight_decay: Weight decay of the heads.
        settings: Settings of stage two.
        device: Device to train on.
        weight_per_class: Class weights, float32, shape (C,). None: those of ``settings.balance``.

    Returns:
        Log-probabilities, float32, shape (M, classes), and class indices, int64, shape (M,). M
        is at most the number of images whose class has at least two; if fewer than two classes
        have two, None.
    """
    counts = torch.bincount(train.labels, minlength=len(train.classes))
    if (counts >= 2).sum() < 2:
        return None
    standardisation = Standardisation.of(train.vectors)
    vectors, labels = dropout_replicas(train, settings.dropout, settings.seed, standardisation)
    vectors, labels = vectors[: REPLICAS * len(train)], labels[: REPLICAS * len(train)]
    folds = torch.empty_like(train.labels)
    folds[train.labels.argsort(stable=True)] = torch.arange(len(train)) % FOLDS
    predictions: list[Tensor] = []
    predicted_labels: list[Tensor] = []
    for fold in range(FOLDS):
        kept = (folds != fold).repeat(len(labels) // len(train))
        left_out = (folds == fold) & (counts[train.labels] >= 2)
        weights = weight_per_class
        if weights is None:
            weights = class_weights_for(labels[kept], len(counts), balance=settings.balance)
        head = fit_weighted(
            vectors[kept], labels[kept], weights, weight_decay, settings.max_iter, device=device
        )
        rows = left_out.nonzero().flatten()
        rows = rows[calibration_rows(len(rows), len(counts))]
        with torch.inference_mode():
            standardised = standardisation.apply(train.vectors[rows]).to(device)
            predictions.append(head(standardised).cpu())
        predicted_labels.append(train.labels[rows])
        if sum(map(len, predicted_labels)) >= ENOUGH_PREDICTIONS:
            break
    return torch.cat(predictions), torch.cat(predicted_labels)
