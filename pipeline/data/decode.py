"""Decode image files into square uint8 arrays.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# Largest side of images that keep their own size; larger images are resized to this one.
MAX_OWN_SIZE = 64
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this
MAX_FILE_BYTES = 2**30
# Formats to try. Pillow reads some of the others by starting external programs (EPS).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")
# Non-blocking: opening a named pipe would otherwise wait for a writer.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
FILE_MODE = "mode in the file"  # key in `image.info`

# What is known about each image; the fields are described in `Decoded.fact`.
FACT = np.dtype(
    [
        ("content", "S64"),
        ("pixels", "S32"),
        ("width", np.int32),
        ("height", np.int32),
        ("mode", "S8"),
        ("grey", np.bool_),
    ]
)

Pixels = npt.NDArray[np.uint8]


class Decoded(NamedTuple):
    """Decoded image.

    Attributes:
        pixels: Square image, uint8 (C, S, S), as bytes. Bytes are sent between processes ten times
            faster than an array.
        shape: (C, S, S).
        fact: Row of a ``FACT`` table: SHA-256 of the file; first half of the SHA-256 of the pixels
            before resizing; width and height in pixels; Pillow's mode of the file; True if the
            image is grey.
    """

    pixels: bytes
    shape: tuple[int, int, int]
    fact: tuple[str, str, int, int, str, bool]


Outcome = Decoded | str  # an image, or the reason why it cannot be read

# Decodes all images at a size and a number of channels; None chooses them for each image.
Decode = Callable[[int | None, int | None], Iterator[Outcome]]


def decode_files(
    paths: Sequence[str], *, size: int | None, channels: int | None, resize: str
) -> list[Outcome]:
    """Decode image files. Unreadable files cause no error.

    Args:
        paths: Paths of the files.
        size: Side of the square in pixels. ``None`` chooses it for each image.
        channels: 1 or 3. ``None`` chooses it for each image.
        resize: How images are fitted to a square; see :func:`fit_to_square`.

    Returns:
        For each file the decoded image, or the reason why it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of many defects that do no harm
        return [_decode_file(path, size, channels, resize) for path in paths]


def _decode_file(path: str, size: int | None, channels: int | None, resize: str) -> Outcome:
    try:
        content = _read_file(path)
        digest = hashlib.sha256(content).hexdigest()
        return prepare_image(decode_image(content), digest, size, channels, resize)
    except Exception as error:  # a decoder can raise any exception for a damaged file
        return _reason(error)


def _read_file(path: str) -> bytes:
    handle = os.open(path, OPEN_FLAGS)
    try:
        state = os.fstat(handle)
        if stat.S_ISDIR(state.st_mode):
            raise ValueError("a folder, not a file")
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a file")
        if state.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{state.st_size / 1e9:.1f} GB, more than an image takes")
        content = os.read(handle, state.st_size)
        while len(content) < state.st_size and (more := os.read(handle, state.st_size)):
            content += more
    finally:
        os.close(handle)
    if not content:
        raise ValueError("empty file")
    return content


def _reason(error: Exception) -> str:
    """Describe in one line, without the path, why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "missing (a broken link?)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not an image that can be read"
    return text[:200] or type(error).__name__


def prepare_image(
    image: Image.Image, content: str, size: int | None, channels: int | None, resize: str
) -> Decoded:
    """Fit a decoded image to a square and collect what is known about it.

    Args:
        image: Image of mode ``L`` or ``RGB``, for example from :func:`decode_image`.
        content: SHA-256 of the encoded image, hexadecimal.
        size: Side of the square in pixels. ``None`` keeps the longest side up to ``MAX_OWN_SIZE``.
        channels: 1 or 3. ``None`` is 1 for grey images, else 3.
        resize: How the image is fitted to the square; see :func:`fit_to_square`.

    Returns:
        The square image and its facts.
    """
    width, height = image.size
    full = np.asarray(image)  # (H, W) or (H, W, 3)
    grey = image.mode == "L" or _is_grey(full)
    if grey and full.ndim == 3:
        # A grey image has the same pixels and the same digest in any mode.
        image = image.getchannel(0)
        full = np.asarray(image)
    pixel_digest = hashlib.sha256(np.ascontiguousarray(full).data)
    pixel_digest.update(f"{width}x{height}x{full.ndim}".encode())
    mode = image.info.get(FILE_MODE, image.mode)
    side = size or min(max(width, height), MAX_OWN_SIZE)
    square = full if width == height == side else fit_to_square(image, side, resize)
    count = channels or (1 if grey else 3)
    return Decoded(
        pixels=to_channels(square, count).tobytes(),
        shape=(count, side, side),
        fact=(content, pixel_digest.hexdigest()[:32], width, height, mode, grey),
    )


def _is_grey(pixels: Pixels) -> bool:
    """Return True if the three channels of (H, W, 3) are equal."""
    # A sample of the pixels decides for nearly all colour images.
    sample = pixels[:: 1 + len(pixels) // 16, :: 1 + pixels.shape[1] // 16]
    return _channels_are_equal(sample) and _channels_are_equal(pixels)


def _channels_are_equal(pixels: Pixels) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.array_equal(red, green) and np.array_equal(red, blue)


def decode_image(content: bytes) -> Image.Image:
    """Decode an image into 8-bit grey or RGB.

    The first frame is used. EXIF orientation is applied, transparent images are put on a white
    background, and 16-bit grey values are scaled to 8 bits.

    Args:
        content: Encoded image.

    Returns:
        Image of mode ``L`` or ``RGB``. ``info["mode in the file"]`` is the original mode.

    Raises:
        ValueError: If the image has more than 89 million pixels.
        Exception: Any error that Pillow raises for damaged content.

    Example:
        >>> buffer = BytesIO()
        >>> Image.new("CMYK", (4, 2)).save(buffer, "JPEG")
        >>> image = decode_image(buffer.getvalue())
        >>> image.mode, image.size, image.info["mode in the file"]
        ('RGB', (4, 2), 'CMYK')
    """
    image: Image.Image = Image.open(BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than 89 million: "
            "taken for a decompression bomb"
        )
    mode = image.mode
    image.load()
    # A PNG without one of these keys has no orientation to apply.
    keys = ("exif", "xmp", "Raw profile type exif")
    if image.format != "PNG" or any(key in image.info for key in keys):
        with suppress(Exception):  # a damaged orientation does not make the pixels unusable
            ImageOps.exif_transpose(image, in_place=True)
    image = _to_grey_or_rgb(image)
    image.info[FILE_MODE] = mode
    return image


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion would clip at 255
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def fit_to_square(image: Image.Image, size: int, resize: str) -> Pixels:
    """Fit an image to a square.

    Args:
        image: Image of mode ``L`` or ``RGB``.
        size: Side of the square in pixels.
        resize: ``pad-repeat`` resizes the longest side to ``size`` and repeats the image over the
            square. ``pad`` does the same with the image centred on its median colour. ``crop``
            resizes the central square. ``stretch`` resizes both sides to ``size``.

    Returns:
        uint8 (size, size) or (size, size, 3).
    """
    width, height = image.size
    if (width, height) == (size, size):
        return np.asarray(image)
    if resize in ("stretch", "crop"):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side) if resize == "crop" else (0, 0, width, height)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    target = _padded_size(width, height, size)
    if target != image.size:
        image = image.resize(target, Image.Resampling.BILINEAR)
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


def _padded_size(width: int, height: int, size: int) -> tuple[int, int]:
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
