"""Store of decoded images: each image is decoded once, into a memory-mapped array.

A store is a folder in the cache:

=============  ==============================================================================
``images``     All decoded images, raw uint8 (M, C, S, S).
``index.npz``  Shape, facts about each image, position in the source, and unreadable images.
=============  ==============================================================================

Later epochs, stages and runs open the store again. It is built in a temporary ``.partial`` folder
and renamed when it is complete. If two processes build the same store, both use the first one.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.decode import FACT, MAX_OWN_SIZE, Decoder, Outcome, own_size
from pipeline.data.decoding_pool import FileState
from pipeline.data.identical_images import identify_pixels
from pipeline.data.jpeg_reduction import any_reduced
from pipeline.data.resizing import Pixels
from pipeline.files import atomic_file
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings

REDUCED = "-reduced"  # ending of the folder of a store that may have reduced images
FORMAT = 1  # part of the signature: stores of another format are not opened
ABANDONED_SECONDS = 3600.0  # a .partial folder without a write for so long is of a killed process


@dataclass(frozen=True, eq=False)
class Store:
    """Decoded images of a source.

    Attributes:
        images: Readable images, uint8 (M, C, S, S), a memory-mapped file.
        facts: Facts about each image, (M,), dtype ``FACT``.
        origin: Position of each image among the source's entries, int64 (M,).
        skipped: Position and reason of each unreadable entry.
    """

    images: Pixels
    facts: npt.NDArray[Any]
    origin: npt.NDArray[np.int64]
    skipped: tuple[tuple[int, str], ...]


class NothingReadable(DataError):
    """No image of a source is readable."""


def file_signature(files: Sequence[tuple[str, FileState | None]]) -> str:
    """Compute the signature of a list of files.

    Args:
        files: Full path and state of each file. ``None`` is the state of a missing file.

    Returns:
        32 hexadecimal digits that depend on each file's path, size and modification time.
    """
    lines = [f"{path}\0{state[0]}\0{state[1]}" if state else path for path, state in files]
    text = f"{FORMAT}\n" + "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def open_store(
    cache: Path, signature: str, decoder: Decoder, count: int, read: ReadSettings, show: Progress
) -> Store:
    """Open the store of a source, and build it first if it does not exist.

    If ``read.size`` is ``None``, images that share a size of at most 64 pixels keep it, and others
    get 64 pixels. If ``read.channels`` is ``None``, it is 1 if all images are grey, else 3. The
    choice is saved, so that a later call finds the store without decoding.

    Args:
        cache: Folder of all stores.
        signature: Signature of the source's content; another content needs another signature.
        decoder: Decodes entries in order; called only to build the store.
        count: Number of entries.
        read: How images are read.
        show: Wraps an iterable for display.

    Returns:
        The opened store.

    Raises:
        DataError: If the cache cannot be written to, for example because the disk is full, or
            if another user owns the store and keeps it private.
        NothingReadable: If no image is readable.
    """
    chosen_file = cache / f"{signature}.json"
    size, channels = read.size, read.channels
    chosen = None
    if size is None or channels is None:
        chosen = _read_chosen(chosen_file)
        if chosen:
            size, channels = size or chosen["size"], channels or chosen["channels"]
    if size and channels:
        folder = _store_folder(cache, signature, size, channels, read)
        store = _open(folder, count, size, channels)
        if store is None:
            _check_replaceable(folder)
        if read.jpeg == "reduced" and (store is None or any_reduced(store.facts, size, read)):
            folder = folder.with_name(f"{folder.name}{REDUCED}")
            store = _open(folder, count, size, channels)
        # The choice is compared with the images, because its file has no checksum.
        if store is not None and chosen in (None, _choose_shape(store.facts)):
            return store
        _check_replaceable(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        # Not tempfile.mkdtemp, which makes folders that only their owner can read.
        partial = cache / f"{signature}.{secrets.token_hex(4)}.partial"
        partial.mkdir()
        try:
            size, channels, facts = _build(partial, decoder, count, read, show)
            with atomic_file(chosen_file) as file:
                file.write(json.dumps(_choose_shape(facts)).encode())
            folder = _store_folder(cache, signature, size, channels, read)
            if any_reduced(facts, size, read):
                folder = folder.with_name(f"{folder.name}{REDUCED}")
            store = _move_and_open(partial, folder, count, size, channels)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{cache}: decoded images cannot be written there ({error.strerror or error}); "
            "free some space or use another folder with --cache"
        ) from error
    if store is None:
        raise DataError(
            f"{folder}: written, but cannot be read; remove it or use another folder with --cache"
        )
    return store


def _store_folder(
    cache: Path, signature: str, size: int, channels: int, read: ReadSettings
) -> Path:
    """Return the folder of a store without reduced images."""
    return cache / f"{signature}-{size}-{channels}-{read.resize}"


def _check_replaceable(folder: Path) -> None:
    """Check, before a store is built, that it can replace one that cannot be opened."""
    if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise DataError(
            f"{folder}: another user's decoded images, which you can neither read nor replace; "
            "ask for access, or use another folder with --cache"
        )


def _remove_abandoned(cache: Path) -> None:
    """Remove what killed processes have left. A running one writes all the time."""
    for path in cache.glob("*.partial"):
        with suppress(OSError):
            last_write = max(entry.stat().st_mtime for entry in (path, *path.glob("*")))
            if time.time() - last_write <= ABANDONED_SECONDS:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _move_and_open(
    partial: Path, folder: Path, count: int, size: int, channels: int
) -> Store | None:
    """Rename a complete store, unless another process has built the same store meanwhile."""
    store = _open(folder, count, size, channels)
    if store is None:
        shutil.rmtree(folder, ignore_errors=True)  # a damaged store
        with suppress(OSError):  # another process was faster: the folder exists and is not empty
            partial.rename(folder)
        store = _open(folder, count, size, channels)
    return store


def _read_chosen(path: Path) -> dict[str, int] | None:
    """Return the saved size and number of channels; None if they are missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        chosen = json.loads(path.read_text())
        if isinstance(chosen, dict) and set(chosen) == {"size", "channels"}:
            in_range = all(type(v) is int and 0 < v <= MAX_OWN_SIZE for v in chosen.values())
            return chosen if in_range else None
    return None


