"""Images of any shape fit the square."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.resizing import fit_to_square


@pytest.mark.parametrize("resize", ["pad-repeat", "pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (30_000, 1), (7, 90), (64, 64), (300, 200)])
def test_any_shape_fits_the_square(shape: tuple[int, int], resize: str) -> None:
    pixels = fit_to_square(Image.fromarray(np.full(shape, 77, np.uint8)), 64, resize)
    assert pixels.shape == (64, 64) and (pixels == 77).all()


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((32, 96), np.uint8)
    wide[:, 32:64] = 200
    assert (fit_to_square(Image.fromarray(wide), 16, "crop")[:, 1:-1] == 200).all()
