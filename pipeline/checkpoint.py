"""Checkpoints: one safetensors file, its record as JSON in the header; written whole or not at all, loaded strictly.

safetensors runs no code on loading, so a file from a stranger is safe to open.
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


class Header(NamedTuple):
    """What a checkpoint says of itself."""

    kind: str
    digest: str
    record: dict[str, Any]


def save_embedding(path: Path, network: nn.Module, record: Mapping[str, Any]) -> str:
    """Returns the digest of the saved weights and buffers."""
    return save_tensors(path, "embedding", dict(network.state_dict()), record)


def save_classifier(
    path: Path, network: nn.Module, head: Head, gallery: Embeddings, record: Mapping[str, Any]
) -> str:
    """The embedder under `embedding.`, the head under `head.`, the training part's vectors and labels under `gallery.`.

    Returns the digest of all of them.
    """
    tensors = {f"embedding.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"head.weight": head.linear.weight, "head.bias": head.linear.bias}
    tensors |= {"gallery.vectors": gallery.vectors, "gallery.labels": gallery.labels}
    return save_tensors(path, "classifier", tensors, record)


def save_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> str:
    # safetensors refuses channels-last weights and tensors that share memory.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    digest = state_digest(plain)
    header = {
        "format_version": str(FORMAT_VERSION),
        "kind": kind,
        "digest": digest,
        "record": json.dumps(record),
    }
    write_atomically(path, save(plain, header))
    return digest


def read_header(path: Path) -> Header:
    """The header alone. Raises CheckpointError if the file is missing, damaged, foreign, or of a newer format."""
    return _open(path)[0]


def load_embedding(path: Path) -> EmbeddingCheckpoint:
    """Stage one's result, on the CPU, in evaluation mode. Raises CheckpointError as `read_header` does, or for another kind."""
    header, tensors = load_tensors(path, "embedding")
    return EmbeddingCheckpoint(
        _network(path, header.record, tensors),
        tuple(header.record["classes"]),
        header.record,
        header.digest,
    )


def load_classifier(path: Path) -> ClassifierCheckpoint:
    """Stage two's result, on the CPU, in evaluation mode. Raises CheckpointError as `load_embedding` does."""
    header, tensors = load_tensors(path, "classifier")
    record, classes = header.record, tuple(header.record["classes"])
    embedder = {
        name.removeprefix("embedding."): value
        for name, value in tensors.items()
        if name.startswith("embedding.")
    }
    if state_digest(embedder) != record["embedding_digest"]:
        raise CheckpointError(
            f"{path}: its embedder is not the embedding that its record names; run `pipeline classify` again"
        )
    head = Head(record["network"]["dim"], len(classes), dropout=record["settings"]["dropout"])
    _load_strictly(
        path, head.linear, {name: tensors[f"head.{name}"] for name in ("weight", "bias")}
    )
    gallery = Embeddings(tensors["gallery.vectors"], tensors["gallery.labels"], classes)
    network = _network(path, record, embedder)
    return ClassifierCheckpoint(
        network,
        head.eval(),
        gallery,
        tuple(record["gallery_ids"]),
        classes,
        record,
        record["embedding_digest"],
        header.digest,
        record["temperature"],
        record["k"],
    )


def _network(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    network = build_network(record["network"])
    _load_strictly(path, network, tensors)
    return network.eval()


def _load_strictly(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its tensors don't fit the network that its record describes: {error}"
        ) from error


def load_tensors(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    header, tensors = _open(path, kind)
    if header.kind != kind:
        raise CheckpointError(
            f"{path}: holds a checkpoint of kind {header.kind}; give one of kind {kind}"
        )
    if state_digest(tensors) != header.digest:
        raise CheckpointError(
            f"{path}: its tensors don't match the digest in its header: the file is damaged; make it again"
        )
    return header, tensors


def _open(path: Path, kind: str = "") -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        maker = "classify" if kind == "classifier" else "embed"
        raise CheckpointError(
            f"{path}: no such file; `pipeline {maker}` makes one, or give another path"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); make it again"
        ) from error
    version = metadata.get("format_version", "")
    if not version.isdigit() or "kind" not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not one of this program's checkpoints; give one that it made"
        )
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {version}; this program reads up to {FORMAT_VERSION}: install a newer one"
        )
    try:
        return Header(metadata["kind"], metadata["digest"], json.loads(metadata["record"])), tensors
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}); make it again") from error
