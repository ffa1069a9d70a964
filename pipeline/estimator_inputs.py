"""Check the images and labels that are given to the scikit-learn estimators.

Errors are ``ValueError`` with the name of the argument, as scikit-learn's tools expect.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from stages.errors import PipelineError

# uint8 (N, H, W) or (N, H, W, 3), or the paths of N files.
Images = npt.NDArray[np.uint8] | list[str]
IMAGES = "uint8 pixels of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), or a list of paths"


class Labels(NamedTuple):
    """Labels of the images that an estimator is fitted to.

    Attributes:
        classes: The K distinct labels, sorted.
        names: Name of each class in checkpoints: the label as text.
        rows: Position in ``classes`` of each image's label, int64, shape (N,).
    """

    classes: npt.NDArray[Any]
    names: tuple[str, ...]
    rows: npt.NDArray[np.int64]


@contextmanager
def pipeline_errors_as_value_errors() -> Iterator[None]:
    """Raise scikit-learn's kind of error for invalid images and parameters."""
    try:
        yield
    except PipelineError as error:
        raise ValueError(str(error)) from error


def check_images(X: Any) -> Images:
    """Return images as an array or as paths.

    Args:
        X: uint8 array, shape (N, H, W) or (N, H, W, C) with C 1 or 3, or anything that numpy
            turns into one; or a list, array or pandas Series of paths.

    Raises:
        ValueError: If X is something else or empty.
    """
    if isinstance(X, str | os.PathLike):
        raise ValueError(f"X is one path ({os.fspath(X)!r}); give a list of paths")
    items = X.tolist() if _is_one_dimensional(X) else X
    if isinstance(items, list | tuple) and items and _are_paths(items):
        return [os.fsdecode(item) for item in items]
    try:
        pixels = np.asarray(X)
    except ValueError as error:  # arrays of several shapes
        raise ValueError(
            f"X cannot be made one array ({error}); give images of one size, or paths"
        ) from error
    _check_pixels(pixels)
    return pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels


def _is_one_dimensional(X: Any) -> bool:
    """Return True for an array or a pandas Series, whose items may be paths."""
    return len(getattr(X, "shape", ())) == 1 and hasattr(X, "tolist")


def _are_paths(items: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(item, str | os.PathLike) for item in items)


def _check_pixels(pixels: npt.NDArray[Any]) -> None:
    shape, dtype = pixels.shape, pixels.dtype
    if shape[:1] == (0,):
        raise ValueError(
            f"Found array with 0 sample(s) (shape={shape}) while a minimum of 1 is required."
        )
    is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not is_image or 0 in shape:
        advice = f"give {IMAGES}"
        if len(shape) == 4 and shape[1] in (1, 3):
            advice = "move the channels to the end: X.transpose(0, 2, 3, 1)"
        elif len(shape) == 2:
            advice = f"reshape each row to an image, or {advice}"
        raise ValueError(f"X has the shape {shape} and the dtype {dtype}; {advice}")
    if dtype != np.uint8:
        advice = "scale the pixels to 0..255, round them, and convert them with astype(np.uint8)"
        raise ValueError(f"X has the dtype {dtype} instead of uint8; {advice}")


def check_labels(y: Any, images: Images) -> Labels:
    """Return the labels of images as classes.

    Args:
        y: N labels: whole numbers, strings or booleans.
        images: The N images.

    Raises:
        ValueError: If ``y`` is missing, has another length, or has values that are no labels.
    """
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None; give a label per image"
        )
    values = column_or_1d(y, warn=True)
    check_consistent_length(images, values)
    assert_all_finite(values, input_name="y")
    try:
        check_classification_targets(values)
        classes, rows = np.unique(values, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"y has labels of several types ({error}); give one type") from error
    names = tuple(str(label) for label in classes.tolist())
    if "" in names:
        raise ValueError("y has an empty label; give every image a label")
    return Labels(classes, names, rows.astype(np.int64))
