"""Matrices in files that are read in blocks, and change meanwhile."""

import os

import numpy as np
import pytest
import torch

from pipeline import vector_blocks
from pipeline.vector_blocks import file_blocks
from stages.errors import DataError


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """Path of a file with 10 x 4 values after 7 other bytes, in blocks of 3 rows; the values."""
    monkeypatch.setattr(vector_blocks, "BLOCK_BYTES", 3 * 16)
    values = np.arange(40, dtype="<f4").reshape(10, 4)
    path = tmp_path / "matrix"
    path.write_bytes(b"x" * 7 + values.tobytes())
    return path, torch.from_numpy(values)


def test_blocks_are_the_rows(matrix):
    path, values = matrix
    blocks = file_blocks(path, 7, (10, 4))
    for _ in range(2):  # it can be read again
        read = list(blocks())
        assert [len(block) for block in read] == [3, 3, 3, 1]
        assert torch.equal(torch.cat(read), values)


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_is_an_error(matrix, when):
    path, values = matrix
    blocks = file_blocks(path, 7, (10, 4))
    rows = blocks()
    if when == "while":
        next(rows)
    path.write_bytes(b"x" * 7 + (values + 1).numpy().tobytes())
    later = os.stat(path).st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    with pytest.raises(DataError, match="has changed since it was opened"):
        list(rows)


def test_a_file_that_ends_too_early(matrix):
    path, _ = matrix
    with pytest.raises(DataError, match="ends before its last vector"):
        list(file_blocks(path, 7, (11, 4))())
