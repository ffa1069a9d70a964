"""Saved embeddings are loaded for the same network and the same splits only."""

import json

import pytest
import torch
from checkpoint_files import change_header
from factories import make_record

from pipeline.tensor_files import save_tensors
from pipeline.vector_cache import load_vectors, save_vectors
from stages.records import Embeddings

CLASSES = ("a", "b")
IDENTITY = {"embedding_digest": "network", "fingerprint": "splits"}
RECORD = make_record("vectors", **IDENTITY)


@pytest.mark.parametrize("with_validation", [True, False])
def test_vectors_round_trip(tmp_path, with_validation):
    train = Embeddings(torch.eye(8)[:3], torch.tensor([0, 1, 1]), CLASSES)
    validation = Embeddings(torch.eye(8)[3:5], torch.tensor([1, 0]), CLASSES)
    save_vectors(tmp_path / "vectors", train, validation if with_validation else None, RECORD)
    loaded_train, loaded_validation, record = load_vectors(
        tmp_path / "vectors", **IDENTITY, classes=CLASSES
    )
    assert record == RECORD
    assert torch.equal(loaded_train.vectors, train.vectors)
    assert torch.equal(loaded_train.labels, train.labels)
    if with_validation:
        assert torch.equal(loaded_validation.vectors, validation.vectors)
    else:
        assert loaded_validation is None


@pytest.mark.parametrize("changed", [*IDENTITY, "content", "path"])
def test_other_vectors_are_not_loaded(tmp_path, changed):
    path = tmp_path / "vectors"
    train = Embeddings(torch.eye(3), torch.tensor([0, 1, 1]), CLASSES)
    save_vectors(path, train, None, RECORD)
    identity = {**IDENTITY, changed: "other"} if changed in IDENTITY else IDENTITY
    if changed == "content":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if changed == "path":
        path = tmp_path / "missing"
    assert load_vectors(path, **identity, classes=CLASSES) is None


@pytest.mark.parametrize(
    ("record", "tensors"),
    [
        ({"k": 0}, {}),
        ({"k": 4}, {}),
        ({"k": "3"}, {}),
        ({"ids": ["x"], "k": 1}, {}),
        ({}, {"train.labels": None}),
        ({}, {"val.vectors": torch.eye(3)}),
        ({}, {"train.vectors": 2 * torch.eye(3)}),
        ({}, {"train.labels": torch.tensor([0, 1, 2])}),
        ({}, {"other": torch.zeros(1)}),
    ],
)
def test_vectors_that_contradict_each_other_are_not_loaded(tmp_path, record, tensors):
    train = {"train.vectors": torch.eye(3), "train.labels": torch.tensor([0, 1, 1])}
    kept = {name: value for name, value in (train | tensors).items() if value is not None}
    path = tmp_path / "vectors"
    save_tensors(path, "vectors", train, RECORD)
    assert load_vectors(path, **IDENTITY, classes=CLASSES)
    save_tensors(path, "vectors", kept, RECORD | record)
    assert load_vectors(path, **IDENTITY, classes=CLASSES) is None


def test_a_missing_key_or_another_format_is_not_loaded(tmp_path):
    path = tmp_path / "vectors"
    save_vectors(path, Embeddings(torch.eye(3), torch.tensor([0, 1, 1]), CLASSES), None, RECORD)
    for name in RECORD:
        record = {key: value for key, value in RECORD.items() if key != name}
        change_header(path, record=json.dumps(record), record_digest=None)
        assert load_vectors(path, **IDENTITY, classes=CLASSES) is None, name
    change_header(path, record=json.dumps(RECORD), record_digest=None)
    assert load_vectors(path, **IDENTITY, classes=CLASSES)
    change_header(path, format_version="1")
    assert load_vectors(path, **IDENTITY, classes=CLASSES) is None
