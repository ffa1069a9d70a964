"""Decoded sources and split data sets."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.entries import Entry, Skipped
from pipeline.numbers import count_of
from stages.records import Split
from stages.settings import ReadSettings


@dataclass(frozen=True, eq=False)
class Source:
    """A decoded source that has not been split yet.

    Attributes:
        name: Name as given by the user, or the full path of a folder or manifest.
        entries: The M readable images.
        images: Pixels, uint8, shape (M, C, S, S). Memory-mapped except for ``digits``.
        facts: Facts about each image, shape (M,), with the fields of ``pipeline.data.decode.FACT``.
        read: Settings, with image size and channels filled in.
        skipped: Images that could not be read.
        notes: One sentence for each kind of ignored file.
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
        """Share of the images that could not be read, in [0, 1]."""
        return len(self.skipped) / (len(self.skipped) + len(self.entries))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A source that has been read and split.

    Attributes:
        train: Training split.
        validation: Validation split, or ``None`` if no image can be spared for it.
        test: Test split, or ``None`` if no image can be spared for it. Its classes are those of
            ``train``.
        source: Name of the source, or the full path of a folder or manifest.
        read: Settings, with image size and channels filled in.
        fingerprint: SHA-256 of ids, classes, splits and image contents. It does not depend on
            the location of the source.
        skipped: Images that could not be read.
        notes: Remarks for the user, one sentence each.
        leaked: Positions in ``test`` of images whose pixels also occur in training or validation.
        origin: The source before the split.
        parts: Split of each image of ``origin``: ``train``, ``val`` or ``test``.
        unseen: Test images of unseen classes, which have no training image, or ``None``. Its
            classes are the unseen ones.
        leaked_unseen: Positions in ``unseen``, as ``leaked``.
        held_out: The images in ``train`` of the held-out classes, with the classes of ``train``,
            or ``None``. Stage one does not train on them; they choose the epoch.
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
    unseen: Split | None = None
    leaked_unseen: tuple[int, ...] = ()
    held_out: Split | None = None

    @property
    def embedding_train(self) -> Split:
        """Images that stage one trains on: those of ``train`` without the held-out classes."""
        if self.held_out is None:
            return self.train
        kept = ~torch.isin(self.train.labels, self.held_out.labels)
        return self.train.select(kept.nonzero().flatten())

    def with_classes(self, classes: tuple[str, ...]) -> "Dataset":
        """Return the data set with more class names, for predictions of enrolled classes.

        Args:
            classes: The class names of ``train`` followed by others, or the first of them only.
        """
        names = ("train", "validation", "test", "held_out")
        splits = {name: getattr(self, name) for name in names}
        return replace(
            self,
            **{name: split and replace(split, classes=classes) for name, split in splits.items()},
        )

    @property
    def held_out_classes(self) -> tuple[str, ...]:
        """Names of the held-out classes."""
        labels = self.held_out.labels.unique().tolist() if self.held_out else []
        return tuple(self.train.classes[label] for label in labels)


def describe_skipped(source: Source) -> str:
    """Return the number of unreadable images and the first five of them with the reason."""
    skipped = source.skipped
    examples = "; ".join(f"{path}: {reason}" for path, reason in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    total = len(source.entries) + len(skipped)
    return f"{len(skipped)} of {total} images skipped: {examples}{more}"


def describe_unseen(data: Dataset) -> list[str]:
    """Return one line on the unseen classes and one on the held-out classes, if there are any."""
    lines = []
    if data.unseen:
        images = count_of(len(data.unseen), "test image")
        lines.append(f"unseen: {list_classes(data.unseen.classes)}, {images}")
    if data.held_out:
        images = count_of(len(data.held_out), "training image")
        lines.append(
            f"held out to choose the epoch: {list_classes(data.held_out_classes)}, {images}"
        )
    return lines


def natural_key(label: str) -> tuple[int, int, str]:
    """Return a sort key that orders numbers by value, and before words.

    Example:
        >>> sorted(["b", "10", "2"], key=natural_key)
        ['2', '10', 'b']
    """
    number = label.isascii() and label.isdigit() and len(label) < 300
    return (0, int(label), label) if number else (1, 0, label)


def folded_name(label: str) -> str:
    """Return a class name without differences of case and Unicode form.

    Example:
        >>> folded_name("Ros\u00e9") == folded_name("rose\u0301")
        True
    """
    return composed_name(label).casefold()


def composed_name(label: str) -> str:
    """Return a class name in the Unicode form NFC: equal for names that look the same.

    Example:
        >>> composed_name("Ros\u00e9") == composed_name("Rose\u0301")
        True
    """
    return unicodedata.normalize("NFC", label)


def list_classes(classes: Sequence[str]) -> str:
    """Return the number of classes, and the first ten names, in one line.

    Example:
        >>> list_classes(("cat", "dog"))
        '2 classes (cat, dog)'
    """
    noun = "class" if len(classes) == 1 else "classes"
    more = ", ..." if len(classes) > 10 else ""
    names = ", ".join(classes[:10]).replace("\n", "\\n")
    return f"{len(classes)} {noun} ({names}{more})"
