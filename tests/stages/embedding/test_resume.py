"""A training state is checked against the run before anything is changed."""

from dataclasses import replace

import pytest
import torch
from checkpoint_files import make_network, make_state

from stages.embedding.resume import check_state, restore_optimiser
from stages.errors import CheckpointError
from stages.network.embedding_net import to_device
from stages.records import KeptEpoch


@pytest.fixture
def network():
    return make_network()


def make_optimiser(network):
    return torch.optim.AdamW([network.project.bias], fused=True)


def assert_rejected(network, state, found, **run):
    run = {"steps": 9, "per_epoch": 2, **run}
    with pytest.raises(CheckpointError, match=found):
        check_state(state, network, make_optimiser(network), **run)


def test_fitting_state_is_accepted(network):
    check_state(make_state(), network, make_optimiser(network), steps=9, per_epoch=2)


@pytest.mark.parametrize(
    ("changes", "run", "found"),
    [
        ({}, {"steps": 8}, "9 steps instead of 8"),
        ({}, {"per_epoch": 4}, "1 finished epochs instead of 0"),
        ({"step": 10, "history": make_state().history * 5}, {}, "10"),
        ({"step": -1, "history": ()}, {}, "-1"),
        ({"sampler": {**make_state().sampler, "position": 0}}, {}, "0 batches"),
        ({"network": {}}, {}, "network: missing"),
        ({"loss": {"x": torch.zeros(1)}}, {}, "loss: unknown x"),
        ({"kept": KeptEpoch(0.4, 1, {"x": torch.zeros(1)})}, {}, "kept epoch: .*unknown x"),
        ({"optimiser": {"state": {1: {}}}}, {}, "parameter 1 of 1"),
        ({"optimiser": {"state": {"x": {}}}}, {}, "parameter x of 1"),
        ({"optimiser": {"state": {0: {}}}}, {}, "parameter 0: missing step"),
    ],
)
def test_state_that_does_not_fit_is_rejected(network, changes, run, found):
    assert_rejected(network, replace(make_state(), **changes), found, **run)


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(8, dtype=torch.int64)])
def test_moment_of_another_shape_or_type_is_rejected(network, name, value):
    moments = {**make_state().optimiser["state"][0], name: value}
    state = replace(make_state(), optimiser={"state": {0: moments}})
    assert_rejected(network, state, f"parameter 0: .*{name}")


def test_moments_get_the_memory_layout_of_their_parameter():
    """A fused step pairs values by their position in memory."""
    network = to_device(make_network(), torch.device("cpu"))
    weight = next(p for p in network.parameters() if not p.is_contiguous())
    moment = torch.rand(weight.shape)
    moments = {"step": torch.tensor(3.0), "exp_avg": moment, "exp_avg_sq": moment}
    state = replace(make_state(), optimiser={"state": {0: moments}})
    optimiser = torch.optim.AdamW([weight], lr=0.5, fused=True)
    restore_optimiser(optimiser, state)
    restored = optimiser.state[weight]["exp_avg"]
    assert restored.stride() == weight.stride() and torch.equal(restored, moment)
    assert optimiser.param_groups[0]["lr"] == 0.5
