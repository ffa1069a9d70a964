"""Decode listed files into a source."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.data.dataset import Entry, Skipped, Source
from pipeline.data.decoding_pool import FileState, file_decoder
from pipeline.data.image_store import NothingReadable, Store, file_signature, open_store
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings


class SourceFile(NamedTuple):
    path: str
    state: FileState | None
    entry: Entry


def source_from_files(
    name: str,
    files: Sequence[SourceFile],
    notes: list[str],
    read: ReadSettings,
    cache: Path,
    show: Progress,
) -> Source:
    pairs = [(file.path, file.state) for file in files]
    try:
        with file_decoder(pairs, read.resize) as outcomes:
            store = open_store(cache, file_signature(pairs), outcomes, len(files), read, show)
    except NothingReadable as error:
        raise DataError(f"{name}: {error}: {files[0].path}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return source_from_store(name, [file.entry for file in files], store, notes, read)


def source_from_store(
    name: str, entries: Sequence[Entry], store: Store, notes: list[str], read: ReadSettings
) -> Source:
    skipped = tuple(Skipped(entries[row].id, reason) for row, reason in store.skipped)
    filled = replace(read, size=store.images.shape[-1], channels=store.images.shape[1])
    kept = tuple(entries[row] for row in store.origin.tolist())
    return Source(
        name, kept, torch.from_numpy(store.images), store.facts, filled, skipped, tuple(notes)
    )
