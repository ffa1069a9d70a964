"""Run a function in several processes that form a process group."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from pipeline.device import start_device


def run_ranks(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` on each rank, on the CPU with one thread per rank.

    With the fixture `warm_processes` the processes start at once.
    """
    call = (function, world_size, free_port(), arguments)
    mp.start_processes(_call, call, nprocs=world_size, start_method="forkserver")


def _call(
    rank: int, function: Callable[..., None], world_size: int, port: int, arguments: tuple[Any, ...]
) -> None:
    join_group(rank, world_size, port)
    function(rank, *arguments)


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def join_group(rank: int, world_size: int, port: int) -> None:
    """Join the process group with torchrun's environment variables."""
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(world_size)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    start_device("cpu", 1)
