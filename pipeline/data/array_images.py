"""Prepare images that are arrays in memory, as files are prepared."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.data.dataset import Source
from pipeline.data.decode import FACT, FILE_MODE, Decoded, own_size, prepare_image
from pipeline.data.entries import Entry
from pipeline.data.jpeg_reduction import any_reduced
from pipeline.data.resizing import Pixels
from stages.settings import ReadSettings


def prepare_arrays(
    images: npt.NDArray[np.uint8], *, size: int, channels: int | None, resize: str
) -> Iterator[Decoded]:
    """Fit images to a square; see :func:`pipeline.data.decode.prepare_image`.

    Args:
        images: uint8, shape (N, H, W) or (N, H, W, 3).
        size: Side of the square in pixels.
        channels: 1 or 3. ``None`` chooses it for each image.
        resize: How images are fitted to a square.

    Yields:
        The N square images.
    """
    for pixels in images:
        contiguous = np.ascontiguousarray(pixels)
        content = hashlib.sha256(contiguous.data).hexdigest()
        image = Image.fromarray(contiguous)
        image.info[FILE_MODE] = image.mode
        yield prepare_image(image, content, size, channels, resize)


def stack_images(images: Sequence[Decoded]) -> Pixels:
    """Return images of one size as one array.

    Args:
        images: N images. Grey ones among colour images are repeated in all three channels.

    Returns:
        uint8, shape (N, C, S, S).
    """
    channels = max(image.shape[0] for image in images)
    size = images[0].shape[-1]
    stacked = np.empty((len(images), channels, size, size), np.uint8)
    for row, image in enumerate(images):
        stacked[row] = np.frombuffer(image.pixels, np.uint8).reshape(image.shape)
    return stacked


def source_from_arrays(
    name: str, images: npt.NDArray[np.uint8], entries: Sequence[Entry], read: ReadSettings
) -> Source:
    """Return a source of images that are in memory.

    Size and channels are chosen as for files: images of at most 64 pixels keep their size, and
    there is one channel if all images are grey.

    Args:
        name: Name of the source.
        images: At least one image, uint8, shape (M, H, W) or (M, H, W, 3).
        entries: Entries of the M images.
        read: Settings for reading images.
    """
    height, width = images.shape[1:3]
    size = read.size or own_size(width, height)
    prepared = list(prepare_arrays(images, size=size, channels=read.channels, resize=read.resize))
    pixels = stack_images(prepared)  # (M, C, S, S)
    facts = np.array([image.fact for image in prepared], FACT)
    jpeg = "reduced" if any_reduced(facts, size, read) else "full"
    return Source(
        name=name,
        entries=tuple(entries),
        images=torch.from_numpy(pixels),
        facts=facts,
        read=replace(read, size=size, channels=pixels.shape[1], jpeg=jpeg),
        skipped=(),
        notes=(),
    )
