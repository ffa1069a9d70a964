"""Read the vectors files that contain no embedding network: .npz, .csv and .parquet.

The formats are those of :mod:`pipeline.vector_files`.
"""

import csv
import os
import struct
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.escape import unescape_formula
from pipeline.vector_blocks import DTYPE, Blocks, file_blocks, read_rows, unreadable
from pipeline.vector_files import require_pyarrow
from stages.errors import DataError
from stages.settings import MAX_DIM

ADVICE = "create the file with `pipeline vectors`"
DAMAGE: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError),
    RuntimeError,  # encrypted, or an unknown compression
    SystemError,  # numpy, for text that is not Unicode
)
with suppress(ImportError):  # a Python without it reports LZMA by a RuntimeError
    from lzma import LZMAError

    DAMAGE += (LZMAError,)
TEXT_BYTES = 2**22  # of an array of texts that are read at once
MAX_TEXT_BYTES = 4 * 65_536  # of one text, which is longer than any path


class VectorTable(NamedTuple):
    """Content of a vectors file, not checked yet.

    Attributes:
        blocks: Yields the vectors in blocks, float32, shape (n, D).
        dim: Dimension D.
        ids: Ids of the N images.
        labels: Their labels; empty where the label is unknown.
        embedding_digest: Digest of the embedding network that computed the vectors.
    """

    blocks: Blocks
    dim: int
    ids: list[str]
    labels: list[str]
    embedding_digest: str


def read_npz(path: Path) -> VectorTable:
    """Read an archive of NumPy arrays. Its vectors are not loaded into memory.

    Args:
        path: File with the arrays ``vectors``, ``ids`` and ``embedding_digest``, and optionally
            ``labels``.

    Returns:
        The content.

    Raises:
        DataError: If the file is damaged or lacks an array.
    """
    with _open_archive(path) as archive:
        shape, blocks = _npz_vectors(path, archive)
        ids = _npz_texts(path, archive, "ids", (shape[0],))
        labels = [""] * len(ids)
        if "labels.npy" in archive.namelist():
            labels = _npz_texts(path, archive, "labels", (shape[0],))
        (digest,) = _npz_texts(path, archive, "embedding_digest", ())
    return VectorTable(blocks, shape[1], ids, labels, digest)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive, and report every way in which it can be damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DAMAGE as error:
        raise DataError(f"{path}: damaged: no complete .npz file ({error}); {ADVICE}") from error


