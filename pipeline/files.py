"""Atomic file writing and checks of output paths."""

import errno
import glob
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import platformdirs

from stages.errors import PipelineError

MAX_NAME_BYTES = 255  # on all common file systems


def default_cache() -> Path:
    """Return the user's cache folder for decoded images and trunk features."""
    return Path(platformdirs.user_cache_dir("embedding-pipeline", appauthor=False))


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` only when it is complete.

    The content is written next to ``path`` under a temporary name, synchronised to disk, then
    renamed. After an error or a crash the earlier file is still complete. A symbolic link stays and
    its target is replaced. A device or a pipe, such as ``/dev/stdout``, is written to directly.

    Args:
        path: File to write. Its folder must exist.

    Yields:
        A binary file object.

    Raises:
        OSError: If the folder cannot be written to or the disk is full.
    """
    path = Path(os.path.realpath(path))
    if is_special(path):
        with path.open("wb") as file:
            yield file
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        # "x" creates the file with the permissions that the umask allows.
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_partial_files(path: Path) -> None:
    """Remove the temporary files that killed processes have left; see :func:`atomic_file`.

    Args:
        path: File that no other process is writing.
    """
    path = Path(os.path.realpath(path))
    for partial in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        partial.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Return True for a device, a pipe or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


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


def check_output_file(path: Path, *, allow_special: bool = False) -> None:
    """Check that a file can be written, before the work whose result it will hold.

    Nothing is created.

    Args:
        path: File to write later.
        allow_special: Accept a device or a pipe, such as ``/dev/stdout``.

    Raises:
        PipelineError: If the path is a folder or cannot be written to.
    """
    try:
        if path.is_dir():
            raise PipelineError(f"{path}: is a folder; give the path of a file")
        special = is_special(path)
    except (OSError, ValueError) as error:
        raise _not_writable(path, error) from error
    if special and not (allow_special and os.access(path, os.W_OK)):
        raise PipelineError(f"{path}: is not a regular file; use another path")
    if not special:
        _check_new_file(path)


def check_output_folder(folder: Path) -> None:
    """Check that a folder exists or can be created, and that files can be written to it.

    Nothing is created.

    Args:
        folder: Folder to write to later.

    Raises:
        PipelineError: If the folder cannot be created or written to.
    """
    _check_new_file(folder, "file")


def _check_new_file(shown: Path, name: str = "") -> None:
    """Check that ``shown / name`` can be created; the first existing folder above it decides."""
    try:
        target = Path(os.path.realpath(shown)) / name
        for part in target.parts[1:]:
            if "\0" in part:
                raise ValueError("embedded null byte")
            # The temporary file of `atomic_file` has a longer name.
            if len(os.fsencode(f".{part}.12345678.partial")) > MAX_NAME_BYTES:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        folder = target if target.is_symlink() else target.parent
        while not folder.exists():
            if folder.is_symlink():  # what remains after `realpath` is a link to itself
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            folder = folder.parent
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        raise _not_writable(shown, error) from error


def _not_writable(path: Path, error: OSError | ValueError) -> PipelineError:
    reason = getattr(error, "strerror", None) or error
    return PipelineError(f"{path}: cannot be written to ({reason}); use another path")
