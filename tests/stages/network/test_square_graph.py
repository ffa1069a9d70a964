"""Squares of any image: the pixels of Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.resizing import RESIZES_ROWS_FIRST, fit_to_square, to_channels
from stages.network.square_graph import SquareGraph
from stages.settings import RESIZES

SIDES = st.one_of(st.integers(1, 12), st.integers(1, 200))


def differences(pixels: np.ndarray, size: int, channels: int, resize: str) -> np.ndarray:
    """Return the differences of the squares in grey levels, int (C, S, S)."""
    graph = SquareGraph(size, channels, resize, rows_first=RESIZES_ROWS_FIRST)
    square = graph(torch.from_numpy(pixels))
    assert square.shape == (1, channels, size, size) and square.dtype == torch.uint8
    expected = to_channels(fit_to_square(Image.fromarray(pixels), size, resize), channels)
    return np.abs(square[0].numpy().astype(int) - expected)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(RESIZES),
    st.sampled_from((4, 8, 28, 65)),
    st.sampled_from((1, 3)),
    SIDES,
    SIDES,
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_pixels_equal_those_of_pillow(resize, size, channels, height, width, grey, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 1 if grey else 3), dtype=np.uint8)
    pixels = np.broadcast_to(pixels, (height, width, 3)).copy()
    assert differences(pixels, size, channels, resize).max() == 0


@pytest.mark.parametrize("resize", RESIZES)
def test_photographs_equal_those_of_pillow(resize):
    from sklearn.datasets import load_sample_images

    for photo in load_sample_images().images:
        pixels = photo.copy()
        assert differences(pixels, 224, 3, resize).max() == 0
        upright = np.ascontiguousarray(pixels.transpose(1, 0, 2))  # 640 x 427
        assert differences(upright, 64, 1, resize).max() == 0


@pytest.mark.parametrize("resize", RESIZES)
def test_high_images_equal_those_of_pillow(resize):
    """Pillow 13 resizes rows first."""
    pixels = np.random.default_rng(0).integers(0, 256, (190, 60, 3), dtype=np.uint8)
    assert differences(pixels, 28, 3, resize).max() == 0
    graphs = [SquareGraph(28, 3, resize, rows_first=value) for value in (False, True)]
    first, second = (graph(torch.from_numpy(pixels)).int() for graph in graphs)
    assert (first - second).abs().max() == 1  # the test can fail


@pytest.mark.parametrize(("height", "width", "size"), [(280, 235, 28), (156, 138, 65)])
def test_sides_are_rounded_as_by_python(height, width, size):
    """235 * (28 / 280) is 23.5, but 235 * (28 * (1 / 280)) is less."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert differences(pixels, size, 3, "pad-repeat").max() == 0
