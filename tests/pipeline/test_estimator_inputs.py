"""Images and labels of the scikit-learn estimators: what is accepted, and clear errors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array

from pipeline.estimator_inputs import check_images, check_labels

GREY = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
PATHS = ["a.png", "b/c.jpg"]


@pytest.mark.parametrize(
    "X",
    [
        GREY,
        GREY[..., None],
        list(GREY),
        np.asfortranarray(GREY),
        torch.from_numpy(GREY),
        [Image.fromarray(pixels) for pixels in GREY],
    ],
    ids=lambda X: type(X).__name__,
)
def test_grey_images_are_accepted(X):
    images = check_images(X)
    assert images.dtype == np.uint8 and np.array_equal(images, GREY)


def test_colour_images_are_accepted():
    colour = np.stack([GREY, GREY + 1, GREY + 2], axis=-1)
    assert np.array_equal(check_images(colour), colour)


@pytest.mark.parametrize(
    "X",
    [
        PATHS,
        tuple(PATHS),
        [Path(path) for path in PATHS],
        np.array(PATHS),
        np.array(PATHS, dtype=object),
        np.array([Path(path) for path in PATHS]),
        pd.Series(PATHS, index=[5, 2]),
    ],
    ids=lambda X: type(X).__name__,
)
def test_paths_are_accepted(X):
    paths = check_images(X)
    assert paths == PATHS and {type(path) for path in paths} == {str}


@pytest.mark.parametrize(
    "X, text",
    [
        (np.zeros((20, 8, 8)), "float64 instead of uint8"),
        (np.full((20, 8, 8), np.nan), "float64 instead of uint8"),
        (np.zeros((20, 8, 8), bool), "bool instead of uint8"),
        (GREY.tolist(), "int64 instead of uint8"),
        (np.zeros((20, 64), np.uint8), r"shape \(20, 64\).*reshape each row"),
        (np.zeros((20, 3, 8, 8), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((20, 8, 8, 4), np.uint8), r"shape \(20, 8, 8, 4\)"),
        (np.zeros((20, 0, 8), np.uint8), r"shape \(20, 0, 8\)"),
        (np.zeros((0, 8, 8), np.uint8), "0 sample"),
        ([], "0 sample"),
        (pd.Series([], dtype=object), "0 sample"),
        ("a.png", "list of paths"),
        (Path("a.png"), "list of paths"),
        (["a.png", 3], "X has the shape"),
        (pd.DataFrame({"path": PATHS}), r"X has the shape \(2, 1\)"),
        ([GREY[0], GREY[0].T], "one size, or paths"),
        (csr_array(np.eye(3)), r"X has the shape \(\)"),
        (None, r"X has the shape \(\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_images_are_rejected(X, text):
    with pytest.raises(ValueError, match=text):
        check_images(X)


@pytest.mark.parametrize(
    "y, classes, names",
    [
        ([3, -1, 10, 3], [-1, 3, 10], ("-1", "3", "10")),
        (["b", "a", "b", "b"], ["a", "b"], ("a", "b")),
        (np.array([True, False, True, True]), [False, True], ("False", "True")),
        (pd.Series(["x", "y", "x", "x"], dtype="category"), ["x", "y"], ("x", "y")),
        (torch.tensor([1, 0, 0, 0]), [0, 1], ("0", "1")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_labels_are_accepted(y, classes, names):
    labels = check_labels(y, ["1.png", "2.png", "3.png", "4.png"])
    assert labels.classes.tolist() == classes and labels.names == names
    assert labels.rows.dtype == np.int64
    assert [classes[row] for row in labels.rows] == list(np.asarray(y).tolist())


@pytest.mark.parametrize(
    "y, text",
    [
        (None, "y is None"),
        ([np.nan, 1.0], "y contains NaN"),
        ([0.1, 0.2], "continuous"),
        (np.zeros((2, 2), int), "y should be a 1d array"),
        (np.array(["a", 1], object), "y has labels of several types"),
        (np.array(["a", None], object), "y has labels of several types"),
        (["a", ""], "y has an empty label"),
        ([0], "inconsistent numbers of samples"),
        ("ab", "y"),
    ],
    ids=str,
)
def test_other_labels_are_rejected(y, text):
    with pytest.raises(ValueError, match=text):
        check_labels(y, PATHS)
