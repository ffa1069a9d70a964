"""Compute the digest of an image's pixels, and whether it is grey.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.data.resizing import Pixels

BAND_PIXELS = 4_000_000  # larger images are converted and hashed in bands of rows


def grey_and_digest(image: Image.Image) -> tuple[bool, str]:
    """Return True if an image is grey, and the SHA-256 of its pixels, hexadecimal.

    A grey image has the same digest in any mode.
    """
    digest, grey_digest = hashlib.sha256(), hashlib.sha256()
    grey = True
    for band, _ in bands(image):
        pixels = np.asarray(band)  # (H, W) or (H, W, 3)
        digest.update(np.ascontiguousarray(pixels).data)
        grey = grey and (pixels.ndim == 2 or is_grey(pixels))
        if grey and pixels.ndim == 3:
            grey_digest.update(np.ascontiguousarray(pixels[..., 0]).data)
    if grey and image.mode != "L":
        digest = grey_digest
    digest.update(f"{image.width}x{image.height}x{2 if grey else 3}".encode())
    return grey, digest.hexdigest()


def bands(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """Yield an image in bands of rows, and the left upper corner of each band."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        yield image, (0, 0)
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield image.crop((0, top, image.width, bottom)), (0, top)


def is_grey(pixels: Pixels) -> bool:
    """Return True if the three channels of (H, W, 3) are equal."""
    # A sample of the pixels decides for nearly all colour images.
    sample = pixels[:: 1 + len(pixels) // 16, :: 1 + pixels.shape[1] // 16]
    return _channels_are_equal(sample) and _channels_are_equal(pixels)


def _channels_are_equal(pixels: Pixels) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.array_equal(red, green) and np.array_equal(red, blue)
