"""Atomic file writing and checks of output paths."""

import os
import tempfile
from pathlib import Path

import platformdirs

from stages.errors import PipelineError


def default_cache() -> Path:
    """Where decoded images are kept unless told otherwise."""
    return Path(platformdirs.user_cache_dir("embedding-pipeline", appauthor=False))


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target under a temporary name, sync, then replace: a crash leaves the old file whole.

    Raises PipelineError if the folder can't be written to or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        raise PipelineError(
            f"{path}: can't be written: {error.strerror}; make room, or give another path"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_writable(folder: Path) -> None:
    """Raises PipelineError for a folder that nothing can be written to, before hours are spent on what should go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PipelineError(
            f"{folder}: can't be written to: {error.strerror}; give another path"
        ) from error
