"""Fit images to a square and to a number of channels.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right and bottom edge in pixels
# From this version on, Pillow resizes the rows of some images before their columns.
RESIZES_ROWS_FIRST = int(PIL.__version__.split(".")[0]) >= 13


def fit_to_square(image: Image.Image, size: int, resize: str, box: Box | None = None) -> Pixels:
    """Fit an image to a square.

    Args:
        image: Image of mode ``L`` or ``RGB``.
        size: Side of the square in pixels.
        resize: ``pad-repeat`` resizes the longest side to ``size`` and repeats the image over the
            square. ``pad`` does the same with the image centred on its median colour. ``crop``
            resizes the central square. ``stretch`` resizes both sides to ``size``.
        box: Part of the image to use. ``None``: all of it.

    Returns:
        uint8 (size, size) or (size, size, 3).
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    width, height = right - left, bottom - top
    if image.size == (width, height) == (size, size):
        return np.asarray(image)
    box = left, top, right, bottom
    if resize in ("stretch", "crop"):
        if resize == "crop":
            side = min(width, height)
            left, top = left + (width - side) / 2, top + (height - side) / 2
            box = left, top, left + side, top + side
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    target = _padded_size(width, height, size)
    if target != image.size:
        image = image.resize(target, Image.Resampling.BILINEAR, box)
    pixels: Pixels = np.asarray(image)
    if resize == "pad":
        return _pad(pixels, size)
    rows, columns = np.arange(size) % pixels.shape[0], np.arange(size) % pixels.shape[1]
    repeated: Pixels = pixels[rows][:, columns]
    return repeated


def image_area(width: int, height: int, size: int, resize: str) -> tuple[int, int, int, int]:
    """Locate the original image in the square made by :func:`fit_to_square`.

    Args:
        width: Width of the original image.
        height: Height of the original image.
        size: Side of the square in pixels.
        resize: As for :func:`fit_to_square`. The squares of ``crop`` and ``stretch`` have no
            padding.

    Returns:
        Left, top, right and bottom edge in pixels.

    Example:
        >>> image_area(400, 200, 64, "pad-repeat"), image_area(400, 200, 64, "pad")
        ((0, 0, 64, 32), (0, 16, 64, 48))
    """
    if resize in ("stretch", "crop"):
        return 0, 0, size, size
    right, bottom = _padded_size(width, height, size)
    left, top = _padding(right, bottom, size) if resize == "pad" else (0, 0)
    return left, top, left + right, top + bottom


def _padded_size(width: float, height: float, size: int) -> tuple[int, int]:
    """Return width and height of an image whose longest side is resized to ``size``."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _padding(width: int, height: int, size: int) -> tuple[int, int]:
    """Return the left and top edge of an image centred on a square."""
    return (size - width) // 2, (size - height) // 2


def _pad(pixels: Pixels, size: int) -> Pixels:
    """Centre an image on a square of its median colour."""
    height, width = pixels.shape[:2]
    canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
    canvas[:] = np.median(pixels.reshape(height * width, -1), axis=0).reshape(pixels.shape[2:])
    left, top = _padding(width, height, size)
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert an image to grey or to three channels, channels first.

    Args:
        pixels: uint8 (S, S) or (S, S, 3).
        channels: 1 or 3.

    Returns:
        uint8 (channels, S, S). A grey image is repeated in all three channels.

    Example:
        >>> to_channels(np.zeros((8, 8), np.uint8), 3).shape
        (3, 8, 8)
    """
    if channels == 1:
        grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
        return grey[None]  # (1, S, S)
    if pixels.ndim == 2:
        return np.broadcast_to(pixels, (3, *pixels.shape))
    return pixels.transpose(2, 0, 1)  # (3, S, S)
