"""Cache of the frozen embeddings that stage two trains on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint import load_tensors, save_tensors
from stages.errors import CheckpointError
from stages.records import Embeddings


def save_vectors(
    path: Path, train: Embeddings, validation: Embeddings | None, record: Mapping[str, Any]
) -> None:
    """What stage two trains on, so that running it again reads and embeds no image."""
    tensors = {"train.vectors": train.vectors, "train.labels": train.labels}
    if validation:
        tensors |= {"val.vectors": validation.vectors, "val.labels": validation.labels}
    save_tensors(path, "vectors", tensors, record)


def load_vectors(
    path: Path, *, embedding_digest: str, fingerprint: str, classes: tuple[str, ...]
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]] | None:
    """What `save_vectors` saved and its record, or None unless the file is whole and of this embedding and this split."""
    try:
        header, tensors = load_tensors(path, "vectors")
    except CheckpointError:
        return None
    if (header.record["embedding_digest"], header.record["fingerprint"]) != (
        embedding_digest,
        fingerprint,
    ):
        return None
    parts = [
        Embeddings(tensors[f"{part}.vectors"], tensors[f"{part}.labels"], classes)
        if f"{part}.vectors" in tensors
        else None
        for part in ("train", "val")
    ]
    return None if parts[0] is None else (parts[0], parts[1], header.record)
