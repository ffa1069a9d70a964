"""Write embedding vectors to a file: safetensors, NumPy, CSV or Parquet.

The vectors are written as they arrive and never all in memory. The formats that begin with the
number of vectors get them from a temporary file in the same folder.
"""

import csv
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import natural_key
from pipeline.device import package_versions
from pipeline.escape import escape_formula
from pipeline.files import atomic_file
from pipeline.tensor_files import MAX_HEADER_BYTES, write_tensors
from stages.checkpoints import EmbeddingCheckpoint
from stages.errors import DataError, PipelineError
from stages.gallery import UNLABELLED
from stages.network.digest import TensorBytes, tensor_bytes

FORMATS = (".safetensors", ".npz", ".csv", ".parquet")
BLOCK_BYTES = 2**20
IDS_PER_BLOCK = 4096
ROWS_PER_GROUP = 4096  # of a Parquet file, which is read by groups
HEADER_WITHOUT_IDS = 2**20  # bytes of a safetensors header, generously


class VectorRows(NamedTuple):
    """Vectors of some images.

    Attributes:
        ids: Names of the R images.
        labels: Their labels; empty where the label is unknown.
        vectors: Unit vectors, float32, shape (R, D).
    """

    ids: Sequence[str]
    labels: Sequence[str]
    vectors: Tensor


def check_format(out: Path) -> str:
    """Return the format of a file, by its ending.

    Args:
        out: File that will be written.

    Returns:
        One of ``FORMATS``.

    Raises:
        PipelineError: If the ending is unknown, or a package for this format is not installed.
    """
    ending = out.suffix.lower()
    if ending not in FORMATS:
        raise PipelineError(f"{out}: unknown ending; use {', '.join(FORMATS)}")
    if ending == ".parquet":
        require_pyarrow(out)
    return ending


def require_pyarrow(path: Path) -> None:
    """Check that Parquet files can be read and written.

    Args:
        path: The file, for the message.

    Raises:
        PipelineError: If the package pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise PipelineError(
            f"{path}: needs the package pyarrow; run pip install pyarrow"
        ) from error


def check_ids(out: Path, ids: Sequence[str]) -> None:
    """Check that the format of a file can hold the names of all images, before any work.

    Args:
        out: File that will be written.
        ids: Names of the images.

    Raises:
        PipelineError: If it cannot.
    """
    ending = check_format(out)
    if ending == ".parquet":
        for name in ids:
            if not _is_unicode(name):
                raise PipelineError(
                    f"{out}: the file name {name} is not valid UTF-8, which .parquet needs; rename "
                    "the file, or use another format"
                )
    if ending == ".safetensors":
        # The record is JSON, and its text is a string in the JSON of the header.
        size = sum(len(json.dumps(json.dumps(block))) for block in _batched(ids, IDS_PER_BLOCK))
        if size + HEADER_WITHOUT_IDS > MAX_HEADER_BYTES:
            raise PipelineError(
                f"{out}: the names of {len(ids):,} images take {size / 1e6:,.0f} MB, but the "
                f"header of a .safetensors file has at most {MAX_HEADER_BYTES / 1e6:,.0f} MB; "
                "use .npz"
            )


def write_vectors(out: Path, blocks: Iterable[VectorRows], embedder: EmbeddingCheckpoint) -> int:
    """Write vectors to a file, completely or not at all.

    Args:
        out: File to write; its ending is one of ``FORMATS``. Its folder must exist.
        blocks: The vectors. They are written as they arrive.
        embedder: Embedding network that computes them. A .safetensors file contains it.

    Returns:
        The number of vectors.

    Raises:
        PipelineError: If the file cannot be written, or its format cannot hold an id.
        DataError: If a vector is not finite.
    """
    write = {
        ".safetensors": _write_safetensors,
        ".npz": _write_npz,
        ".csv": _write_csv,
        ".parquet": _write_parquet,
    }[check_format(out)]
    try:
        with atomic_file(out) as file:
            return write(file, out, map(_require_finite, blocks), embedder)
    except OSError as error:
        raise PipelineError(
            f"{out}: cannot be written ({error.strerror or error}); "
            "free some space or use another path"
        ) from error


def _require_finite(rows: VectorRows) -> VectorRows:
    """Return the rows, or raise an error if a vector is not finite."""
    for name, finite in zip(rows.ids, torch.isfinite(rows.vectors).all(dim=1), strict=True):
        if not finite:
            raise DataError(
                f"{name}: its vector has values that are not finite; train the embedding again "
                "with a lower --lr"
            )
    return rows


def _write_csv(
    file: BinaryIO, out: Path, blocks: Iterator[VectorRows], embedder: EmbeddingCheckpoint
) -> int:
    """Write a CSV file. 9 significant digits give the same float32 again."""
    dim, count = embedder.record["network"]["dim"], 0
    numbers = ",%.9g" * dim + "\n"
    # As in other CSV files, the bytes of a file name that is not UTF-8 stay as they are.
    text = TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    # Quotes around all text: Python 3.11 writes a lone carriage return without.
    table = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="")
    columns = ["id", "label", "embedding_digest", *(f"v{index}" for index in range(dim))]
    text.write(",".join(columns) + "\n")
    for ids, labels, vectors in blocks:
        for name, label, vector in zip(ids, labels, vectors.tolist(), strict=True):
            table.writerow([escape_formula(name), escape_formula(label), embedder.digest])
            text.write(numbers % tuple(vector))
        count += len(ids)
    text.detach()  # flushes, and leaves the file open
    return count


def _write_parquet(
    file: BinaryIO, out: Path, blocks: Iterator[VectorRows], embedder: EmbeddingCheckpoint
) -> int:
    """Write a Parquet file."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    dim, count = embedder.record["network"]["dim"], 0
    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
    ]
    schema = pa.schema(columns, metadata={"embedding_digest": embedder.digest})
    with ParquetWriter(file, schema, use_dictionary=["label"]) as writer:
        for ids, labels, vectors in _regrouped(blocks, ROWS_PER_GROUP):
            check_ids(out, ids)
            arrays = [
                pa.array(ids, pa.string()),
                pa.array([label or None for label in labels], pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1).numpy()), dim),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(ids)
    return count


