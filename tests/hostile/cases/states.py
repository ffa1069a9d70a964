"""Training states: missing, damaged, of other settings, or with impossible values."""

import os
from pathlib import Path
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
    move,
    remove,
    state,
    steps,
    truncated,
    write_state,
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


def edited(name: str, value: Any) -> Case:
    """Expect that a state with another value of a field is rejected."""

    def edit(saved: dict[str, Any]) -> None:
        if value is ...:
            del saved["state"][name]
        else:
            saved["state"][name] = value

    shown = "(removed)" if value is ... else str(value)[:30]
    return damaged(f"{name} = {shown}", state(edit))


def legacy_pickle() -> None:
    """Write a state in the pickle format that torch used before zip files."""
    torch.save({"state": 1}, STATE, _use_new_zipfile_serialization=False)
    content = Path(STATE).read_bytes()
    Path(STATE).write_bytes(bytes(32) + content)


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
    damaged("code", lambda: write_state({"format_version": 2, "record": "{}", "state": Code()})),
    damaged("code alone", lambda: write_state(Code())),
    damaged("old pickle", legacy_pickle),
    damaged("a list", lambda: write_state([1, 2])),
    damaged("a tensor", lambda: write_state(torch.ones(2))),
    damaged("an empty dictionary", lambda: write_state({})),
    damaged("format 99", state(lambda saved: saved.update(format_version=99)), "99"),
    damaged("format 1", state(lambda saved: saved.update(format_version=1))),
    damaged("no format", state(lambda saved: saved.pop("format_version"))),
    damaged("no record", state(lambda saved: saved.pop("record") and None)),
    damaged("record of text", state(lambda saved: saved.update(record="{"))),
    damaged("record of a list", state(lambda saved: saved.update(record="[]"))),
    damaged("record of null", state(lambda saved: saved.update(record="null"))),
    damaged("empty record", state(lambda saved: saved.update(record="{}"))),
    edited("step", 99),
    edited("step", -1),
    edited("step", "1"),
    edited("step", 1.5),
    edited("steps", 10**9),
    edited("steps", 0),
    edited("network", {}),
    edited("network", {"a": torch.ones(1)}),
    edited("optimiser", {}),
    edited("sampler", {}),
    edited("generator", torch.zeros(3)),
    edited("history", [{"epoch": 1}]),
    edited("history", 5),
    edited("sums", (1.0,)),
    edited("best", 5),
    edited("best", ...),
    edited("network", ...),
    edited("new_field", 5),
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
        prepare=lambda: write_state({}, "new.state"),
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
