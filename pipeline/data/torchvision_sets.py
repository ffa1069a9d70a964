"""Read torchvision data sets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.dataset import SPLITS, Entry, Source
from pipeline.data.decode import Outcome, prepare_image
from pipeline.data.decoding_pool import file_state
from pipeline.data.image_store import open_store
from pipeline.data.source_files import SourceFile, source_from_files, source_from_store
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings

# fmt: on
# How torchvision's sets are divided: part -> arguments of the set's class. Omniglot's two halves share no
# character, so they are one pool here, which we split.
_FLAG = {"train": {"train": True}, "test": {"train": False}}


_NAMED = {"train": {"split": "train"}, "test": {"split": "test"}}


TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "USPS", "CIFAR10", "CIFAR100"), _FLAG
    ),
    **dict.fromkeys(("SVHN", "STL10", "Food101"), _NAMED),
    "Flowers102": {part: {"split": part} for part in SPLITS},
    "Omniglot": {"background": {"background": True}, "evaluation": {"background": False}},
}


IN_FILES = ("Omniglot", "Flowers102", "Food101")  # the others are one array


def read_torchvision_set(
    source: str, read: ReadSettings, cache: Path, root: Path, download: bool, show: Progress
) -> Source:
    name, _, variant = source.removeprefix("torchvision:").partition("/")
    if name not in TORCHVISION or (variant and name != "EMNIST"):
        raise DataError(
            f"{source}: not a set that can be read; torchvision:NAME takes {', '.join(TORCHVISION)}, and EMNIST/SPLIT"
        )
    import torchvision.datasets  # slow to import

    arguments: dict[str, Any] = {"split": variant or "byclass"} if name == "EMNIST" else {}
    if name in IN_FILES:
        arguments["loader"] = str  # the path itself: the store decodes
    kind = getattr(torchvision.datasets, name)
    sets = {}
    try:
        for part, chosen in TORCHVISION[name].items():
            sets[part] = kind(str(root), **arguments, **chosen, download=download)
    except (
        Exception
    ) as error:  # torchvision raises all kinds of error for a missing or damaged file
        advice = (
            "it could not be fetched"
            if download
            else "add --download to fetch it, or give --root where it lies"
        )
        raise DataError(
            f"{source}: not usable below {root} ({' '.join(str(error).split())[:300]}); {advice}"
        ) from error
    if name in IN_FILES:
        return source_from_files(
            source,
            [file for part in sets for file in _list_set(name, part, sets[part], root)],
            [],
            read,
            cache,
            show,
        )
    return _read_arrays(source, sets, read, cache, show)


def _list_set(name: str, part: str, images: Any, root: Path) -> Iterator[SourceFile]:
    """The files of a torchvision set; sorted, since Omniglot comes in the order of the disk."""
    for path, target in sorted(images[index] for index in range(len(images))):
        label = (
            Path(path).parent.relative_to(images.target_folder).as_posix()
            if name == "Omniglot"
            else str(images.classes[target])
        )
        given = "" if name == "Omniglot" else part
        yield SourceFile(
            path, file_state(path), Entry(Path(path).relative_to(root).as_posix(), label, given, "")
        )


def _read_arrays(
    source: str, sets: dict[str, Any], read: ReadSettings, cache: Path, show: Progress
) -> Source:
    """A torchvision set that is one array. Its content is its signature."""
    digest = hashlib.sha256(source.encode())
    entries = []
    for part, images in sets.items():
        digest.update(np.ascontiguousarray(images.data).data)
        targets = getattr(images, "targets", None)
        names = getattr(images, "classes", None)
        for index, target in enumerate(
            np.asarray(images.labels if targets is None else targets).tolist()
        ):
            entries.append(
                Entry(f"{part}/{index}", names[target] if names else str(target), part, "")
            )

    def outcomes(size: int | None, channels: int | None) -> Iterator[Outcome]:
        for images in sets.values():
            for index in range(len(images)):
                image = images[index][0]
                if source.startswith("torchvision:EMNIST"):  # stored column by column
                    image = image.transpose(Image.Transpose.TRANSPOSE)
                yield prepare_image(
                    image, hashlib.sha256(image.tobytes()).hexdigest(), size, channels, read.resize
                )

    store = open_store(cache, digest.hexdigest()[:32], outcomes, len(entries), read, show)
    return source_from_store(source, entries, store, [], read)