def _open(folder: Path, count: int, size: int, channels: int) -> Store | None:
    """Open a store of ``count`` entries; return None if it is missing or damaged.

    ``index.npz`` has checksums. ``images`` has none: only its size is compared, because reading
    all of it would take longer than training on small sets.
    """
    try:
        with (folder / "index.npz").open("rb") as file, np.load(file, allow_pickle=False) as index:
            shape, facts, origin = tuple(index["shape"].tolist()), index["facts"], index["origin"]
            reasons = json.loads(str(index["reasons"]))
            skipped = tuple(zip(index["skipped"].tolist(), reasons, strict=True))
        rows = len(origin)
        positions = np.sort([*origin, *(position for position, _ in skipped)])
        expected = (rows, channels, size, size)
        if (
            shape != expected
            or (facts.dtype, facts.shape) != (FACT, (rows,))
            or not np.array_equal(positions, np.arange(count))
            or not bool((np.diff(origin) > 0).all())
            or not all(isinstance(reason, str) for reason in reasons)
            or (folder / "images").stat().st_size != np.prod(expected, dtype=np.int64)
        ):
            return None
        # Copy on write: torch requires a writable array. Nothing is written.
        images = np.memmap(folder / "images", np.uint8, "c", shape=shape)
        return Store(images=images, facts=facts, origin=origin, skipped=skipped)
    except Exception:  # numpy and zipfile raise many kinds of errors for a damaged file
        return None


@dataclass
class _Written:
    """Images written so far.

    Attributes:
        shape: (C, S, S) of the images.
        facts: Facts about each image.
        origin: Position of each image among the entries.
        skipped: Reason of each unreadable entry by its position.
    """

    shape: tuple[int, ...] = ()
    facts: list[tuple[Any, ...]] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


def _build(
    folder: Path, decoder: Decoder, count: int, read: ReadSettings, show: Progress
) -> tuple[int, int, npt.NDArray[Any]]:
    """Write `images` and `index.npz`.

    The first image decides on size and channels. If a later one does not fit, all images are
    decoded again. This is rare and usually noticed early, so it costs less than opening each file
    twice.

    Returns:
        Size and channels of the store, and the facts about its images.
    """
    size, channels = read.size, read.channels
    while True:
        outcomes = show("reading images", count, decoder.decode(size, channels))
        written, required = _write_images(folder / "images", outcomes, size, channels)
        if required == (size, channels):
            break
        size, channels = required
    if not written.facts:
        reason = written.skipped.get(0, "none found")
        raise NothingReadable(f"none of the {count} images can be read; the first: {reason}")
    facts, origin = np.array(written.facts, FACT), np.array(written.origin, np.int64)
    if decoder.digest and (facts["pixels"] == b"").any():
        images = np.memmap(folder / "images", np.uint8, "r", shape=(len(facts), *written.shape))
        facts["pixels"] = identify_pixels(images, facts, origin, decoder.digest, show)
    np.savez(
        folder / "index.npz",
        shape=np.array((len(facts), *written.shape)),
        facts=facts,
        origin=origin,
        skipped=np.array(list(written.skipped), np.int64),
        reasons=np.array(json.dumps(list(written.skipped.values()))),
    )
    return written.shape[-1], written.shape[0], facts


def _write_images(
    path: Path, outcomes: Iterable[Outcome], size: int | None, channels: int | None
) -> tuple[_Written, tuple[int | None, int | None]]:
    """Write decoded images to a file and stop at the first one that does not fit the others.

    Returns:
        The written images, and the size and channels with which all images so far would fit:
        the given ones if all images have been written.
    """
    written = _Written()
    with path.open("wb") as file:
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, str):
                written.skipped[number] = outcome
                continue
            if not written.facts:
                written.shape = outcome.shape
            written.facts.append(outcome.fact)
            written.origin.append(number)
            if size is None and not _same_size(written, outcome.shape[-1]):
                return written, (MAX_OWN_SIZE, channels)
            if outcome.shape[0] > written.shape[0]:
                return written, (size, 3)
            # A grey image among colour images is repeated in all three channels.
            copies = written.shape[0] // outcome.shape[0]
            file.write(outcome.pixels * copies)
    return written, (size, channels)


def _same_size(written: _Written, side: int) -> bool:
    """Return True if the last image can be stored with the first one without choosing a size."""
    width_and_height = slice(2, 4)
    same = written.facts[-1][width_and_height] == written.facts[0][width_and_height]
    return same or side == written.shape[-1] == MAX_OWN_SIZE


def _choose_shape(facts: npt.NDArray[Any]) -> dict[str, int]:
    """Choose size and channels from all images, as `open_store` describes."""
    widths, heights = np.unique(facts["width"]), np.unique(facts["height"])
    side = max(int(widths[-1]), int(heights[-1]))
    keep_size = len(widths) == len(heights) == 1 and side <= MAX_OWN_SIZE
    return {
        "size": own_size(side, side) if keep_size else MAX_OWN_SIZE,
        "channels": 1 if facts["grey"].all() else 3,
    }
