"""List the image files of a folder."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.data.decoding_pool import FileState, file_state
from pipeline.data.entries import SPLITS, Entry, SourceFile
from stages.errors import DataError

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".pbm", ".pgm", ".ppm", ".pnm",
))
# fmt: on


class _Listing(NamedTuple):
    """Contents of a folder and its subfolders."""

    files: list[tuple[str, FileState | None]]  # image files; the state of a broken link is None
    other_suffixes: Counter[str]  # number of other files by suffix
    unreadable_folders: list[str]


def find_image_files(path: Path) -> Iterator[Path]:
    """Find the image files in a folder and its subfolders.

    Hidden files and folders are ignored. Symbolic links are followed, except to a folder that
    contains the link.

    Args:
        path: A folder, or a file.

    Yields:
        Image files in a stable order. A path that is not a folder is yielded unchanged.
    """
    if os.path.isdir(path):  # False for a name that is too long, where Path.is_dir raises
        for name, _ in _walk(str(path)).files:
            yield Path(name)
    else:
        yield path


def find_labelled_images(path: Path) -> Iterator[tuple[Path, str]]:
    """Find image files as :func:`find_image_files` does, with the labels that folders give them.

    The label of an image is the name of the first folder below ``path`` that the image is in, or of
    the second one if the first is ``train/``, ``val/`` or ``test/`` as in :func:`list_folder`.

    Args:
        path: A folder, or a file.

    Yields:
        Image files in a stable order, each with its label. The label is empty for an image directly
        in the folder, and for a path that is not a folder.
    """
    splits: frozenset[str] | None = None
    for image in find_image_files(path):
        folders = image.relative_to(path).parts[:-1]
        if folders:
            splits = _split_names(path) if splits is None else splits
            folders = folders[1:] if folders[0] in splits else folders
        yield image, folders[0] if folders else ""


def _split_names(root: Path) -> frozenset[str]:
    """Return the names of the folders that are splits, not classes."""
    try:
        folders = _subfolders(root)
        named = _named_as_splits(folders)
        return frozenset(folder.name for folder in named if named == folders or _subfolders(folder))
    except OSError:  # a folder that may not be listed; its images are not found either
        return frozenset()


def list_folder(root: Path) -> tuple[list[SourceFile], list[str]]:
    """List the labelled images of a folder.

    Hidden files and folders are ignored.

    Args:
        root: Folder with one subfolder per class, or with ``train/`` and optionally ``val/`` and
            ``test/`` (in any case), each with one subfolder per class.

    Returns:
        Image files in a stable order, and one note for each kind of ignored file.

    Raises:
        DataError: If the folder cannot be listed, has another structure, or has no images.
    """
    try:
        class_folders, loose_images = _class_folders(root)
    except OSError as error:
        raise DataError(
            f"{root}: cannot be listed ({error.strerror}); give a folder that you may read"
        ) from error
    files: list[SourceFile] = []
    other_suffixes: Counter[str] = Counter()
    unreadable_folders: list[str] = []
    prefix = "" if str(root) == "." else os.path.join(root, "")
    for folder, split in class_folders:
        listing = _walk(str(folder))
        other_suffixes += listing.other_suffixes
        unreadable_folders += listing.unreadable_folders
        for path, state in listing.files:
            name = path.removeprefix(prefix).replace(os.sep, "/")
            entry = Entry(id=name, label=folder.name, part=split, group="")
            files.append(SourceFile(path, state, entry))
    notes = _notes(loose_images, other_suffixes, unreadable_folders)
    if not files:
        found = "; ".join(notes) or "no file in it"
        raise DataError(
            f"{root}: no image in a class folder ({found}); give a folder with one subfolder per "
            f"class that contains images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return files, notes + _nesting_note([folder for folder, _ in class_folders])


def _class_folders(root: Path) -> tuple[list[tuple[Path, str]], list[Path]]:
    """Return the class folders with their split ("" for none), and images outside of them."""
    folders = _subfolders(root)
    loose_images = _images_directly_in(root)
    named_as_splits = _named_as_splits(folders)
    split_folders = [folder for folder in named_as_splits if _subfolders(folder)]
    if not split_folders:
        if folders and folders == named_as_splits:
            names = ", ".join(f"{folder.name}/" for folder in folders)
            raise DataError(f"{root}: no class folders in {names}; add one subfolder per class")
        return [(folder, "") for folder in folders], loose_images
    split_folders.sort(key=lambda folder: SPLITS.index(folder.name.lower()))
    splits = [folder.name.lower() for folder in split_folders]
    if len(set(splits)) < len(splits):
        names = ", ".join(f"{folder.name}/" for folder in split_folders)
        raise DataError(f"{root}: has {names}; keep one folder per split")
    if "train" not in splits:
        names = ", ".join(f"{folder.name}/" for folder in split_folders)
        raise DataError(f"{root}: has {names} but no train/ with class folders; add it")
    for folder in folders:
        if folder not in split_folders:
            raise DataError(
                f"{root}: has {folder.name}/ next to {split_folders[0].name}/; "
                "keep only train/, val/ and test/, or only class folders"
            )
    class_folders = []
    for split_folder in split_folders:
        for folder in _subfolders(split_folder):
            class_folders.append((folder, split_folder.name.lower()))
        loose_images += _images_directly_in(split_folder)
    return class_folders, loose_images


def _named_as_splits(folders: list[Path]) -> list[Path]:
    return [folder for folder in folders if folder.name.lower() in SPLITS]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _images_directly_in(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    ]


def _notes(
    loose_images: list[Path], other_suffixes: Counter[str], unreadable_folders: list[str]
) -> list[str]:
    notes = []
    if loose_images:
        example, count = min(loose_images).name, len(loose_images)
        noun = "image" if count == 1 else "images"
        notes.append(f"{count} {noun} outside class folders ignored, such as {example}")
    if other_suffixes:
        kinds = ", ".join(
            f"{count} {suffix or 'without one'}" for suffix, count in other_suffixes.most_common(5)
        )
        count = other_suffixes.total()
        noun = "file" if count == 1 else "files"
        notes.append(f"{count} {noun} ignored because of the extension: {kinds}")
    if unreadable_folders:
        examples = ", ".join(unreadable_folders[:5])
        noun = "folder" if len(unreadable_folders) == 1 else "folders"
        notes.append(f"{len(unreadable_folders)} {noun} cannot be opened: {examples}")
    return notes


def _nesting_note(class_folders: list[Path]) -> list[str]:
    """Return a note if the only class folder looks like a folder of class folders."""
    if len(class_folders) != 1 or len(subfolders := _subfolders(class_folders[0])) < 2:
        return []
    names = ", ".join(f"{folder.name}/" for folder in subfolders[:3])
    return [
        f"{class_folders[0]} is read as one class; if its subfolders ({names}) are the classes, "
        "give this folder as the source"
    ]


def _walk(folder: str) -> _Listing:
    """List a folder and its subfolders, depth first, sorted by name.

    Links are followed, except to a folder that contains the link. No recursion: folders may be
    nested more deeply than Python's call stack allows.
    """
    listing = _Listing(files=[], other_suffixes=Counter(), unreadable_folders=[])
    parents = Path(folder).resolve().parents
    stack = [(folder, frozenset(_identity(os.stat(parent)) for parent in parents))]
    while stack:
        path, enclosing = stack.pop()
        try:
            identity = _identity(os.stat(path))
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            listing.unreadable_folders.append(path)
            continue
        if identity in enclosing:
            continue
        subfolders = []
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                subfolders.append((entry.path, enclosing | {identity}))
            elif suffix in IMAGE_SUFFIXES:
                listing.files.append((entry.path, file_state(entry.path)))
            else:
                listing.other_suffixes[suffix] += 1
        stack.extend(reversed(subfolders))
    return listing


def _identity(state: os.stat_result) -> tuple[int, int]:
    """Return device and inode, which all paths to a folder share."""
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
