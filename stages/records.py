"""Data classes passed between the stages, checked on construction.

They are frozen and use ``eq=False``, because comparing tensor fields with ``==`` would raise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.errors import DataError
from stages.gpu import copy_to

COLLAPSED = 0.05  # mean Euclidean distance below which nearly all embeddings coincide


def _check_labels(labels: Tensor, count: int, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise DataError(
            f"labels: {labels.dtype} {tuple(labels.shape)} for {count} rows; give int64 ({count},)"
        )
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < len(classes)):
        raise DataError(
            f"labels: {int(labels.min())} to {int(labels.max())} with {len(classes)} class names; "
            f"give labels from 0 to {len(classes) - 1}"
        )


@dataclass(frozen=True, eq=False)
class TrunkFeatures:
    """Features that a frozen trunk computed for the images of a store.

    Attributes:
        values: Features of V fixed views of all M images, float32, shape (M, V, F). The first view
            is the unchanged image.
        digest: Digest of the trunk, from
            :meth:`stages.network.embedding_net.EmbeddingNet.trunk_digest`.
    """

    values: Tensor
    digest: str


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images of one split: training, validation or test.

    All splits share one image store. It may be a memory-mapped file that is larger than memory,
    so the stages never copy it into memory. Training may copy its images to a GPU.

    Attributes:
        store: Images of all splits, uint8, shape (M, C, S, S).
        rows: Positions of this split's images in ``store``, int64, shape (N,). Splits without an
            image are used for evaluation only, where all test images are of unseen classes.
        labels: Class indices, int64, shape (N,), in [0, number of classes).
        classes: Class names.
        ids: Names of the N images, shown to users.
        features: Features of a frozen trunk for all images of ``store``, or None.
        queries: In retrieval, True for queries and False for gallery images, bool, shape (N,).
            None: every image is both.

    Raises:
        DataError: If the fields do not fit together.

    Example:
        >>> store = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
        >>> split = Split(
        ...     store=store,
        ...     rows=torch.tensor([0, 2, 4]),
        ...     labels=torch.tensor([0, 1, 0]),
        ...     classes=("cat", "dog"),
        ...     ids=("0.png", "2.png", "4.png"),
        ... )
        >>> len(split), split.take(slice(2)).shape
        (3, torch.Size([2, 1, 8, 8]))
        >>> split.select(torch.tensor([1])).ids
        ('2.png',)
    """

    store: Tensor
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    features: TrunkFeatures | None = None
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        if self.store.dtype != torch.uint8 or self.store.ndim != 4:
            raise DataError(
                f"images: {self.store.dtype} {tuple(self.store.shape)}; give uint8 (M, C, S, S)"
            )
        if len(self.rows) and not (
            0 <= int(self.rows.min()) and int(self.rows.max()) < len(self.store)
        ):
            raise DataError(
                f"rows: {int(self.rows.min())} to {int(self.rows.max())} for {len(self.store)} "
                f"images; give rows from 0 to {len(self.store) - 1}"
            )
        _check_labels(self.labels, len(self.rows), self.classes)
        if len(self.ids) != len(self.rows):
            raise DataError(f"ids: {len(self.ids)} for {len(self.rows)} images; give one per image")
        if self.features and len(self.features.values) != len(self.store):
            raise DataError(
                f"features: {len(self.features.values)} for {len(self.store)} images; "
                "give one row per image of the store"
            )
        queries = self.queries
        if queries is not None and (queries.dtype, queries.shape) != (torch.bool, self.rows.shape):
            raise DataError(
                f"queries: {queries.dtype} {tuple(queries.shape)} for {len(self.rows)} images; "
                f"give bool ({len(self.rows)},)"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: Tensor | slice) -> Tensor:
        """Return images by their position in this split.

        Args:
            which: Positions, int64, shape (n,), or a slice.

        Returns:
            Images, uint8, shape (n, C, S, S), on the device of the store.
        """
        # index_select copies whole rows: seven times as fast as indexing.
        return self.store.index_select(0, copy_to(self.rows[which], self.store.device))

    def select(self, which: Tensor) -> "Split":
        """Return a split with some of the images.

        Args:
            which: Positions in this split, int64, shape (n,).

        Returns:
            A split that shares this split's store.
        """
        ids = tuple(self.ids[position] for position in which.tolist())
        queries = None if self.queries is None else self.queries[which]
        return replace(
            self, rows=self.rows[which], labels=self.labels[which], ids=ids, queries=queries
        )

    def blocks(self, size: int = 512) -> Iterator[Tensor]:
        """Iterate over all images in order.

        Args:
            size: Largest number of images per block.

        Yields:
            Images, uint8, shape (up to ``size``, C, S, S).
        """
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Labelled unit vectors.

    Attributes:
        vectors: L2-normalised embeddings, float32, shape (N, D); each length is 1 to within 1e-3.
        labels: Class indices, int64, shape (N,), in [0, number of classes).
        classes: Class names.

    Raises:
        DataError: If the fields do not fit together or a vector is not of unit length.

    Example:
        >>> vectors = torch.nn.functional.normalize(torch.ones(2, 3))
        >>> len(Embeddings(vectors, labels=torch.tensor([0, 1]), classes=("cat", "dog")))
        2
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
        # This comparison is false for NaN and infinity too.
        if not bool(((self.vectors.norm(dim=1) - 1).abs() < 1e-3).all()):
            raise DataError("vectors: a row is not finite or not of unit length; L2-normalise them")

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, eq=False)
class EpochLog:
    """Training and validation scores of one epoch of stage one.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean training loss over the epoch's steps.
        active_share: Share of the batches' triplets with a loss above 0, mean over steps. None for
            a loss of a library, which need not have triplets.
        mean_distance: Mean distance between two rows of a batch, in the unit of the loss: [0, 2]
            for Euclidean, [0, 4] for squared distances.
        val_knn: kNN accuracy on validation, None if it was not measured.
        val_triplet: Triplet accuracy on validation, None if it was not measured.
        val_recall: Recall@1 on the held-out classes, None if it was not measured.
    """

    epoch: int
    loss: float
    active_share: float | None
    mean_distance: float
    val_knn: float | None
    val_triplet: float | None
    val_recall: float | None = None

    @property
    def validated(self) -> bool:
        """True if a validation score was measured after the epoch."""
        return self.val_knn is not None or self.val_recall is not None

    def collapsed(self, distance: str) -> bool:
        """Return True if nearly all images have the same embedding.

        The loss then equals the margin.

        Args:
            distance: Distance of the loss, ``euclidean`` or ``squared``.
        """
        return self.mean_distance < (COLLAPSED if distance == "euclidean" else COLLAPSED**2)


