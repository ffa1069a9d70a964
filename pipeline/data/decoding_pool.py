"""Decode image files in worker processes.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait

from pipeline.data.decode import Decode, Outcome, decode_files

FileState = tuple[int, int]  # size in bytes, modification time in nanoseconds

# Starting the workers takes half a second. It pays from this many files or bytes on.
POOL_FILES, POOL_BYTES = 10_000, 8e6
SMALL_FILE = 16_000  # bytes
# Files per task: many small files, to limit the overhead per task, or few large ones.
SMALL_FILES_PER_TASK, LARGE_FILES_PER_TASK = 256, 16


def file_state(path: str) -> FileState | None:
    """Return a file's size and modification time.

    Args:
        path: Path of the file.

    Returns:
        Size in bytes and modification time in nanoseconds; ``None`` if the file is missing.
    """
    with suppress(OSError, ValueError):  # ValueError: a null byte in a path of a manifest
        state = os.stat(path)
        return state.st_size, state.st_mtime_ns
    return None


@contextmanager
def file_decoder(files: Sequence[tuple[str, FileState | None]], resize: str) -> Generator[Decode]:
    """Create a function that decodes files, in worker processes if that is faster.

    Args:
        files: Path and state of each file.
        resize: How images are fitted to a square; see :func:`pipeline.data.resizing.fit_to_square`.

    Yields:
        A function of size and channels that yields one outcome per file, in order. The worker
        processes end with the context.
    """
    paths = [path for path, _ in files]
    total_bytes = sum(state[0] for _, state in files if state)
    small = total_bytes < SMALL_FILE * len(paths)
    step = SMALL_FILES_PER_TASK if small else LARGE_FILES_PER_TASK
    tasks = [paths[start : start + step] for start in range(0, len(paths), step)]
    pool: ProcessPoolExecutor | None = None
    workers = _available_cpus()
    if workers > 1 and (len(paths) >= POOL_FILES or total_bytes >= POOL_BYTES):
        # Spawned, not forked: torch has started threads, and forking a process with threads can
        # cause a deadlock.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker)

    def decode(size: int | None, channels: int | None) -> Iterator[Outcome]:
        decode_task = partial(decode_files, size=size, channels=channels, resize=resize)
        done = 0
        if pool:
            # The pool breaks if memory runs out, or if a script without an `if __name__` guard
            # starts it. This process then decodes the remaining files.
            with suppress(BrokenProcessPool):
                for outcomes in pool.map(decode_task, tasks):
                    yield from outcomes
                    done += 1
        for task in tasks[done:]:
            yield from decode_task(task)

    try:
        yield decode
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker() -> None:
    """Ignore interrupts, which the parent handles, and exit when the parent exits or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
