"""Turn image files into embedding vectors: for every command that uses a trained checkpoint."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.array_images import prepare_arrays, stack_images
from pipeline.data.dataset import Skipped
from pipeline.data.decode import decode_files
from pipeline.processes import all_gather_objects
from stages.checkpoints import ClassifierCheckpoint, EmbeddingCheckpoint
from stages.distributed import rank_and_world_size
from stages.network.inference import BLOCK_SIZE, embed_images

Embedder = EmbeddingCheckpoint | ClassifierCheckpoint


class ImageBlock(NamedTuple):
    """Vectors of consecutive image files.

    Attributes:
        paths: Paths of the B files, as given.
        reasons: Why each file cannot be read; empty if it can.
        vectors: Unit vectors of the R readable images in their order, float32, shape (R, D).
    """

    paths: tuple[str, ...]
    reasons: tuple[str, ...]
    vectors: Tensor

    @property
    def readable(self) -> list[str]:
        """Paths of the images that could be read, one per vector."""
        return [path for path, reason in zip(self.paths, self.reasons, strict=True) if not reason]

    @property
    def skipped(self) -> list[Skipped]:
        """Images that could not be read."""
        outcomes = zip(self.paths, self.reasons, strict=True)
        return [Skipped(path, reason) for path, reason in outcomes if reason]


def embed_files(
    paths: Iterable[str], embedder: Embedder, *, device: torch.device
) -> Iterator[ImageBlock]:
    """Decode and embed image files in their order, in blocks: any number fits into memory.

    Images are prepared as in training. The processes of a distributed run share the work, and each
    gets all vectors.

    Args:
        paths: Paths of image files, the same in all processes.
        embedder: Checkpoint whose network is on ``device``.
        device: Device to compute on.

    Yields:
        Blocks of up to 128 files per process.
    """
    rank, world_size = rank_and_world_size()
    queue = iter(paths)
    while block := tuple(islice(queue, BLOCK_SIZE * world_size)):
        own = block[rank * BLOCK_SIZE : (rank + 1) * BLOCK_SIZE]
        parts = all_gather_objects(_embed_block(own, embedder, device))
        yield ImageBlock(
            paths=block,
            reasons=tuple(reason for part in parts for reason in part.reasons),
            vectors=torch.cat([part.vectors for part in parts]),
        )


def _embed_block(paths: tuple[str, ...], embedder: Embedder, device: torch.device) -> ImageBlock:
    """Decode and embed up to 128 image files."""
    read, network = embedder.record["read"], embedder.network
    outcomes = decode_files(
        paths, size=read["size"], channels=read["channels"], resize=read["resize"]
    )
    images: list[np.ndarray] = []
    reasons: list[str] = []
    for outcome in outcomes:
        if isinstance(outcome, str):
            reasons.append(outcome)
        else:
            reasons.append("")
            images.append(np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape))
    vectors = torch.empty(0, embedder.record["network"]["dim"])
    if images:
        batch = torch.from_numpy(np.stack(images))  # (R, C, S, S)
        vectors = embed_images(network, [batch], device=device)  # (R, D)
    return ImageBlock(paths, tuple(reasons), vectors)


def embed_arrays(
    images: npt.NDArray[np.uint8], embedder: Embedder, *, device: torch.device
) -> Tensor:
    """Embed images that are in memory, prepared as in training.

    Args:
        images: At least one image, uint8, shape (N, H, W) or (N, H, W, 3).
        embedder: Checkpoint whose network is on ``device``.
        device: Device to compute on.

    Returns:
        Unit vectors, float32, shape (N, D).
    """
    read = embedder.record["read"]

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(images), BLOCK_SIZE):
            prepared = prepare_arrays(
                images[start : start + BLOCK_SIZE],
                size=read["size"],
                channels=read["channels"],
                resize=read["resize"],
            )
            yield torch.from_numpy(stack_images(list(prepared)))  # (B, C, S, S)

    return embed_images(embedder.network, batches(), device=device)
