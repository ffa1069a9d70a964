"""Read torchvision data sets from small files in their original formats."""

import bz2
import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from sample_sources import check_rejected
from scipy.io import savemat

from pipeline.data.sources import load_dataset
from stages.errors import DataError
from stages.settings import ReadSettings

# 30 images of three classes in each of two splits.
GREY = np.random.default_rng(9).integers(0, 256, (2, 30, 28, 28), np.uint8)
COLOUR = np.random.default_rng(8).integers(0, 256, (2, 30, 32, 32, 3), np.uint8)
LABELS = np.arange(30) % 3
SORTED_BY_LABEL = np.argsort(LABELS, kind="stable")

# Each writer writes one data set below a folder and returns the expected pixels, uint8
# (2, 30, S, S, C). Checksums of the original files are disabled.


def idx(array: np.ndarray) -> bytes:
    """Encode an array in the IDX format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(root, name, monkeypatch):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, prefix in enumerate(("train", "t10k")):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(GREY[split]))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    return GREY[..., None]


def write_emnist(root, name, monkeypatch):
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    variant = name.partition("/")[2] or "byclass"
    for split, split_name in enumerate(("train", "test")):
        prefix = folder / f"emnist-{variant}-{split_name}"
        columns_first = GREY[split].transpose(0, 2, 1)
        Path(f"{prefix}-images-idx3-ubyte").write_bytes(idx(columns_first))
        Path(f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS + 1))
    return GREY[..., None]


def write_usps(root, name, monkeypatch):
    root.mkdir(parents=True)
    images = GREY[:, :, :16, :16] // 2 * 2
    for split, file in enumerate(("usps.bz2", "usps.t.bz2")):
        lines = []
        for image, label in zip(images[split], LABELS, strict=True):
            scaled = (image.ravel().astype(float) + 0.5) / 255 * 2 - 1
            values = " ".join(f"{index}:{value:.6f}" for index, value in enumerate(scaled, start=1))
            lines.append(f"{label + 1} {values}\n")
        (root / file).write_bytes(bz2.compress("".join(lines).encode()))
    return images[..., None]


def write_cifar(root, name, monkeypatch):
    dataset = getattr(torchvision.datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if name == "CIFAR10" else "fine_labels"
    for split, files in enumerate((dataset.train_list, dataset.test_list)):
        rows = COLOUR[split].transpose(0, 3, 1, 2).reshape(30, -1)
        for number, (file, _) in enumerate(files):
            batch = slice(number, None, len(files))
            content = {"data": rows[batch], label_key: LABELS[batch].tolist()}
            (folder / file).write_bytes(pickle.dumps(content))
    names = {dataset.meta["key"]: [f"class {index}" for index in range(100)]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(names))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda path, md5: Path(path).is_file()
    )
    batches = len(dataset.train_list)
    train_order = np.concatenate([np.arange(30)[number::batches] for number in range(batches)])
    return np.stack([COLOUR[0][train_order], COLOUR[1]])


def write_svhn(root, name, monkeypatch):
    root.mkdir(parents=True)
    digits = np.where(LABELS == 0, 10, LABELS)[:, None]
    for split, file in enumerate(("train", "test")):
        content = {"X": COLOUR[split].transpose(1, 2, 3, 0), "y": digits}
        savemat(root / f"{file}_32x32.mat", content)
    monkeypatch.setattr(
        "torchvision.datasets.svhn.check_integrity", lambda path, md5: Path(path).is_file()
    )
    return COLOUR


def write_stl10(root, name, monkeypatch):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    large = np.repeat(np.repeat(COLOUR, 3, axis=2), 3, axis=3)  # (2, 30, 96, 96, 3)
    for split, file in enumerate(("train", "test")):
        (folder / f"{file}_X.bin").write_bytes(large[split].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{file}_y.bin").write_bytes((LABELS + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5: True)
    return large


def write_omniglot(root, name, monkeypatch):
    for split, half in enumerate(("images_background", "images_evaluation")):
        alphabet = root / "omniglot-py" / half / f"Alphabet{split}"
        for index in range(30):
            path = alphabet / f"character{LABELS[index]:02}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(GREY[split, index]).save(path)
    monkeypatch.setattr("torchvision.datasets.omniglot.check_integrity", lambda path, md5: True)
    return GREY[:, SORTED_BY_LABEL, ..., None]


def write_flowers(root, name, monkeypatch):
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for index, image in enumerate(COLOUR.reshape(60, 32, 32, 3), start=1):
        # PNG is lossless, and the decoder ignores the suffix.
        Image.fromarray(image).save(folder / "jpg" / f"image_{index:05}.jpg", "PNG")
    savemat(folder / "imagelabels.mat", {"labels": np.concatenate([LABELS, LABELS]) + 1})
    splits = {"trnid": np.arange(1, 31), "valid": np.arange(31, 46), "tstid": np.arange(46, 61)}
    savemat(folder / "setid.mat", splits)
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: True)
    return COLOUR


def write_food(root, name, monkeypatch):
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for split, split_name in enumerate(("train", "test")):
        images: dict[str, list[str]] = {}
        for index in range(30):
            label = f"dish{LABELS[index]}"
            image = f"{label}/{split}{index:02}"
            images.setdefault(label, []).append(image)
            path = folder / "images" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(COLOUR[split, index]).save(path, "PNG")
        (folder / "meta" / f"{split_name}.json").write_text(json.dumps(images))
    return COLOUR[:, SORTED_BY_LABEL]


SETS: dict[str, Callable[[Path, str, pytest.MonkeyPatch], np.ndarray]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST"), write_mnist),
    **dict.fromkeys(("EMNIST", "EMNIST/letters", "EMNIST/byclass"), write_emnist),
    "USPS": write_usps,
    **dict.fromkeys(("CIFAR10", "CIFAR100"), write_cifar),
    "SVHN": write_svhn,
    "STL10": write_stl10,
    "Omniglot": write_omniglot,
    "Flowers102": write_flowers,
    "Food101": write_food,
}
SPLITS_OF_SET = {"Omniglot": {""}, "Flowers102": {"train", "val", "test"}}


def load(name: str, folder: Path, read: ReadSettings):
    return load_dataset(f"torchvision:{name}", read, cache=folder / "cache", root=folder / "root")


@pytest.mark.parametrize("name", SETS)
def test_pixels_classes_and_splits_of_torchvision_sets(name, tmp_path, monkeypatch):
    expected = SETS[name](tmp_path / "root", name, monkeypatch)
    read = ReadSettings(size=expected.shape[2])
    data = load(name, tmp_path, read)
    assert data.fingerprint == load(name, tmp_path, read).fingerprint
    images = data.origin.images.numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(images, expected.reshape(-1, *expected.shape[2:]))
    assert len(data.train.classes) == (6 if name == "Omniglot" else 3)
    splits = {entry.part for entry in data.origin.entries}
    assert splits == SPLITS_OF_SET.get(name, {"train", "test"})
    if name == "EMNIST/letters":
        assert data.train.classes == ("a", "b", "c")


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "Omniglot", "Food101"])
def test_damaged_torchvision_sets_are_one_error(name, tmp_path, monkeypatch):
    SETS[name](tmp_path / "root", name, monkeypatch)
    for path in (tmp_path / "root").rglob("*"):
        if path.is_file():
            path.write_bytes(gzip.compress(b"rubbish"))
    with pytest.raises(DataError, match=name):
        load(name, tmp_path, ReadSettings())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:ImageNet2", "not a set"),  # an unknown name
        ("torchvision:MNIST/letters", "not a set"),  # only EMNIST has variants
        ("torchvision:EMNIST/greek", "not usable"),  # an unknown variant
        ("torchvision:MNIST", "--download"),  # not downloaded
    ],
)
def test_unavailable_torchvision_sets_are_one_error(source, message, tmp_path, capsys):
    check_rejected(lambda root: source, message, tmp_path, capsys)
