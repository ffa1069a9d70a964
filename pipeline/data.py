"""A source of labelled images -> three splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from stages.errors import DataError
from stages.records import Split
from stages.settings import ReadSettings

PARTS = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
OWN_SIZE_UP_TO = 64

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[str, int, Iterable[object]], Iterable[object]]


class Skipped(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """A source, read and split.

    validation, test: None where there are too few images to give any up.
    source: a name, or the folder's full path. read: the settings with size and channels filled in.
    fingerprint: of ids, classes, parts and contents; the same data elsewhere has the same.
    """

    train: Split
    validation: Split | None
    test: Split | None
    source: str
    read: ReadSettings
    fingerprint: str
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]


def leaked_positions(dataset: Dataset) -> tuple[int, ...]:
    """Positions in the test split of the images whose pixels stand in the training or validation part too."""
    if dataset.test is None:
        return ()
    known = {key for part in (dataset.train, dataset.validation) if part for key in _pixel_keys(part)}
    return tuple(position for position, key in enumerate(_pixel_keys(dataset.test)) if key in known)


def _pixel_keys(split: Split) -> Iterator[bytes]:
    for images in split.blocks():
        for image in images.numpy():
            yield hashlib.sha256(image.tobytes()).digest()


class _Item(NamedTuple):
    """One image before the splits are made: square uint8 (S, S) or (S, S, 3), and the hash of its content."""

    id: str
    label: str
    part: str | None
    content: str
    pixels: Pixels


class _File(NamedTuple):
    path: Path
    id: str
    label: str
    part: str | None


def load_dataset(source: str, read: ReadSettings, *, progress: Progress | None = None) -> Dataset:
    """Read every image of a source and split what it doesn't split itself.

    source: `digits`, or a folder with one subfolder a class, or one with `train/` and perhaps `val/` and `test/`,
    each with one subfolder a class.
    progress: wraps an iterable for display, given a caption and its length.
    Raises DataError if the source is missing, empty, or has fewer than two classes to train on.
    """
    show: Progress = progress or (lambda caption, total, items: items)
    if source == "digits":
        origin, items = source, list(_read_digits(read))
        skipped: list[Skipped] = []
    elif Path(source).is_dir():
        origin = str(Path(source).resolve())
        items, skipped = _read_folder(Path(source), read, show)
    else:
        raise DataError(f"{source}: no such folder; give `digits`, or a folder with one subfolder a class")
    return _split(items, skipped, origin, read)


def _read_digits(read: ReadSettings) -> Iterator[_Item]:
    from sklearn.datasets import load_digits  # slow to import, and a folder does not need it

    digits = load_digits()
    for index, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        content = hashlib.sha256(pixels.tobytes()).hexdigest()
        if read.size:
            pixels = to_square(Image.fromarray(pixels), read.size, read.resize)
        yield _Item(f"digits/{index}", str(target), None, content, pixels)


def _read_folder(root: Path, read: ReadSettings, show: Progress) -> tuple[list[_Item], list[Skipped]]:
    files = list(_list_files(root))
    if not files:
        raise DataError(f"{root}: no image in it; give a folder with one subfolder a class, images within ({', '.join(sorted(SUFFIXES))})")
    size = read.size or _shared_size(file.path for file in files)
    items: list[_Item] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda file: _read_file(file, size, read.resize), files)
        for outcome in show("reading images", len(files), outcomes):
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            elif isinstance(outcome, _Item):
                items.append(outcome)
    if not items:
        raise DataError(f"{root}: none of its {len(files)} images can be read; the first, {skipped[0].path}: {skipped[0].reason}")
    return items, skipped


def _list_files(root: Path) -> Iterator[_File]:
    """Image files in a stable order; hidden files and folders are passed over."""
    folders = _subfolders(root)
    parts = [folder for folder in folders if folder.name in PARTS and _subfolders(folder)]
    if not parts:
        for folder in folders:
            yield from _list_class(folder, root, None)
    elif "train" not in [part.name for part in parts]:
        raise DataError(f"{root}: has {', '.join(part.name + '/' for part in parts)} but no train/ with class folders; add it")
    elif other := [folder.name for folder in folders if folder.name not in PARTS]:
        raise DataError(f"{root}: has {other[0]}/ beside {parts[0].name}/; keep only train/, val/ and test/, or only class folders")
    else:
        for part in parts:
            for folder in _subfolders(part):
                yield from _list_class(folder, root, part.name)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_class(folder: Path, root: Path, part: str | None) -> Iterator[_File]:
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                yield _File(path, path.relative_to(root).as_posix(), folder.name, part)


def _shared_size(paths: Iterable[Path]) -> int:
    """The longer side that all readable images share, if it is at most 64; else 64."""
    sizes = set()
    for path in paths:
        try:
            with Image.open(path) as image:  # reads the header only
                sizes.add(image.size)
        except Exception:  # noqa: S112  # reading it in earnest will name the file and the reason
            continue
        if len(sizes) > 1 or max(image.size) > OWN_SIZE_UP_TO:
            return OWN_SIZE_UP_TO
    return max(sizes.pop()) if sizes else OWN_SIZE_UP_TO


def _read_file(file: _File, size: int, resize: str) -> _Item | Skipped:
    try:
        content = file.path.read_bytes()
        pixels = to_square(decode(content), size, resize)
    except Exception as error:  # a decoder may raise anything on a broken file; the reason is kept and shown
        reason = str(error).replace(str(file.path), "").strip() or type(error).__name__
        if not file.path.exists() or not file.path.stat().st_size:
            reason = "empty file" if file.path.exists() else "missing (a broken link?)"
        elif "cannot identify" in reason:
            reason = "not an image that can be read"
        return Skipped(file.id, reason)
    return _Item(file.id, file.label, file.part, hashlib.sha256(content).hexdigest(), pixels)


def decode(content: bytes) -> Image.Image:
    """An encoded image -> 8-bit grey ("L") or "RGB", upright; transparency over white; the first frame."""
    image: Image.Image = Image.open(BytesIO(content))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_square(image: Image.Image, size: int, resize: str) -> Pixels:
    """Fit an image into a square.

    resize: `pad-repeat`, longest side to size, then the image tiled over the square; `pad`, the same, centred on
    its own median colour; `crop`, shortest side to size, then the centre; `stretch`, both sides to size.
    Returns uint8 (size, size) or (size, size, 3).
    """
    width, height = image.size
    if (width, height) == (size, size):
        return np.asarray(image)
    if resize == "stretch":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    scale = size / (min if resize == "crop" else max)(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels: Pixels = np.asarray(image if target == image.size else image.resize(target, Image.Resampling.BILINEAR))
    tall, wide = pixels.shape[:2]
    if resize == "crop":
        top, left = (tall - size) // 2, (wide - size) // 2
        return pixels[top : top + size, left : left + size]
    if resize == "pad":
        canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
        canvas[:] = np.median(pixels.reshape(tall * wide, -1), axis=0).reshape(pixels.shape[2:])
        top, left = (size - tall) // 2, (size - wide) // 2
        canvas[top : top + tall, left : left + wide] = pixels
        return canvas
    tiled: Pixels = pixels[np.arange(size) % tall][:, np.arange(size) % wide]
    return tiled


def _split(items: list[_Item], skipped: list[Skipped], source: str, read: ReadSettings) -> Dataset:
    given = {item.part for item in items}
    parts = _assign_parts(items, given, read)
    classes = tuple(sorted({item.label for item, part in zip(items, parts, strict=True) if part == "train"}, key=_natural))
    sizes = Counter(item.label for item, part in zip(items, parts, strict=True) if part == "train")
    if len(classes) < 2:
        raise DataError(f"{source}: {len(classes)} class to train on ({', '.join(classes)}); triplets need at least 2")
    unknown = {item.label: item.id for item in items if item.label not in sizes}
    if unknown:
        label, example = min(unknown.items())
        raise DataError(f"{source}: class {label} ({example}) has no image in the training part; add some, or take it out")
    channels = read.channels or (1 if all(map(_is_grey, items)) else 3)
    index = {label: number for number, label in enumerate(classes)}

    store = torch.from_numpy(np.stack([_to_channels(item.pixels, channels) for item in items]))

    def build(name: str) -> Split | None:
        rows = [row for row, part in enumerate(parts) if part == name]
        if not rows:
            return None
        labels = torch.tensor([index[items[row].label] for row in rows])
        return Split(store, torch.tensor(rows), labels, classes, tuple(items[row].id for row in rows))

    train = build("train")
    assert train is not None  # two classes were just counted in it
    notes = []
    if skipped:
        named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        notes.append(f"{len(skipped)} of {len(items) + len(skipped)} images skipped: {named}{more}")
    if lone := [label for label in classes if sizes[label] == 1]:
        notes.append(f"{len(lone)} classes with one training image ({', '.join(lone[:5])}): no triplet has them as anchor")
    lines = sorted(f"{part}\t{item.id}\t{item.label}\t{item.content}" for item, part in zip(items, parts, strict=True))
    return Dataset(
        train,
        build("val"),
        build("test"),
        source,
        replace(read, size=store.shape[-1], channels=channels),
        hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
        tuple(skipped),
        tuple(notes),
    )


def _assign_parts(items: list[_Item], given: set[str | None], read: ReadSettings) -> list[str]:
    """Each image's part: the given one, or one split off the training part.

    Within each class, images are ordered by a hash of their content and the split seed, so that neither the order nor
    the number of the others moves an image. Exact copies, in whatever class, go together. A class gives the rounded
    share to test and to validation, but keeps two images for training.
    """
    wanted = {name: share for name, share in (("test", read.test), ("val", read.val)) if name not in given}
    parts: dict[str, str] = {}  # by content
    members: dict[str, list[_Item]] = {}
    for item in items:
        if item.part in (None, "train"):
            members.setdefault(item.label, []).append(item)
    for label in sorted(members):
        keys = {item.content: _shuffle_key(item.content, read.split_seed) for item in members[label]}
        copies = Counter(item.content for item in members[label])
        queue = [content for content in sorted(keys, key=keys.__getitem__) if content not in parts]
        left = len(members[label])
        for name, share in wanted.items():
            quota = round(share * len(members[label]))
            while queue and copies[queue[0]] <= quota and left - copies[queue[0]] >= 2:
                parts[queue[0]] = name
                quota -= copies[queue[0]]
                left -= copies[queue.pop(0)]
        parts.update(dict.fromkeys(queue, "train"))
    return [item.part if item.part in ("val", "test") else parts[item.content] for item in items]


def _shuffle_key(content: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers by value, before words: 2 comes before 10."""
    return (0, int(label), label) if label.isascii() and label.isdigit() else (1, 0, label)


def _is_grey(item: _Item) -> bool:
    pixels = item.pixels
    return pixels.ndim == 2 or bool((pixels[..., :1] == pixels).all())


def _to_channels(pixels: Pixels, channels: int) -> Pixels:
    """uint8 (S, S) or (S, S, 3) -> (channels, S, S)."""
    if channels == 1:
        grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
        return grey[None]
    return np.broadcast_to(pixels, (3, *pixels.shape)) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
