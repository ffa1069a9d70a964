"""Decode the images of a source, and skip those that cannot be read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.data.dataset import Source
from pipeline.data.entries import Entry, Skipped, SourceFile
from pipeline.data.image_store import NothingReadable, Store
from pipeline.data.jpeg_reduction import any_reduced
from pipeline.data.source_files import decode_files
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings


def source_from_files(
    name: str,
    files: Sequence[SourceFile],
    notes: list[str],
    read: ReadSettings,
    cache: Path,
    show: Progress,
) -> Source:
    """Decode image files, or open them from the cache if they have been decoded before.

    Args:
        name: Name of the source.
        files: Files of the source.
        notes: One sentence for each kind of ignored file.
        read: Settings of the decoder.
        cache: Folder of decoded images.
        show: Progress display.

    Returns:
        The readable images. Unreadable files are listed in ``skipped`` with the reason.

    Raises:
        DataError: If no file can be read, or the cache cannot be written.
    """
    try:
        store = decode_files(files, read, cache, show)
    except NothingReadable as error:
        raise DataError(f"{name}: {error}: {files[0].path}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return source_from_store(name, [file.entry for file in files], store, notes, read)


def source_from_store(
    name: str, entries: Sequence[Entry], store: Store, notes: list[str], read: ReadSettings
) -> Source:
    """Return the source whose decoded images are in a store.

    Args:
        name: Name of the source.
        entries: All entries of the source, readable or not.
        store: Decoded images, the facts about them, and the rows that were skipped.
        notes: One sentence for each kind of ignored file.
        read: Settings of the decoder. Size and channels are taken from the store. ``jpeg`` becomes
            ``full`` if no image is large enough to be reduced.
    """
    channels, size = store.images.shape[1], store.images.shape[-1]
    jpeg = "reduced" if any_reduced(store.facts, size, read) else "full"
    return Source(
        name=name,
        entries=tuple(entries[row] for row in store.origin.tolist()),
        images=torch.from_numpy(store.images),
        facts=store.facts,
        read=replace(read, size=size, channels=channels, jpeg=jpeg),
        skipped=tuple(Skipped(entries[row].id, reason) for row, reason in store.skipped),
        notes=tuple(notes),
    )
