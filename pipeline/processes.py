"""Multi-process training with torchrun.

torchrun starts one process per rank. The main process (rank 0) prints and writes files. Every
rank must call the functions that communicate in the same order. In a single process they return
at once.
"""

import atexit
import importlib.metadata
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stages.distributed import rank_and_world_size
from stages.errors import PipelineError, SettingsError

T = TypeVar("T")
# While the main process decodes a large data set, the others wait longer than PyTorch's default of
# 30 minutes. They notice at once if it dies, because its connections are closed.
TIMEOUT = timedelta(days=1)


def join_process_group(device: str) -> None:
    """Initialise the process group that torchrun describes in the environment.

    The backend is NCCL for CUDA tensors and gloo for CPU tensors.

    Args:
        device: ``cuda`` or another device type.

    Raises:
        SettingsError: If a machine has fewer GPUs than ranks.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise SettingsError(
                "nproc_per_node",
                None,
                f"more processes than the {gpus} GPUs of this machine; use one process per GPU",
            )
        torch.cuda.set_device(local_rank)
    # torch's optimisers import this module. If that happened after init_process_group, its default
    # arguments would keep the group alive: destroy_process_group would not stop gloo's threads, and
    # a thread that frees a tensor during Python's shutdown aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


def is_main_process() -> bool:
    """Return True in the process of rank 0, which prints and writes files."""
    return rank_and_world_size()[0] == 0


def any_rank(flag: bool) -> bool:
    """Return True on every rank if the flag is set on any rank.

    Args:
        flag: Flag of this rank.

    Returns:
        The logical or of all ranks' flags.
    """
    if rank_and_world_size()[1] == 1:
        return flag
    reduced = torch.tensor(int(flag))
    dist.all_reduce(reduced, dist.ReduceOp.MAX)
    return bool(reduced)


def main_process_first(action: Callable[[], T]) -> T:
    """Call a function on local rank 0 of each machine first, then on the other ranks.

    The other ranks find the files that the first call has cached.

    Args:
        action: Function to call.

    Returns:
        The function's result.

    Raises:
        PipelineError: On every rank, if the function raises one on any rank.
    """
    if rank_and_world_size()[1] == 1:
        return action()
    is_first = os.environ["LOCAL_RANK"] == "0"
    results = [_together(action if is_first else None), _together(None if is_first else action)]
    return cast(T, results[0] if is_first else results[1])


def main_process_only(action: Callable[[], Any]) -> None:
    """Call a function on rank 0 while the other ranks wait.

    Args:
        action: Function to call.

    Raises:
        PipelineError: On every rank, if the function raises one.
    """
    _together(action if is_main_process() else None)


def _together(action: Callable[[], T] | None) -> T | None:
    """Call a function if there is one, wait for all ranks, and raise an error of any of them."""
    result, error = None, None
    try:
        result = action() if action else None
    except PipelineError as raised:
        error = raised
    messages: list[str | None] = [None]
    if rank_and_world_size()[1] > 1:
        messages *= rank_and_world_size()[1]
        dist.all_gather_object(messages, str(error) if error else None)
    if error:
        raise error
    for message in messages:
        if message:
            raise PipelineError(message)
    return result


def assert_equal_across_ranks(what: str, value: object, advice: str) -> None:
    """Check that all ranks have the same value.

    Args:
        what: Name of the data, for the error message.
        value: Value of this rank.
        advice: How to make the values equal.

    Raises:
        PipelineError: If the values differ.
    """
    values: list[Any] = [None] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise PipelineError(f"{what}: differs between processes; {advice}")


def is_lost_process(error: BaseException) -> bool:
    """Return True if an error means that another process of the group has died.

    Args:
        error: Error raised by a collective operation.

    Returns:
        True for an error that ``torch.distributed``, gloo or NCCL has raised.
    """
    if rank_and_world_size()[1] == 1:
        return False
    # gloo's errors are plain RuntimeErrors that begin with the place in gloo's source.
    return isinstance(error, dist.DistError) or re.match(r"\[.*\bgloo/", str(error)) is not None
