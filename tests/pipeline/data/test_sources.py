"""Reject unknown sources and impossible settings; train from decoded images only."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sample_sources import Writer, check_rejected, file_with, save_image, write_photos

from pipeline.data.sources import load_dataset
from stages.settings import ReadSettings

REJECTED: dict[str, tuple[Writer, str]] = {
    "a missing folder": (lambda root: root, "no such folder"),
    "a name of 5,000 characters": (lambda root: "x" * 5000, "no such folder"),
    "a null byte": (lambda root: "a\0b", "no such folder"),
    "an unknown name": (lambda root: "imagenet", "no such folder"),
    "a web address": (lambda root: "https://example.com/photos.zip", "no such folder"),
    "an image, not a folder": (lambda root: save_image(root / "a.png"), "a file, but not a .csv"),
    "an archive": (file_with(b"PK\x03\x04", "photos.zip"), "a file, but not a .csv"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_unknown_sources_are_one_error(name, tmp_path, capsys):
    write, message = REJECTED[name]
    check_rejected(write, message, tmp_path, capsys)


# Options and the start of the message.
REJECTED_OPTIONS = [
    (("--size", "0"), "--size 0"),
    (("--size", "5000"), "--size 5000"),
    (("--channels", "2"), "--channels 2"),
    (("--test", "-0.1"), "--test -0.1"),
    (("--dim", "100000000"), "--dim 100000000"),
    (("--epochs", str(10**20)), f"--epochs {10**20}"),
    (("--images-per-class", "99999"), "--images-per-class 99999: the largest class has 7"),
    (("--classes-per-batch", "3"), "--classes-per-batch 3: the training split has 2"),
    (("--val", "0.5", "--test", "0.5"), "--val 0.5"),
    (("--val", "nan"), "--val nan"),
    (("--max-unreadable", "2"), "--max-unreadable 2"),
]


@pytest.mark.parametrize(("options", "message"), REJECTED_OPTIONS)
def test_impossible_settings_are_one_error(options, message, tmp_path, capsys):
    check_rejected(write_photos, message, tmp_path, capsys, *options)


def test_number_of_cases():
    assert len(REJECTED) + len(REJECTED_OPTIONS) >= 15


def test_training_epoch_reads_no_image_file(tmp_path):
    root = write_photos(tmp_path / "photos")
    data = load_dataset(str(root), ReadSettings(), cache=tmp_path / "cache")
    expected = np.stack([np.asarray(Image.open(root / name)) for name in data.train.ids])
    shutil.rmtree(root)
    images = torch.cat(list(data.train.blocks(7))).numpy()
    assert np.array_equal(images[:, 0], expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 3000), (3000, 1)])
def test_images_of_extreme_shapes_are_read(shape, tmp_path):
    pixels = np.arange(4 * shape[0] * shape[1]).reshape(4, *shape).astype(np.uint8)
    for index in range(4):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(path)
    data = load_dataset(str(tmp_path / "photos"), ReadSettings(), cache=tmp_path / "cache")
    assert data.read.size == (64 if max(shape) > 64 else 4)


# Images of the classes `a` and `b`, and the error.
TOO_FEW = [((1, 0), "1 class"), ((2, 0), "1 class"), ((1, 1), "the largest with 1 image")]


@pytest.mark.parametrize(("counts", "message"), TOO_FEW)
def test_too_few_images_are_one_error(counts, message, tmp_path, capsys):
    def write(root):
        for label, count in zip("ab", counts, strict=True):
            for index in range(count):
                save_image(root / label / f"{index}.png")
        return root

    check_rejected(write, message, tmp_path, capsys)
