"""Gallery: vectors to search, with the id and, where it is known, the class of each image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.errors import DataError

UNLABELLED = -1  # label of an image whose class is unknown


@dataclass(frozen=True, eq=False)
class Gallery:
    """Embedding vectors of images, read in blocks, so that they need not fit into memory.

    Attributes:
        blocks: Returns an iterator over the vectors in order: unit vectors, float32, shape (n, D),
            with any n per block. It can be called again.
        ids: Names of the G images, shown to users.
        labels: Class indices, int64, shape (G,); ``UNLABELLED`` where the class is unknown.
        classes: Class names.
        embedding_digest: Digest of the embedding network that computed the vectors.

    Raises:
        DataError: If the fields do not fit together.

    Example:
        >>> gallery = gallery_of(torch.eye(3), ("a.png", "b.png", "c.png"), embedding_digest="d")
        >>> len(gallery), gallery.class_name(0)
        (3, '')
    """

    blocks: Callable[[], Iterator[Tensor]]
    ids: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]
    embedding_digest: str

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.ids),):
            raise DataError(
                f"labels: {self.labels.dtype} {tuple(self.labels.shape)} for {len(self.ids)} "
                f"images; give int64 ({len(self.ids)},)"
            )
        if len(self.labels) and not (
            int(self.labels.min()) >= UNLABELLED and int(self.labels.max()) < len(self.classes)
        ):
            raise DataError(
                f"labels: {int(self.labels.min())} to {int(self.labels.max())} with "
                f"{len(self.classes)} class names; give labels from {UNLABELLED} to "
                f"{len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def class_name(self, row: int) -> str:
        """Return the class of an image, empty if it is unknown."""
        label = int(self.labels[row])
        return "" if label == UNLABELLED else self.classes[label]


def gallery_of(
    vectors: Tensor,
    ids: tuple[str, ...],
    *,
    embedding_digest: str,
    labels: Tensor | None = None,
    classes: tuple[str, ...] = (),
    block_size: int = 65_536,
) -> Gallery:
    """Return a gallery of vectors in memory.

    Args:
        vectors: Unit vectors, float32, shape (G, D).
        ids: Names of the G images.
        embedding_digest: Digest of their embedding network.
        labels: Class indices, int64, shape (G,). None: all are unknown.
        classes: Class names.
        block_size: Largest number of vectors per block.
    """
    if labels is None:
        labels = torch.full((len(ids),), UNLABELLED)
    return Gallery(
        blocks=lambda: iter(vectors.split(block_size)),
        ids=ids,
        labels=labels,
        classes=classes,
        embedding_digest=embedding_digest,
    )
