"""Save and load checkpoints.

The file format is that of :mod:`pipeline.tensor_files`. The same checks apply to every kind of
checkpoint: the tensors must match the record, and the embedding network its digest.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checkpoint_header import Header, advice
from pipeline.enrolments import images_per_class
from pipeline.schema import shown
from pipeline.tensor_files import load_tensors, read_header, save_tensors
from stages.checkpoints import ClassifierCheckpoint, EmbeddingCheckpoint
from stages.errors import CheckpointError, DataError, SettingsError
from stages.evaluation.knn import nearest_distances
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet, build_network
from stages.network.head import Head
from stages.network.mismatch import describe_mismatch
from stages.records import Embeddings


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
    enrolled_distances: Tensor | None = None,
) -> str:
    """Save a classifier together with its frozen embedding network and its gallery.

    Tensor names start with ``embedding.`` for the network, ``head.`` for the head, ``gallery.`` for
    the embeddings and labels of the training images, and ``validation.`` for those of the
    validation images and their distances to the nearest training images. ``enrolled.distances``
    are those of enrolled images to the nearest other image.

    Args:
        path: File to write.
        network: Frozen embedding network.
        head: Trained classification head.
        gallery: Embeddings of the training images, searched by kNN.
        record: JSON-serialisable record of the training run.
        validation: Embeddings of the validation images, if there are any.
        enrolled_distances: Distances of enrolled images to the nearest other gallery image,
            float32, shape (E,), if images were enrolled.

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
    if record.get("enrolled"):
        assert enrolled_distances is not None
        tensors["enrolled.distances"] = enrolled_distances
    return save_tensors(path, "classifier", tensors, record)


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
    return _classifier(path, *load_tensors(path, "classifier"))


def load_embedder(path: Path) -> EmbeddingCheckpoint:
    """Load the embedding network of an embedding or of a classifier.

    Args:
        path: File written by :func:`save_embedding` or :func:`save_classifier`.

    Returns:
        The network, class names, record and digest of the embedding. The record of a classifier
        has the entries ``network``, ``classes`` and ``read`` of its embedding.

    Raises:
        CheckpointError: As for :func:`load_embedding`.
    """
    if read_header(path).kind != "classifier":
        return load_embedding(path)
    classifier = load_classifier(path)
    return EmbeddingCheckpoint(
        network=classifier.network,
        classes=classifier.classes,
        record=classifier.record,
        digest=classifier.embedding_digest,
    )


def embedding_part(
    path: Path, header: Header, tensors: dict[str, Tensor]
) -> tuple[EmbeddingNet, dict[str, Tensor]]:
    """Build the embedding network of a file that has it under ``embedding.``.

    Args:
        path: The file, for messages.
        header: Its header.
        tensors: All its tensors.

    Returns:
        The network, and the other tensors.

    Raises:
        CheckpointError: If the network's tensors are not those that the record names.
    """
    others = {name: value for name, value in tensors.items() if not name.startswith("embedding.")}
    embedding = {
        name.removeprefix("embedding."): value
        for name, value in tensors.items()
        if name not in others
    }
    if state_digest(embedding) != header.record["embedding_digest"]:
        raise CheckpointError(
            f"{path}: the embedding network does not match the digest in the record; "
            f"{advice(path, header.kind)}"
        )
    return _build_network(path, header, embedding), others


def _classifier(path: Path, header: Header, tensors: dict[str, Tensor]) -> ClassifierCheckpoint:
    """Check the tensors of a classifier, and build its network and head."""
    record, classes = header.record, tuple(header.record["classes"])
    network, tensors = embedding_part(path, header, tensors)
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
    if record.get("enrolled"):
        count = sum(enrolment["distances"] for enrolment in record["enrolled"])
        shapes["enrolled.distances"] = torch.empty(count, device="meta")
    _check_tensors(path, header, shapes, tensors)
    gallery = _embeddings(path, header, tensors, "gallery")
    _check_enrolled(path, header, gallery)
    head = Head(dim, len(classes), dropout=record["settings"]["dropout"])
    head.linear.load_state_dict({"weight": tensors["head.weight"], "bias": tensors["head.bias"]})
    return ClassifierCheckpoint(
        network=network,
        head=head.eval(),
        gallery=gallery,
        gallery_ids=tuple(record["gallery_ids"]),
        validation=_embeddings(path, header, tensors, "validation") if images else None,
        validation_distances=_distances(path, header, tensors, "validation"),
        enrolled_distances=_distances(path, header, tensors, "enrolled"),
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


def _check_enrolled(path: Path, header: Header, gallery: Embeddings) -> None:
    """Raise an error if the last gallery images are not those that the record has as enrolled."""
    counts = images_per_class(header.record)
    first = len(gallery) - sum(counts.values())
    found = torch.bincount(gallery.labels[first:], minlength=len(gallery.classes)).tolist()
    for name, count in zip(gallery.classes, found, strict=True):
        if count != counts.get(name, 0):
            raise CheckpointError(
                f"{path}: the record has {counts.get(name, 0)} enrolled images of the class "
                f"{shown(name)}, but the gallery has {count}; {advice(path, header.kind)}"
            )


def _distances(path: Path, header: Header, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the distances with a name, float32; none if there is no such tensor."""
    distances = tensors.get(f"{name}.distances", torch.empty(0))
    if not bool(((distances >= 0) & (distances < 2.01)).all()):
        raise CheckpointError(
            f"{path}: {name}.distances has values that are no distances of unit vectors; "
            f"{advice(path, header.kind)}"
        )
    return distances


def _build_network(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> EmbeddingNet:
    """Build the network that a record describes, with its tensors."""
    config = header.record["network"]
    network: EmbeddingNet | None = None
    # Copies, because the tensors are in a mapped file that another program may change.
    copies = {name: value.clone() for name, value in tensors.items()}
    try:
        # The meta device has shapes but no memory: an edited record cannot allocate much, and no
        # time is spent on random weights. Some library networks cannot be built on it.
        with suppress(SettingsError), torch.device("meta"):
            network = build_network(config)
            _check_tensors(path, header, network.state_dict(), tensors)
        if network:
            network.load_state_dict(copies, assign=True)
        if network is None or not _is_complete(network.eval()):
            network = build_network(config)
            _check_tensors(path, header, network.state_dict(), tensors)
            network.load_state_dict(copies)
    except SettingsError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return network.eval()


def _is_complete(network: EmbeddingNet) -> bool:
    """Return True if no tensor of a network is left on the meta device.

    Library networks may have tensors that are not in their state: buffers that are not saved, and
    attributes. An operation on a meta tensor need not be an error, so a trial would not find them.
    Lists, tuples, sets and dictionaries are searched, other objects are not.
    """
    # Parameters, buffers and submodules are in dictionaries among a module's attributes.
    values: list[object] = [vars(module) for module in network.modules()]
    seen: set[int] = set()
    while values:
        value = values.pop()
        if isinstance(value, Tensor) and value.is_meta:
            return False
        if isinstance(value, (list, tuple, set, dict)) and id(value) not in seen:
            seen.add(id(value))  # a list may contain itself
            values += value.values() if isinstance(value, dict) else value
    return True


def _check_tensors(
    path: Path, header: Header, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raise an error if names, shapes or dtypes differ from the expected ones."""
    if mismatch := describe_mismatch(expected, tensors):
        raise CheckpointError(
            f"{path}: the tensors do not fit the record ({mismatch}); {advice(path, header.kind)}"
        )
