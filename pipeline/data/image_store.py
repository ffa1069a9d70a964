"""Each image is decoded once, into a memory-mapped array that later epochs, stages and runs open again.

A store is a folder in the cache: `images`, the raw uint8 (M, C, S, S), and `index.npz`, what was learnt about each image
while its file was open. It appears by one rename when it is whole, so a killed build leaves only a `.partial` folder, and of
two builders of the same store the later one takes the earlier one's. Every decoding process imports this module, which
therefore imports no torch.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.decode import FACT, OWN_SIZE_UP_TO, Decode, Pixels
from pipeline.data.decoding_pool import FileState
from pipeline.progress import Progress
from stages.errors import DataError
from stages.settings import ReadSettings

FORMAT = 1  # of the store; a store of another format is not found


ABANDONED = (
    3600.0  # seconds without a write after which a partial store is taken for a killed build's
)


@dataclass(frozen=True, eq=False)
class Store:
    """What is left of a source once it is decoded.

    images: uint8 (M, C, S, S), a memory-mapped file. facts: (M,), fields as in `FACT`. origin: int64 (M,), which of the
    source's entries each image is. skipped: the other entries, with the reason.
    """

    images: Pixels
    facts: npt.NDArray[Any]
    origin: npt.NDArray[np.int64]
    skipped: tuple[tuple[int, str], ...]


class NothingReadable(DataError):
    """Not one of a source's images, the first of them included."""


def file_signature(files: Sequence[tuple[str, FileState | None]]) -> str:
    """Of files by full path, size and time of change; a missing file counts too."""
    lines = [f"{path}\0{state[0]}\0{state[1]}" if state else path for path, state in files]
    return hashlib.sha256(
        f"{FORMAT}\n".encode() + "\n".join(lines).encode("utf-8", "surrogateescape")
    ).hexdigest()[:32]


def open_store(
    cache: Path, signature: str, decode: Decode, count: int, read: ReadSettings, show: Progress
) -> Store:
    """Open the store of a source, or build it first.

    signature: names the source's present content; another signature, another store. decode: gives the outcome of each of
    the `count` entries in order, at a size and channel count. Only called to build.
    read: size and channels of None are chosen: the images' own size if all share one of at most 64, else 64; one channel if
    all images are grey, else 3. Both are remembered, so that the store is found by either.
    Raises DataError if the cache can't be written (a full disk, say), NothingReadable if no image can be read.
    """
    size, channels = read.size, read.channels
    chosen_file = cache / f"{signature}.json"
    if size is None or channels is None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            chosen = json.loads(chosen_file.read_text())
            size, channels = size or int(chosen["size"]), channels or int(chosen["channels"])
    if (
        size
        and channels
        and (found := _open(_place(cache, signature, size, channels, read.resize)))
    ):
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        folder = Path(tempfile.mkdtemp(prefix=f"{signature}.", suffix=".partial", dir=cache))
        try:
            size, channels, chosen = _build(folder, decode, count, read, show)
            _replace(chosen_file, json.dumps(chosen).encode())
            place = _place(cache, signature, size, channels, read.resize)
            store = _open(place)  # another process may have been faster
            if store is None:
                shutil.rmtree(place, ignore_errors=True)  # a damaged one
                with suppress(
                    OSError
                ):  # the faster one again: a folder does not replace a full one
                    folder.rename(place)
                store = _open(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{cache}: the decoded images can't be kept there ({error.strerror or error}); make room, or give --cache"
        ) from error
    if store is None:
        raise DataError(f"{place}: written, but can't be read back; remove it, or give --cache")
    return store


def _place(cache: Path, signature: str, size: int, channels: int, resize: str) -> Path:
    return cache / f"{signature}-{size}-{channels}-{resize}"


def _sweep(cache: Path) -> None:
    """Remove what killed builds left. A living one writes all the time, so age tells them apart."""
    for left in cache.glob("*.partial"):
        with suppress(OSError):
            if (
                time.time() - max(path.stat().st_mtime for path in (left, *left.glob("*")))
                > ABANDONED
            ):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _open(place: Path) -> Store | None:
    """The store in a folder; None if there is none, or a damaged one, which will be built anew."""
    try:
        with (place / "index.npz").open("rb") as file, np.load(file, allow_pickle=False) as index:
            shape, facts, origin = tuple(index["shape"].tolist()), index["facts"], index["origin"]
            skipped = tuple(
                zip(index["skipped"].tolist(), json.loads(str(index["reasons"])), strict=True)
            )
        if (place / "images").stat().st_size != np.prod(
            shape, dtype=np.int64
        ) or facts.dtype != FACT:
            return None
        # Copy on write: torch wants a writable array, and nothing is ever written.
        return Store(
            np.memmap(place / "images", np.uint8, "c", shape=shape), facts, origin, skipped
        )
    except Exception:  # numpy and zipfile raise a dozen kinds of error on a damaged file
        return None


class _Misfit(Exception):
    """The images so far were written at a size, or in a number of channels, that the present one doesn't share."""


def _build(
    folder: Path, decode: Decode, count: int, read: ReadSettings, show: Progress
) -> tuple[int, int, dict[str, int]]:
    """Write `images` and `index.npz`. Returns size and channels, and what both would be if all were left to the images.

    The first images decide on size and channels. If a later one disagrees, all is decoded again with what fits
    all: rare, found early as a rule, and cheaper than opening each file twice.
    """
    size, channels = read.size, read.channels
    while True:
        facts: list[tuple[Any, ...]] = []
        origin: list[int] = []
        skipped: dict[int, str] = {}
        shape: tuple[int, ...] = ()
        try:
            with (folder / "images").open("wb") as file:
                for number, outcome in enumerate(
                    show("reading images", count, decode(size, channels))
                ):
                    if isinstance(outcome, str):
                        skipped[number] = outcome
                        continue
                    pixels, mine, fact = outcome
                    if not facts:
                        shape = mine
                    both = (shape[-1], mine[-1])
                    if (
                        size is None
                        and fact[2:4] != (facts or [fact])[0][2:4]
                        and both != (OWN_SIZE_UP_TO, OWN_SIZE_UP_TO)
                    ):
                        size = OWN_SIZE_UP_TO
                        raise _Misfit
                    if mine[0] > shape[0]:
                        channels = 3
                        raise _Misfit
                    facts.append(fact)
                    origin.append(number)
                    file.write(pixels if mine == shape else pixels * 3)  # grey among colour
        except _Misfit:
            continue
        if not facts:
            raise NothingReadable(
                f"none of the {count} images can be read; the first: {skipped.get(0, 'none found')}"
            )
        table = np.array(facts, FACT)
        np.savez(
            folder / "index.npz",
            shape=np.array((len(facts), *shape)),
            facts=table,
            origin=np.array(origin, np.int64),
            skipped=np.array(list(skipped), np.int64),
            reasons=np.array(json.dumps(list(skipped.values()))),
        )
        widths, heights = np.unique(table["width"]), np.unique(table["height"])
        side = max(int(widths[-1]), int(heights[-1]))
        own = len(widths) == len(heights) == 1 and side <= OWN_SIZE_UP_TO
        chosen = {
            "size": side if own else OWN_SIZE_UP_TO,
            "channels": 1 if table["grey"].all() else 3,
        }
        return shape[-1], shape[0], chosen
