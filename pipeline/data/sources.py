"""Read a source of labelled images."""

from pathlib import Path

import numpy as np

from pipeline.data.array_images import source_from_arrays
from pipeline.data.dataset import Dataset, Source, describe_skipped
from pipeline.data.entries import Entry
from pipeline.data.readable_images import source_from_files
from pipeline.data.source_files import list_files
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
    """Read a source and split it into training, validation and test images.

    Splits that the source assigns are used unchanged.

    Args:
        source: Source of images, as for :func:`read_source`.
        read: Settings of decoding and splitting.
        cache: Folder of decoded images; ``None`` for the user's cache.
        root: Folder of torchvision's data sets; ``None`` for a folder in the user's cache.
        download: Download a torchvision data set that is missing.
        progress: Progress display.

    Returns:
        The data set.

    Raises:
        DataError: As :func:`read_source`, and if more images are unreadable than
            ``read.max_unreadable`` allows or fewer than two classes can be trained on.

    Example:
        >>> data = load_dataset("digits", ReadSettings())
        >>> len(data.train), len(data.validation), len(data.test)
        (1259, 179, 359)
    """
    decoded = read_source(
        source, read, cache=cache, root=root, download=download, progress=progress
    )
    if decoded.unreadable > read.max_unreadable:
        raise DataError(
            f"{decoded.name}: {describe_skipped(decoded)}; "
            f"{decoded.unreadable:.0%} is more than --max-unreadable {read.max_unreadable:g}: "
            "repair or remove these files, or allow more"
        )
    return split_source(decoded)


def read_source(
    source: str,
    read: ReadSettings,
    *,
    cache: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Decode the images of a source, or open them from the cache.

    Args:
        source: ``digits``; a folder with one subfolder per class; a folder with ``train/`` and
            optionally ``val/`` and ``test/``, each with one subfolder per class; a CSV file with
            the columns ``path``, ``label`` and optionally ``split``, ``group`` and ``role``; or
            ``torchvision:NAME``.
        read: Settings of the decoder.
        cache: Folder of decoded images; ``None`` for the user's cache.
        root: Folder of torchvision's data sets; ``None`` for a folder in the user's cache.
        download: Download a torchvision data set that is missing.
        progress: Progress display.

    Returns:
        The readable images. Unreadable ones are listed in ``skipped`` with the reason.

    Raises:
        DataError: If the source is missing or malformed, or none of its images can be read.

    Example:
        >>> tuple(read_source("digits", ReadSettings()).images.shape)
        (1797, 1, 8, 8)
    """
    show: Progress = progress or no_progress
    cache = cache or default_cache()
    if source == "digits":
        return _read_digits(read)
    if source.startswith("torchvision:"):
        root = root or default_cache() / "torchvision"
        return read_torchvision_set(source, read, cache, root, download, show)
    files, notes = list_files(source)
    return source_from_files(str(Path(source).resolve()), files, notes, read, cache, show)


def _read_digits(read: ReadSettings) -> Source:
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (M, 8, 8)
    entries = [
        Entry(id=f"digits/{index}", label=str(target), part="", group="")
        for index, target in enumerate(digits.target)
    ]
    return source_from_arrays("digits", pixels, entries, read)