def _write_npz(
    file: BinaryIO, out: Path, blocks: Iterator[VectorRows], embedder: EmbeddingCheckpoint
) -> int:
    """Write an archive of NumPy arrays."""
    with _spooled(out, blocks, embedder) as (spool, ids, labels):
        with zipfile.ZipFile(file, "w") as archive:
            shape = (len(ids), embedder.record["network"]["dim"])
            with _npz_member(archive, "vectors", "<f4", shape) as member:
                for block in _read_blocks(spool):
                    member.write(block)
            _write_texts(archive, "ids", ids)
            if any(labels):
                _write_texts(archive, "labels", labels)
            with _npz_member(
                archive, "embedding_digest", f"<U{len(embedder.digest)}", ()
            ) as member:
                member.write(np.array(embedder.digest).tobytes())
        return len(ids)


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Sequence[str]) -> None:
    """Write an array of texts, compressed: each takes as much space as the longest."""
    dtype = f"<U{max(map(len, texts), default=0) or 1}"
    with _npz_member(archive, name, dtype, (len(texts),), zipfile.ZIP_DEFLATED) as member:
        for block in _batched(texts, IDS_PER_BLOCK):
            member.write(np.array(block, dtype).tobytes())


@contextmanager
def _npz_member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    compression: int = zipfile.ZIP_STORED,
) -> Iterator[Any]:
    """Open an array of an archive, whose values are then written in order."""
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = compression
    with archive.open(entry, "w", force_zip64=True) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        yield member


def _write_safetensors(
    file: BinaryIO, out: Path, blocks: Iterator[VectorRows], embedder: EmbeddingCheckpoint
) -> int:
    """Write a gallery that contains the embedding network."""
    record = embedder.record
    with _spooled(out, blocks, embedder) as (spool, ids, labels):
        check_ids(out, ids)
        classes = sorted(set(labels) - {""}, key=natural_key)
        tensors = {
            f"embedding.{name}": tensor_bytes(value)
            for name, value in embedder.network.state_dict().items()
        }
        shape = (len(ids), record["network"]["dim"])
        tensors["vectors"] = TensorBytes(torch.float32, shape, partial(_read_blocks, spool))
        if classes:
            index_of = {label: index for index, label in enumerate(classes)}
            indices = [index_of.get(label, UNLABELLED) for label in labels]
            tensors["labels"] = tensor_bytes(torch.tensor(indices))
        gallery = {
            "network": record["network"],
            "read": record["read"],
            "classes": classes,
            "embedding_digest": embedder.digest,
            "ids": ids,
            "versions": package_versions(),
        }
        write_tensors(file, "gallery", tensors, gallery)
        return len(ids)


@contextmanager
def _spooled(
    out: Path, blocks: Iterator[VectorRows], embedder: EmbeddingCheckpoint
) -> Iterator[tuple[BinaryIO, list[str], list[str]]]:
    """Write all vectors to a temporary file, which the system removes even if this process dies.

    Yields:
        The file with the bytes of the vectors, and all ids and labels.
    """
    ids: list[str] = []
    labels: list[str] = []
    with tempfile.TemporaryFile(dir=Path(os.path.realpath(out)).parent) as spool:
        for rows in blocks:
            spool.write(rows.vectors.numpy().tobytes())
            ids += rows.ids
            labels += rows.labels
        yield spool, ids, labels


def _read_blocks(spool: BinaryIO) -> Iterator[bytes]:
    """Read a file from its beginning."""
    spool.seek(0)
    while block := spool.read(BLOCK_BYTES):
        yield block


def _regrouped(blocks: Iterable[VectorRows], size: int) -> Iterator[VectorRows]:
    """Join blocks until they have at least ``size`` rows."""
    group: list[VectorRows] = []
    for rows in blocks:
        group.append(rows)
        if sum(len(rows.ids) for rows in group) >= size:
            yield _joined(group)
            group = []
    if group:
        yield _joined(group)


def _joined(group: Sequence[VectorRows]) -> VectorRows:
    return VectorRows(
        ids=[name for rows in group for name in rows.ids],
        labels=[label for rows in group for label in rows.labels],
        vectors=torch.cat([rows.vectors for rows in group]),
    )


def _batched(texts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield consecutive items of a sequence in lists."""
    remaining = iter(texts)
    while block := list(islice(remaining, size)):
        yield block


def _is_unicode(text: str) -> bool:
    """Return True for text without the escaped bytes of a file name that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
