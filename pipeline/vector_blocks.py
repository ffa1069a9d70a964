"""Read a matrix of vectors from a file in blocks, so that it need not fit into memory."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from stages.errors import DataError

BLOCK_BYTES = 2**23
DTYPE = np.dtype("<f4")

Blocks = Callable[[], Iterator[Tensor]]


def file_blocks(path: Path, offset: int, shape: tuple[int, int]) -> Blocks:
    """Return a function that reads a matrix from a part of a file.

    Args:
        path: The file. An error is raised if it has changed since.
        offset: First byte of the matrix: float32, little-endian, row by row.
        shape: Its shape (N, D).

    Returns:
        A function without arguments that yields the rows in blocks, float32, shape (n, D).
    """
    opened = _state(os.stat(path))

    def check(file: BinaryIO) -> None:
        if _state(os.fstat(file.fileno())) != opened:
            raise DataError(f"{path}: has changed since it was opened; search it again")

    def blocks() -> Iterator[Tensor]:
        try:
            with path.open("rb") as file:
                check(file)
                file.seek(offset)
                yield from read_rows(path, file, shape)
                check(file)  # it may have changed while it was read
        except OSError as error:
            raise unreadable(path, error) from error

    return blocks


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the system cannot read."""
    return DataError(f"{path}: cannot be read ({error.strerror or error}); use another file")


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes if a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_rows(path: Path, file: BinaryIO, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the rows of a matrix from where a file is.

    Args:
        path: The file, for messages.
        file: An open binary file.
        shape: Shape (N, D) of the matrix: float32, little-endian, row by row.

    Yields:
        Blocks of rows, float32, shape (n, D).

    Raises:
        DataError: If the file ends too early.
    """
    rows, dim = shape
    size = max(1, BLOCK_BYTES // (DTYPE.itemsize * dim))
    for start in range(0, rows, size):
        block = np.empty((min(size, rows - start), dim), DTYPE)
        # All binary files have `readinto`, but the type BinaryIO does not list it.
        if file.readinto(block.data.cast("B")) != block.nbytes:  # type: ignore[attr-defined]
            raise DataError(f"{path}: ends before its last vector; create the file again")
        yield torch.from_numpy(block.astype(np.float32, copy=False))
