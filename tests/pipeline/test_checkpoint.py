"""Checkpoints load completely or not at all."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.checkpoint import load_classifier, load_embedding, save_classifier, save_embedding
from stages.errors import CheckpointError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings


@pytest.fixture
def saved(tmp_path):
    """Path of a saved embedding, and its network."""
    network = EmbeddingNet(1, 28, 8).to(memory_format=torch.channels_last)
    path = tmp_path / "embedding.safetensors"
    save_embedding(path, network, {"network": network.config, "classes": ["a", "b"]})
    return path, network


def change_header(path, **changes):
    """Save the same tensors with other header entries."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata()
    save_file(tensors, path, {**header, **changes})


def assert_rejected(path, *texts, load=load_embedding):
    """Assert that the file is rejected with a message that names it and contains the texts."""
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    for text in texts:
        assert text in message


def test_embedding_round_trip(saved):
    path, network = saved
    loaded = load_embedding(path)
    assert state_digest(loaded.network.state_dict()) == state_digest(network.state_dict())
    assert loaded.digest == state_digest(network.state_dict())
    assert loaded.classes == ("a", "b") and not loaded.network.training
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"format_version", "kind", "digest", "record"}


def test_classifier_holds_network_head_and_gallery(tmp_path):
    network, head = EmbeddingNet(1, 28, 8), Head(8, 2)
    gallery = Embeddings(torch.eye(8)[:3], torch.tensor([0, 1, 1]), ("a", "b"))
    record = {
        "network": network.config,
        "classes": ["a", "b"],
        "settings": {"dropout": 0.5},
        "embedding_digest": state_digest(network.state_dict()),
        "gallery_ids": ["x", "y", "z"],
        "temperature": 1.5,
        "k": 3,
    }
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network, head, gallery, record)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert {"head.weight", "head.bias", "gallery.vectors", "gallery.labels"} <= names
    assert "embedding.project.weight" in names
    loaded = load_classifier(path)
    assert torch.equal(loaded.head.linear.weight, head.linear.weight)
    assert loaded.gallery_ids == ("x", "y", "z")
    assert (loaded.temperature, loaded.k) == (1.5, 3)
    assert torch.equal(loaded.gallery.vectors, gallery.vectors)
    # The record names the digest of another network.
    save_classifier(path, EmbeddingNet(1, 28, 8), head, gallery, record)
    assert_rejected(
        path, "digest", f"pipeline classify --embedding FILE --out {path}", load=load_classifier
    )


@pytest.mark.parametrize(
    ("load", "command"),
    [
        (load_embedding, "pipeline embed --data SOURCE --out"),
        (load_classifier, "pipeline classify --embedding FILE --out"),
    ],
)
def test_missing_file_names_the_command_that_creates_it(tmp_path, load, command):
    path = tmp_path / "missing.safetensors"
    assert_rejected(path, "no such file", f"`{command} {path}`", load=load)


def test_other_kind_is_rejected(saved):
    assert_rejected(saved[0], "kind embedding", "kind classifier", load=load_classifier)


def test_incomplete_file_is_rejected(saved):
    path, _ = saved
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:length])
        assert_rejected(path, "not a complete safetensors file")


def test_changed_bit_is_rejected(saved):
    path, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert_rejected(path, "damaged", "digest")


def test_newer_format_is_rejected(saved):
    path, _ = saved
    change_header(path, format_version="2")
    assert_rejected(path, "format 2", "up to 1")


def test_damaged_record_is_rejected(saved):
    path, _ = saved
    change_header(path, record="{")
    assert_rejected(path, "header is damaged")


def test_foreign_safetensors_file_is_rejected(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert_rejected(path, "not a checkpoint")


def test_tensors_that_do_not_fit_the_record_are_rejected(saved):
    path, network = saved
    record = {"network": {**network.config, "dim": 9}, "classes": ["a", "b"]}
    change_header(path, record=json.dumps(record))
    assert_rejected(path, "do not fit the network")
