"""Thumbnails of images for the page."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from pipeline.data.dataset import Source
from pipeline.data.resizing import image_area
from stages.records import Split

MAP_BYTES = 5_000_000  # limit for all thumbnails of the map
SIZES = ((64, 70), (48, 60), (32, 50), (24, 30))  # side in pixels, WebP quality


def unpadded_image(split: Split, row: int, source: Source) -> torch.Tensor:
    """Return an image of a split without the padding that makes it square.

    Args:
        split: Split of the source.
        row: Position in the split.
        source: Source that all images of the split belong to.

    Returns:
        Pixels, uint8, shape (C, H, W).
    """
    image = split.take(slice(row, row + 1))[0]
    fact = source.facts[int(split.rows[row])]
    width, height = int(fact["width"]), int(fact["height"])
    left, top, right, bottom = image_area(width, height, image.shape[-1], source.read.resize)
    return image[:, top:bottom, left:right]


def thumbnail(image: torch.Tensor, *, side: int = 64, quality: int = 70) -> str:
    """Return an image as a WebP data URI.

    Args:
        image: Pixels, uint8, shape (C, H, W), with one or three channels.
        side: Longest side of the thumbnail in pixels.
        quality: WebP quality, 0 to 100.
    """
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side))
    content = BytesIO()
    picture.save(content, "WEBP", quality=quality, method=2)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def small_thumbnails(images: Sequence[torch.Tensor]) -> list[str]:
    """Return thumbnails of the largest size at which all together are expected below 5 MB.

    Args:
        images: Pixels, uint8, shape (C, H, W) each.
    """
    sample = images[:: max(1, len(images) // 50)]
    for side, quality in SIZES:
        sizes = [len(thumbnail(image, side=side, quality=quality)) for image in sample]
        if sum(sizes) / len(sizes) * len(images) < MAP_BYTES:
            break
    return [thumbnail(image, side=side, quality=quality) for image in images]
