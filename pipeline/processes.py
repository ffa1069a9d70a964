"""Multi-process training with torchrun.

torchrun starts one process per rank. The main process (rank 0) prints and writes files. Every
rank must call the functions that communicate in the same order. In a single process they return
at once.
"""

import atexit
import importlib.metadata
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from stages.distributed import rank_and_world_size
from stages.errors import PipelineError, SettingsError

T = TypeVar("T")

WAIT_FOR_MAIN_PROCESS = timedelta(days=7)  # longer than any decoding


def world_size_of_torchrun() -> int:
    """Return the number of processes that torchrun has started, 1 without torchrun.

    Raises:
        PipelineError: If a variable that torchrun sets is missing or no number.
    """
    variables = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return 1
    for name in variables:
        value = os.environ.get(name, "")
        if not value.isdigit():
            raise PipelineError(
                f"{name}={value}: no number in the environment; start several processes with "
                "torchrun, or unset WORLD_SIZE"
            )
    return int(os.environ["WORLD_SIZE"])


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
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    _waiting_group()
    atexit.register(_leave_process_group)


def _leave_process_group() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun may send it while this process exits
    _waiting_group.cache_clear()  # a reference to the group would keep gloo's threads alive
    dist.destroy_process_group()


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


@cache
def _waiting_group() -> dist.ProcessGroup:
    """Return the process group in which ranks wait for each other, created by the first call.

    The main process may decode a large data set for hours, but operations of the default group
    fail after 30 minutes. This group waits for days. If a process dies, the connection to it
    breaks, which ends the wait at once.
    """
    return cast(dist.ProcessGroup, dist.new_group(timeout=WAIT_FOR_MAIN_PROCESS, backend="gloo"))


def main_process_first(action: Callable[[], T]) -> T:
    """Call a function on local rank 0 of each machine first, then on the other ranks.

    The other ranks find the files that the first call has cached.

    Args:
        action: Function to call.

    Returns:
        The function's result.

    Raises:
        PipelineError: On all ranks, if the function fails on any rank.
    """
    if rank_and_world_size()[1] == 1:
        return action()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    results = [_call_on_some_ranks(action, chosen) for chosen in (is_first, not is_first)]
    return cast(T, results[0] if is_first else results[1])


def main_process_only(action: Callable[[], Any]) -> None:
    """Call a function on rank 0 while the other ranks wait.

    Args:
        action: Function to call.

    Raises:
        PipelineError: On all ranks, if the function fails.
    """
    if rank_and_world_size()[1] == 1:
        action()
    else:
        _call_on_some_ranks(action, is_main_process())


def _call_on_some_ranks(action: Callable[[], T], chosen: bool) -> T | None:
    """Call a function on the chosen ranks, wait for all ranks, and raise an error on all ranks."""
    result, error = None, None
    try:
        if chosen:
            result = action()
    except Exception as raised:  # raised below, after the other ranks know of it
        error = raised
    rank, world_size = rank_and_world_size()
    shared: PipelineError | None = None
    if isinstance(error, PipelineError):
        shared = error
    elif error:
        shared = PipelineError(f"process {rank} has failed: {type(error).__name__}: {error}")
    errors: list[PipelineError | None] = [None] * world_size
    dist.all_gather_object(errors, shared, group=_waiting_group())
    if error:
        raise error
    for other_error in errors:
        if other_error:
            raise other_error
    return result


def all_gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks.

    Args:
        value: Value of this rank; it is pickled.
    """
    values: list[Any] = [value] * rank_and_world_size()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def assert_equal_across_ranks(what: str, value: str, remedy: str) -> None:
    """Check that all ranks have the same value.

    Args:
        what: Name of the data, for the error message.
        value: Value of this rank, for the error message.
        remedy: Advice for the user if the values differ.

    Raises:
        PipelineError: On all ranks, if the values differ.
    """
    values: list[Any] = [None] * rank_and_world_size()[1]
    if len(values) == 1:
        return
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        listed = ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
        raise PipelineError(f"{what}: differs between processes ({listed}); {remedy}")
