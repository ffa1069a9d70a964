"""Save and load checkpoints.

A checkpoint is one safetensors file. Its header (:mod:`pipeline.checkpoint_header`) holds strings:

==================  ================================================================
``format_version``  Version of the file format, an integer.
``kind``            ``embedding``, ``classifier``, ``vectors`` or ``state``.
``digest``          SHA-256 of the tensors, from :func:`stages.network.digest.state_digest`.
``record``          JSON: settings, data source, training history and versions.
``record_digest``   SHA-256 of the record's bytes in UTF-8.
==================  ================================================================

safetensors files contain no code, so a file from an untrusted source is safe to load. Digests find
damage; :mod:`pipeline.record` finds values that cannot work, also in an edited file.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.checkpoint_header import COMMANDS, Header, advice, make_header, parse_header
from pipeline.files import write_atomically
from stages.errors import CheckpointError, DataError, SettingsError
from stages.evaluation.knn import nearest_distances
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet, build_network, describe_mismatch
from stages.network.head import Head
from stages.records import ClassifierCheckpoint, EmbeddingCheckpoint, Embeddings


def save_embedding(path: Path, network: nn.Module, record: Mapping[str, Any]) -> str:
    """Save an embedding network.

    Args:
        path: File to write.
        network: Network whose parameters and buffers are saved.
        record: JSON-serialisable record of the training run.

    Returns:
        Digest of the saved parameters and buffers.

    Raises:
        PipelineError: If the file cannot be written.
    """
    return save_tensors(path, "embedding", dict(network.state_dict()), record)


def save_classifier(
    path: Path,
    network: nn.Module,
    head: Head,
    gallery: Embeddings,
    record: Mapping[str, Any],
    *,
    validation: Embeddings | None = None,
) -> str:
    """Save a classifier together with its frozen embedding network and its gallery.

    Tensor names start with ``embedding.`` for the network, ``head.`` for the head, ``gallery.`` for
    the embeddings and labels of the training images, and ``validation.`` for those of the
    validation images and their distances to the nearest training images.

    Args:
        path: File to write.
        network: Frozen embedding network.
        head: Trained classification head.
        gallery: Embeddings of the training images, searched by kNN.
        record: JSON-serialisable record of the training run.
        validation: Embeddings of the validation images, if there are any.

    Returns:
        Digest of all saved tensors.

    Raises:
        PipelineError: If the file cannot be written.
    """
    tensors = {f"embedding.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"head.weight": head.linear.weight, "head.bias": head.linear.bias}
    tensors |= {"gallery.vectors": gallery.vectors, "gallery.labels": gallery.labels}
    if validation:
        tensors |= {
            "validation.vectors": validation.vectors,
            "validation.labels": validation.labels,
            "validation.distances": nearest_distances(validation.vectors, gallery.vectors),
        }
    return save_tensors(path, "classifier", tensors, record)


def save_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> str:
    """Save named tensors and a record; see :func:`save_embedding`.

    Args:
        path: File to write.
        kind: Kind of checkpoint, stored in the header.
        tensors: Tensors by name, on any device and in any memory layout.
        record: JSON-serialisable record.

    Returns:
        Digest of the tensors.

    Raises:
        PipelineError: If the file cannot be written.
        MemoryError: If there is too little memory to write the file.
    """
    # safetensors rejects channels-last tensors and tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    digest = state_digest(copies)
    # safetensors copies the tensors three times, and aborts with a Rust trace if memory runs out.
    np.empty(3 * sum(tensor.nbytes for tensor in copies.values()), np.uint8)
    write_atomically(path, save(copies, make_header(kind, digest, record)))
    return digest


def read_header(path: Path) -> Header:
    """Read and check the header of a checkpoint. Its tensors are not read.

    Args:
        path: Checkpoint file of any kind.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is missing, damaged, not a checkpoint, or of another format.
    """
    with _open(path) as file:
        return parse_header(path, file.metadata() or {})


def load_embedding(path: Path) -> EmbeddingCheckpoint:
    """Load an embedding network onto the CPU, in evaluation mode.

    Args:
        path: File written by :func:`save_embedding`.

    Returns:
        The network, its class names, its record and its digest.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of another format.
    """
    header, tensors = load_tensors(path, "embedding")
    return EmbeddingCheckpoint(
        network=_build_network(path, header, tensors),
        classes=tuple(header.record["classes"]),
        record=header.record,
        digest=header.digest,
    )


def load_classifier(path: Path) -> ClassifierCheckpoint:
    """Load a classifier onto the CPU, in evaluation mode.

    Args:
        path: File written by :func:`save_classifier`.

    Returns:
        The network, the head, the gallery and the record.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of another format, or
            if its embedding network is not the one that its record names.
    """
    header, tensors = load_tensors(path, "classifier")
    record, classes = header.record, tuple(header.record["classes"])
    embedding = {
        name.removeprefix("embedding."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("embedding.")
    }
    if state_digest(embedding) != record["embedding_digest"]:
        raise CheckpointError(
            f"{path}: the embedding network does not match the digest in the record; "
            f"{advice(path, header.kind)}"
        )
    network = _build_network(path, header, embedding)
    dim, rows = record["network"]["dim"], len(record["gallery_ids"])
    shapes = {
        "head.weight": torch.empty(len(classes), dim, device="meta"),
        "head.bias": torch.empty(len(classes), device="meta"),
        "gallery.vectors": torch.empty(rows, dim, device="meta"),
        "gallery.labels": torch.empty(rows, dtype=torch.int64, device="meta"),
    }
    images = record["counts"]["val"]
    if images:
        shapes |= {
            "validation.vectors": torch.empty(images, dim, device="meta"),
            "validation.labels": torch.empty(images, dtype=torch.int64, device="meta"),
            "validation.distances": torch.empty(images, device="meta"),
        }
    _check_tensors(path, header, shapes, tensors)
    head = Head(dim, len(classes), dropout=record["settings"]["dropout"])
    head.linear.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
    distances = tensors.get("validation.distances", torch.empty(0))
    if not bool(((distances >= 0) & (distances < 2.01)).all()):
        raise CheckpointError(
            f"{path}: validation.distances has values that are no distances of unit vectors; "
            f"{advice(path, header.kind)}"
        )
    return ClassifierCheckpoint(
        network=network,
        head=head.eval(),
        gallery=_embeddings(path, header, tensors, "gallery"),
        gallery_ids=tuple(record["gallery_ids"]),
        validation=_embeddings(path, header, tensors, "validation") if images else None,
        validation_distances=distances,
        classes=classes,
        record=record,
        embedding_digest=record["embedding_digest"],
        digest=header.digest,
        temperature=record["temperature"],
        calibrated=record["calibrated"],
        k=record["k"],
    )


def _embeddings(path: Path, header: Header, tensors: Mapping[str, Tensor], name: str) -> Embeddings:
    """Return the vectors and labels with a name."""
    vectors, labels = tensors[f"{name}.vectors"], tensors[f"{name}.labels"]
    try:
        return Embeddings(vectors, labels, tuple(header.record["classes"]))
    except DataError as error:
        raise CheckpointError(f"{path}: {name}: {error}; {advice(path, header.kind)}") from error


def load_tensors(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Load the header and all tensors, and compare both with their digests.

    Args:
        path: Checkpoint file.
        kind: Expected kind of checkpoint.

    Returns:
        The header, and the tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of another format, or
            a tensor has values that are not finite.
    """
    with _open(path, kind) as file:
        header = parse_header(path, file.metadata() or {})
        if header.kind != kind:
            raise CheckpointError(
                f"{path}: holds a checkpoint of kind {header.kind}; use one of kind {kind}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if state_digest(tensors) != header.digest:
        raise CheckpointError(
            f"{path}: damaged: the tensors do not match the digest in the header; "
            f"{advice(path, kind)}"
        )
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: {name} contains values that are not finite; {advice(path, kind)}"
            )
    return header, tensors


