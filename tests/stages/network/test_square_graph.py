"""Squares of any image: the pixels of Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.resizing import _padded_size, fit_to_square, to_channels
from stages.network.square_graph import SquareGraph
from stages.settings import RESIZES

SIDES = st.one_of(st.integers(1, 12), st.integers(1, 200))


def differences(pixels: np.ndarray, size: int, channels: int, resize: str) -> np.ndarray:
    """Return the differences of the squares in grey levels, int (C, S, S)."""
    square = SquareGraph(size, channels, resize)(torch.from_numpy(pixels))
    assert square.shape == (1, channels, size, size) and square.dtype == torch.uint8
    expected = to_channels(fit_to_square(Image.fromarray(pixels), size, resize), channels)
    return np.abs(square[0].numpy().astype(int) - expected)


def columns_first(height: int, width: int, size: int, resize: str) -> bool:
    """Return True if every version of Pillow resizes columns first."""
    target = (size, size)
    if resize in ("pad", "pad-repeat"):
        target = _padded_size(width, height, size)
    return height - target[1] <= max(0, 2 * (width - target[0]))


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
    levels = differences(pixels, size, channels, resize)
    assert levels.max() <= (0 if columns_first(height, width, size, resize) else 1)


@pytest.mark.parametrize("resize", RESIZES)
def test_photographs_equal_those_of_pillow(resize):
    from sklearn.datasets import load_sample_images

    for photo in load_sample_images().images:
        pixels = photo.copy()
        assert differences(pixels, 224, 3, resize).max() == 0
        upright = np.ascontiguousarray(pixels.transpose(1, 0, 2))  # 640 x 427
        assert differences(upright, 64, 1, resize).max() == 0


def test_most_cases_are_exact():
    exact = [columns_first(h, w, 64, "pad-repeat") for h in range(1, 99) for w in range(1, 99)]
    assert 0.5 < np.mean(exact) < 1
