"""A training state loads completely or not at all, and runs no code."""

import hashlib
import os
import pickle

import pytest
import torch

from pipeline.training_state import load_state, save_state
from stages.errors import CheckpointError
from stages.records import EpochLog, TrainingState


def make_state() -> TrainingState:
    return TrainingState(
        step=3,
        steps=9,
        network={"weight": torch.arange(4.0)},
        optimiser={"lr": 0.1},
        sampler={},
        generator=torch.get_rng_state(),
        history=(EpochLog(1, 0.1, 0.2, 0.3, 0.4, None),),
        sums=(0.0, 1.0, 2.0),
        best=None,
    )


def test_state_round_trip(tmp_path):
    saved = make_state()
    save_state(tmp_path / "state", saved, {"finished": False})
    loaded, record = load_state(tmp_path / "state")
    assert record == {"finished": False}
    assert (loaded.step, loaded.steps, loaded.sums) == (3, 9, (0.0, 1.0, 2.0))
    assert torch.equal(loaded.network["weight"], saved.network["weight"])
    assert torch.equal(loaded.generator, saved.generator)
    assert loaded.history[0].val_knn == 0.4 and loaded.history[0].val_triplet is None


@pytest.mark.parametrize("kept", [0, 10, 32, -1])
def test_truncated_state_is_rejected(tmp_path, kept):
    path = tmp_path / "state"
    save_state(path, make_state(), {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"^{path}: .*damaged.*--force"):
        load_state(path)


def test_code_in_a_state_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    path = tmp_path / "state"
    torch.save({"state": Malicious(), "record": "{}"}, path)
    content = path.read_bytes()
    path.write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(pickle.UnpicklingError):
        load_state(path)
    assert not (tmp_path / "executed").exists()
