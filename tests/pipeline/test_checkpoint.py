"""Checkpoints load strictly or not at all, and a failed save loses nothing."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.checkpoint import load_classifier, load_embedding, save_classifier, save_embedding
from stages.errors import CheckpointError, PipelineError
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head
from stages.records import Embeddings


@pytest.fixture
def saved(tmp_path):
    network = EmbeddingNet(1, 28, 8).to(memory_format=torch.channels_last)
    path = tmp_path / "embedding.safetensors"
    save_embedding(path, network, {"network": network.config, "classes": ["a", "b"]})
    return path, network


def rewrite(path, **changes):
    """The same file with other header entries."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        header = file.metadata()
    save_file(tensors, path, {**header, **changes})


def test_a_round_trip_keeps_everything(saved):
    path, network = saved
    loaded = load_embedding(path)
    assert (
        state_digest(loaded.network.state_dict())
        == state_digest(network.state_dict())
        == loaded.digest
    )
    assert loaded.classes == ("a", "b") and not loaded.network.training
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {"format_version", "kind", "digest", "record"}


def test_a_classifier_carries_its_embedder_head_and_gallery(tmp_path):
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
    assert {
        "embedding.project.weight",
        "head.weight",
        "head.bias",
        "gallery.vectors",
        "gallery.labels",
    } <= names
    loaded = load_classifier(path)
    assert torch.equal(loaded.head.linear.weight, head.linear.weight) and loaded.gallery_ids == (
        "x",
        "y",
        "z",
    )
    assert (loaded.temperature, loaded.k) == (1.5, 3)
    assert torch.equal(loaded.gallery.vectors, gallery.vectors)
    save_classifier(
        path, EmbeddingNet(1, 28, 8), head, gallery, record
    )  # other weights than the record says
    with pytest.raises(CheckpointError, match="not the embedding that its record names"):
        load_classifier(path)


def test_what_can_not_be_loaded_is_said(saved, tmp_path):
    path, _ = saved
    with pytest.raises(CheckpointError, match=r"no such file; `pipeline embed` makes one"):
        load_embedding(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="kind embedding; give one of kind classifier"):
        load_classifier(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_embedding(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    with pytest.raises(CheckpointError, match="the file is damaged"):
        load_embedding(path)
    path.write_bytes(whole)
    rewrite(path, format_version="2")
    with pytest.raises(CheckpointError, match="format 2; this program reads up to 1"):
        load_embedding(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not one of this program's"):
        load_embedding(path)


def test_tensors_that_do_not_fit_the_record_are_refused(saved):
    path, network = saved
    rewrite(
        path, record=json.dumps({"network": {**network.config, "dim": 9}, "classes": ["a", "b"]})
    )
    with pytest.raises(CheckpointError, match="don't fit the network"):
        load_embedding(path)


def test_a_failed_save_leaves_the_old_file_and_no_other(saved, monkeypatch):
    path, network = saved
    before = path.read_bytes()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(PipelineError, match="can't be written: No space left"):
        save_embedding(path, network, {"network": network.config, "classes": []})
    assert path.read_bytes() == before and [entry.name for entry in path.parent.iterdir()] == [
        path.name
    ]
