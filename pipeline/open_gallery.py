"""Open a file of vectors, or a classifier, to search it."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint import embedding_part, load_classifier, load_embedder
from pipeline.checkpoint_header import Header, advice, parse_header
from pipeline.data.dataset import natural_key
from pipeline.image_vectors import Embedder
from pipeline.tensor_files import open_tensors
from pipeline.vector_blocks import Blocks, file_blocks
from pipeline.vector_tables import READERS, VectorTable
from stages.checkpoints import EmbeddingCheckpoint
from stages.errors import CheckpointError, DataError
from stages.gallery import UNLABELLED, Gallery, gallery_of
from stages.network.digest import TensorBytes, streamed_digest, tensor_bytes
from stages.network.mismatch import describe_mismatch


def open_gallery(path: Path, embedding: Path | None) -> tuple[Gallery, Embedder]:
    """Open a file to search, and load the embedding network that computed its vectors.

    The vectors of ``.safetensors`` and ``.npz`` files are read in blocks when they are needed; the
    other files are loaded into memory. All vectors are checked here.

    Args:
        path: File of ``pipeline vectors``, or a classifier.
        embedding: Checkpoint that computed the vectors. A ``.npz``, ``.csv`` or ``.parquet`` file
            needs it. Other files contain their embedding network, which must be the same.

    Returns:
        The gallery, and the network for queries.

    Raises:
        DataError: If the file is missing, damaged or lacks a column, or the embedding is missing or
            another one.
        CheckpointError: If a safetensors file or the embedding cannot be used.
        PipelineError: If the package pyarrow is missing for a ``.parquet`` file.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        gallery, embedder = _open_safetensors(path)
        if embedding:
            _check_same_embedding(path, gallery.embedding_digest, embedding)
        return gallery, embedder
    if not os.path.isfile(path):
        found = "not a file" if os.path.exists(path) else "no such file"
        raise DataError(f"{path}: {found}; use another path")
    if embedding is None:
        raise DataError(
            f"{path}: has no embedding network; give the one that computed its vectors with "
            "--embedding FILE"
        )
    table = read(path)
    embedder = _check_same_embedding(path, table.embedding_digest, embedding)
    dim = embedder.record["network"]["dim"]
    if table.dim != dim:
        raise DataError(
            f"{path}: has vectors of dimension {table.dim}, but its embedding computes {dim}; "
            "create the file again"
        )
    gallery = _labelled_gallery(table)
    _check_vectors(path, gallery)
    return gallery, embedder


def _check_same_embedding(path: Path, digest: str, embedding: Path) -> EmbeddingCheckpoint:
    """Load an embedding; raise an error if it has not computed the vectors of a file."""
    embedder = load_embedder(embedding)
    if embedder.digest != digest:
        raise DataError(
            f"{path}: its vectors are of the embedding {digest[:12] or 'without a digest'}, but "
            f"{embedding} is {embedder.digest[:12]}; use the embedding that computed the vectors"
        )
    return embedder


def _labelled_gallery(table: VectorTable) -> Gallery:
    """Return the gallery of a table; its classes are in natural order."""
    classes = sorted(set(table.labels) - {""}, key=natural_key)
    index_of = {label: index for index, label in enumerate(classes)}
    labels = [index_of.get(label, UNLABELLED) for label in table.labels]
    return Gallery(
        blocks=table.blocks,
        ids=tuple(table.ids),
        labels=torch.tensor(labels, dtype=torch.int64),
        classes=tuple(classes),
        embedding_digest=table.embedding_digest,
    )


def _check_vectors(path: Path, gallery: Gallery) -> None:
    """Raise an error if there is no vector, or one is not finite or not of unit length."""
    if len(gallery) == 0:
        raise DataError(f"{path}: has no vectors; create it again, with at least one image")
    start = 0
    for block in gallery.blocks():
        lengths = torch.linalg.vector_norm(block, dim=1)
        # This comparison is false for NaN and infinity too.
        invalid = (~((lengths - 1).abs() < 1e-3)).nonzero()
        if len(invalid):
            row = start + int(invalid[0])
            raise DataError(
                f"{path}: the vector of {gallery.ids[row]} (row {row + 1}) is not finite or not of "
                "unit length; create the file again"
            )
        start += len(block)


