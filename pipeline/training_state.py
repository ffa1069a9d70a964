"""Save and load the training state that ``pipeline embed --resume`` needs.

The file holds the SHA-256 digest of its content (32 bytes), then what ``torch.save`` wrote.
"""

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

DIGEST_BYTES = 32


def save_state(path: Path, state: TrainingState, record: Mapping[str, Any]) -> None:
    """Save the state of a training run.

    Args:
        path: File to write. If writing fails, the earlier file is kept.
        state: Training state after an optimiser step.
        record: JSON-serialisable record that identifies the run.

    Raises:
        PipelineError: If the file cannot be written.
    """
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    values["history"] = [asdict(log) for log in state.history]
    buffer = io.BytesIO()
    torch.save(
        {"format_version": FORMAT_VERSION, "record": json.dumps(record), "state": values}, buffer
    )
    content = buffer.getvalue()
    write_atomically(path, hashlib.sha256(content).digest() + content)


def load_state(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Load the state of a training run. No code from the file is run.

    Args:
        path: File written by :func:`save_state`.

    Returns:
        The training state with its tensors on the CPU, and the record.

    Raises:
        CheckpointError: If the file is damaged.
    """
    content = path.read_bytes()
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(
            f"{path}: the training state is damaged; use --force to start the training again"
        )
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    values = saved["state"]
    values["history"] = tuple(EpochLog(**log) for log in values["history"])
    return TrainingState(**values), json.loads(saved["record"])