@dataclass(frozen=True, eq=False)
class HeadLog:
    """Result of training the head with one weight decay.

    Attributes:
        epoch: L-BFGS passes over the vectors so far, summed over all weight decays.
        loss: Training loss including the penalty.
        val_loss: Validation loss at the best temperature, None without validation.
        val_accuracy: Validation accuracy, None without validation.
        weight_decay: Strength of the L2 penalty.
        converged: False if the iteration limit was reached first.
    """

    epoch: int
    loss: float
    val_loss: float | None
    val_accuracy: float | None
    weight_decay: float
    converged: bool


class KeptEpoch(NamedTuple):
    """The epoch whose weights would be kept if training ended now.

    Attributes:
        highest: Highest validation score of any epoch so far.
        epoch: Number of the epoch, from 1.
        network: State dict of its network.
    """

    highest: float
    epoch: int
    network: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything needed to resume stage one.

    A resumed run ends with bit-identical weights. The tensors are the live ones: save or copy
    them before the next step.

    Attributes:
        step: Optimiser steps done so far, over all epochs.
        steps: Optimiser steps of the whole run.
        network: State dict of the network.
        optimiser: State dict of the optimiser.
        sampler: State dict of the batch sampler.
        generator: State of torch's global random generator on the CPU.
        history: Logs of the finished epochs.
        sums: Sums over the current epoch's steps of the loss, the active share and the mean
            distance.
        kept: The epoch to keep so far, or None before the first validation.
        loss: State of a library's loss: its weights, queues and counters. Empty for the triplet
            loss.
    """

    step: int
    steps: int
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    sampler: dict[str, Any]
    generator: Tensor
    history: tuple[EpochLog, ...]
    sums: tuple[float, float, float]
    kept: KeptEpoch | None
    loss: dict[str, Tensor] = field(default_factory=dict)
