"""Checkpoints load completely or not at all."""

import json
import os
import sys

import pytest
import torch
from checkpoint_files import (
    assert_rejected,
    change_header,
    make_gallery,
    make_validation,
    write_file,
)
from factories import make_record
from safetensors import safe_open
from safetensors.torch import save_file

import pipeline.checkpoint as checkpoint_module
from pipeline.checkpoint import load_classifier, load_embedding, save_classifier, save_embedding
from pipeline.tensor_files import read_header, save_tensors
from stages.network.digest import state_digest
from stages.network.embedding_net import EmbeddingNet
from stages.network.head import Head

LOAD = {"embedding": load_embedding, "classifier": load_classifier}


@pytest.fixture
def saved(tmp_path):
    """Path of a saved embedding, and its network."""
    network = EmbeddingNet(1, 28, 8).to(memory_format=torch.channels_last)
    path = tmp_path / "embedding.safetensors"
    save_embedding(path, network, make_record("embedding", network))
    return path, network


def change_tensors(path, **changes):
    """Save another file with other tensors and a correct digest; ``None`` removes a tensor."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = read_header(path)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_tensors(path, header.kind, kept, header.record)


def record_devices(monkeypatch):
    """Return a list that gets the device of every network that is built."""
    devices = []
    build = checkpoint_module.build_network

    def build_and_record(config):
        network = build(config)
        devices.append(network.mean.device.type)
        return network

    monkeypatch.setattr(checkpoint_module, "build_network", build_and_record)
    return devices


def test_embedding_round_trip(saved):
    path, network = saved
    loaded = load_embedding(path)
    assert state_digest(loaded.network.state_dict()) == state_digest(network.state_dict())
    assert loaded.digest == state_digest(network.state_dict())
    assert loaded.classes == ("a", "b") and not loaded.network.training
    with safe_open(path, framework="pt") as file:
        assert set(file.metadata()) == {
            *("format_version", "kind", "digest", "record", "record_digest")
        }


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("conv", ["meta"]),
        ("conv-deep", ["meta"]),
        ("torchvision:shufflenet_v2_x0_5", ["meta"]),
        ("torchvision:mnasnet0_5", ["meta"]),  # needs the version of its layers
        ("torchvision:regnet_y_400mf", ["cpu"]),  # cannot be built on the meta device
        ("timm:levit_128s", ["meta", "cpu"]),  # has tensors outside its state
    ],
)
def test_loaded_network_equals_the_saved_one(tmp_path, monkeypatch, name, devices):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 224 if "levit" in name else 32
    network = EmbeddingNet(3, size, 8, name=name, trunk="last-1", std=torch.ones(1) / 3).eval()
    save_embedding(tmp_path / "e", network, make_record("embedding", network))
    built = record_devices(monkeypatch)
    loaded = load_embedding(tmp_path / "e").network
    assert built == devices
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    trained = [value.requires_grad for value in network.parameters()]
    assert [value.requires_grad for value in loaded.parameters()] == trained
    assert len(set(trained)) == 2


@pytest.mark.parametrize("as_attribute", [lambda value: value, lambda value: [0, {"a": (value,)}]])
def test_tensors_outside_the_state_are_complete(saved, monkeypatch, as_attribute):
    """torch may compute with a tensor that has no memory, and without an error."""
    path, network = saved
    build = checkpoint_module.build_network

    def build_with_hidden_tensor(config):
        built = build(config)
        built.trunk.hidden = as_attribute(torch.ones(3))
        return built

    monkeypatch.setattr(checkpoint_module, "build_network", build_with_hidden_tensor)
    devices = record_devices(monkeypatch)
    loaded = load_embedding(path).network
    assert devices == ["meta", "cpu"]
    hidden = loaded.trunk.hidden
    hidden = hidden[1]["a"][0] if isinstance(hidden, list) else hidden
    assert hidden.tolist() == [1, 1, 1]
    assert state_digest(loaded.state_dict()) == state_digest(network.state_dict())


def test_network_does_not_change_with_its_file(saved):
    path, network = saved
    loaded = load_embedding(path).network
    size = path.stat().st_size
    with path.open("r+b") as file:  # as `cp` does to an existing file
        file.write(bytes(size))
    assert state_digest(loaded.state_dict()) == state_digest(network.state_dict())


def test_classifier_holds_network_head_and_gallery(tmp_path):
    network, head, gallery = EmbeddingNet(1, 28, 8), Head(8, 2), make_gallery()
    validation = make_validation()
    record = make_record("classifier", network)
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network, head, gallery, record, validation=validation)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert {"head.weight", "head.bias", "gallery.vectors", "gallery.labels"} <= names
    assert "embedding.project.weight" in names
    loaded = load_classifier(path)
    assert torch.equal(loaded.head.linear.weight, head.linear.weight)
    assert loaded.gallery_ids == ("x", "y", "z")
    assert (loaded.temperature, loaded.k) == (1.5, 3)
    assert torch.equal(loaded.gallery.vectors, gallery.vectors)
    assert loaded.validation is not None
    assert torch.equal(loaded.validation.vectors, validation.vectors)
    assert loaded.validation_distances.tolist() == pytest.approx([2**0.5])
    # The record names the digest of another network.
    other = EmbeddingNet(1, 28, 8)
    save_classifier(path, other, head, gallery, record, validation=validation)
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


@pytest.mark.parametrize("version", ["3", "30"])
def test_newer_format_is_rejected(checkpoint, kind, version):
    change_header(checkpoint, format_version=version)
    assert_rejected(checkpoint, f"format {version}", "format 2", load=LOAD[kind])


@pytest.mark.parametrize("version", ["", "0", "-2", "2.0", "\u00b2", "9" * 5000])
def test_format_that_is_no_number_is_rejected(saved, version):
    change_header(saved[0], format_version=version)
    assert_rejected(saved[0], "not a checkpoint")


def test_older_format_is_rejected_with_the_command_that_replaces_it(checkpoint, kind):
    change_header(checkpoint, format_version="1", record_digest="")
    command = {"embedding": "embed", "classifier": "classify"}[kind]
    assert_rejected(
        checkpoint,
        "format 1",
        f"`pipeline {command}",
        f"--out {checkpoint} --force",
        load=LOAD[kind],
    )
    assert_rejected(checkpoint, "format 1", load=read_header)


@pytest.mark.parametrize("entry", ["digest", "record", "record_digest", "kind"])
def test_missing_header_entry_is_rejected(checkpoint, kind, entry):
    change_header(checkpoint, **{entry: ""})
    assert_rejected(checkpoint, load=LOAD[kind])
    assert_rejected(checkpoint, load=read_header)


def test_edited_record_is_rejected(checkpoint, kind):
    record = read_header(checkpoint).record
    change_header(checkpoint, record=json.dumps({**record, "source": "elsewhere"}))
    assert_rejected(checkpoint, "record", "digest", load=LOAD[kind])


def save_other_network(path, name, **config):
    """Save a record that describes another network than the file holds."""
    record = make_record("embedding")
    record["settings"] |= {"network": name, "dim": config["dim"]}
    record["network"] |= {"name": name, **config}
    save_tensors(path, "embedding", EmbeddingNet(1, 8, 8).state_dict(), record)


@pytest.mark.parametrize(
    ("name", "dim", "found"),
    [
        ("torchvision:no_network", 8, "torchvision:no_network"),
        ("timm:resnet10t", 8, "pip install"),
        ("conv-deep", 8, "do not fit"),
        ("conv", 1_000_000, "1000000"),  # 12 GB of weights
        ("torchvision:vit_h_14", 8, "do not fit"),  # 2.5 GB
    ],
)
def test_other_network_is_rejected_before_it_is_built(tmp_path, monkeypatch, name, dim, found):
    monkeypatch.setitem(sys.modules, "timm", None)  # not installed
    devices = record_devices(monkeypatch)
    save_other_network(tmp_path / "e", name, dim=dim)
    assert_rejected(tmp_path / "e", found)
    assert set(devices) <= {"meta"}


@pytest.mark.parametrize(
    "changes",
    [
        {"gallery__labels": torch.tensor([0, 1, 2])},
        {"gallery__labels": torch.tensor([0, 1, -1])},
        {"gallery__labels": torch.tensor([0, 1, 1], dtype=torch.int32)},
        {"gallery__labels": None},
        {"gallery__vectors": 2 * torch.eye(8)[:3]},
        {"gallery__vectors": torch.full((3, 8), torch.nan)},
        {"gallery__vectors": torch.eye(8)[:2]},
        {"gallery__vectors": torch.eye(8)[:3].double()},
        {"head__weight": torch.zeros(3, 8)},
        {"head__weight": torch.full((2, 8), torch.inf)},
        {"head__bias": torch.zeros(2, dtype=torch.float16)},
        {"head__bias": None},
        {"other": torch.zeros(1)},
        {"validation__distances": torch.tensor([-0.1])},
        {"validation__distances": torch.tensor([3.0])},
        {"validation__distances": torch.zeros(2)},
        {"validation__labels": torch.tensor([2])},
        {"validation__vectors": None},
    ],
    ids=str,
)
def test_impossible_tensors_are_rejected(tmp_path, changes):
    path = tmp_path / "classifier.safetensors"
    write_file("classifier", path)
    change_tensors(path, **changes)
    assert_rejected(path, load=load_classifier)


def test_weights_that_are_not_finite_are_rejected(saved):
    change_tensors(saved[0], project__bias=torch.full((8,), torch.nan))
    assert_rejected(saved[0], "project.bias", "finite")


def test_reading_the_header_reads_no_tensor(saved, monkeypatch):
    path, network = saved
    monkeypatch.setattr("pipeline.tensor_files.state_digest", lambda _: pytest.fail("tensors read"))
    header = read_header(path)
    assert header.record["network"] == network.config
    with pytest.raises(pytest.fail.Exception):
        load_embedding(path)


@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_path_that_is_no_file_is_rejected(tmp_path, make, kind):
    path = tmp_path / "odd.safetensors"
    getattr(os, make)(path)
    assert_rejected(path, load=LOAD[kind])


def test_records_that_would_be_unreadable_are_not_saved(tmp_path):
    record = make_record("classifier", temperature=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "c", "classifier", {"a": torch.zeros(1)}, record)


def test_foreign_safetensors_file_is_rejected(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    assert_rejected(path, "not a checkpoint")


def test_tensors_that_do_not_fit_the_record_are_rejected(saved):
    path, _ = saved
    change_tensors(path, project__bias=torch.zeros(9))
    assert_rejected(path, "do not fit the record", "(9,) instead of (8,)")


def test_too_little_memory_is_noticed_before_safetensors_aborts(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tensor_files.save", lambda *_: pytest.fail("too late"))
    size = 2**50  # bytes, of one element that is repeated
    huge = torch.ones(1).expand(size // 4)
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor: tensor)
    monkeypatch.setattr("pipeline.tensor_files.state_digest", lambda _: "")
    with pytest.raises(MemoryError):
        save_tensors(tmp_path / "a.safetensors", "embedding", {"a": huge}, {})
    assert not list(tmp_path.iterdir())
