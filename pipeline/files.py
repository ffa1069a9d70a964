"""Atomic file writing and checks of output paths."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from stages.errors import PipelineError


def default_cache() -> Path:
    """Return the user's cache folder for decoded images and trunk features."""
    return Path(platformdirs.user_cache_dir("embedding-pipeline", appauthor=False))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` only when it is complete.

    The content is written next to ``path`` under a temporary name, synchronised to disk, then
    renamed. After an error or a crash the earlier file is still complete.

    Args:
        path: File to write. Its folder must exist.

    Yields:
        A binary file object.

    Raises:
        OSError: If the folder cannot be written to or the disk is full.
    """
    # Not tempfile.mkstemp, which makes files that only their owner can read.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a complete file or none; see :func:`atomic_file`.

    Args:
        path: File to write. Missing folders are created.
        content: The file's content.

    Raises:
        PipelineError: If the folder cannot be written to or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise PipelineError(
            f"{path}: cannot be written ({error.strerror}); free some space or use another path"
        ) from error


def check_output_file(path: Path) -> None:
    """Check that a file can be written, before the work whose result it will hold.

    Nothing is created. A device or a pipe, such as ``/dev/stdout``, is allowed.

    Args:
        path: File to write later.

    Raises:
        PipelineError: If the path is a folder or cannot be written to.
    """
    if path.is_dir():
        raise PipelineError(f"{path}: is a folder; give the path of a file")
    if path.exists() and not path.is_file():
        if not os.access(path, os.W_OK):
            raise PipelineError(f"{path}: cannot be written to; use another path")
        return
    check_output_folder(path.parent)


def check_output_folder(folder: Path) -> None:
    """Check that a folder exists or can be created, and that files can be written to it.

    Nothing is created.

    Args:
        folder: Folder to write to later.

    Raises:
        PipelineError: If the folder cannot be created or written to.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PipelineError(
            f"{folder}: cannot be written to ({error.strerror}); use another path"
        ) from error


def check_writable(folder: Path) -> None:
    """Create a folder if it is missing and check that files can be written to it.

    A long training run calls this first, so that it does not fail only when it saves its result.

    Args:
        folder: Folder to check.

    Raises:
        PipelineError: If the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PipelineError(
            f"{folder}: cannot be written to ({error.strerror}); use another path"
        ) from error
