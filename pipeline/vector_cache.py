"""Cache of the frozen embeddings that stage two trains on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tensor_files import load_tensors, save_tensors
from stages.errors import CheckpointError, DataError
from stages.records import Embeddings


def save_vectors(
    path: Path, train: Embeddings, validation: Embeddings | None, record: Mapping[str, Any]
) -> None:
    """Save the embeddings of the training and validation images.

    A later run of ``pipeline classify`` then needs no images.

    Args:
        path: File to write.
        train: Embeddings of the training images.
        validation: Embeddings of the validation images, if there are any.
        record: JSON-serialisable record with ``embedding_digest``, ``fingerprint``, the training
            images' ``ids`` and kNN's ``k``.

    Raises:
        PipelineError: If the file cannot be written.
    """
    tensors = {"train.vectors": train.vectors, "train.labels": train.labels}
    if validation:
        tensors |= {"val.vectors": validation.vectors, "val.labels": validation.labels}
    save_tensors(path, "vectors", tensors, record)


def load_vectors(
    path: Path, *, embedding_digest: str, fingerprint: str, classes: tuple[str, ...]
) -> tuple[Embeddings, Embeddings | None, dict[str, Any]] | None:
    """Load saved embeddings if they belong to this network and these splits.

    Args:
        path: File written by :func:`save_vectors`.
        embedding_digest: Digest of the embedding network.
        fingerprint: Fingerprint of the data set's splits.
        classes: Class names.

    Returns:
        The training embeddings, the validation embeddings and the record. ``None`` if the file is
        missing, damaged, or of another network or other splits.
    """
    try:
        header, tensors = load_tensors(path, "vectors")
    except CheckpointError:
        return None
    record = header.record
    if record["embedding_digest"] != embedding_digest or record["fingerprint"] != fingerprint:
        return None
    names = {f"{split}.{name}" for split in ("train", "val") for name in ("vectors", "labels")}
    if set(tensors) not in (names, {name for name in names if name.startswith("train.")}):
        return None
    try:
        train = Embeddings(tensors["train.vectors"], tensors["train.labels"], classes)
        validation = None
        if "val.vectors" in tensors:
            validation = Embeddings(tensors["val.vectors"], tensors["val.labels"], classes)
    except DataError:
        return None
    return (train, validation, record) if len(train) == len(record["ids"]) else None
