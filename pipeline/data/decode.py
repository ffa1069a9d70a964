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

from pipeline.data.grey_or_rgb import to_grey_or_rgb
from pipeline.data.image_files import open_image
from pipeline.data.jpeg_reduction import TRANSPOSED, jpeg_reduction, oriented_box, reduce_jpeg
from pipeline.data.pixel_digest import grey_and_digest, is_grey
from pipeline.data.resizing import Pixels, fit_to_square, to_channels

# Sides of images that keep their own size; others are resized to the nearest one. Networks take
# images of at least 4 pixels.
MIN_OWN_SIZE, MAX_OWN_SIZE = 4, 64
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above this
# Memory that may be used to decode one image. Several worker processes decode at once.
MAX_DECODED_BYTES = 750_000_000
# Bytes per pixel at the peak: Pillow's image and its conversion, or what the decoder needs.
BYTES_PER_PIXEL, WEBP_BYTES_PER_PIXEL, PROGRESSIVE_BYTES_PER_PIXEL = 8, 16, 10
MAX_READ_BYTES = 64_000_000  # larger files are read while they are decoded
# Formats to try. Pillow reads some of the others by starting external programs (EPS).
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")
BOMB = "taken for a decompression bomb; make the image smaller"
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with further images, of phones
# Keys in `image.info`. A reduced JPEG also has the size of the full image, and the part of the
# reduced one that it fills.
FILE_MODE, FULL_SIZE, BOX = "mode in the file", "full size", "box"
ORIENTATION = 0x0112  # EXIF tag

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
            before resizing, empty for a reduced JPEG; width and height in pixels; Pillow's mode of
            the file; True if the decoded image is grey.
    """

    pixels: bytes
    shape: tuple[int, int, int]
    fact: tuple[str, str, int, int, str, bool]


Outcome = Decoded | str  # an image, or the reason why it cannot be read

# Decodes all images at a size and a number of channels; None chooses them for each image.
Decode = Callable[[int | None, int | None], Iterator[Outcome]]
# Decodes the images at some positions in full. Yields the first half of the SHA-256 of the pixels,
# or an empty text if the image cannot be read.
Digest = Callable[[Sequence[int]], Iterator[str]]


class Decoder(NamedTuple):
    """Functions that decode the images of a source.

    Attributes:
        decode: Decodes all images.
        digest: Computes digests of pixels. ``None`` if ``decode`` never reduces an image.
    """

    decode: Decode
    digest: Digest | None = None


def decode_files(
    paths: Sequence[str],
    *,
    size: int | None,
    channels: int | None,
    resize: str,
    jpeg: str = "full",
) -> list[Outcome]:
    """Decode image files. Unreadable files cause no error.

    Args:
        paths: Paths of the files.
        size: Side of the square in pixels. ``None`` chooses it for each image.
        channels: 1 or 3. ``None`` chooses it for each image.
        resize: How images are fitted to a square; see :func:`pipeline.data.resizing.fit_to_square`.
        jpeg: ``reduced`` or ``full``; see :class:`stages.settings.ReadSettings`.

    Returns:
        For each file the decoded image, or the reason why it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of many defects that do no harm
        return [_decode_file(path, size, channels, resize, jpeg) for path in paths]


def digest_files(paths: Sequence[str]) -> list[str]:
    """Decode image files in full and return the first half of the SHA-256 of their pixels.

    It is empty for an unreadable file.
    """
    digests = []
    for path in paths:
        image = read_image(path)
        digests.append("" if isinstance(image, str) else grey_and_digest(image)[1][:32])
    return digests


