"""Perceptual hashes and near duplicates."""

from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sample_sources import smooth_image

from pipeline.data.dataset import Source
from pipeline.data.duplicates import near_duplicates, perceptual_hash
from pipeline.data.sources import read_source
from stages.settings import ReadSettings


def read(root: Path, cache: Path) -> Source:
    return read_source(str(root), ReadSettings(), cache=cache)


@pytest.mark.parametrize("change", ["jpeg", "smaller", "brighter", "contrast", "one pixel"])
def test_changed_copies_are_near_duplicates(change, tmp_path):
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for seed in range(30):
        image = smooth_image(seed)
        image.save(folder / f"{seed:02}.png")
        if change == "smaller":
            image = image.resize((70, 70))
        elif change == "brighter":
            image = ImageEnhance.Brightness(image).enhance(1.1)
        elif change == "contrast":
            image = ImageEnhance.Contrast(image).enhance(0.8)
        elif change == "one pixel":
            image.putpixel((3, 3), (255, 0, 0))
        image.save(folder / f"{seed:02} changed.{'jpg' if change == 'jpeg' else 'png'}")
    source = read(tmp_path / "photos", tmp_path / "cache")
    groups = near_duplicates(source)
    seeds = [{source.entries[row].id[2:4] for row in rows} for rows in groups]
    assert len(seeds) >= 29
    assert all(len(group) == 1 for group in seeds)


def test_different_digits_are_rarely_near_duplicates():
    source = read_source("digits", ReadSettings())
    assert sum(map(len, near_duplicates(source))) < 0.02 * len(source.entries)


def test_hash_equals_imagehash_up_to_the_median():
    images = [smooth_image(seed, 32).convert("L") for seed in range(20)]
    bits = perceptual_hash(np.stack([np.asarray(image) for image in images])[:, None]) > 0
    expected = np.stack([imagehash.phash(image).hash.ravel() for image in images])
    # imagehash includes the mean brightness in the median, which may change the bits next to it.
    assert (bits != expected).sum(axis=1).max() <= 2


def test_flat_images_are_not_near_duplicates(tmp_path):
    for value in range(0, 200, 10):
        path = tmp_path / "photos" / "ab"[value % 20 // 10] / f"{value}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), value, np.uint8)).save(path)
    assert near_duplicates(read(tmp_path / "photos", tmp_path / "cache")) == []
