"""Saved embeddings are loaded for the same network and the same splits only."""

import pytest
import torch

from pipeline.vector_cache import load_vectors, save_vectors
from stages.records import Embeddings

CLASSES = ("a", "b")
IDENTITY = {"embedding_digest": "network", "fingerprint": "splits"}


@pytest.mark.parametrize("with_validation", [True, False])
def test_vectors_round_trip(tmp_path, with_validation):
    train = Embeddings(torch.eye(8)[:3], torch.tensor([0, 1, 1]), CLASSES)
    validation = Embeddings(torch.eye(8)[3:5], torch.tensor([1, 0]), CLASSES)
    save_vectors(tmp_path / "vectors", train, validation if with_validation else None, IDENTITY)
    loaded_train, loaded_validation, record = load_vectors(
        tmp_path / "vectors", **IDENTITY, classes=CLASSES
    )
    assert record == IDENTITY
    assert torch.equal(loaded_train.vectors, train.vectors)
    assert torch.equal(loaded_train.labels, train.labels)
    if with_validation:
        assert torch.equal(loaded_validation.vectors, validation.vectors)
    else:
        assert loaded_validation is None


@pytest.mark.parametrize("changed", [*IDENTITY, "content", "path"])
def test_other_vectors_are_not_loaded(tmp_path, changed):
    path = tmp_path / "vectors"
    save_vectors(path, Embeddings(torch.eye(2), torch.tensor([0, 1]), CLASSES), None, IDENTITY)
    identity = {**IDENTITY, changed: "other"} if changed in IDENTITY else IDENTITY
    if changed == "content":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if changed == "path":
        path = tmp_path / "missing"
    assert load_vectors(path, **identity, classes=CLASSES) is None
