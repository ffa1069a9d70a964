"""Find out how large images are and whether they have colours, before they are decoded."""

import random
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.decode import FORMATS, bound_memory, read_image
from pipeline.data.image_files import open_image
from pipeline.data.pixel_digest import is_grey

MOST_HEADERS = 1000  # files whose size is read; that takes a tenth of a second
MOST_DECODED = 64  # files that are decoded to find one with colours
GREY_MODES = ("1", "L", "LA", "La", "F", "I")  # Pillow's; 16-bit grey is I;16 with variants


class ImageFacts(NamedTuple):
    """Size and colours of a set of images.

    Attributes:
        images: Number of images. Files whose header cannot be read are not counted.
        side: Median shorter side in pixels; 0 without images.
        exact: False if ``images`` and ``side`` are of a sample of the files.
        grey: True if all images are grey, False if one is not, None if it is unknown: the images
            that were decoded are grey.
    """

    images: int
    side: float
    exact: bool
    grey: bool | None


def facts_of_files(paths: Sequence[str]) -> ImageFacts:
    """Measure image files by their headers, and decode images until one has colours.

    Of more than ``MOST_HEADERS`` files a random sample is read, the same in every call. Unreadable
    files are left out.

    Args:
        paths: Paths of the files.
    """
    chosen = list(paths)
    if len(chosen) > MOST_HEADERS:
        chosen = random.Random(0).sample(chosen, MOST_HEADERS)
    sides: list[int] = []
    coloured: list[str] = []  # files that are grey only if all their pixels are
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of many harmless defects
        for path in chosen:
            header = _read_header(path)
            if header is None:
                continue
            width, height, mode = header
            sides.append(min(width, height))
            if not mode.startswith("I;") and mode not in GREY_MODES:
                coloured.append(path)
    exact = len(chosen) == len(paths)
    return ImageFacts(
        images=len(sides) if exact else len(paths),
        side=float(np.median(sides)) if sides else 0.0,
        exact=exact,
        grey=_are_grey(coloured, others_are_known=exact),
    )


def _are_grey(paths: Sequence[str], *, others_are_known: bool) -> bool | None:
    """Decode files until one has colours; return ``ImageFacts.grey``."""
    decoded = random.Random(0).sample(paths, min(MOST_DECODED, len(paths)))
    for path in decoded:
        image = read_image(path)
        if not isinstance(image, str) and image.mode != "L" and not is_grey(np.asarray(image)):
            return False
    all_are_known = others_are_known and len(decoded) == len(paths)
    return True if all_are_known else None


def _read_header(path: str) -> tuple[int, int, str] | None:
    """Return an image file's width, height and Pillow mode; None if it cannot be read."""
    try:
        with open_image(path) as file, Image.open(file, formats=FORMATS) as image:
            bound_memory(image)  # as the decoder, which refuses too large ones
            return image.width, image.height, image.mode
    except Exception:  # a decoder can raise any exception for a damaged file
        return None


def facts_of_array(images: npt.NDArray[np.uint8]) -> ImageFacts:
    """Measure images that are in memory.

    Args:
        images: uint8, shape (N, H, W) or (N, H, W, 3).

    Example:
        >>> facts_of_array(np.zeros((5, 96, 128, 3), np.uint8))
        ImageFacts(images=5, side=96.0, exact=True, grey=True)
    """
    grey = images.ndim == 3 or all(is_grey(pixels) for pixels in images)
    return ImageFacts(len(images), float(min(images.shape[1:3])), exact=True, grey=grey)
