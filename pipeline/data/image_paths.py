"""Paths of images that are given on the command line or on standard input."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.data.dataset import Skipped
from pipeline.data.folder import IMAGE_SUFFIXES, find_image_files
from stages.errors import DataError


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the given files, and the image files in the given folders and their subfolders.

    The order is stable. Hidden files in folders are ignored.

    Args:
        paths: Files and folders. A missing file is yielded too.

    Yields:
        Paths of files.
    """
    for path in paths:
        yield from find_image_files(path)


def paths_from_stdin(images: Sequence[Path]) -> list[Path]:
    """Replace the argument ``-`` by the paths on standard input, one per line.

    Args:
        images: Arguments of the command.
    """
    paths: list[Path] = []
    for image in images:
        if str(image) == "-":
            lines = sys.stdin.buffer.read().splitlines() if sys.stdin else []
            paths += [Path(os.fsdecode(line)) for line in lines if line]
        else:
            paths.append(image)
    return paths


def require_readable(
    images: Sequence[Path], skipped: Sequence[Skipped], readable: int, *, effect: str
) -> None:
    """Raise an error if a named image could not be read, or no image at all.

    Unreadable images in folders are tolerated.

    Args:
        images: Files and folders that the user has given.
        skipped: Images that could not be read.
        readable: Number of images that could be read.
        effect: What the output has for the skipped images, for the message.

    Raises:
        DataError: As described.
    """
    if not readable and not skipped:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{images[0]}: contains no image; give images ({suffixes})")
    named = {str(path) for path in images}
    missed = [row for row in skipped if row.path in named]
    if missed or not readable:
        path, reason = (missed or skipped)[0]
        number = f"{len(missed or skipped)} of {readable + len(skipped)} images"
        raise DataError(f"{path}: {reason}; {number} could not be read, {effect}")
