"""Vectors files in the formats that contain no embedding network, for the tests."""

import csv
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.escape import escape_formula
from pipeline.open_gallery import open_gallery
from stages.errors import PipelineError

ENDINGS = (".npz", ".csv", ".parquet")


def write_table(
    path: Path, vectors: torch.Tensor, ids: Sequence[str], labels: Sequence[str], digest: str
) -> None:
    """Write a vectors file in the format of its ending; an empty label is unknown."""
    if path.suffix == ".npz":
        write_npz(path, vectors=vectors, ids=ids, labels=labels, embedding_digest=digest)
    elif path.suffix == ".csv":
        write_csv(path, vectors, ids, labels, digest)
    else:
        write_parquet(path, vectors, ids, labels, digest)


def write_npz(path: Path, *, compress: bool = False, **arrays: Any) -> None:
    """Write arrays, without those that are None."""
    present = {name: np.asarray(values) for name, values in arrays.items() if values is not None}
    (np.savez_compressed if compress else np.savez)(path, **present)


def replace_member(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
    """Write an archive anew, with correct checksums and another content of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry, value in members.items():
            archive.writestr(entry, content if entry == name else value)


def npy(header: str, values: bytes = b"") -> bytes:
    """Return an array file with any header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values


def write_csv(
    path: Path, vectors: torch.Tensor, ids: Sequence[str], labels: Sequence[str], digest: str
) -> None:
    columns = ["id", "label", "embedding_digest", *(f"v{i}" for i in range(vectors.shape[1]))]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        for name, label, vector in zip(ids, labels, vectors.tolist(), strict=True):
            texts = [escape_formula(name), escape_formula(label), digest]
            table.writerow([*texts, *(f"{value:.9g}" for value in vector)])


def write_parquet(
    path: Path,
    vectors: torch.Tensor,
    ids: Sequence[str | None],
    labels: Sequence[str],
    digest: str | None,
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    values = pa.array(vectors.reshape(-1).numpy())
    arrays = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array([label or None for label in labels], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
    }
    table = pa.table(arrays)
    if digest is not None:
        table = table.replace_schema_metadata({"embedding_digest": digest})
    parquet.write_table(table, path)


def assert_not_opened(path: Path, *texts: str, embedding: Path | None = None) -> None:
    """Assert one error that names the file and contains the texts."""
    with pytest.raises(PipelineError) as error:
        open_gallery(path, embedding)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and ";" in message
    for text in texts:
        assert text in message
