"""Images as a source lists them. This module imports no torch."""

from typing import NamedTuple

from pipeline.data.decoding_pool import FileState

SPLITS = ("train", "val", "test")


class Skipped(NamedTuple):
    """An image that could not be read.

    Attributes:
        path: Id of the image.
        reason: Why it could not be read.
    """

    path: str
    reason: str


class Entry(NamedTuple):
    """An image as listed by its source.

    Attributes:
        id: Path of the image relative to the source, with ``/``, or a path written in a manifest.
        label: Class name.
        part: Split that the source assigns (``train``, ``val`` or ``test``), or an empty string.
        group: Name of the group that must stay in one split, or an empty string.
        role: Role of a test image in retrieval, ``query`` or ``gallery``, or an empty string for
            both.
    """

    id: str
    label: str
    part: str
    group: str
    role: str = ""


class SourceFile(NamedTuple):
    """An image file of a source.

    Attributes:
        path: Path of the file.
        state: Size in bytes and modification time in ns, or ``None`` if the file is missing.
        entry: Id, label, split and group of the image.
    """

    path: str
    state: FileState | None
    entry: Entry
