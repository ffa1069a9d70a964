"""Resume training from a saved state: checks, and the optimiser's state."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from stages.errors import CheckpointError
from stages.network.mismatch import describe_mismatch
from stages.records import TrainingState


def check_state(
    state: TrainingState,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    steps: int,
    per_epoch: int,
    loss: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Check that a training state fits a run, before anything is changed.

    Args:
        state: State to resume from.
        network: Network of the run.
        optimiser: Optimiser of the run, :class:`stages.embedding.muon.Muon`.
        steps: Optimiser steps of the whole run.
        per_epoch: Optimiser steps per epoch.
        loss: State of a library's loss; empty for the triplet loss.

    Raises:
        CheckpointError: If the counters contradict each other or the run, or a tensor does not fit
            the network or the loss.
    """
    epochs, position = divmod(state.step, per_epoch)
    required = {"steps": steps, "finished epochs": epochs, "batches of this epoch": position}
    found = (state.steps, len(state.history), state.sampler["position"])
    for (name, value), other in zip(required.items(), found, strict=True):
        if other != value:
            raise CheckpointError(f"step {state.step} with {other} {name} instead of {value}")
    if not 0 <= state.step <= steps:
        raise CheckpointError(f"step {state.step} of {steps}")
    tensors = network.state_dict()
    mismatches = {
        "network": describe_mismatch(tensors, state.network),
        "loss": describe_mismatch(loss, state.loss),
    }
    if state.kept:
        mismatches["kept epoch"] = describe_mismatch(tensors, state.kept.network)
    parameters = _parameters(optimiser)
    orthogonal = _orthogonal_parameters(optimiser)
    if state.step and not state.optimiser["state"]:
        raise CheckpointError(f"step {state.step} without the optimiser's moments")
    for index, values in state.optimiser["state"].items():
        if index not in range(len(parameters)):
            raise CheckpointError(f"optimiser: parameter {index} of {len(parameters)}")
        moment = parameters[index]
        expected = {"step": torch.zeros(()), "exp_avg": moment, "exp_avg_sq": moment}
        if index in orthogonal:
            expected = {"step": torch.zeros(()), "momentum": moment}
        mismatches[f"optimiser: parameter {index}"] = describe_mismatch(expected, values)
    for place, mismatch in mismatches.items():
        if mismatch:
            raise CheckpointError(f"{place}: {mismatch}")


def restore_optimiser(optimiser: torch.optim.Optimizer, state: TrainingState) -> None:
    """Restore the moments of an optimiser. Its settings stay those of the run.

    Args:
        optimiser: Optimiser of the run.
        state: State that :func:`check_state` has accepted.
    """
    parameters, restored = _parameters(optimiser), optimiser.state_dict()
    for index, values in state.optimiser["state"].items():
        restored["state"][index] = {
            name: value if name == "step" else _like(parameters[index], value)
            for name, value in values.items()
        }
    optimiser.load_state_dict(restored)


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _orthogonal_parameters(optimiser: torch.optim.Optimizer) -> set[int]:
    """Return the numbers of the parameters that Muon takes as matrices."""
    flags: list[bool] = []
    for group in optimiser.param_groups:
        flags += [group.get("orthogonal", False)] * len(group["params"])
    return {index for index, flag in enumerate(flags) if flag}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy values into the memory layout of a parameter, which a fused optimiser step requires."""
    return torch.empty_like(parameter).copy_(value)
