"""List the image files of a folder."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.data.dataset import SPLITS, Entry
from pipeline.data.decoding_pool import FileState, file_state
from pipeline.data.source_files import SourceFile
from stages.errors import DataError

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".ppm", ".pnm",
))


def find_image_files(path: Path) -> Iterator[Path]:
    """A file itself, whatever its name; or the image files below a folder, in a stable order, links followed but not in circles."""
    if path.is_dir():
        files, _, _ = _walk(str(path))
        for name, _ in files:
            yield Path(name)
    else:
        yield path


def list_folder(root: Path) -> tuple[list[SourceFile], list[str]]:
    """Image files in a stable order; hidden files and folders are passed over."""
    try:
        folders, loose = _subfolders(root), [path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        parts = sorted((f for f in folders if f.name in SPLITS and _subfolders(f)), key=lambda f: SPLITS.index(f.name))
        if not parts:
            pairs = [(folder, "") for folder in folders]
        elif "train" not in [part.name for part in parts]:
            raise DataError(f"{root}: has {', '.join(part.name + '/' for part in parts)} but no train/ with class folders; add it")
        elif other := [folder.name for folder in folders if folder not in parts]:
            raise DataError(f"{root}: has {other[0]}/ beside {parts[0].name}/; keep only train/, val/ and test/, or only class folders")
        else:
            pairs = [(folder, part.name) for part in parts for folder in _subfolders(part)]
            loose += [path for part in parts for path in part.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise DataError(f"{root}: can't be listed ({error.strerror}); give a folder that you may read") from error
    files: list[SourceFile] = []
    others: Counter[str] = Counter()
    closed: list[str] = []
    for folder, part in pairs:
        below, other_endings, unopened = _walk(str(folder))
        others += other_endings
        closed += unopened
        cut = len(str(root)) + 1 if str(root) != os.sep else 1
        for path, state in below:
            name = path[cut:] if str(root) != "." else path
            files.append(SourceFile(path, state, Entry(name.replace(os.sep, "/"), folder.name, part, "")))
    if not files:
        raise DataError(f"{root}: no image in it; give a folder with one subfolder a class, images within ({', '.join(sorted(IMAGE_SUFFIXES))})")
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


def _walk(folder: str) -> tuple[list[tuple[str, FileState | None]], Counter[str], list[str]]:
    """Image files below a folder with their state (None for a broken link), how many files of other endings, unopened folders.

    Links are followed, but not to a folder that encloses the link.
    """
    files: list[tuple[str, FileState | None]] = []
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
            elif ending not in IMAGE_SUFFIXES:
                others[ending] += 1
            else:
                files.append((entry.path, file_state(entry.path)))
        stack.extend(reversed(folders))
    return files, others, closed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