@contextmanager
def _open(path: Path, kind: str = "") -> Iterator[Any]:
    """Open a safetensors file; its tensors are read only when they are asked for."""
    if not os.path.isfile(path):  # unlike Path.is_file, this raises no PermissionError
        found, remedy = "not a file", "use another path"
        if not os.path.exists(path):
            found = "no such file"
            if kind in COMMANDS:
                remedy = f"run `{COMMANDS[kind]} --out {path}` to create it, or {remedy}"
        raise CheckpointError(f"{path}: {found}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged: not a complete safetensors file ({error}); {advice(path, kind)}"
        ) from error


def _build_network(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> EmbeddingNet:
    """Build the network that a record describes and load its tensors."""
    config = header.record["network"]
    try:
        # The meta device has shapes but no memory: an edited record cannot allocate much. Some
        # library networks cannot be built on it.
        with suppress(SettingsError), torch.device("meta"):
            _check_tensors(path, header, build_network(config).state_dict(), tensors)
        network = build_network(config)
    except SettingsError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_tensors(path, header, network.state_dict(), tensors)
    network.load_state_dict(dict(tensors))
    return network.eval()


def _check_tensors(
    path: Path, header: Header, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raise an error if names, shapes or dtypes differ from the expected ones."""
    if mismatch := describe_mismatch(expected, tensors):
        raise CheckpointError(
            f"{path}: the tensors do not fit the record ({mismatch}); {advice(path, header.kind)}"
        )
