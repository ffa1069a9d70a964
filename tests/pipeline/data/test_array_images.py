"""Images in memory are prepared as files are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.array_images import source_from_arrays
from pipeline.data.decoding_pool import file_state
from pipeline.data.entries import Entry, SourceFile
from pipeline.data.readable_images import source_from_files
from pipeline.progress import no_progress
from stages.settings import ReadSettings


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def half_grey() -> np.ndarray:
    """Return colour images of which half have no colour."""
    images = random_images(6, 9, 9, 3)
    images[::2] = images[::2, ..., :1]
    return images


@pytest.mark.parametrize(
    "images",
    [
        random_images(5, 8, 8),
        random_images(5, 7, 20),
        random_images(5, 3, 2),
        random_images(4, 80, 70),
        random_images(4, 12, 12, 3),
        random_images(4, 90, 20, 3),
        np.repeat(random_images(4, 10, 10, 1), 3, axis=3),
        half_grey(),
    ],
    ids=lambda images: str(images.shape),
)
@pytest.mark.parametrize(
    "read",
    [
        ReadSettings(),
        ReadSettings(size=16, channels=3, resize="pad"),
        ReadSettings(size=9, channels=1, resize="crop"),
    ],
)
def test_arrays_equal_files(images: np.ndarray, read: ReadSettings, tmp_path: Path):
    entries = [Entry(f"{row}.png", "a", "", "") for row in range(len(images))]
    files = []
    for entry, pixels in zip(entries, images, strict=True):
        path = str(tmp_path / entry.id)
        Image.fromarray(pixels).save(path)
        files.append(SourceFile(path, file_state(path), entry))
    expected = source_from_files("X", files, [], read, tmp_path / "cache", no_progress)
    source = source_from_arrays("X", images, entries, read)
    assert source.read == expected.read
    assert np.array_equal(source.images, expected.images)
    assert source.entries == expected.entries
    for name in ("pixels", "width", "height", "mode", "grey"):
        assert np.array_equal(source.facts[name], expected.facts[name]), name
