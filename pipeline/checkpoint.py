"""Save and load checkpoints.

A checkpoint is one safetensors file. Its header holds these strings (see :func:`_header`):

==================  ================================================================
``format_version``  Version of the file format, an integer.
``kind``            ``embedding``, ``classifier`` or ``vectors``.
``digest``          SHA-256 of the tensors, from :func:`stages.network.digest.state_digest`.
``record``          JSON: settings, data source, training history and versions.
==================  ================================================================

safetensors files contain no code, so a file from an untrusted source is safe to load.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.files import write_atomically
from stages.errors import CheckpointError
from stages.network.digest import state_digest
from stages.network.embedding_net import build_network
from stages.network.head import Head
from stages.records import ClassifierCheckpoint, EmbeddingCheckpoint, Embeddings

FORMAT_VERSION = 1
# The commands that create a file. The data and the embedding are placeholders: a default could
# train on other data than the user's.
COMMANDS = {
    "embedding": "pipeline embed --data SOURCE",
    "classifier": "pipeline classify --embedding FILE",
}


class Header(NamedTuple):
    """Header of a checkpoint file.

    Attributes:
        kind: Kind of checkpoint: ``embedding``, ``classifier`` or ``vectors``.
        digest: SHA-256 of the tensors.
        record: Settings, data source, training history and versions.
    """

    kind: str
    digest: str
    record: dict[str, Any]


def _header(kind: str, digest: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the header to write to the file."""
    return {
        "format_version": str(FORMAT_VERSION),
        "kind": kind,
        "digest": digest,
        "record": json.dumps(record),
    }


def _parse_header(path: Path, metadata: Mapping[str, str]) -> Header:
    """Return the header that was read from a file."""
    version = metadata.get("format_version", "")
    if not version.isdigit() or "kind" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this program; use one that "
            "`pipeline embed` or `pipeline classify` has written"
        )
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format {version}, but this version reads formats up to "
            f"{FORMAT_VERSION}; install a newer version"
        )
    try:
        record = json.loads(metadata["record"])
        return Header(kind=metadata["kind"], digest=metadata["digest"], record=record)
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: the header is damaged ({error}); create the file again"
        ) from error


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
    path: Path, network: nn.Module, head: Head, gallery: Embeddings, record: Mapping[str, Any]
) -> str:
    """Save a classifier together with its frozen embedding network and its gallery.

    Tensor names start with ``embedding.`` for the network, ``head.`` for the head and
    ``gallery.`` for the embeddings and labels of the training images.

    Args:
        path: File to write.
        network: Frozen embedding network.
        head: Trained classification head.
        gallery: Embeddings of the training images, searched by kNN.
        record: JSON-serialisable record of the training run.

    Returns:
        Digest of all saved tensors.

    Raises:
        PipelineError: If the file cannot be written.
    """
    tensors = {f"embedding.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"head.weight": head.linear.weight, "head.bias": head.linear.bias}
    tensors |= {"gallery.vectors": gallery.vectors, "gallery.labels": gallery.labels}
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
    """
    # safetensors rejects channels-last tensors and tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    digest = state_digest(copies)
    write_atomically(path, save(copies, _header(kind, digest, record)))
    return digest


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint.

    Args:
        path: Checkpoint file of any kind.

    Returns:
        The header.

    Raises:
        CheckpointError: If the file is missing, damaged, not a checkpoint, or of a newer format.
    """
    return _read(path)[0]


def load_embedding(path: Path) -> EmbeddingCheckpoint:
    """Load an embedding network onto the CPU, in evaluation mode.

    Args:
        path: File written by :func:`save_embedding`.

    Returns:
        The network, its class names, its record and its digest.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of a newer format.
    """
    header, tensors = load_tensors(path, "embedding")
    return EmbeddingCheckpoint(
        network=_build_network(path, header.record, tensors),
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
        CheckpointError: If the file is missing, damaged, of another kind or of a newer format, or
            if its embedding network is not the one that its record names.
    """
    header, tensors = load_tensors(path, "classifier")
    record, classes = header.record, tuple(header.record["classes"])
    embedding = {
        name.removeprefix("embedding."): value
        for name, value in tensors.items()
        if name.startswith("embedding.")
    }
    if state_digest(embedding) != record["embedding_digest"]:
        raise CheckpointError(
            f"{path}: the embedding network does not match the digest in the record; "
            f"create the file again with `{COMMANDS['classifier']} --out {path}`"
        )
    head = Head(record["network"]["dim"], len(classes), dropout=record["settings"]["dropout"])
    head_state = {"weight": tensors["head.weight"], "bias": tensors["head.bias"]}
    _load_state_dict(path, head.linear, head_state)
    return ClassifierCheckpoint(
        network=_build_network(path, record, embedding),
        head=head.eval(),
        gallery=Embeddings(tensors["gallery.vectors"], tensors["gallery.labels"], classes),
        gallery_ids=tuple(record["gallery_ids"]),
        classes=classes,
        record=record,
        embedding_digest=record["embedding_digest"],
        digest=header.digest,
        temperature=record["temperature"],
        k=record["k"],
    )


def load_tensors(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    """Load the header and all tensors, and compare the tensors with their digest.

    Args:
        path: Checkpoint file.
        kind: Expected kind of checkpoint.

    Returns:
        The header, and the tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind or of a newer format.
    """
    header, tensors = _read(path, kind)
    if header.kind != kind:
        raise CheckpointError(
            f"{path}: holds a checkpoint of kind {header.kind}; use one of kind {kind}"
        )
    if state_digest(tensors) != header.digest:
        raise CheckpointError(
            f"{path}: damaged: the tensors do not match the digest in the header; "
            "create the file again"
        )
    return header, tensors


def _read(path: Path, kind: str = "") -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        advice = "use another path"
        if kind in COMMANDS:
            advice = f"run `{COMMANDS[kind]} --out {path}` to create it, or {advice}"
        raise CheckpointError(f"{path}: no such file; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); create the file again"
        ) from error
    return _parse_header(path, metadata), tensors


def _build_network(
    path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    network = build_network(record["network"])
    _load_state_dict(path, network, tensors)
    return network.eval()


def _load_state_dict(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the tensors do not fit the network that the record describes ({error}); "
            "create the file again"
        ) from error
