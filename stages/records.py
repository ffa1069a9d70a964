"""The nouns that flow between the stages, each checked when it is made.

Frozen dataclasses with `eq=False`: comparing tensor fields with `==` would raise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.errors import DataError


def _check_labels(labels: Tensor, count: int, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(
            f"labels: {labels.dtype} {tuple(labels.shape)} for {count} rows; give int64 ({count},)"
        )
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(classes)):
        raise DataError(
            f"labels: {int(labels.min())} to {int(labels.max())} with {len(classes)} class names"
        )


@dataclass(frozen=True, eq=False)
class TrunkFeatures:
    """What a frozen trunk makes of the images of a store, so that it sees each of them once.

    values: float32 (M, V, F), of V fixed views of all M images, the first unchanged. digest: of the trunk, as
    `EmbeddingNet.trunk_digest` gives it.
    """

    values: Tensor
    digest: str


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images of one part (train, val or test).

    store: uint8 (M, C, S, S), the images of all parts; it may be a memory-mapped file larger than memory, so no
    stage copies it. rows: int64 (N,), which of them are this part's. labels: int64 (N,), indices into `classes`.
    ids: N names that people know. features: what a frozen trunk made of `store`, for networks with that trunk.
    Raises DataError if these don't fit together or there is no image.
    """

    store: Tensor
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    features: TrunkFeatures | None = None

    def __post_init__(self) -> None:
        if self.store.dtype != torch.uint8 or self.store.ndim != 4 or len(self.rows) == 0:
            raise DataError(
                f"images: {self.store.dtype} {tuple(self.store.shape)}, {len(self.rows)} rows; give uint8 (M, C, S, S) and rows"
            )
        if not (0 <= int(self.rows.min()) and int(self.rows.max()) < len(self.store)):
            raise DataError(
                f"rows: {int(self.rows.min())} to {int(self.rows.max())} of {len(self.store)} images"
            )
        _check_labels(self.labels, len(self.rows), self.classes)
        if len(self.ids) != len(self.rows):
            raise DataError(f"ids: {len(self.ids)} for {len(self.rows)} images")
        if self.features and len(self.features.values) != len(self.store):
            raise DataError(f"features: {len(self.features.values)} for {len(self.store)} images")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Tensor | slice) -> Tensor:
        """Some of the images, uint8 (n, C, S, S), by position in this split: int64 (n,) or a slice."""
        return self.store.index_select(
            0, self.rows[which]
        )  # copies whole rows: seven times as fast as indexing

    def select(self, which: Tensor) -> "Split":
        """Some of the images as a split of their own, by position in this one: int64 (n,), n > 0."""
        ids = tuple(self.ids[place] for place in which.tolist())
        return Split(
            self.store, self.rows[which], self.labels[which], self.classes, ids, self.features
        )

    def blocks(self, size: int = 512) -> Iterator[Tensor]:
        """All images in order, uint8 (up to size, C, S, S) at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Unit vectors and their labels.

    vectors: float32 (N, D), finite, each row of length 1 to 1e-3. labels: int64 (N,).
    Raises DataError otherwise.
    """

    vectors: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.vectors.dtype != torch.float32 or self.vectors.ndim != 2:
            raise DataError(
                f"vectors: {self.vectors.dtype} {tuple(self.vectors.shape)}; give float32 (N, D)"
            )
        _check_labels(self.labels, len(self.vectors), self.classes)
        # A NaN or an infinity fails this comparison too.
        if not bool(((self.vectors.norm(dim=1) - 1).abs() < 1e-3).all()):
            raise DataError("vectors: a row is not finite or not of unit length; L2-normalise them")

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, eq=False)
class EpochLog:
    """What one epoch of stage one did.

    epoch: from 1. loss: mean over steps. active_share: of the batches' triplets, those with a loss above 0.
    mean_distance: mean distance between two rows of a batch, in the loss's unit: [0, 2], squared [0, 4].
    val_knn, val_triplet: kNN and triplet accuracy on validation, None where nothing was measured.
    """

    epoch: int
    loss: float
    active_share: float
    mean_distance: float
    val_knn: float | None
    val_triplet: float | None

    @property
    def collapsed(self) -> bool:
        """Whether nearly all images have landed on one point, where the loss sits at the margin."""
        return self.mean_distance < 0.05


@dataclass(frozen=True, eq=False)
class HeadLog:
    """Where stage two came to rest under one strength of weight decay.

    epoch: passes over the vectors so far, all strengths together. loss: training loss with the penalty.
    val_loss (at the best temperature), val_accuracy: None without validation. converged: False if the passes ran out first.
    """

    epoch: int
    loss: float
    val_loss: float | None
    val_accuracy: float | None
    weight_decay: float
    converged: bool


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything that going on with stage one needs; going on from it is going on as if nothing had happened.

    Its tensors are the live ones: save or copy it before the next step.
    step: optimiser steps done so far in all epochs, of `steps` in all. sums: running sums of the current epoch's log.
    best: the weights of the best epoch so far and its score, or None before the first validation.
    """

    step: int
    steps: int
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    sampler: dict[str, Any]
    generator: Tensor
    history: tuple[EpochLog, ...]
    sums: tuple[float, float, float]
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None


@dataclass(frozen=True, eq=False)
class EmbeddingCheckpoint:
    """Stage one's result: the network and the record that says how it came about.

    record: JSON-ready; `network` (how to build it), `classes`, `settings`, `read`, `source`, `fingerprint`, `history`.
    digest: of the network's weights and buffers (`stages.network.state_digest`).
    """

    network: nn.Module
    classes: tuple[str, ...]
    record: dict[str, Any]
    digest: str


@dataclass(frozen=True, eq=False)
class ClassifierCheckpoint:
    """Stage two's result: the frozen network under its head, and the gallery that kNN needs.

    embedding_digest: of the embedding it was trained on; the embedder's weights and buffers equal it.
    gallery: the training part's embeddings; gallery_ids their images' ids.
    temperature: divides the head's log-probabilities before the softmax; fitted on validation. k: of kNN, chosen there.
    """

    network: nn.Module
    head: nn.Module
    gallery: Embeddings
    gallery_ids: tuple[str, ...]
    classes: tuple[str, ...]
    record: dict[str, Any]
    embedding_digest: str
    digest: str
    temperature: float
    k: int
