"""Decode large JPEG images at a half, a quarter or an eighth of their size.

A JPEG stores frequencies of blocks of 8 x 8 pixels. The decoder computes a smaller image from the
lowest of them, several times faster than the full one.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.resizing import Box
from stages.settings import ReadSettings

REDUCTIONS = (8, 4, 2)  # of Pillow
# A reduced image is at least so many times as large as the square, so that resizing still averages
# over several pixels. Then 0.1% of the pixels differ by more than 2 grey levels from those of the
# full image; with 2 instead of 3 it would be 1.3% (benchmarks/reduced_photos.py).
OVERSIZE = 3
# EXIF orientations for which the right edge moves to the left, and the lower edge to the top.
RIGHT_TO_LEFT, BOTTOM_TO_TOP, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)


def jpeg_reduction(width: int, height: int, size: int, resize: str) -> int:
    """Return by how much a JPEG may be reduced before it is fitted to a square: 8, 4, 2 or 1.

    Args:
        width: Width of the image.
        height: Height of the image.
        size: Side of the square in pixels.
        resize: How it is fitted to the square; see :func:`pipeline.data.resizing.fit_to_square`.

    Example:
        >>> jpeg_reduction(4000, 3000, 64, "pad"), jpeg_reduction(800, 600, 64, "pad")
        (8, 4)
    """
    # `crop` and `stretch` make the square from the shorter side, the others from the longer one.
    side = min(width, height) if resize in ("crop", "stretch") else max(width, height)
    for reduction in REDUCTIONS:
        if side >= reduction * OVERSIZE * size:
            return reduction
    return 1


def any_reduced(facts: npt.NDArray[Any], size: int, read: ReadSettings) -> bool:
    """Return True if the settings reduce one of the images if it is a JPEG.

    Args:
        facts: Facts about each image, (M,), dtype ``FACT``.
        size: Side of the square in pixels.
        read: How images are read.
    """
    if read.jpeg == "full":
        return False
    shorter = np.minimum(facts["width"], facts["height"])
    longer = np.maximum(facts["width"], facts["height"])
    sides = shorter if read.resize in ("crop", "stretch") else longer
    return bool((sides >= min(REDUCTIONS) * OVERSIZE * size).any())


def reduce_jpeg(image: Image.Image, reduction: int) -> tuple[float, float]:
    """Make Pillow decode a JPEG that has been opened at a fraction of its size.

    Args:
        image: Image that has not been decoded.
        reduction: 8, 4, 2 or 1. Very thin images are reduced less.

    Returns:
        Width and height of the image in pixels of the reduced one. If they are no whole numbers,
        the last column or row of the reduced image is only partly filled.
    """
    width, height = image.size
    if reduction == 1:
        return width, height
    drafted = image.draft(None, (max(1, width // reduction), max(1, height // reduction)))
    if drafted is None:
        return width, height
    _, (_, _, right, bottom) = drafted
    return right, bottom


def oriented_box(filled: tuple[float, float], image: Image.Image, orientation: int) -> Box:
    """Locate the filled part of a reduced image after its EXIF orientation has been applied.

    Args:
        filled: Width and height from :func:`reduce_jpeg`.
        image: Image after the orientation.
        orientation: EXIF orientation that has been applied, 1 to 8.
    """
    width, height = filled
    if orientation in TRANSPOSED:
        width, height = height, width
    left = image.width - width if orientation in RIGHT_TO_LEFT else 0
    top = image.height - height if orientation in BOTTOM_TO_TOP else 0
    return left, top, left + width, top + height
