"""Decode image files into square uint8 arrays.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from pipeline.data.image_files import open_image
from pipeline.data.resizing import Pixels, fit_to_square, to_channels

# Sides of images that keep their own size; others are resized to the nearest one. Networks take
# images of at least 4 pixels.
MIN_OWN_SIZE, MAX_OWN_SIZE = 4, 64
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this
# Memory that may be used to decode one image. Several worker processes decode at once.
MAX_DECODED_BYTES = 750_000_000
# Bytes per pixel at the peak: Pillow's image and its conversion, or what the decoder needs.
BYTES_PER_PIXEL, WEBP_BYTES_PER_PIXEL, PROGRESSIVE_BYTES_PER_PIXEL = 8, 16, 10
BAND_PIXELS = 4_000_000  # larger images are converted and hashed in bands of rows
MAX_READ_BYTES = 64_000_000  # larger files are read while they are decoded
# Formats to try. Pillow reads some of the others by starting external programs (EPS).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")
BOMB = "taken for a decompression bomb; make the image smaller"
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
        resize: How images are fitted to a square; see :func:`pipeline.data.resizing.fit_to_square`.

    Returns:
        For each file the decoded image, or the reason why it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of many defects that do no harm
        return [_decode_file(path, size, channels, resize) for path in paths]


def read_pixels(path: str, *, size: int, channels: int, resize: str) -> Pixels | str:
    """Decode an image file for a network. An unreadable file causes no error.

    The pixels are those of :func:`decode_files`; without the facts this takes half the time.
    Pillow's warnings are left to the caller, because only one thread may change how they are shown.

    Args:
        path: Path of the file.
        size: Side of the square in pixels.
        channels: 1 or 3.
        resize: As for :func:`decode_files`.

    Returns:
        The image, uint8 (channels, size, size), or the reason why it cannot be read.
    """
    try:
        with open_image(path) as opened:
            image = _decode(_read(opened))
            return to_channels(fit_to_square(image, size, resize), channels)
    except Exception as error:  # as in `_decode_file`
        return _reason(error)


def read_image(path: str) -> Image.Image | str:
    """Decode an image file in its size: mode ``L`` or ``RGB``, or the reason why it cannot be read.

    An unreadable file causes no error.
    """
    try:
        with open_image(path) as opened, warnings.catch_warnings(action="ignore"):
            return _decode(_read(opened))
    except Exception as error:  # as in `_decode_file`
        return _reason(error)


def _decode_file(path: str, size: int | None, channels: int | None, resize: str) -> Outcome:
    try:
        with open_image(path) as opened:
            file = _read(opened)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return prepare_image(_decode(file), digest, size, channels, resize)
    except Exception as error:  # a decoder can raise any exception for a damaged file
        return _reason(error)


def _read(file: BufferedReader) -> BufferedReader | BytesIO:
    """Return the content of a file in memory, or the file itself if it is large."""
    if os.fstat(file.fileno()).st_size > MAX_READ_BYTES:
        return file
    content = file.read(MAX_READ_BYTES)
    if not content:
        raise ValueError("empty file")
    return BytesIO(content)


def _reason(error: Exception) -> str:
    """Describe in one line, without the path, why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        is_link = error.filename is not None and Path(error.filename).is_symlink()
        return "missing: a broken link" if is_link else "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * MAX_PIXELS // 10**6} million pixels: {BOMB}"
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
        size: Side of the square in pixels. ``None`` applies :func:`own_size`.
        channels: 1 or 3. ``None`` is 1 for grey images, else 3.
        resize: How the image is fitted to the square; see
            :func:`pipeline.data.resizing.fit_to_square`.

    Returns:
        The square image and its facts.
    """
    width, height = image.size
    grey, pixel_digest = _measure(image)
    if grey and image.mode != "L":
        image = image.getchannel(0)
    mode = image.info.get(FILE_MODE, image.mode)
    side = size or own_size(width, height)
    square = fit_to_square(image, side, resize)
    count = channels or (1 if grey else 3)
    return Decoded(
        pixels=to_channels(square, count).tobytes(),
        shape=(count, side, side),
        fact=(content, pixel_digest[:32], width, height, mode, grey),
    )


def own_size(width: int, height: int) -> int:
    """Return the side of the square for an image that keeps its own size.

    Example:
        >>> own_size(28, 20), own_size(640, 480), own_size(1, 1)
        (28, 64, 4)
    """
    return min(max(width, height, MIN_OWN_SIZE), MAX_OWN_SIZE)


def _measure(image: Image.Image) -> tuple[bool, str]:
    """Return True if an image is grey, and the SHA-256 of its pixels, hexadecimal.

    A grey image has the same digest in any mode.
    """
    digest, grey_digest = hashlib.sha256(), hashlib.sha256()
    grey = True
    for band, _ in _bands(image):
        pixels = np.asarray(band)  # (H, W) or (H, W, 3)
        digest.update(np.ascontiguousarray(pixels).data)
        grey = grey and (pixels.ndim == 2 or is_grey(pixels))
        if grey and pixels.ndim == 3:
            grey_digest.update(np.ascontiguousarray(pixels[..., 0]).data)
    if grey and image.mode != "L":
        digest = grey_digest
    digest.update(f"{image.width}x{image.height}x{2 if grey else 3}".encode())
    return grey, digest.hexdigest()


def _bands(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
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


def decode_image(content: bytes) -> Image.Image:
    """Decode an image into 8-bit grey or RGB.

    The first frame is used. EXIF orientation is applied, transparent images are put on a white
    background, and 16-bit grey values are scaled to 8 bits.

    Args:
        content: Encoded image.

    Returns:
        Image of mode ``L`` or ``RGB``. ``info["mode in the file"]`` is the original mode.

    Raises:
        ValueError: If the image would take more memory than ``MAX_DECODED_BYTES``.
        Exception: Any error that Pillow raises for damaged content.

    Example:
        >>> buffer = BytesIO()
        >>> Image.new("CMYK", (4, 2)).save(buffer, "JPEG")
        >>> image = decode_image(buffer.getvalue())
        >>> image.mode, image.size, image.info["mode in the file"]
        ('RGB', (4, 2), 'CMYK')
    """
    return _decode(BytesIO(content))


def _decode(file: BufferedReader | BytesIO) -> Image.Image:
    image: Image.Image = Image.open(file, formats=FORMATS)
    mode = image.mode
    bound_memory(image)
    image.load()
    # A PNG without one of these keys has no orientation to apply.
    keys = ("exif", "xmp", "Raw profile type exif")
    if image.format != "PNG" or any(key in image.info for key in keys):
        with suppress(Exception):  # a damaged orientation does not make the pixels unusable
            ImageOps.exif_transpose(image, in_place=True)
    image = _to_grey_or_rgb(image)
    image.info[FILE_MODE] = mode
    return image


def bound_memory(image: Image.Image) -> None:
    """Reduce a large JPEG, and raise ValueError for another image that would take too much memory.

    The header gives the size; no pixel has been decoded yet.
    """
    width, height = image.size
    bytes_per_pixel = BYTES_PER_PIXEL
    if image.format == "WEBP":
        bytes_per_pixel = WEBP_BYTES_PER_PIXEL
    if "progressive" in image.info:
        bytes_per_pixel = PROGRESSIVE_BYTES_PER_PIXEL
    elif image.format == "JPEG" and width * height > MAX_PIXELS:
        image.draft(None, (width // 2, height // 2))
        return
    most = min(MAX_PIXELS, MAX_DECODED_BYTES // bytes_per_pixel)
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels, more than {most // 10**6} million: {BOMB}")


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert an image, in bands if it is large, because conversions need several copies."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    result: Image.Image | None = None
    for band, corner in _bands(image):
        converted = _convert(band)
        if converted.size == image.size:
            return converted
        if result is None:
            result = Image.new(converted.mode, image.size)
        result.paste(converted, corner)
    assert result is not None  # an image has rows
    return result


def _convert(image: Image.Image) -> Image.Image:
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
    return image.convert("RGB")