def _open_safetensors(path: Path) -> tuple[Gallery, Embedder]:
    """Open a gallery or a classifier."""
    with open_tensors(path, "gallery") as file:
        header = parse_header(path, file.metadata() or {})
        if header.kind == "gallery":
            return _open_gallery(path, header, file)
    if header.kind != "classifier":
        raise CheckpointError(
            f"{path}: holds a checkpoint of kind {header.kind}; use a file of `pipeline vectors` "
            "or a classifier"
        )
    classifier = load_classifier(path)
    gallery = gallery_of(
        classifier.gallery.vectors,
        classifier.gallery_ids,
        embedding_digest=classifier.embedding_digest,
        labels=classifier.gallery.labels,
        classes=classifier.classes,
    )
    return gallery, classifier


def _open_gallery(path: Path, header: Header, file: Any) -> tuple[Gallery, Embedder]:
    """Open a gallery file and check everything in it. Its vectors are never all in memory.

    Args:
        path: The file.
        header: Its header.
        file: The open safetensors file.
    """
    record = header.record
    shape = (len(record["ids"]), record["network"]["dim"])
    names = file.offset_keys()  # in the order of their values in the file
    # Copies: the file's own memory would be lost if another program shortened it.
    tensors = {name: file.get_tensor(name).clone() for name in names if name != "vectors"}
    if "vectors" not in names or _described(file.get_slice("vectors")) != f"F32 {shape}":
        found = _described(file.get_slice("vectors")) if "vectors" in names else "missing"
        raise _unfit(path, header, f"vectors is {found} instead of F32 {shape}")
    before = names[: names.index("vectors")]
    with path.open("rb") as start:
        header_length = int.from_bytes(start.read(8), "little")
    offset = 8 + header_length + sum(tensors[name].nbytes for name in before)
    blocks = file_blocks(path, offset, shape)
    _check_digest(path, header, tensors, TensorBytes(torch.float32, shape, _as_bytes(blocks)))
    network, others = embedding_part(path, header, tensors)
    expected = {
        name: torch.empty(shape[0], dtype=torch.int64) for name in others if name == "labels"
    }
    if mismatch := describe_mismatch(expected, others):
        raise _unfit(path, header, mismatch)
    try:
        gallery = Gallery(
            blocks=blocks,
            ids=tuple(record["ids"]),
            labels=others.get("labels", torch.full(shape[:1], UNLABELLED)),
            classes=tuple(record["classes"]),
            embedding_digest=record["embedding_digest"],
        )
    except DataError as error:
        raise _unfit(path, header, str(error)) from error
    _check_vectors(path, gallery)
    return gallery, EmbeddingCheckpoint(
        network=network,
        classes=gallery.classes,
        record=record,
        digest=gallery.embedding_digest,
    )


def _described(tensor: Any) -> str:
    """Return dtype and shape of a tensor that is not loaded."""
    return f"{tensor.get_dtype()} {tuple(tensor.get_shape())}"


def _as_bytes(blocks: Blocks) -> Callable[[], Iterator[bytes]]:
    return lambda: (block.numpy().tobytes() for block in blocks())


def _check_digest(
    path: Path, header: Header, tensors: Mapping[str, Tensor], vectors: TensorBytes
) -> None:
    """Raise an error if the tensors do not match the digest, or a small one is not finite."""
    streamed = {name: tensor_bytes(value) for name, value in tensors.items()}
    if streamed_digest({**streamed, "vectors": vectors}) != header.digest:
        raise CheckpointError(
            f"{path}: damaged: the tensors do not match the digest in the header; "
            f"{advice(path, header.kind)}"
        )
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise _unfit(path, header, f"{name} contains values that are not finite")


def _unfit(path: Path, header: Header, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the tensors do not fit the record ({problem}); {advice(path, header.kind)}"
    )
