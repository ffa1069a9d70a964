"""Save and load the training state that ``pipeline embed --resume`` needs.

The file has the format of a checkpoint, of kind ``state``, so loading it runs no code. Its record
identifies the run and holds the counters under ``progress``.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.tensor_files import load_tensors, save_tensors
from stages.errors import CheckpointError
from stages.records import EpochLog, KeptEpoch, TrainingState


def save_state(path: Path, state: TrainingState, record: Mapping[str, Any]) -> None:
    """Save the state of a training run.

    Args:
        path: File to write. If writing fails, the earlier file is kept.
        state: Training state after an optimiser step.
        record: JSON-serialisable record that identifies the run.

    Raises:
        PipelineError: If the file cannot be written.
    """
    progress: dict[str, Any] = {
        "step": state.step,
        "steps": state.steps,
        "history": [asdict(log) for log in state.history],
        "sums": state.sums,
        "position": state.sampler["position"],
        "kept": None,
    }
    tensors = {f"network.{name}": value for name, value in state.network.items()}
    for parameter, values in state.optimiser["state"].items():
        tensors |= {f"optimiser.{parameter}.{name}": value for name, value in values.items()}
    tensors |= {f"loss.{name}": value for name, value in state.loss.items()}
    tensors |= {"sampler": state.sampler["generator"], "generator": state.generator}
    if state.kept:
        highest, epoch, network = state.kept
        progress["kept"] = {"highest": highest, "epoch": epoch}
        tensors |= {f"kept.{name}": value for name, value in network.items()}
    save_tensors(path, "state", tensors, {**record, "progress": progress})


def load_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Load the state of a training run. No code from the file is run.

    :func:`stages.embedding.train.train_embedding` checks that the tensors fit the network.

    Args:
        path: File written by :func:`save_state`.

    Returns:
        The training state with its tensors on the CPU, and the record. The optimiser's state has
        the entry ``state`` only; its settings are those of the run.

    Raises:
        CheckpointError: If the file is damaged, of another kind or of another format.
    """
    header, tensors = load_tensors(path, "state")
    record = dict(header.record)
    progress = record.pop("progress")
    generators = {name: tensors.pop(name, torch.empty(0)) for name in ("sampler", "generator")}
    for name, value in generators.items():
        _check_generator(path, name, value)
    parts: dict[str, dict[str, Tensor]] = {
        "network": {},
        "kept": {},
        "optimiser": {},
        "loss": {},
    }
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{path}: unknown tensor {name}; use --force to start the training again"
            )
        parts[part][rest] = value
    kept = progress["kept"]
    state = TrainingState(
        step=progress["step"],
        steps=progress["steps"],
        network=parts["network"],
        optimiser={"state": _by_parameter(parts["optimiser"])},
        sampler={"generator": generators["sampler"], "position": progress["position"]},
        generator=generators["generator"],
        history=tuple(EpochLog(**log) for log in progress["history"]),
        sums=tuple(progress["sums"]),
        kept=kept and KeptEpoch(kept["highest"], kept["epoch"], parts["kept"]),
        loss=parts["loss"],
    )
    return state, record


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[int | str, dict[str, Tensor]]:
    """Group tensors with names such as ``3.exp_avg`` by the number of the parameter."""
    state: dict[int | str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.partition(".")
        is_number = parameter.isascii() and parameter.isdigit() and len(parameter) < 9
        state.setdefault(int(parameter) if is_number else parameter, {})[key] = value
    return state


def _check_generator(path: Path, name: str, value: Tensor) -> None:
    """Raise an error if a tensor is not the state of a random generator."""
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: {name}, {value.dtype} {tuple(value.shape)}, is no state of a random "
            "generator; use --force to start the training again"
        ) from error
