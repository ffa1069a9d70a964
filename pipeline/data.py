"""A source of labelled images -> three splits."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import platformdirs
import torch
from PIL import Image
from torch import Tensor

from pipeline.store import (
    FACT,
    NothingReadable,
    Outcome,
    Progress,
    State,
    Store,
    file_decoder,
    file_signature,
    open_store,
    square,
    state_of,
)
from stages.errors import DataError
from stages.records import Split
from stages.settings import ReadSettings

PARTS = ("train", "val", "test")
# fmt: off
SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".ppm", ".pnm",
))
# fmt: on
# How torchvision's sets are divided: part -> arguments of the set's class. Omniglot's two halves share no
# character, so they are one pool here, which we split.
_FLAG = {"train": {"train": True}, "test": {"train": False}}
_NAMED = {"train": {"split": "train"}, "test": {"split": "test"}}
TORCHVISION: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "USPS", "CIFAR10", "CIFAR100"), _FLAG),
    **dict.fromkeys(("SVHN", "STL10", "Food101"), _NAMED),
    "Flowers102": {part: {"split": part} for part in PARTS},
    "Omniglot": {"background": {"background": True}, "evaluation": {"background": False}},
}
IN_FILES = ("Omniglot", "Flowers102", "Food101")  # the others are one array


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


class _File(NamedTuple):
    path: str
    state: State | None
    entry: Entry


def default_cache() -> Path:
    """Where decoded images are kept unless told otherwise."""
    return Path(platformdirs.user_cache_dir("embedding-pipeline", appauthor=False))


def load_dataset(
    source: str,
    read: ReadSettings,
    *,
    cache: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read every image of a source and split what it doesn't split itself; arguments as for `read_source`.

    Raises DataError as that does, and if more images are unreadable than `read.max_unreadable` allows, or there are fewer
    than two classes to train on.
    """
    found = read_source(source, read, cache=cache, root=root, download=download, progress=progress)
    if found.unreadable > read.max_unreadable:
        raise DataError(
            f"{found.name}: {describe_skipped(found)}; that is {found.unreadable:.0%}, more than --max-unreadable {read.max_unreadable:g}: "
            "repair or remove them, or allow more"
        )
    return split_source(found)


