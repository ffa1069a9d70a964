"""Thumbnails of images for the page."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image

MAP_BYTES = 5_000_000  # limit for all thumbnails of the map
SIZES = ((64, 70), (48, 60), (32, 50), (24, 30))  # side in pixels, WebP quality


def thumbnail(image: torch.Tensor, *, side: int = 64, quality: int = 70) -> str:
    """Return an image as a WebP data URI.

    Args:
        image: Pixels, uint8, shape (C, S, S), with one or three channels.
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
        images: Pixels, uint8, shape (C, S, S) each.
    """
    sample = images[:: max(1, len(images) // 50)]
    for side, quality in SIZES:
        sizes = [len(thumbnail(image, side=side, quality=quality)) for image in sample]
        if sum(sizes) / len(sizes) * len(images) < MAP_BYTES:
            break
    return [thumbnail(image, side=side, quality=quality) for image in images]
