"""Read torchvision data sets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.dataset import Source
from pipeline.data.decode import Decoder, Outcome, prepare_image
from pipeline.data.decoding_pool import file_state
from pipeline.data.entries import SPLITS, Entry, SourceFile
from pipeline.data.image_store import open_store
from pipeline.data.readable_images import source_from_files, source_from_store
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings

_BY_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}

# Data set -> split -> arguments of the data set's class. Omniglot's two halves have no character
# in common, so they are pooled and split like a folder.
TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "USPS", "CIFAR10", "CIFAR100"), _BY_TRAIN_FLAG
    ),
    **dict.fromkeys(("SVHN", "STL10", "Food101"), _BY_SPLIT_NAME),
    "Flowers102": {split: {"split": split} for split in SPLITS},
    "Omniglot": {"background": {"background": True}, "evaluation": {"background": False}},
}
IN_FILES = ("Omniglot", "Flowers102", "Food101")  # one file per image; the others are one array


def read_torchvision_set(
    source: str, read: ReadSettings, cache: Path, root: Path, download: bool, show: Progress
) -> Source:
    """Read a torchvision data set, with the splits that torchvision defines.

    Args:
        source: ``torchvision:NAME`` or ``torchvision:EMNIST/SPLIT``.
        read: Settings of the decoder.
        cache: Folder of decoded images.
        root: Folder of torchvision's data sets.
        download: Download the data set if it is missing.
        show: Progress display.

    Returns:
        The decoded data set. Omniglot has no splits; the others have theirs.

    Raises:
        DataError: If the name is unknown, or the data set is missing or damaged.
    """
    name, _, variant = source.removeprefix("torchvision:").partition("/")
    if name not in TORCHVISION or (variant and name != "EMNIST"):
        raise DataError(
            f"{source}: not a set that can be read; "
            f"torchvision:NAME takes {', '.join(TORCHVISION)}, and EMNIST/SPLIT"
        )
    sets = _open_sets(source, name, variant, root, download)
    if name not in IN_FILES:
        return _read_arrays(source, sets, read, cache, show)
    files: list[SourceFile] = []
    for split, images in sets.items():
        files += _list_files(name, split, images, root)
    return source_from_files(source, files, [], read, cache, show)


def _open_sets(source: str, name: str, variant: str, root: Path, download: bool) -> dict[str, Any]:
    """Return torchvision's data set of each split."""
    import torchvision.datasets  # slow to import

    arguments: dict[str, Any] = {"split": variant or "byclass"} if name == "EMNIST" else {}
    if name in IN_FILES:
        arguments["loader"] = str  # returns the path: we decode the file ourselves
    dataset_class = getattr(torchvision.datasets, name)
    sets = {}
    try:
        for split, split_arguments in TORCHVISION[name].items():
            sets[split] = dataset_class(
                str(root), **arguments, **split_arguments, download=download
            )
    except Exception as error:  # torchvision raises errors of any type for damaged files
        reason = " ".join(str(error).split())[:300]
        advice = (
            "the download failed"
            if download
            else "add --download to fetch it, or give its folder with --root"
        )
        raise DataError(f"{source}: not usable in {root} ({reason}); {advice}") from error
    return sets


def _list_files(name: str, split: str, images: Any, root: Path) -> list[SourceFile]:
    """List the files of a torchvision data set, sorted because Omniglot's order is arbitrary."""
    files = []
    for path, target in sorted(images[index] for index in range(len(images))):
        if name == "Omniglot":
            split = ""
            label = Path(path).parent.relative_to(images.target_folder).as_posix()
        else:
            label = str(images.classes[target])
        entry = Entry(id=Path(path).relative_to(root).as_posix(), label=label, part=split, group="")
        files.append(SourceFile(path, file_state(path), entry))
    return files


def _read_arrays(
    source: str, sets: dict[str, Any], read: ReadSettings, cache: Path, show: Progress
) -> Source:
    """Read a torchvision data set whose images are one array; its content identifies the store."""
    digest = hashlib.sha256(source.encode())
    entries = []
    for split, images in sets.items():
        digest.update(np.ascontiguousarray(images.data).data)
        names = getattr(images, "classes", None)
        targets = getattr(images, "targets", None)
        if targets is None:
            targets = images.labels
        for index, target in enumerate(np.asarray(targets).tolist()):
            label = names[target] if names else str(target)
            entries.append(Entry(id=f"{split}/{index}", label=label, part=split, group=""))

    def decode(size: int | None, channels: int | None) -> Iterator[Outcome]:
        for images in sets.values():
            for index in range(len(images)):
                image = images[index][0]
                if source.startswith("torchvision:EMNIST"):  # EMNIST stores columns first
                    image = image.transpose(Image.Transpose.TRANSPOSE)
                content = hashlib.sha256(image.tobytes()).hexdigest()
                yield prepare_image(image, content, size, channels, read.resize)

    decoder = Decoder(decode)
    store = open_store(cache, digest.hexdigest()[:32], decoder, len(entries), read, show)
    return source_from_store(source, entries, store, [], read)
