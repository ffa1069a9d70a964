"""Thumbnails of images for the page."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image

MAP_BYTES = 5_000_000  # of thumbnails


def thumbnail(image: torch.Tensor, *, side: int = 64, quality: int = 70) -> str:
    """An image, uint8 (C, S, S), as a WebP data URI of at most `side` pixels."""
    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side))
    content = BytesIO()
    picture.save(content, "WEBP", quality=quality, method=2)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def small_thumbnails(images: Sequence[torch.Tensor]) -> list[str]:
    """Thumbnails that together stay below 5 MB, as large and as good as that allows."""
    some = images[:: max(1, len(images) // 50)]
    for side, quality in ((64, 70), (48, 60), (32, 50), (24, 30)):
        size = sum(len(thumbnail(image, side=side, quality=quality)) for image in some) / len(some)
        if size * len(images) < MAP_BYTES:
            break
    return [thumbnail(image, side=side, quality=quality) for image in images]
