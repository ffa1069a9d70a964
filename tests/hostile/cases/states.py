"""Training states: missing, damaged, of other settings, or with impossible values."""

import os
from typing import Any

import torch
from hostile.case import Case, error, works
from hostile.prepare import (
    STATE,
    copy,
    device,
    fifo,
    file,
    flipped,
    folder,
    header,
    move,
    pickled,
    record,
    remove,
    state,
    steps,
    truncated,
)
from hostile.workspace import UNFINISHED

RESUME = f"{UNFINISHED} --resume"
WRITTEN = ("checkpoints/unfinished.safetensors", STATE, "checkpoints/unfinished.history.csv")


class Code:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def damaged(title: str, prepare: object, *mentions: str) -> Case:
    """Expect that a training state cannot be resumed."""
    return error(RESUME, STATE, *mentions, prepare=prepare, name=f"state: {title}")


def progress(name: str, value: Any) -> Case:
    """Expect that a state with another value of a counter is rejected; ``...`` removes it."""
    return damaged(f"{name} = {value}", record(STATE, {f"progress.{name}": value}))


def tensor(name: str, value: torch.Tensor | None) -> Case:
    """Expect that a state with another tensor is rejected; None removes the tensors so named."""

    def edit(_: dict[str, Any], values: dict[str, torch.Tensor]) -> None:
        if value is None:
            for key in [key for key in values if key.startswith(name)]:
                del values[key]
        else:
            values[name] = value

    shown = "removed" if value is None else tuple(value.shape)
    return damaged(f"{name} {shown}", state(edit))


CASES = [
    damaged("empty", file(STATE)),
    damaged("text", file(STATE, "state")),
    damaged("a digest alone", file(STATE, bytes(32))),
    damaged("truncated", truncated(STATE)),
    damaged("cut at the digest", truncated(STATE, 0.000014)),
    damaged("wrong bit", flipped(STATE, 0.5)),
    damaged("wrong bit in the digest", flipped(STATE, 0)),
    damaged("a checkpoint", copy("checkpoints/embedding.safetensors", STATE)),
    damaged("a folder", steps(remove(STATE), folder(STATE))),
    damaged("a named pipe", steps(remove(STATE), fifo(STATE))),
    damaged("a device", steps(remove(STATE), device(STATE, "zero", 5))),
    damaged("code", pickled({"format_version": 2, "record": "{}", "state": Code()})),
    damaged("code alone", pickled(Code())),
    damaged("a pickled list", pickled([1, 2])),
    damaged("format 99", header(STATE, format_version="99"), "99"),
    damaged("format 1", header(STATE, format_version="1")),
    damaged("no format", header(STATE, format_version=None)),
    damaged("no record", header(STATE, record=None)),
    damaged("record of text", header(STATE, record="{")),
    damaged("record of a list", header(STATE, record="[]")),
    damaged("record of null", header(STATE, record="null")),
    damaged("empty record", header(STATE, record="{}")),
    damaged("edited record", record(STATE, {"progress.step": 2}, digest=False)),
    damaged("no progress", record(STATE, {"progress": ...})),
    progress("step", 99),
    progress("step", -1),
    progress("step", "1"),
    progress("step", 1.5),
    progress("step", ...),
    progress("steps", 10**9),
    progress("steps", 0),
    progress("position", -1),
    progress("history", [{"epoch": 1}]),
    progress("history", 5),
    progress("sums", [1.0]),
    progress("kept", 5),
    progress("kept", ...),
    progress("new_field", 5),
    tensor("network.", None),
    tensor("network.a", torch.ones(1)),
    tensor("optimiser.", None),
    tensor("sampler", None),
    tensor("sampler", torch.zeros(3)),
    tensor("generator", torch.zeros(3)),
    tensor("new", torch.zeros(3)),
    tensor("loss.loss.proxies", torch.zeros(3)),
    # Another run.
    error(f"{RESUME} --dim 9", STATE, "dim", "--force"),
    error(f"{RESUME} --seed 5", STATE, "seed", "--force"),
    error(f"{RESUME} --split-seed 5", STATE, "--force"),
    error(f"{RESUME} --epochs 3", STATE, "epochs", "--force"),
    error(UNFINISHED, STATE, "unfinished", "--resume", "--force"),
    error(
        "embed --data photos --dim 8 --epochs 1 --out new.safetensors --resume",
        "new.state",
        "--force",
        prepare=file("new.state", "{}"),
        name="state without content",
    ),
    # Tolerated.
    works(RESUME, "step 1 of 2", writes=WRITTEN),
    works(f"{UNFINISHED} --force", writes=WRITTEN),
    works(f"{RESUME} --force", may_write=True, writes=WRITTEN[:1]),
    works(RESUME, writes=WRITTEN, prepare=remove(STATE), name="nothing to resume"),
    works(
        "embed --data photos --dim 8 --epochs 1 --resume",
        "nothing to resume|finished",
        name="a finished run is resumed",
        may_write=True,
    ),
    works(
        RESUME,
        prepare=move("checkpoints/unfinished.state", "elsewhere/unfinished.state"),
        writes=WRITTEN,
        name="the state was moved away",
    ),
]