def read_pixels(
    path: str, *, size: int, channels: int, resize: str, jpeg: str = "full"
) -> Pixels | str:
    """Decode an image file for a network. An unreadable file causes no error.

    The pixels are those of :func:`decode_files`; without the facts this takes half the time.
    Pillow's warnings are left to the caller, because only one thread may change how they are shown.

    Args:
        path: Path of the file.
        size: Side of the square in pixels.
        channels: 1 or 3.
        resize: As for :func:`decode_files`.
        jpeg: As for :func:`decode_files`.

    Returns:
        The image, uint8 (channels, size, size), or the reason why it cannot be read.
    """
    try:
        with open_image(path) as opened:
            image = _decode(_read(opened), (size, resize) if jpeg == "reduced" else None)
            return to_channels(fit_to_square(image, size, resize, image.info.get(BOX)), channels)
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


def _decode_file(
    path: str, size: int | None, channels: int | None, resize: str, jpeg: str
) -> Outcome:
    try:
        with open_image(path) as opened:
            file = _read(opened)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            image = _decode(file, (size, resize) if jpeg == "reduced" else None)
            return prepare_image(image, digest, size, channels, resize)
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
    mode, box = image.info.get(FILE_MODE, image.mode), image.info.get(BOX)
    width, height = image.info.get(FULL_SIZE, image.size)
    if box is None:
        grey, pixel_digest = grey_and_digest(image)
    else:
        # A few pixels decide for nearly all colour images, without a copy of all.
        sample = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST))
        grey = image.mode == "L" or (is_grey(sample) and is_grey(np.asarray(image)))
        pixel_digest = ""
    if grey and image.mode != "L":
        image = image.getchannel(0)
    side = size or own_size(width, height)
    square = fit_to_square(image, side, resize, box)
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


def _decode(
    file: BufferedReader | BytesIO, square: tuple[int | None, str] | None = None
) -> Image.Image:
    """Decode an image. A large JPEG is reduced if it is for a square: its side and ``resize``."""
    image: Image.Image = Image.open(file, formats=FORMATS)
    mode, (width, height), reduction = image.mode, image.size, 1
    if square and image.format in JPEG_FORMATS:
        size, resize = square
        reduction = jpeg_reduction(width, height, size or own_size(width, height), resize)
    filled = bound_memory(image, reduction)
    image.load()
    orientation = _apply_orientation(image)
    image = to_grey_or_rgb(image)
    image.info[FILE_MODE] = mode
    if reduction > 1 and filled != (width, height):
        is_transposed = orientation in TRANSPOSED
        image.info[FULL_SIZE] = (height, width) if is_transposed else (width, height)
        image.info[BOX] = oriented_box(filled, image, orientation)
    return image


def _apply_orientation(image: Image.Image) -> int:
    """Apply the EXIF orientation and return it; 1 if there is none."""
    orientation = 1
    # A PNG without one of these keys has no orientation to apply.
    keys = ("exif", "xmp", "Raw profile type exif")
    if image.format != "PNG" or any(key in image.info for key in keys):
        with suppress(Exception):  # a damaged orientation does not make the pixels unusable
            orientation = image.getexif().get(ORIENTATION, 1)
            ImageOps.exif_transpose(image, in_place=True)
    return orientation


def bound_memory(image: Image.Image, reduction: int = 1) -> tuple[float, float]:
    """Reduce a large JPEG, and raise ValueError for another image that would take too much memory.

    The header gives the size; no pixel has been decoded yet.

    Args:
        image: Image that has not been decoded.
        reduction: By how much to reduce it at least; 1 if it is no JPEG.

    Returns:
        Width and height of the image in pixels of the reduced one.
    """
    width, height = image.size
    bytes_per_pixel = BYTES_PER_PIXEL
    if image.format == "WEBP":
        bytes_per_pixel = WEBP_BYTES_PER_PIXEL
    if "progressive" in image.info:
        bytes_per_pixel = PROGRESSIVE_BYTES_PER_PIXEL
    elif image.format == "JPEG" and width * height > MAX_PIXELS:
        return reduce_jpeg(image, max(reduction, 2))
    most = min(MAX_PIXELS, MAX_DECODED_BYTES // bytes_per_pixel)
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels, more than {most // 10**6} million: {BOMB}")
    return reduce_jpeg(image, reduction)
