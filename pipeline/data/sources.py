"""Read a source of labelled images."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data.dataset import Dataset, Entry, Source, describe_skipped
from pipeline.data.decode import FACT, prepare_image
from pipeline.data.folder import list_folder
from pipeline.data.manifest import list_manifest
from pipeline.data.source_files import source_from_files
from pipeline.data.splits import split_source
from pipeline.data.torchvision_sets import read_torchvision_set
from pipeline.files import default_cache
from pipeline.progress import Progress, no_progress
from stages.errors import DataError
from stages.settings import ReadSettings


def load_dataset(
    source: str,
    read: ReadSettings,
    *,
    cache: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read every image of a source and split what it doesn't split itself; arguments as for `read_source`.

    Raises DataError as that does, and if more images are unreadable than `read.max_unreadable` allows, or there are fewer
    than two classes to train on.
    """
    found = read_source(source, read, cache=cache, root=root, download=download, progress=progress)
    if found.unreadable > read.max_unreadable:
        raise DataError(
            f"{found.name}: {describe_skipped(found)}; that is {found.unreadable:.0%}, more than --max-unreadable {read.max_unreadable:g}: "
            "repair or remove them, or allow more"
        )
    return split_source(found)


def read_source(
    source: str,
    read: ReadSettings,
    *,
    cache: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Decode a source's images, or find them decoded.

    source: `digits`; a folder with one subfolder a class, or `train/` and perhaps `val/` and `test/` with one subfolder a
    class each; a CSV file with columns `path`, `label` and perhaps `split` and `group`; or `torchvision:NAME`.
    cache: the folder of decoded images, None: the user's cache. root, download: where torchvision's sets lie, and whether
    one that does not may be fetched. progress: wraps an iterable for display, given a caption and its length.
    Raises DataError if the source is missing or malformed, or none of its images can be read.
    """
    show: Progress = progress or no_progress
    cache = cache or default_cache()
    if source == "digits":
        return _read_digits(read)
    if source.startswith("torchvision:"):
        return read_torchvision_set(
            source, read, cache, root or default_cache() / "torchvision", download, show
        )
    if os.path.isdir(source):
        files, notes = list_folder(Path(source))
    elif os.path.isfile(source) and source.lower().endswith(".csv"):
        files, notes = list_manifest(Path(source)), []
    else:
        what = "a file, but not a .csv" if os.path.isfile(source) else "no such folder or file"
        raise DataError(
            f"{source}: {what}; give `digits`, a folder with one subfolder a class, a .csv, or torchvision:NAME"
        )
    return source_from_files(str(Path(source).resolve()), files, notes, read, cache, show)


def _read_digits(read: ReadSettings) -> Source:
    from sklearn.datasets import load_digits  # slow to import, and a folder does not need it

    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)
    outcomes = [
        prepare_image(
            Image.fromarray(image),
            hashlib.sha256(image.tobytes()).hexdigest(),
            read.size,
            read.channels,
            read.resize,
        )
        for image in arrays
    ]
    images = np.stack(
        [np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape) for outcome in outcomes]
    )
    entries = tuple(
        Entry(f"digits/{index}", str(target), "", "") for index, target in enumerate(digits.target)
    )
    facts = np.array([outcome.fact for outcome in outcomes], FACT)
    filled = replace(read, size=images.shape[-1], channels=images.shape[1])
    return Source("digits", entries, torch.from_numpy(images), facts, filled, (), ())
