"""Save and load the state that `embed --resume` needs."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import FORMAT_VERSION
from pipeline.files import write_atomically
from stages.errors import CheckpointError
from stages.records import EpochLog, TrainingState


def save_state(path: Path, state: TrainingState, record: Mapping[str, Any]) -> None:
    """What going on with a training run needs. Raises PipelineError if it can't be written; an older file then stays."""
    tensors = {field.name: getattr(state, field.name) for field in fields(state)}
    tensors["history"] = [asdict(log) for log in state.history]
    buffer = io.BytesIO()
    torch.save(
        {"format_version": FORMAT_VERSION, "record": json.dumps(record), "state": tensors}, buffer
    )
    content = buffer.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state, its tensors on the CPU, and its record. Runs no code from the file. Raises CheckpointError if it is damaged."""
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise CheckpointError(
            f"{path}: not a training state that can be read: the file is damaged; --force starts anew"
        )
    found = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    tensors = found["state"]
    tensors["history"] = tuple(EpochLog(**log) for log in tensors["history"])
    return TrainingState(**tensors), json.loads(found["record"])
