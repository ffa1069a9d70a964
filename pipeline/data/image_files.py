"""Open files that can be images."""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader

MAX_FILE_BYTES = 2**30
# Non-blocking: opening a named pipe would otherwise wait for a writer.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def open_image(path: str) -> Generator[BufferedReader]:
    """Open a file that can be an image.

    Args:
        path: Path of the file.

    Yields:
        The file, at its start.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is not a regular file, or larger than ``MAX_FILE_BYTES``.
    """
    with open(path, "rb", opener=lambda name, _: os.open(name, OPEN_FLAGS)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a file")
        if state.st_size > MAX_FILE_BYTES:
            raise ValueError(f"{state.st_size / 1e9:.1f} GB, more than an image takes")
        yield file
