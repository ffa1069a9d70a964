"""Each image is decoded once, into a memory-mapped array that later epochs, stages and runs open again.

A store is a folder in the cache: `images`, the raw uint8 (M, C, S, S), and `index.npz`, what was learnt about each image
while its file was open. It appears by one rename when it is whole, so a killed build leaves only a `.partial` folder, and of
two builders of the same store the later one takes the earlier one's. Every decoding process imports this module, which
therefore imports no torch.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from stages.errors import DataError
from stages.settings import ReadSettings

FORMAT = 1  # of the store; a store of another format is not found
OWN_SIZE_UP_TO = 64
LARGEST = 89_478_485  # pixels; Pillow warns of a decompression bomb above this
LARGEST_FILE = 2**30
# Only these decoders are tried: some of Pillow's others start programs (EPS) or are hardly ever met.
DECODERS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "DIB")
ABANDONED = 3600.0  # seconds without a write after which a partial store is taken for a killed build's
# Without waiting: a pipe with an image's name would make a plain open wait for ever.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
FACT = np.dtype([("content", "S64"), ("pixels", "S32"), ("width", np.int32), ("height", np.int32), ("mode", "S8"), ("grey", np.bool_)])

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[str, int, Iterable[Any]], Iterable[Any]]


class Decoded(NamedTuple):
    """One image: square uint8 (C, S, S) as bytes, which travel between processes ten times faster, and its row of the index.

    fact: SHA-256 of the file, SHA-256 of the upright full-size pixels (half of it), width, height, the file's mode,
    whether all its pixels are grey.
    """

    pixels: bytes
    shape: tuple[int, int, int]
    fact: tuple[str, str, int, int, str, bool]


State = tuple[int, int]  # a file's size in bytes and time of change in ns
Outcome = Decoded | str  # a string is the reason why there is no image
Decode = Callable[[int | None, int | None], Iterator[Outcome]]  # (size, channels), None to choose image by image


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


def open_store(cache: Path, signature: str, decode: Decode, count: int, read: ReadSettings, show: Progress) -> Store:
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
    if size and channels and (found := _open(_place(cache, signature, size, channels, read.resize))):
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
                with suppress(OSError):  # the faster one again: a folder does not replace a full one
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
            if time.time() - max(path.stat().st_mtime for path in (left, *left.glob("*"))) > ABANDONED:
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
            skipped = tuple(zip(index["skipped"].tolist(), json.loads(str(index["reasons"])), strict=True))
        if (place / "images").stat().st_size != np.prod(shape, dtype=np.int64) or facts.dtype != FACT:
            return None
        # Copy on write: torch wants a writable array, and nothing is ever written.
        return Store(np.memmap(place / "images", np.uint8, "c", shape=shape), facts, origin, skipped)
    except Exception:  # numpy and zipfile raise a dozen kinds of error on a damaged file
        return None


class _Misfit(Exception):
    """The images so far were written at a size, or in a number of channels, that the present one doesn't share."""


def _build(folder: Path, decode: Decode, count: int, read: ReadSettings, show: Progress) -> tuple[int, int, dict[str, int]]:
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
                for number, outcome in enumerate(show("reading images", count, decode(size, channels))):
                    if isinstance(outcome, str):
                        skipped[number] = outcome
                        continue
                    pixels, mine, fact = outcome
                    if not facts:
                        shape = mine
                    both = (shape[-1], mine[-1])
                    if size is None and fact[2:4] != (facts or [fact])[0][2:4] and both != (OWN_SIZE_UP_TO, OWN_SIZE_UP_TO):
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
            raise NothingReadable(f"none of the {count} images can be read; the first: {skipped.get(0, 'none found')}")
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
        chosen = {"size": side if own else OWN_SIZE_UP_TO, "channels": 1 if table["grey"].all() else 3}
        return shape[-1], shape[0], chosen


# Reading files


def state_of(path: str) -> State | None:
    """A file's size and time of change; None if it is missing."""
    with suppress(OSError, ValueError):  # ValueError: a null byte in a manifest's path
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    return None