@contextmanager
def _open_array(path: Path, archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Any, ...]]:
    """Open an array of an archive; yield the file at its first value, its shape and dtype."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise DataError(
            f"{path}: has no array {name}; it needs vectors, ids and embedding_digest; {ADVICE}"
        ) from None
    with archive.open(entry) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):  # the others are for headers that numpy rejects by default
            raise ValueError(f"{name} has the format version {version}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of headers that Python 2 has written
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        except Exception as error:  # numpy parses it as Python, and raises many kinds of errors
            raise ValueError(f"the header of {name} is invalid") from error
        if is_fortran and len(shape) > 1:
            raise DataError(f"{path}: {name} is stored by columns; store it by rows")
        yield member, shape, dtype


def _npz_vectors(path: Path, archive: zipfile.ZipFile) -> tuple[tuple[int, int], Blocks]:
    """Return the shape of the vectors, and a function that reads them in blocks."""
    with _open_array(path, archive, "vectors") as (member, shape, dtype):
        if dtype != DTYPE or len(shape) != 2 or not 1 <= shape[1] <= MAX_DIM:
            raise DataError(f"{path}: vectors is {dtype} {shape}; it needs float32 (N, D)")
        start = member.tell()
    entry = archive.getinfo("vectors.npy")
    if entry.file_size != start + shape[0] * shape[1] * DTYPE.itemsize:
        raise ValueError(f"vectors {shape} has {entry.file_size - start} bytes")

    def blocks() -> Iterator[Tensor]:
        with (
            _open_archive(path) as archive,
            _open_array(path, archive, "vectors") as (member, now, _),
        ):
            if now != shape:
                raise DataError(f"{path}: has changed since it was opened; search it again")
            yield from read_rows(path, member, shape)

    if entry.compress_type != zipfile.ZIP_STORED:
        return shape, blocks
    for _ in blocks():  # compares the checksum, which takes as long as many searches
        pass
    return shape, file_blocks(path, _first_byte(path, entry) + start, shape)


def _first_byte(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return the offset of an uncompressed member of an archive."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        # The local header: 26 bytes, the lengths of the name and of the extra field, and both.
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    return int(entry.header_offset + 30 + name_length + extra_length)


def _npz_texts(
    path: Path, archive: zipfile.ZipFile, name: str, expected: tuple[int, ...]
) -> list[str]:
    """Return an array of texts. In the file, each takes as many bytes as the longest."""
    with _open_array(path, archive, name) as (member, shape, dtype):
        if dtype.kind != "U" or shape != expected:
            raise DataError(f"{path}: {name} is {dtype} {shape}; it needs texts {expected}")
        if dtype.itemsize > MAX_TEXT_BYTES:
            raise DataError(
                f"{path}: {name} has texts of {dtype.itemsize // 4:,} characters; it may have at "
                f"most {MAX_TEXT_BYTES // 4:,}"
            )
        count, texts = int(np.prod(shape, dtype=int)), []
        if dtype.itemsize == 0:
            return [""] * count
        size = max(1, TEXT_BYTES // dtype.itemsize)
        for start in range(0, count, size):
            length = min(size, count - start) * dtype.itemsize
            block = member.read(length)
            if len(block) < length:
                raise EOFError(f"{name} is too short")
            texts += np.frombuffer(block, dtype).tolist()
    return texts


def read_csv(path: Path) -> VectorTable:
    """Read a CSV file into memory.

    Args:
        path: File with the columns ``id``, ``embedding_digest``, ``v0``, ``v1`` ..., and optionally
            ``label``.

    Returns:
        The content.

    Raises:
        DataError: If the file is no such table.
    """
    values = array("f")  # float32
    texts: dict[str, list[str]] = {"id": [], "label": [], "embedding_digest": []}
    try:
        # As in other CSV files, the bytes of a file name that is not UTF-8 stay as they are.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = csv.reader(file, strict=True)
            columns = next(table, [])
            first = _find_vectors(path, columns)
            places = {name: columns.index(name) for name in texts if name in columns}
            for row in filter(None, table):  # not the empty ones
                if len(row) != len(columns):
                    raise ValueError(f"{len(row)} values for {len(columns)} columns")
                values.extend(map(float, row[first:]))
                for name, place in places.items():
                    texts[name].append(row[place])
        _check_last_line(path)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: line {table.line_num}: {error}; {ADVICE}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    ids, labels = ([unescape_formula(text) for text in texts[name]] for name in ("id", "label"))
    vectors = torch.from_numpy(np.asarray(values))
    return _table_in_memory(
        path,
        vectors.view(-1, len(columns) - first),
        ids,
        labels or [""] * len(ids),
        sorted(set(texts["embedding_digest"])),
    )


def _find_vectors(path: Path, columns: list[str]) -> int:
    """Return the position of the column ``v0``; the columns of the vectors are the last ones."""
    for name in ("id", "embedding_digest", "v0"):
        if columns.count(name) != 1:
            raise DataError(
                f"{path}: has {columns.count(name)} columns {name}; it needs one each of id, "
                f"embedding_digest, v0, v1, ...; {ADVICE}"
            )
    first = columns.index("v0")
    if columns[first:] != [f"v{index}" for index in range(len(columns) - first)]:
        raise DataError(f"{path}: its last columns are not v0, v1, ... in this order; {ADVICE}")
    return first


def _check_last_line(path: Path) -> None:
    """Raise an error if the last line has no end: the last number may then lack digits."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) not in b"\r\n":
            raise ValueError("the file ends within the line")


def read_parquet(path: Path) -> VectorTable:
    """Read a Parquet file into memory.

    Args:
        path: File with the columns ``id`` and ``vector``, optionally ``label``, and the metadata
            ``embedding_digest``.

    Returns:
        The content.

    Raises:
        DataError: If the file is damaged or lacks a column.
        PipelineError: If the package pyarrow is missing.
    """
    require_pyarrow(path)
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            digest = (schema.metadata or {}).get(b"embedding_digest")
            for name in ("id", "vector"):
                if name not in schema.names:
                    raise DataError(
                        f"{path}: has no column {name}; it needs id and vector; {ADVICE}"
                    )
            kind = schema.field("vector").type
            if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
                raise DataError(
                    f"{path}: vector is {kind}; it needs lists of equally many float32; {ADVICE}"
                )
            if digest is None:
                raise DataError(f"{path}: its metadata has no embedding_digest; {ADVICE}")
            names = [name for name in ("id", "label", "vector") if name in schema.names]
            table = file.read(columns=names)
            ids = table["id"].cast(pa.string()).to_pylist()
            labels = [""] * len(ids)
            if "label" in names:
                labels = [label or "" for label in table["label"].cast(pa.string()).to_pylist()]
            values = table["vector"].combine_chunks().flatten()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: no Parquet file ({error}); {ADVICE}") from error
    if None in ids or values.null_count or len(values) != len(ids) * kind.list_size:
        raise DataError(f"{path}: has empty cells in id or vector; {ADVICE}")
    vectors = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
    vectors = vectors.view(len(ids), kind.list_size)
    return _table_in_memory(path, vectors, ids, labels, [digest.decode(errors="replace")])


def _table_in_memory(
    path: Path, vectors: Tensor, ids: list[str], labels: list[str], digests: list[str]
) -> VectorTable:
    """Return a table of vectors in memory, float32 (N, D)."""
    if len(digests) > 1:
        raise DataError(
            f"{path}: has vectors of several embeddings, {digests[0][:12]} and {digests[1][:12]}; "
            "search one at a time"
        )
    digest = digests[0] if digests else ""
    return VectorTable(lambda: iter([vectors]), vectors.shape[1], ids, labels, digest)


READERS: dict[str, Callable[[Path], VectorTable]] = {
    ".npz": read_npz,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
