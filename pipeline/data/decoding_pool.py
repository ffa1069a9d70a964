"""Decode image files in worker processes.

Worker processes import this module. It must not import torch, which takes seconds to load.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from typing import TypeVar

from pipeline.data.decode import Decoder, Outcome, decode_files, digest_files

T = TypeVar("T")
FileState = tuple[int, int]  # size in bytes, modification time in nanoseconds

# Starting the workers takes half a second. It pays from this many files or bytes on.
POOL_FILES, POOL_BYTES = 10_000, 2e7
SMALL_FILE = 16_000  # bytes
# Files per task: many small files, to limit the overhead per task, or few large ones.
SMALL_FILES_PER_TASK, LARGE_FILES_PER_TASK = 256, 16
TASKS_PER_WORKER = 4  # submitted at once; bounds the memory of the results


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


def are_worth_a_pool(files: Sequence[tuple[str, FileState | None]]) -> bool:
    """Return True if worker processes decode these files sooner than one process.

    Args:
        files: Path and state of each file.
    """
    return len(files) >= POOL_FILES or _total_bytes(files) >= POOL_BYTES


def _total_bytes(files: Sequence[tuple[str, FileState | None]]) -> int:
    return sum(state[0] for _, state in files if state)


@contextmanager
def file_decoder(
    files: Sequence[tuple[str, FileState | None]], resize: str, jpeg: str = "full"
) -> Generator[Decoder]:
    """Create functions that decode files, in worker processes if that is faster.

    Args:
        files: Path and state of each file.
        resize: How images are fitted to a square; see :func:`pipeline.data.resizing.fit_to_square`.
        jpeg: ``reduced`` or ``full``; see :class:`stages.settings.ReadSettings`.

    Yields:
        The functions. They yield one outcome per file, in order. The worker processes end with the
        context.
    """
    paths = [path for path, _ in files]
    small = _total_bytes(files) < SMALL_FILE * len(paths)
    step = SMALL_FILES_PER_TASK if small else LARGE_FILES_PER_TASK
    workers = _available_cpus()
    use_pool = workers > 1 and are_worth_a_pool(files)
    with worker_pool(workers) if use_pool else nullcontext() as pool:

        def run(task: Callable[[Sequence[str]], list[T]], chosen: Sequence[str]) -> Iterator[T]:
            parts = [chosen[start : start + step] for start in range(0, len(chosen), step)]
            done = 0
            if pool:
                # If memory runs out, the system may kill a worker, which breaks the pool. This
                # process then decodes the remaining files.
                with suppress(BrokenProcessPool):
                    for outcomes in _map(pool, task, parts, workers * TASKS_PER_WORKER):
                        yield from outcomes
                        done += 1
            for part in parts[done:]:
                yield from task(part)

        def decode(size: int | None, channels: int | None) -> Iterator[Outcome]:
            task = partial(decode_files, size=size, channels=channels, resize=resize, jpeg=jpeg)
            return run(task, paths)

        def digest(positions: Sequence[int]) -> Iterator[str]:
            return run(digest_files, [paths[position] for position in positions])

        yield Decoder(decode, digest)


@contextmanager
def worker_pool(workers: int) -> Generator[Executor]:
    """Start worker processes, which end with the context or when this process is killed.

    They are loky's. Those of the standard library import the user's script again, or are forked
    while torch's threads hold locks. Threads would share the interpreter's lock: decoding small
    files in them takes twice as long.
    """
    from joblib.externals.loky import ProcessPoolExecutor  # imported only where it is needed

    # Nothing is ever sent. The system closes the writing end when this process ends.
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader, writer:
        pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(reader,))
        try:
            yield pool
        finally:
            pool.shutdown(kill_workers=True)


def _map(
    pool: Executor,
    task: Callable[[Sequence[str]], list[T]],
    parts: Sequence[Sequence[str]],
    ahead: int,
) -> Iterator[list[T]]:
    """Yield the results for all parts in order, with at most ``ahead`` of them in memory."""
    remaining = iter(parts)
    submitted = deque(pool.submit(task, part) for part in islice(remaining, ahead))
    while submitted:
        yield submitted.popleft().result()
        submitted.extend(pool.submit(task, part) for part in islice(remaining, 1))


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker(parent: Connection) -> None:
    """Ignore interrupts, which the parent handles, and exit when the parent exits or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: Connection) -> None:
    with suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)
