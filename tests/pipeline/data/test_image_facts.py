"""Size and colours of images before they are decoded."""

import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from image_files import COLOUR, GOOD, png_of_claimed_size
from PIL import Image

from pipeline.data import image_facts
from pipeline.data.decode import read_image
from pipeline.data.image_facts import facts_of_array, facts_of_files

SIZES = [(100, 40), (30, 90), (70, 80), (200, 65), (9, 9)]


def write(folder: Path, *, grey: bool, sizes=SIZES) -> list[str]:
    """Write images of several sizes, all of mode RGB; the last one has colours unless grey."""
    paths = []
    for number, size in enumerate(sizes):
        image = Image.new("RGB", size, (80, 80, 80))
        if number == len(sizes) - 1 and not grey:
            image.putpixel((3, 3), (80, 80, 81))
        path = folder / f"{number}.png"
        image.save(path)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("grey", [True, False])
def test_facts_equal_those_of_the_decoded_images(tmp_path, grey):
    paths = write(tmp_path, grey=grey)
    decoded = [np.asarray(read_image(path)) for path in paths]
    is_grey = all((pixels == pixels[..., :1]).all() for pixels in decoded)
    facts = facts_of_files(paths)
    assert is_grey is grey
    assert facts == (5, statistics.median(min(pixels.shape[:2]) for pixels in decoded), True, grey)


@pytest.mark.parametrize("kind", GOOD)
def test_facts_of_every_format(kind, tmp_path):
    content, _, _ = GOOD[kind]
    path = tmp_path / "image"
    path.write_bytes(content)
    facts = facts_of_files([str(path)])
    image = read_image(str(path))
    assert facts.side == min(image.size) and facts.images == 1
    decoded = np.asarray(image).reshape(*image.size[::-1], -1)
    assert facts.grey == bool((decoded == decoded[..., :1]).all())


def test_unreadable_files_are_left_out(tmp_path):
    paths = write(tmp_path, grey=False)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "bomb.png").write_bytes(png_of_claimed_size(12_000))
    names = ("text.png", "empty.png", "pipe.png", "bomb.png", "none.png")
    others = [str(tmp_path / name) for name in names]
    assert facts_of_files(others + paths) == facts_of_files(paths)
    assert facts_of_files(others) == (0, 0.0, True, True)


def test_colour_is_unknown_if_only_some_images_are_decoded(tmp_path, monkeypatch):
    paths = write(tmp_path, grey=True)
    monkeypatch.setattr(image_facts, "MOST_DECODED", 4)
    assert facts_of_files(paths).grey is None
    monkeypatch.setattr(image_facts, "MOST_DECODED", 5)
    assert facts_of_files(paths).grey is True


def test_files_of_a_grey_mode_are_not_decoded(tmp_path, monkeypatch):
    for number in range(3):
        Image.new("L", (80, 80)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(image_facts, "read_image", lambda path: pytest.fail("decoded"))
    assert facts_of_files([str(path) for path in tmp_path.iterdir()]) == (3, 80.0, True, True)


def test_of_many_files_a_sample_is_read(tmp_path, monkeypatch):
    sizes = [(20 + number, 300) for number in range(100)]
    paths = write(tmp_path, grey=True, sizes=sizes)
    monkeypatch.setattr(image_facts, "MOST_HEADERS", 30)
    facts = facts_of_files(paths)
    assert facts == facts_of_files(paths)
    assert facts.images == 100 and not facts.exact and facts.grey is None
    assert abs(facts.side - statistics.median(range(20, 120))) < 20
    # Rows that alternate between two kinds of images must not yield one kind only.
    alternating = [paths[0], paths[99]] * 50
    chosen = image_facts.random.Random(0).sample(alternating, 30)
    assert 5 < chosen.count(paths[0]) < 25


def test_facts_of_an_array():
    grey = np.zeros((4, 70, 90), np.uint8)
    assert facts_of_array(grey) == (4, 70.0, True, True)
    assert facts_of_array(np.stack([grey] * 3, -1)).grey is True
    images = np.zeros((3, *COLOUR.shape), np.uint8)
    images[2] = COLOUR
    assert facts_of_array(images) == (3, 24.0, True, False)