def read_source(
    source: str,
    read: ReadSettings,
    *,
    cache: Path | None = None,
    root: Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Decode a source's images, or find them decoded.

    source: `digits`; a folder with one subfolder a class, or `train/` and perhaps `val/` and `test/` with one subfolder a
    class each; a CSV file with columns `path`, `label` and perhaps `split` and `group`; or `torchvision:NAME`.
    cache: the folder of decoded images, None: the user's cache. root, download: where torchvision's sets lie, and whether
    one that does not may be fetched. progress: wraps an iterable for display, given a caption and its length.
    Raises DataError if the source is missing or malformed, or none of its images can be read.
    """
    show: Progress = progress or (lambda caption, total, items: items)
    cache = cache or default_cache()
    if source == "digits":
        return _read_digits(read)
    if source.startswith("torchvision:"):
        return _read_torchvision(source, read, cache, root or default_cache() / "torchvision", download, show)
    if os.path.isdir(source):
        files, notes = _list_folder(Path(source))
    elif os.path.isfile(source) and source.lower().endswith(".csv"):
        files, notes = _list_manifest(Path(source)), []
    else:
        what = "a file, but not a .csv" if os.path.isfile(source) else "no such folder or file"
        raise DataError(f"{source}: {what}; give `digits`, a folder with one subfolder a class, a .csv, or torchvision:NAME")
    return _read_files(str(Path(source).resolve()), files, notes, read, cache, show)


def walk_images(path: Path) -> Iterator[Path]:
    """A file itself, whatever its name; or the image files below a folder, in a stable order, links followed but not in circles."""
    if path.is_dir():
        files, _, _ = _walk(str(path))
        for name, _ in files:
            yield Path(name)
    else:
        yield path


# Sources


def _read_digits(read: ReadSettings) -> Source:
    from sklearn.datasets import load_digits  # slow to import, and a folder does not need it

    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)
    outcomes = [
        square(Image.fromarray(image), hashlib.sha256(image.tobytes()).hexdigest(), read.size, read.channels, read.resize)
        for image in arrays
    ]
    images = np.stack([np.frombuffer(outcome.pixels, np.uint8).reshape(outcome.shape) for outcome in outcomes])
    entries = tuple(Entry(f"digits/{index}", str(target), "", "") for index, target in enumerate(digits.target))
    facts = np.array([outcome.fact for outcome in outcomes], FACT)
    filled = replace(read, size=images.shape[-1], channels=images.shape[1])
    return Source("digits", entries, torch.from_numpy(images), facts, filled, (), ())


def _read_files(name: str, files: Sequence[_File], notes: list[str], read: ReadSettings, cache: Path, show: Progress) -> Source:
    pairs = [(file.path, file.state) for file in files]
    try:
        with file_decoder(pairs, read.resize) as outcomes:
            store = open_store(cache, file_signature(pairs), outcomes, len(files), read, show)
    except NothingReadable as error:
        raise DataError(f"{name}: {error}: {files[0].path}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return _collect(name, [file.entry for file in files], store, notes, read)


def _collect(name: str, entries: Sequence[Entry], store: Store, notes: list[str], read: ReadSettings) -> Source:
    skipped = tuple(Skipped(entries[row].id, reason) for row, reason in store.skipped)
    filled = replace(read, size=store.images.shape[-1], channels=store.images.shape[1])
    kept = tuple(entries[row] for row in store.origin.tolist())
    return Source(name, kept, torch.from_numpy(store.images), store.facts, filled, skipped, tuple(notes))


def _list_folder(root: Path) -> tuple[list[_File], list[str]]:
    """Image files in a stable order; hidden files and folders are passed over."""
    try:
        folders, loose = _subfolders(root), [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
        parts = sorted((f for f in folders if f.name in PARTS and _subfolders(f)), key=lambda f: PARTS.index(f.name))
        if not parts:
            pairs = [(folder, "") for folder in folders]
        elif "train" not in [part.name for part in parts]:
            raise DataError(f"{root}: has {', '.join(part.name + '/' for part in parts)} but no train/ with class folders; add it")
        elif other := [folder.name for folder in folders if folder not in parts]:
            raise DataError(f"{root}: has {other[0]}/ beside {parts[0].name}/; keep only train/, val/ and test/, or only class folders")
        else:
            pairs = [(folder, part.name) for part in parts for folder in _subfolders(part)]
            loose += [path for part in parts for path in part.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as error:
        raise DataError(f"{root}: can't be listed ({error.strerror}); give a folder that you may read") from error
    files: list[_File] = []
    others: Counter[str] = Counter()
    closed: list[str] = []
    for folder, part in pairs:
        below, other_endings, unopened = _walk(str(folder))
        others += other_endings
        closed += unopened
        cut = len(str(root)) + 1 if str(root) != os.sep else 1
        for path, state in below:
            name = path[cut:] if str(root) != "." else path
            files.append(_File(path, state, Entry(name.replace(os.sep, "/"), folder.name, part, "")))
    if not files:
        raise DataError(f"{root}: no image in it; give a folder with one subfolder a class, images within ({', '.join(sorted(SUFFIXES))})")
    notes = []
    if loose:
        notes.append(f"{len(loose)} images that lie in no class folder passed over, such as {min(loose).name}")
    if others:
        named = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in others.most_common(5))
        notes.append(f"{others.total()} files that are no images by their ending passed over: {named}")
    if closed:
        notes.append(f"{len(closed)} folders can't be opened: {', '.join(closed[:5])}")
    return files, notes


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _walk(folder: str) -> tuple[list[tuple[str, State | None]], Counter[str], list[str]]:
    """Image files below a folder with their state (None for a broken link), how many files of other endings, unopened folders.

    Links are followed, but not to a folder that encloses the link.
    """
    files: list[tuple[str, State | None]] = []
    others: Counter[str] = Counter()
    closed: list[str] = []
    above = frozenset((state.st_dev, state.st_ino) for state in map(os.stat, Path(folder).resolve().parents))
    stack = [(folder, above)]
    while stack:
        path, enclosing = stack.pop()
        try:
            state = os.stat(path)
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            closed.append(path)
            continue
        identity = (state.st_dev, state.st_ino)
        if identity in enclosing:
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                folders.append((entry.path, enclosing | {identity}))
            elif ending not in SUFFIXES:
                others[ending] += 1
            else:
                files.append((entry.path, state_of(entry.path)))
        stack.extend(reversed(folders))
    return files, others, closed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _list_manifest(path: Path) -> list[_File]:
    import pandas as pd  # slow to import, and only a manifest needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows longer than the header
            table = pd.read_csv(path, dtype=str, na_filter=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError, Warning) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: not a table that can be read ({text}); give a UTF-8 CSV file with the columns path,label") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    missing = [name for name in ("path", "label") if list(table.columns).count(name) != 1]
    if missing:
        found = ", ".join(table.columns)[:200]
        raise DataError(
            f"{path}: no column {missing[0]} in its first line, or two ({found}); name the columns path,label and perhaps split,group"
        )
    empty = [""] * len(table)
    columns = [table[name].str.strip().tolist() if name in table else empty for name in ("label", "split", "group")]
    files = []
    for line, (name, label, part, group) in enumerate(zip(table["path"].tolist(), *columns, strict=True), start=2):
        part = part.lower()
        if not name.strip() or not label:
            raise DataError(f"{path}: row {line} has no {'label' if name.strip() else 'path'}; fill it in, or remove the row")
        if part not in ("", *PARTS):
            raise DataError(f"{path}: row {line} has the split {part!r}; use train, val, test, or leave it empty")
        full = os.path.join(path.parent, name)
        files.append(_File(full, state_of(full), Entry(name, label, part, group)))
    if not files:
        raise DataError(f"{path}: no row below its first line; give one row an image")
    return files


def _read_torchvision(source: str, read: ReadSettings, cache: Path, root: Path, download: bool, show: Progress) -> Source:
    name, _, variant = source.removeprefix("torchvision:").partition("/")
    if name not in TORCHVISION or (variant and name != "EMNIST"):
        raise DataError(f"{source}: not a set that can be read; torchvision:NAME takes {', '.join(TORCHVISION)}, and EMNIST/SPLIT")
    import torchvision.datasets  # slow to import

    arguments: dict[str, Any] = {"split": variant or "byclass"} if name == "EMNIST" else {}
    if name in IN_FILES:
        arguments["loader"] = str  # the path itself: the store decodes
    kind = getattr(torchvision.datasets, name)
    sets = {}
    try:
        for part, chosen in TORCHVISION[name].items():
            sets[part] = kind(str(root), **arguments, **chosen, download=download)
    except Exception as error:  # torchvision raises all kinds of error for a missing or damaged file
        advice = "it could not be fetched" if download else "add --download to fetch it, or give --root where it lies"
        raise DataError(f"{source}: not usable below {root} ({' '.join(str(error).split())[:300]}); {advice}") from error
    if name in IN_FILES:
        return _read_files(source, [file for part in sets for file in _list_set(name, part, sets[part], root)], [], read, cache, show)
    return _read_arrays(source, sets, read, cache, show)


def _list_set(name: str, part: str, images: Any, root: Path) -> Iterator[_File]:
    """The files of a torchvision set; sorted, since Omniglot comes in the order of the disk."""
    for path, target in sorted(images[index] for index in range(len(images))):
        label = Path(path).parent.relative_to(images.target_folder).as_posix() if name == "Omniglot" else str(images.classes[target])
        given = "" if name == "Omniglot" else part
        yield _File(path, state_of(path), Entry(Path(path).relative_to(root).as_posix(), label, given, ""))


def _read_arrays(source: str, sets: dict[str, Any], read: ReadSettings, cache: Path, show: Progress) -> Source:
    """A torchvision set that is one array. Its content is its signature."""
    digest = hashlib.sha256(source.encode())
    entries = []
    for part, images in sets.items():
        digest.update(np.ascontiguousarray(images.data).data)
        targets = getattr(images, "targets", None)
        names = getattr(images, "classes", None)
        for index, target in enumerate(np.asarray(images.labels if targets is None else targets).tolist()):
            entries.append(Entry(f"{part}/{index}", names[target] if names else str(target), part, ""))

    def outcomes(size: int | None, channels: int | None) -> Iterator[Outcome]:
        for images in sets.values():
            for index in range(len(images)):
                image = images[index][0]
                if source.startswith("torchvision:EMNIST"):  # stored column by column
                    image = image.transpose(Image.Transpose.TRANSPOSE)
                yield square(image, hashlib.sha256(image.tobytes()).hexdigest(), size, channels, read.resize)

    store = open_store(cache, digest.hexdigest()[:32], outcomes, len(entries), read, show)
    return _collect(source, entries, store, [], read)


# Splits


def split_source(source: Source, parts: Sequence[str] | None = None) -> Dataset:
    """Give each image its part, and check that there is something to train on.

    parts: each image's, if they have been chosen; then a class may be missing in the training part.
    Raises DataError for fewer than two classes to train on, or a class that only validation or test has.
    """
    entries, chosen = source.entries, parts is not None
    parts = parts or assign_parts(source)
    sizes = Counter(entry.label for entry, part in zip(entries, parts, strict=True) if chosen or part == "train")
    classes = tuple(sorted(sizes, key=natural))
    if len(classes) < 2:
        raise DataError(f"{source.name}: {len(classes)} class to train on ({', '.join(classes)}); triplets need at least 2")
    unknown = {entry.label: entry.id for entry in entries if entry.label not in sizes}
    if unknown:
        label, example = min(unknown.items())
        raise DataError(f"{source.name}: class {label} ({example}) has no image in the training part; add some, or take it out")
    index = {label: number for number, label in enumerate(classes)}
    splits: dict[str, Split | None] = dict.fromkeys(PARTS)
    rows: dict[str, list[int]] = {name: [] for name in PARTS}
    for row, part in enumerate(parts):
        rows[part].append(row)
    for name, mine in rows.items():
        if mine:
            labels = torch.tensor([index[entries[row].label] for row in mine])
            splits[name] = Split(source.images, torch.tensor(mine), labels, classes, tuple(entries[row].id for row in mine))
    train = splits["train"]
    assert train is not None  # two classes were just counted in it
    notes = [describe_skipped(source)] if source.skipped else []
    notes += source.notes
    if lone := [label for label in classes if sizes[label] == 1]:
        notes.append(f"{len(lone)} classes with one training image ({', '.join(lone[:5])}): no triplet has them as anchor")
    pixels = source.facts["pixels"]
    leaked = np.flatnonzero(np.isin(pixels[rows["test"]], pixels[rows["train"] + rows["val"]]))
    return Dataset(
        train,
        splits["val"],
        splits["test"],
        source.name,
        source.read,
        _fingerprint(source, parts),
        source.skipped,
        tuple(notes),
        tuple(leaked.tolist()),
        source,
        tuple(parts),
    )


def _fingerprint(source: Source, parts: Sequence[str]) -> str:
    contents = source.facts["content"].tolist()
    lines = sorted(
        f"{part}\t{entry.id}\t{entry.label}\t{content.decode()}"
        for entry, part, content in zip(source.entries, parts, contents, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def describe_skipped(source: Source) -> str:
    """How many images could not be read, with the first few by name and reason."""
    skipped = source.skipped
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return f"{len(skipped)} of {len(source.entries) + len(skipped)} images skipped: {named}{more}"


def assign_parts(source: Source, salt: str = "") -> list[str]:
    """Each image's part: the given one, or one split off the training part; another salt splits differently.

    Images with the same pixels, in whatever class, and images of the same group stay together, as one unit. Units are
    ordered by a hash of their pixels and the split seed, so that neither the order nor the number of the others moves one.
    Each goes to the test, else to validation, if that brings the part closer to its rounded share of each of the unit's
    classes and leaves those classes two images for training; else it is trained on.
    """
    entries, read = source.entries, source.read
    given = {entry.part for entry in entries}
    wanted = {name: share for name, share in (("test", read.test), ("val", read.val)) if name not in given}
    parts = [entry.part or "train" for entry in entries]
    pool = [row for row, part in enumerate(parts) if part == "train"]
    if not wanted or not pool:
        return parts
    left = Counter(entries[row].label for row in pool)
    missing = {name: {label: round(share * count) for label, count in left.items()} for name, share in wanted.items()}
    for rows in units(source, pool, salt):
        counts: dict[str, int] = {}
        for row in rows:
            counts[entries[row].label] = counts.get(entries[row].label, 0) + 1
        for name, lacking in missing.items():
            closer = sum(abs(lacking[label] - count) - abs(lacking[label]) for label, count in counts.items()) < 0
            if closer and all(left[label] - count >= 2 for label, count in counts.items()):
                for row in rows:
                    parts[row] = name
                for label, count in counts.items():
                    lacking[label] -= count
                    left[label] -= count
                break
    return parts


def units(source: Source, pool: Sequence[int], salt: str = "") -> list[list[int]]:
    """Rows that must not be separated, in the order of a hash."""
    hashes = source.facts["pixels"][pool].tolist()
    head: dict[object, object] = {}

    def find(key: object) -> object:
        while (above := head.setdefault(key, key)) != key:
            head[key] = key = head[above]
        return key

    for row, pixels in zip(pool, hashes, strict=True):
        if group := source.entries[row].group:
            head[find(pixels)] = find(group)  # bytes and str never collide
    together: dict[object, list[int]] = {}
    keys: dict[object, bytes] = {}
    seed = f"{source.read.split_seed}:{salt}".encode()
    for row, pixels in zip(pool, hashes, strict=True):
        unit = find(pixels)
        together.setdefault(unit, []).append(row)
        key = hashlib.sha256(seed + pixels).digest()
        keys[unit] = min(key, keys.get(unit, key))
    return [together[unit] for unit in sorted(together, key=keys.__getitem__)]


def natural(label: str) -> tuple[int, int, str]:
    """Numbers by value, before words: 2 comes before 10."""
    number = label.isascii() and label.isdigit() and len(label) < 300
    return (0, int(label), label) if number else (1, 0, label)
