"""Several processes started by torchrun."""

import atexit
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stages.distributed import rank_and_world_size
from stages.errors import PipelineError, SettingsError

T = TypeVar("T")


def join_process_group(device: str) -> None:
    """Open the process group that torchrun's environment describes; NCCL between GPUs, gloo between processors."""
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise SettingsError(
                "nproc_per_node",
                None,
                f"more processes than the {torch.cuda.device_count()} GPUs of this machine; start one a GPU",
            )
        torch.cuda.set_device(local)
    # Its functions' default arguments keep the group that is open when torch's optimisers import it: closing would then not end
    # gloo's threads, and one of these that still frees a tensor while Python shuts down aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return rank_and_world_size()[0] == 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process; they agree."""
    if rank_and_world_size()[1] == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def main_process_first(action: Callable[[], T]) -> T:
    """Do something in the first process of each machine, then in the others: they find the files that it has made."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if rank_and_world_size()[1] == 1:
        return action()
    try:
        if local == 0:
            return action()
    finally:
        any_rank(False)  # after a failure too: the others will fail alike, instead of waiting
    return action()


def main_process_only(action: Callable[[], Any]) -> None:
    """Do something in the first process alone, while the others wait."""
    try:
        if is_main_process():
            action()
    finally:
        any_rank(False)


def assert_equal_across_ranks(what: str, value: str) -> None:
    """Raises PipelineError if processes disagree."""
    values: list[Any] = [None] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise PipelineError(
                f"{what}: not the same in all processes; give every machine the same images"
            )


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone."""
    text = str(error).lower()
    return rank_and_world_size()[1] > 1 and (
        isinstance(error, dist.DistError)
        or "gloo" in text
        or "nccl" in text
        or "connection" in text
    )
