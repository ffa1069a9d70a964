"""Decode image files into square uint8 arrays. Imports no torch: worker processes load this module."""

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

OWN_SIZE_UP_TO = 64


LARGEST = 89_478_485  # pixels; Pillow warns of a decompression bomb above this


LARGEST_FILE = 2**30


# Only these decoders are tried: some of Pillow's others start programs (EPS) or are hardly ever met.
DECODERS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")


# Without waiting: a pipe with an image's name would make a plain open wait for ever.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


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
    """One image: square uint8 (C, S, S) as bytes, which travel between processes ten times faster, and its row of the index.

    fact: SHA-256 of the file, SHA-256 of the upright full-size pixels (half of it), width, height, the file's mode,
    whether all its pixels are grey.
    """

    pixels: bytes
    shape: tuple[int, int, int]
    fact: tuple[str, str, int, int, str, bool]


Outcome = Decoded | str  # a string is the reason why there is no image


Decode = Callable[
    [int | None, int | None], Iterator[Outcome]
]  # (size, channels), None to choose image by image


def decode_files(
    paths: Sequence[str], *, size: int | None, channels: int | None, resize: str
) -> list[Outcome]:
    """Decode files, each into an image or the reason why not; never raises for what is in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # decoders warn of much that does not keep them from decoding
        return [_read_file(path, size, channels, resize) for path in paths]


def _read_file(path: str, size: int | None, channels: int | None, resize: str) -> Outcome:
    try:
        handle = os.open(path, READ)
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                return "a folder, not a file" if stat.S_ISDIR(state.st_mode) else "not a file"
            if state.st_size > LARGEST_FILE:
                return f"{state.st_size / 1e9:.1f} GB, more than an image takes"
            content = os.read(handle, state.st_size)
            while len(content) < state.st_size and (more := os.read(handle, state.st_size)):
                content += more
        finally:
            os.close(handle)
        if not content:
            return "empty file"
        return prepare_image(
            decode_image(content), hashlib.sha256(content).hexdigest(), size, channels, resize
        )
    except FileNotFoundError:
        return "missing (a broken link?)"
    except OSError as error:
        if error.strerror:  # of the file, not of its content
            return error.strerror.lower()
        return _reason(error)
    except (
        Exception
    ) as error:  # a decoder may raise anything on a broken file; the reason is kept and shown
        return _reason(error)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not an image that can be read"
    return text[:200] or type(error).__name__


def prepare_image(
    image: Image.Image, content: str, size: int | None, channels: int | None, resize: str
) -> Decoded:
    """A decoded image -> its square and its row of the index.

    content: what the caller knows the image's encoded content by. size, channels: None to choose from this image alone.
    """
    width, height = image.size
    full = np.asarray(image)
    grey = image.mode == "L" or _is_grey(full)
    if grey and full.ndim == 3:
        image = image.getchannel(
            0
        )  # so that a grey image is the same pixels in whatever mode it came
        full = np.asarray(image)
    shape = f"{width}x{height}x{full.ndim}".encode()
    pixels = hashlib.sha256(np.ascontiguousarray(full).data)
    pixels.update(shape)
    mode = image.info.get(MODE, image.mode)
    side = size or (max(width, height) if max(width, height) <= OWN_SIZE_UP_TO else OWN_SIZE_UP_TO)
    small = full if width == height == side else fit_to_square(image, side, resize)
    wanted = channels or (1 if grey else 3)
    fact = (content, pixels.hexdigest()[:32], width, height, mode, grey)
    return Decoded(to_channels(small, wanted).tobytes(), (wanted, side, side), fact)


def _is_grey(pixels: Pixels) -> bool:
    """Of (H, W, 3). A few pixels decide nearly always."""
    for some in (pixels[:: 1 + len(pixels) // 16, :: 1 + pixels.shape[1] // 16], pixels):
        if not (
            np.array_equal(some[..., 0], some[..., 1])
            and np.array_equal(some[..., 0], some[..., 2])
        ):
            return False
    return True


MODE = "mode in the file"


def decode_image(content: bytes) -> Image.Image:
    """An encoded image -> 8-bit grey ("L") or "RGB", upright; transparency over white; the first frame.

    16 bits of grey are scaled to 8. `info["mode in the file"]` of the result says what it was.
    Raises whatever Pillow raises on damaged content, ValueError for an image of more than 89 million pixels.
    """
    image: Image.Image = Image.open(BytesIO(content), formats=DECODERS)
    if image.width * image.height > LARGEST:
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than 89 million: taken for a decompression bomb"
        )
    mode = image.mode
    image.load()
    if (
        "exif" in image.info
        or image.format != "PNG"
        or "xmp" in image.info
        or "Raw profile type exif" in image.info
    ):
        with suppress(Exception):  # a damaged orientation does not damage the picture
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip at 255
        image = Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8)
        )
    elif image.mode == "F":
        image = Image.fromarray(
            np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8)
        )
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image.info[MODE] = mode
    return image


def fit_to_square(image: Image.Image, size: int, resize: str) -> Pixels:
    """Fit an image into a square.

    resize: `pad-repeat`, longest side to size, then the image tiled over the square; `pad`, the same, centred on
    its own median colour; `crop`, the central square, to size; `stretch`, both sides to size.
    Returns uint8 (size, size) or (size, size, 3).
    """
    width, height = image.size
    if (width, height) == (size, size):
        return np.asarray(image)
    if resize in ("stretch", "crop"):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side) if resize == "crop" else (0, 0, width, height)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels: Pixels = np.asarray(
        image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)
    )
    tall, wide = pixels.shape[:2]
    if resize == "pad":
        canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
        canvas[:] = np.median(pixels.reshape(tall * wide, -1), axis=0).reshape(pixels.shape[2:])
        top, left = (size - tall) // 2, (size - wide) // 2
        canvas[top : top + tall, left : left + wide] = pixels
        return canvas
    tiled: Pixels = pixels[np.arange(size) % tall][:, np.arange(size) % wide]
    return tiled


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """uint8 (S, S) or (S, S, 3) -> (channels, S, S)."""
    if channels == 1:
        return (pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L")))[
            None
        ]
    return (
        np.broadcast_to(pixels, (3, *pixels.shape))
        if pixels.ndim == 2
        else pixels.transpose(2, 0, 1)
    )
