"""A training state loads completely or not at all, and runs no code."""

import json
import os
from dataclasses import replace

import pytest
import torch
from checkpoint_files import change_header, make_state
from factories import make_record

from pipeline.tensor_files import read_header, save_tensors
from pipeline.training_state import load_state, save_state
from stages.errors import CheckpointError

RECORD = make_record("state")


@pytest.fixture
def path(tmp_path):
    """Path of a saved state."""
    save_state(tmp_path / "embedding.state", make_state(), RECORD)
    return tmp_path / "embedding.state"


def assert_rejected(path, *texts):
    with pytest.raises(CheckpointError) as error:
        load_state(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "--force" in message
    for text in texts:
        assert text in message


def test_state_round_trip(path):
    torch.manual_seed(0)
    saved = make_state()
    save_state(path, saved, RECORD)
    loaded, record = load_state(path)
    assert record == RECORD
    assert (loaded.step, loaded.steps, loaded.sums) == (3, 9, (0.0, 1.0, 2.0))
    for name, value in saved.network.items():
        assert torch.equal(loaded.network[name], value)
        assert torch.equal(loaded.kept.network[name], value)
    assert (loaded.kept.highest, loaded.kept.epoch) == (0.4, 1)
    for name, value in saved.optimiser["state"][0].items():
        assert torch.equal(loaded.optimiser["state"][0][name], value)
    assert torch.equal(loaded.generator, saved.generator)
    assert torch.equal(loaded.sampler["generator"], saved.sampler["generator"])
    assert loaded.sampler["position"] == 1
    assert loaded.history[0].val_knn == 0.4 and loaded.history[0].val_triplet is None


def test_state_of_a_loss_round_trips(path):
    loss = {"loss.proxies": torch.rand(3, 2), "loss.queue_idx": torch.tensor(7)}
    save_state(path, replace(make_state(), loss=loss), RECORD)
    loaded = load_state(path)[0].loss
    assert loaded.keys() == loss.keys()
    for name, value in loss.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype


def test_state_before_the_first_validation_round_trip(path):
    save_state(path, replace(make_state(), kept=None), RECORD)
    assert load_state(path)[0].kept is None


@pytest.mark.parametrize("kept", [0, 10, 32, -1])
def test_truncated_state_is_rejected(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    assert_rejected(path, "not a complete")


def test_code_in_a_state_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    path = tmp_path / "state"
    torch.save({"state": Malicious(), "record": "{}"}, path)
    assert_rejected(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("version", "found"),
    [("1", "format 1.*--force"), ("3", "newer version"), ("", "not a"), ("two", "not a")],
)
def test_other_format_is_rejected(path, version, found):
    change_header(path, format_version=version)
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{found}"):
        load_state(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("step", value) for value in (10, -1, 2.5, "3", None, ...)],
        *[("steps", value) for value in (2, 0, ...)],
        *[("sums", value) for value in ([1.0], [1, 2, "3"], ...)],
        *[("position", value) for value in (-1, "1", ...)],
        *[("history", value) for value in ([], [{}], 1, ...)],
        *[("kept", value) for value in ({}, {"highest": 0.5, "epoch": 2}, 0, ...)],
        ("kept", {"highest": 7, "epoch": 1}),
        ("novelty", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_impossible_progress_is_rejected(path, name, value):
    record = read_header(path).record
    record["progress"][name] = value
    if value is ...:
        del record["progress"][name]
    change_header(path, record=json.dumps(record), record_digest=None)
    with pytest.raises(CheckpointError, match=name):
        load_state(path)


@pytest.mark.parametrize("name", ["finished", "speeds", "settings", "progress", "precision"])
def test_missing_entry_is_rejected(path, name):
    record = read_header(path).record
    del record[name]
    change_header(path, record=json.dumps(record), record_digest=None)
    assert_rejected(path, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("generator", torch.zeros(7, dtype=torch.uint8)),
        ("generator", torch.zeros(5056, dtype=torch.uint8)),
        ("sampler", torch.zeros(5056)),
        ("sampler", None),
        ("unknown", torch.zeros(1)),
        ("network.project.bias", torch.full((8,), torch.nan)),
    ],
)
def test_impossible_tensor_is_rejected(path, name, value):
    record = {**RECORD, "progress": read_header(path).record["progress"]}
    state = make_state()
    tensors = {f"network.{key}": tensor for key, tensor in state.network.items()}
    tensors |= {"sampler": state.sampler["generator"], "generator": state.generator, name: value}
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_tensors(path, "state", kept, record)
    assert_rejected(path, name)


@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_path_that_is_no_file_is_rejected(tmp_path, make):
    path = tmp_path / "odd.state"
    getattr(os, make)(path)
    with pytest.raises(CheckpointError, match=r"odd\.state: not a file"):
        load_state(path)
