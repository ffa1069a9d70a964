"""Entries, decoded sources and split data sets."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt
from torch import Tensor

from stages.records import Split
from stages.settings import ReadSettings

SPLITS = ("train", "val", "test")


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    reason: str


class Entry(NamedTuple):
    """What a source says of one image: its id and label, the part and the group it is given to ("" for none)."""

    id: str
    label: str
    part: str
    group: str


@dataclass(frozen=True, eq=False)
class Source:
    """A source, decoded, not yet split.

    name: as given, or a folder's or manifest's full path. entries: of the M readable images. images: uint8 (M, C, S, S), of
    a memory-mapped file except for `digits`. facts: (M,), fields as in `pipeline.store.FACT`.
    read: the settings with size and channels filled in. notes: what was passed over, one sentence each.
    """

    name: str
    entries: tuple[Entry, ...]
    images: Tensor
    facts: npt.NDArray[Any]
    read: ReadSettings
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    @property
    def unreadable(self) -> float:
        """The share of images that could not be read."""
        return len(self.skipped) / (len(self.skipped) + len(self.entries))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A source, read and split.

    validation, test: None where there are too few images to give any up.
    source: a name, or the folder's full path. read: the settings with size and channels filled in.
    fingerprint: of ids, classes, parts and contents; the same data elsewhere has the same.
    leaked: positions in `test` of images whose pixels stand in the training or the validation part as well.
    origin: the source itself; parts: each of its images' part, `train`, `val` or `test`.
    """

    train: Split
    validation: Split | None
    test: Split | None
    source: str
    read: ReadSettings
    fingerprint: str
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    leaked: tuple[int, ...]
    origin: Source
    parts: tuple[str, ...]


def describe_skipped(source: Source) -> str:
    """How many images could not be read, with the first few by name and reason."""
    skipped = source.skipped
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{len(skipped)} of {len(source.entries) + len(skipped)} images skipped: {named}{more}"


def natural_key(label: str) -> tuple[int, int, str]:
    """Numbers by value, before words: 2 comes before 10."""
    number = label.isascii() and label.isdigit() and len(label) < 300
    return (0, int(label), label) if number else (1, 0, label)
