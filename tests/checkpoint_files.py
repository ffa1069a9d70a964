"""Checkpoints of every kind, and edits of their headers."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_record
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.checkpoint import load_embedding, save_classifier, save_embedding
from pipeline.tensor_files import save_tensors
from pipeline.training_state import save_state
from pipeline.vector_cache import save_vectors
from stages.errors import CheckpointError
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings, EpochLog, KeptEpoch, TrainingState

CLASSES = ("a", "b")


def change_header(path: Path, **changes: str | None) -> None:
    """Save the same tensors with other header entries.

    Args:
        path: Checkpoint to change.
        changes: Entries to replace. ``record_digest=None`` computes the digest of the record.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = {**file.metadata(), **changes}
    if header["record_digest"] is None:
        header["record_digest"] = hashlib.sha256(header["record"].encode()).hexdigest()
    save_file(tensors, path, {name: value for name, value in header.items() if value != ""})


def assert_rejected(path: Path, *texts: str, load: Callable[[Path], Any] = load_embedding) -> None:
    """Assert that the file is rejected with a message that names it and contains the texts."""
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    for text in texts:
        assert text in message


def make_gallery() -> Embeddings:
    """Return three training vectors of dimension 8."""
    return Embeddings(torch.eye(8)[:3], torch.tensor([0, 1, 1]), CLASSES)


def make_validation() -> Embeddings:
    """Return one validation vector of dimension 8, at a distance of sqrt(2) from the gallery."""
    return Embeddings(torch.eye(8)[3:4], torch.tensor([0]), CLASSES)


def make_state(network: EmbeddingNet | None = None) -> TrainingState:
    """Return the state after step 3 of 9, in the second epoch."""
    network = network or EmbeddingNet(1, 8, 8)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    bias = network.project.bias.detach()
    moments = {"step": torch.tensor(3.0), "exp_avg": bias.clone(), "exp_avg_sq": bias.square()}
    return TrainingState(
        step=3,
        steps=9,
        network=weights,
        optimiser={"state": {0: moments}, "param_groups": []},
        sampler={"generator": torch.Generator().manual_seed(1).get_state(), "position": 1},
        generator=torch.Generator().manual_seed(2).get_state(),
        history=(EpochLog(1, 0.1, 0.2, 0.3, 0.4, None),),
        sums=(0.0, 1.0, 2.0),
        kept=KeptEpoch(0.4, 1, weights),
    )


def make_network() -> EmbeddingNet:
    """Return the network of `write_file`."""
    torch.manual_seed(0)
    return EmbeddingNet(1, 8, 8)


def write_gallery(
    path: Path,
    network: EmbeddingNet,
    vectors: torch.Tensor,
    record: dict[str, Any],
    **tensors: torch.Tensor,
) -> None:
    """Write a gallery that contains the embedding network; ``tensors`` may be ``labels``."""
    embedding = {f"embedding.{name}": value for name, value in network.state_dict().items()}
    save_tensors(path, "gallery", {**embedding, "vectors": vectors, **tensors}, record)


def write_file(kind: str, path: Path) -> None:
    """Write a valid file of a kind: embedding, classifier, gallery, vectors or state."""
    network = make_network()
    record = make_record(kind, network)
    if kind == "embedding":
        save_embedding(path, network, record)
    elif kind == "classifier":
        head, gallery, validation = Head(8, 2), make_gallery(), make_validation()
        save_classifier(path, network, head, gallery, record, validation=validation)
    elif kind == "gallery":
        write_gallery(
            path, network, make_gallery().vectors, record, labels=torch.tensor([0, -1, 1])
        )
    elif kind == "vectors":
        save_vectors(path, make_gallery(), None, record)
    else:
        save_state(path, make_state(network), record)
