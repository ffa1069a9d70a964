"""Thumbnails show the original image, not the square that the network sees."""

import base64
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from factories import source_of
from PIL import Image

from pipeline.data.decode import prepare_image
from pipeline.data.resizing import image_area
from pipeline.report.thumbnails import thumbnail, unpadded_image
from stages.records import Split
from stages.settings import ReadSettings


@pytest.mark.parametrize("resize", ["pad-repeat", "pad"])
@pytest.mark.parametrize("size", [(30, 12), (12, 30), (31, 10), (64, 1), (16, 16), (300, 299)])
def test_padding_is_removed(size, resize):
    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, size[::-1], dtype=np.uint8))
    decoded = prepare_image(photo, "", 32, 1, resize)
    square = np.frombuffer(decoded.pixels, np.uint8).reshape(decoded.shape)
    source = source_of([("a", 0, "", "")], ReadSettings(size=32, channels=1, resize=resize))
    source.facts["width"], source.facts["height"] = size
    store = torch.tensor(square)[None]
    split = Split(store, torch.tensor([0]), torch.tensor([0]), ("a",), ("0",))
    image = unpadded_image(split, 0, replace(source, images=store))
    longest = max(size)
    expected = (max(1, round(size[0] * 32 / longest)), max(1, round(size[1] * 32 / longest)))
    resized = photo.resize(expected, Image.Resampling.BILINEAR) if longest != 32 else photo
    np.testing.assert_array_equal(image[0].numpy(), np.asarray(resized))


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_squares_without_padding_are_shown_whole(resize):
    assert image_area(300, 100, 64, resize) == (0, 0, 64, 64)


def test_a_thumbnail_keeps_the_shape_of_the_image():
    content = thumbnail(torch.zeros(3, 40, 100, dtype=torch.uint8)).split(",")[1]
    with Image.open(BytesIO(base64.b64decode(content))) as image:
        assert image.size == (64, 26)
