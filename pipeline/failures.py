"""Exchange of error messages between the processes that torchrun starts.

A process that stops because of an error closes its connections. The others see only that a
connection is lost. They read the reason in the store of the process group, which is torchrun's and
outlives each process. Importing this module imports no torch.
"""

import os
import re
from contextlib import suppress
from typing import Any

KEY = "embedding-pipeline/failure"
LOST_PROCESS = "another process of this run has died; start it again, `embed` with --resume"
# gloo's errors begin with a source file: `[/pytorch/third_party/gloo/gloo/transport/pair.cc:534]`.
GLOO_ERROR = re.compile(r"\[[^\]]*\bgloo[/\\][^\]]*\]")


def report_failure(message: str) -> None:
    """Save the error message for the other ranks, before this rank exits.

    Args:
        message: Error message.
    """
    store, errors = _store_and_errors()
    if store:
        with suppress(errors):
            # The store takes UTF-8. The name of a file may not be.
            store.set(KEY, message.encode(errors="backslashreplace").decode())


def failure_of_another_rank() -> str | None:
    """Return the message of a rank that has called :func:`report_failure`, if there is one."""
    store, errors = _store_and_errors()
    if store:
        with suppress(errors):
            if store.check([KEY]):
                return str(store.get(KEY).decode())
    return None


def is_lost_process(error: Exception) -> bool:
    """Return True if an error means that another process of the group has died.

    Args:
        error: Error raised by a collective operation.

    Returns:
        True for an error of ``torch.distributed``, which includes those of NCCL, or of gloo.
    """
    store, errors = _store_and_errors()
    is_gloo = type(error) is RuntimeError and GLOO_ERROR.match(str(error)) is not None
    return store is not None and (is_gloo or isinstance(error, errors))


def _store_and_errors() -> tuple[Any, type[Exception]]:
    """Return the store of the process group, if there is a group, and its class of errors."""
    if "RANK" not in os.environ:
        return None, Exception
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None, Exception
    # The function is private, but a store of our own would need an address and a port.
    return dist.distributed_c10d._get_default_store(), dist.DistError
