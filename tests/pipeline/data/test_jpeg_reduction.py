"""Large JPEG images are decoded at a fraction of their size, with nearly the same pixels."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encode
from PIL import Image

from pipeline.data import decode
from pipeline.data.decode import Decoded, decode_files, decode_image, read_pixels
from pipeline.data.jpeg_reduction import OVERSIZE, any_reduced, jpeg_reduction
from pipeline.data.resizing import Pixels
from stages.settings import RESIZES, ReadSettings

# A reduced image has a last row and column that are filled by an eighth only.
WIDTH, HEIGHT = 385, 297
WAVES = 128 + 100 * np.sin(np.add.outer(np.arange(HEIGHT) / 40, np.arange(WIDTH) / 50))
PHOTO = Image.fromarray(np.stack([WAVES, WAVES[::-1], WAVES[:, ::-1]], -1).astype(np.uint8))
FACTS = slice(2, 6)  # width, height, mode and grey


def decode_content(content: bytes, folder: Path, **options: Any) -> Decoded:
    """Decode a file with this content."""
    (folder / "image").write_bytes(content)
    (outcome,) = decode_files([str(folder / "image")], **options)
    assert not isinstance(outcome, str), outcome
    return outcome


def pixels_of(outcome: Decoded) -> Pixels:
    return np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape).astype(int)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_images_are_nearly_those_decoded_in_full(orientation, resize, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(PHOTO, "JPEG", exif=exif, quality=90, progressive=orientation % 2 == 0)
    for size in (12, 20):
        options = {"size": size, "channels": 3, "resize": resize}
        full = decode_content(content, tmp_path, jpeg="full", **options)
        reduced = decode_content(content, tmp_path, jpeg="reduced", **options)
        assert reduced.fact[FACTS] == full.fact[FACTS]
        assert full.fact[1] and not reduced.fact[1]  # the digest of the pixels
        difference = np.abs(pixels_of(full) - pixels_of(reduced))
        assert difference.max() <= 5 and 0 < difference.mean() < 1.2


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [None, 8, 30, 64, 65])
def test_predictions_read_the_pixels_of_training(mode, size, tmp_path):
    content = encode(PHOTO.convert(mode), "JPEG")
    for resize in RESIZES:
        outcome = decode_content(
            content, tmp_path, size=size, channels=None, resize=resize, jpeg="reduced"
        )
        channels, side, _ = outcome.shape
        assert channels == (1 if mode == "L" else 3)
        pixels = read_pixels(
            str(tmp_path / "image"), size=side, channels=channels, resize=resize, jpeg="reduced"
        )
        assert np.array_equal(pixels, pixels_of(outcome))


def test_images_keep_their_full_pixels_if_they_are_small_or_no_jpeg(tmp_path):
    shortest = OVERSIZE * 2 * 64
    small = encode(PHOTO.resize((shortest - 1, 200)), "JPEG")
    large = encode(PHOTO.resize((shortest, 200)), "JPEG")
    photo = encode(PHOTO, "PNG")
    for content, is_reduced in ((small, False), (photo, False), (large, True)):
        options = {"size": None, "channels": None, "resize": "pad"}
        full = decode_content(content, tmp_path, jpeg="full", **options)
        assert (decode_content(content, tmp_path, jpeg="reduced", **options) != full) == is_reduced


def test_grey_photo_in_colour_is_grey(tmp_path):
    content = encode(PHOTO.convert("L").convert("RGB"), "JPEG")
    outcome = decode_content(content, tmp_path, size=8, channels=None, resize="pad", jpeg="reduced")
    assert outcome.shape == (1, 8, 8) and outcome.fact[FACTS] == (WIDTH, HEIGHT, "RGB", True)


def test_first_image_of_a_phone_s_file_is_reduced(tmp_path):
    content = encode(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
    assert Image.open(BytesIO(content)).format == "MPO"
    options = {"size": 16, "channels": 3, "resize": "pad"}
    full = decode_content(content, tmp_path, jpeg="full", **options)
    reduced = decode_content(content, tmp_path, jpeg="reduced", **options)
    assert not reduced.fact[1] and np.abs(pixels_of(full) - pixels_of(reduced)).max() <= 5


@pytest.mark.parametrize("size", [(3000, 3), (3, 3000), (1, 2000), (65, 1)])
def test_thin_images(size, tmp_path):
    content = encode(PHOTO.resize(size), "JPEG")
    for resize in RESIZES:
        options = {"size": 4, "channels": 3, "resize": resize}
        full = decode_content(content, tmp_path, jpeg="full", **options)
        reduced = decode_content(content, tmp_path, jpeg="reduced", **options)
        assert reduced.fact[FACTS] == full.fact[FACTS]
        assert np.abs(pixels_of(full) - pixels_of(reduced)).max() <= 12


def test_limits_of_memory_are_those_of_full_images(tmp_path, monkeypatch):
    options = {"size": 8, "channels": 3, "resize": "pad", "jpeg": "reduced"}
    plain, progressive = (encode(PHOTO, "JPEG", progressive=value) for value in (False, True))
    monkeypatch.setattr(decode, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert decode_content(plain, tmp_path, **options).fact[2:4] == (WIDTH, HEIGHT)
    (tmp_path / "image").write_bytes(progressive)
    (outcome,) = decode_files([str(tmp_path / "image")], **options)
    assert isinstance(outcome, str) and f"{WIDTH} x {HEIGHT} pixels" in outcome
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"{WIDTH} x {HEIGHT}"):
        warnings.simplefilter("ignore")
        decode_image(progressive)


@pytest.mark.parametrize("resize", RESIZES)
def test_any_reduced_agrees_with_the_reduction_of_each_image(resize):
    generator = np.random.default_rng(0)
    results = set()
    for _ in range(200):
        width, height = generator.integers(1, 500, 2).tolist()
        facts = np.zeros(1, decode.FACT)
        facts["width"], facts["height"] = width, height
        reduces = jpeg_reduction(width, height, 64, resize) > 1
        assert any_reduced(facts, 64, ReadSettings(resize=resize)) == reduces
        assert not any_reduced(facts, 64, ReadSettings(resize=resize, jpeg="full"))
        results.add(reduces)
    assert results == {True, False}