def file_signature(files: Sequence[tuple[str, State | None]]) -> str:
    """Of files by full path, size and time of change; a missing file counts too."""
    lines = [f"{path}\0{state[0]}\0{state[1]}" if state else path for path, state in files]
    return hashlib.sha256(f"{FORMAT}\n".encode() + "\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


@contextmanager
def file_decoder(files: Sequence[tuple[str, State | None]], resize: str) -> Generator[Decode]:
    """A `Decode` of files, by several processes where that pays: starting them costs half a second."""
    paths = [path for path, _ in files]
    total = sum(state[0] for _, state in files if state)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        if workers > 1 and (len(paths) >= 10_000 or total >= 8e6):
            # Spawned, not forked: a forked copy of a process with threads (torch has them) may hang.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
        step = 256 if total < 16_000 * len(paths) else 16
        chunks = [paths[start : start + step] for start in range(0, len(paths), step)]

        def decode(size: int | None, channels: int | None) -> Iterator[Outcome]:
            read = partial(read_files, size=size, channels=channels, resize=resize)
            done = 0
            if pool:
                # Workers die where memory is short, or where a script without an `if __name__` guard starts them.
                with suppress(BrokenProcessPool):
                    for outcomes in pool.map(read, chunks):
                        yield from outcomes
                        done += 1
            yield from chain.from_iterable(map(read, chunks[done:]))

        yield decode


def _start_worker() -> None:
    """Leave interrupts to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def read_files(paths: Sequence[str], *, size: int | None, channels: int | None, resize: str) -> list[Outcome]:
    """Decode files, each into an image or the reason why not; never raises for what is in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of much that does not keep them from decoding
        return [_read_file(path, size, channels, resize) for path in paths]


def _read_file(path: str, size: int | None, channels: int | None, resize: str) -> Outcome:
    try:
        handle = os.open(path, READ)
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                return "a folder, not a file" if stat.S_ISDIR(state.st_mode) else "not a file"
            if state.st_size > LARGEST_FILE:
                return f"{state.st_size / 1e9:.1f} GB, more than an image takes"
            content = os.read(handle, state.st_size)
            while len(content) < state.st_size and (more := os.read(handle, state.st_size)):
                content += more
        finally:
            os.close(handle)
        if not content:
            return "empty file"
        return square(decode(content), hashlib.sha256(content).hexdigest(), size, channels, resize)
    except FileNotFoundError:
        return "missing (a broken link?)"
    except OSError as error:
        if error.strerror:  # of the file, not of its content
            return error.strerror.lower()
        return _reason(error)
    except Exception as error:  # a decoder may raise anything on a broken file; the reason is kept and shown
        return _reason(error)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot identify image file" in text:
        return "not an image that can be read"
    return text[:200] or type(error).__name__


def square(image: Image.Image, content: str, size: int | None, channels: int | None, resize: str) -> Decoded:
    """A decoded image -> its square and its row of the index.

    content: what the caller knows the image's encoded content by. size, channels: None to choose from this image alone.
    """
    width, height = image.size
    full = np.asarray(image)
    grey = image.mode == "L" or _is_grey(full)
    if grey and full.ndim == 3:
        image = image.getchannel(0)  # so that a grey image is the same pixels in whatever mode it came
        full = np.asarray(image)
    shape = f"{width}x{height}x{full.ndim}".encode()
    pixels = hashlib.sha256(np.ascontiguousarray(full).data)
    pixels.update(shape)
    mode = image.info.get(MODE, image.mode)
    side = size or (max(width, height) if max(width, height) <= OWN_SIZE_UP_TO else OWN_SIZE_UP_TO)
    small = full if width == height == side else to_square(image, side, resize)
    wanted = channels or (1 if grey else 3)
    fact = (content, pixels.hexdigest()[:32], width, height, mode, grey)
    return Decoded(to_channels(small, wanted).tobytes(), (wanted, side, side), fact)


def _is_grey(pixels: Pixels) -> bool:
    """Of (H, W, 3). A few pixels decide nearly always."""
    for some in (pixels[:: 1 + len(pixels) // 16, :: 1 + pixels.shape[1] // 16], pixels):
        if not (np.array_equal(some[..., 0], some[..., 1]) and np.array_equal(some[..., 0], some[..., 2])):
            return False
    return True


MODE = "mode in the file"


def decode(content: bytes) -> Image.Image:
    """An encoded image -> 8-bit grey ("L") or "RGB", upright; transparency over white; the first frame.

    16 bits of grey are scaled to 8. `info["mode in the file"]` of the result says what it was.
    Raises whatever Pillow raises on damaged content, ValueError for an image of more than 89 million pixels.
    """
    image: Image.Image = Image.open(BytesIO(content), formats=DECODERS)
    if image.width * image.height > LARGEST:
        raise ValueError(f"{image.width} x {image.height} pixels, more than 89 million: taken for a decompression bomb")
    mode = image.mode
    image.load()
    if "exif" in image.info or image.format != "PNG" or "xmp" in image.info or "Raw profile type exif" in image.info:
        with suppress(Exception):  # a damaged orientation does not damage the picture
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image.info[MODE] = mode
    return image


def to_square(image: Image.Image, size: int, resize: str) -> Pixels:
    """Fit an image into a square.

    resize: `pad-repeat`, longest side to size, then the image tiled over the square; `pad`, the same, centred on
    its own median colour; `crop`, the central square, to size; `stretch`, both sides to size.
    Returns uint8 (size, size) or (size, size, 3).
    """
    width, height = image.size
    if (width, height) == (size, size):
        return np.asarray(image)
    if resize in ("stretch", "crop"):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side) if resize == "crop" else (0, 0, width, height)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    scale = size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels: Pixels = np.asarray(image if target == image.size else image.resize(target, Image.Resampling.BILINEAR))
    tall, wide = pixels.shape[:2]
    if resize == "pad":
        canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
        canvas[:] = np.median(pixels.reshape(tall * wide, -1), axis=0).reshape(pixels.shape[2:])
        top, left = (size - tall) // 2, (size - wide) // 2
        canvas[top : top + tall, left : left + wide] = pixels
        return canvas
    tiled: Pixels = pixels[np.arange(size) % tall][:, np.arange(size) % wide]
    return tiled


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """uint8 (S, S) or (S, S, 3) -> (channels, S, S)."""
    if channels == 1:
        return (pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L")))[None]
    return np.broadcast_to(pixels, (3, *pixels.shape)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
