"""Turn image files into embedding vectors: for every command that uses a trained checkpoint."""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.array_images import prepare_arrays, stack_images
from pipeline.data.decode import read_pixels
from pipeline.data.entries import Skipped
from pipeline.data.image_paths import GivenImages
from pipeline.processes import all_gather_objects
from stages.checkpoints import ClassifierCheckpoint, EmbeddingCheckpoint
from stages.distributed import rank_and_world_size
from stages.network.inference import BLOCK_SIZE, embed_images

Embedder = EmbeddingCheckpoint | ClassifierCheckpoint

# Images that a thread decodes and embeds at a time: few, so that they stay in the core's cache.
# Embedding 64-pixel photos takes a quarter less time per image than with 128.
PART_SIZE = 32


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


class _Decoded(NamedTuple):
    """Image files after decoding: reasons as in ``ImageBlock``, and pixels of those readable."""

    reasons: list[str]
    images: Tensor  # uint8 (R, C, S, S)


def embed_files(
    paths: Iterable[str], embedder: Embedder, *, device: torch.device
) -> Iterator[ImageBlock]:
    """Decode and embed image files in their order, in blocks: any number fits into memory.

    Images are prepared as in training. On a CPU, threads share the files of a block; each decodes
    and embeds its part on one core. That is faster than worker processes that decode, which compete
    with the network for the cores. The processes of a distributed run share the work too, and each
    gets all vectors. While the generator is suspended, torch uses one core in threads that the
    caller starts.

    Args:
        paths: Paths of image files, the same in all processes. They are taken as they are needed,
            so they may come from a stream.
        embedder: Checkpoint whose network is on ``device``.
        device: Device to compute on.

    Yields:
        Blocks of up to 128 files per process.
    """
    rank, world_size = rank_and_world_size()
    queue = iter(paths)
    embedder.network.eval()  # here, because threads must not change the mode of a shared network
    with _single_core_threads() as pool:
        while block := tuple(islice(queue, BLOCK_SIZE * world_size)):
            own = block[rank * BLOCK_SIZE : (rank + 1) * BLOCK_SIZE]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of many defects that do no harm
                embedded = _embed_block(own, embedder, device, pool)
            parts = all_gather_objects(embedded)
            yield ImageBlock(
                paths=block,
                reasons=tuple(reason for part in parts for reason in part.reasons),
                vectors=torch.cat([part.vectors for part in parts]),
            )


def embed_given(
    given: GivenImages, embedder: Embedder, *, device: torch.device
) -> Iterator[ImageBlock]:
    """Embed the images that a command is given, and count them.

    Args:
        given: The images. Those on standard input are embedded as they arrive.
        embedder: Checkpoint whose network is on ``device``.
        device: Device to compute on.

    Yields:
        Blocks of up to 128 files per process.
    """
    for paths in given.batches():
        for block in embed_files(paths, embedder, device=device):
            for path, reason in zip(block.paths, block.reasons, strict=True):
                given.count(path, reason)
            yield block


@contextmanager
def _single_core_threads() -> Iterator[ThreadPoolExecutor]:
    """Start as many threads as torch uses; in each of them torch uses one core."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(threads)  # for threads that are started later


def _embed_block(
    paths: tuple[str, ...], embedder: Embedder, device: torch.device, pool: ThreadPoolExecutor
) -> ImageBlock:
    """Decode and embed up to 128 image files."""

    def decode(part: tuple[str, ...]) -> _Decoded:
        return _decode(part, embedder.record["read"])

    def decode_and_embed(part: tuple[str, ...]) -> tuple[list[str], Tensor]:
        reasons, images = decode(part)
        return reasons, _embed(images, embedder, device)

    parts = _divide(paths, torch.get_num_threads())
    if len(parts) == 1:  # all cores share the operations of a single image
        outcomes = [decode_and_embed(paths)]
    elif device.type == "cpu":
        outcomes = list(pool.map(decode_and_embed, parts))
    else:  # another device embeds all images at once
        decoded = list(pool.map(decode, parts))
        images = torch.cat([part.images for part in decoded])
        reasons = [reason for part in decoded for reason in part.reasons]
        outcomes = [(reasons, _embed(images, embedder, device))]
    return ImageBlock(
        paths=paths,
        reasons=tuple(reason for reasons, _ in outcomes for reason in reasons),
        vectors=torch.cat([vectors for _, vectors in outcomes]),
    )


def _divide(paths: tuple[str, ...], threads: int) -> list[tuple[str, ...]]:
    """Divide paths into parts of similar size, at most ``PART_SIZE``, equally many per thread.

    Example:
        >>> [len(part) for part in _divide(("",) * 128, threads=3)]
        [22, 22, 22, 22, 22, 18]
    """
    parts_per_thread = -(-len(paths) // (PART_SIZE * threads))
    size = -(-len(paths) // (threads * parts_per_thread)) if paths else 1
    return [paths[start : start + size] for start in range(0, len(paths), size)] or [()]


def _decode(paths: tuple[str, ...], read: dict[str, Any]) -> _Decoded:
    """Decode image files as in training."""
    size, channels = read["size"], read["channels"]
    resize, jpeg = read["resize"], read["jpeg"]
    reasons: list[str] = []
    images = [np.empty((0, channels, size, size), np.uint8)]
    for path in paths:
        pixels = read_pixels(path, size=size, channels=channels, resize=resize, jpeg=jpeg)
        if isinstance(pixels, str):
            reasons.append(pixels)
        else:
            reasons.append("")
            images.append(pixels[None])
    return _Decoded(reasons, torch.from_numpy(np.concatenate(images)))


def _embed(images: Tensor, embedder: Embedder, device: torch.device) -> Tensor:
    """Return the vectors of images that may be none, float32 (R, D)."""
    if len(images) == 0:
        return torch.empty(0, embedder.record["network"]["dim"])
    return embed_images(embedder.network, [images], device=device)


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
