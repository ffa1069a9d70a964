"""Checkpoints: one safetensors file, its record as JSON in the header; written whole or not at all, loaded strictly.

safetensors runs no code on loading, so a file from a stranger is safe to open.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stages.errors import CheckpointError, PipelineError
from stages.network import Head, build_network, state_digest
from stages.records import ClassifierCheckpoint, EmbeddingCheckpoint, Embeddings, EpochLog, TrainingState

FORMAT_VERSION = 1


class Header(NamedTuple):
    """What a checkpoint says of itself."""

    kind: str
    digest: str
    record: dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target under a temporary name, sync, then replace: a crash leaves the old file whole.

    Raises PipelineError if the folder can't be written to or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        raise PipelineError(f"{path}: can't be written: {error.strerror}; make room, or give another path") from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_embedding(path: Path, network: nn.Module, record: Mapping[str, Any]) -> str:
    """Returns the digest of the saved weights and buffers."""
    return _save(path, "embedding", dict(network.state_dict()), record)


def save_classifier(path: Path, network: nn.Module, head: Head, gallery: Embeddings, record: Mapping[str, Any]) -> str:
    """The embedder under `embedding.`, the head under `head.`, the training part's vectors and labels under `gallery.`.

    Returns the digest of all of them.
    """
    tensors = {f"embedding.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"head.weight": head.linear.weight, "head.bias": head.linear.bias}
    tensors |= {"gallery.vectors": gallery.vectors, "gallery.labels": gallery.labels}
    return _save(path, "classifier", tensors, record)


def _save(path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    # safetensors refuses channels-last weights and tensors that share memory.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    digest = state_digest(plain)
    header = {"format_version": str(FORMAT_VERSION), "kind": kind, "digest": digest, "record": json.dumps(record)}
    write_atomically(path, save(plain, header))
    return digest


def read_header(path: Path) -> Header:
    """The header alone. Raises CheckpointError if the file is missing, damaged, foreign, or of a newer format."""
    return _open(path)[0]


def load_embedding(path: Path) -> EmbeddingCheckpoint:
    """Stage one's result, on the CPU, in evaluation mode. Raises CheckpointError as `read_header` does, or for another kind."""
    header, tensors = _load(path, "embedding")
    return EmbeddingCheckpoint(_network(path, header.record, tensors), tuple(header.record["classes"]), header.record, header.digest)


def load_classifier(path: Path) -> ClassifierCheckpoint:
    """Stage two's result, on the CPU, in evaluation mode. Raises CheckpointError as `load_embedding` does."""
    header, tensors = _load(path, "classifier")
    record, classes = header.record, tuple(header.record["classes"])
    embedder = {name.removeprefix("embedding."): value for name, value in tensors.items() if name.startswith("embedding.")}
    if state_digest(embedder) != record["embedding_digest"]:
        raise CheckpointError(f"{path}: its embedder is not the embedding that its record names; run `pipeline classify` again")
    head = Head(record["network"]["dim"], len(classes), dropout=record["settings"]["dropout"])
    _load_strictly(path, head.linear, {name: tensors[f"head.{name}"] for name in ("weight", "bias")})
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


def save_vectors(path: Path, train: Embeddings, validation: Embeddings | None, record: Mapping[str, Any]) -> None:
    """What stage two trains on, so that running it again reads and embeds no image."""
    tensors = {"train.vectors": train.vectors, "train.labels": train.labels}
    if validation:
        tensors |= {"val.vectors": validation.vectors, "val.labels": validation.labels}
    _save(path, "vectors", tensors, record)


def load_vectors(
    path: Path, *, embedding_digest: str, fingerprint: str, classes: tuple[str, ...]
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]] | None:
    """What `save_vectors` saved and its record, or None unless the file is whole and of this embedding and this split."""
    try:
        header, tensors = _load(path, "vectors")
    except CheckpointError:
        return None
    if (header.record["embedding_digest"], header.record["fingerprint"]) != (embedding_digest, fingerprint):
        return None
    parts = [
        Embeddings(tensors[f"{part}.vectors"], tensors[f"{part}.labels"], classes) if f"{part}.vectors" in tensors else None
        for part in ("train", "val")
    ]
    return None if parts[0] is None else (parts[0], parts[1], header.record)


def save_state(path: Path, state: TrainingState, record: Mapping[str, Any]) -> None:
    """What going on with a training run needs. Raises PipelineError if it can't be written; an older file then stays."""
    tensors = {field.name: getattr(state, field.name) for field in fields(state)}
    tensors["history"] = [asdict(log) for log in state.history]
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, "record": json.dumps(record), "state": tensors}, buffer)
    content = buffer.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state, its tensors on the CPU, and its record. Runs no code from the file. Raises CheckpointError if it is damaged."""
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise CheckpointError(f"{path}: not a training state that can be read: the file is damaged; --force starts anew")
    found = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    tensors = found["state"]
    tensors["history"] = tuple(EpochLog(**log) for log in tensors["history"])
    return TrainingState(**tensors), json.loads(found["record"])


def check_writable(folder: Path) -> None:
    """Raises PipelineError for a folder that nothing can be written to, before hours are spent on what should go there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PipelineError(f"{folder}: can't be written to: {error.strerror}; give another path") from error


def _network(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    network = build_network(record["network"])
    _load_strictly(path, network, tensors)
    return network.eval()


def _load_strictly(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors don't fit the network that its record describes: {error}") from error


def _load(path: Path, kind: str) -> tuple[Header, dict[str, Tensor]]:
    header, tensors = _open(path, kind)
    if header.kind != kind:
        raise CheckpointError(f"{path}: holds a checkpoint of kind {header.kind}; give one of kind {kind}")
    if state_digest(tensors) != header.digest:
        raise CheckpointError(f"{path}: its tensors don't match the digest in its header: the file is damaged; make it again")
    return header, tensors


def _open(path: Path, kind: str = "") -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        maker = "classify" if kind == "classifier" else "embed"
        raise CheckpointError(f"{path}: no such file; `pipeline {maker}` makes one, or give another path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); make it again") from error
    version = metadata.get("format_version", "")
    if not version.isdigit() or "kind" not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one of this program's checkpoints; give one that it made")
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {version}; this program reads up to {FORMAT_VERSION}: install a newer one")
    try:
        return Header(metadata["kind"], metadata["digest"], json.loads(metadata["record"])), tensors
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error}); make it again") from error
