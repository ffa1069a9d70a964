"""Decode files in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from multiprocessing.connection import wait

from pipeline.data.decode import Decode, Outcome, decode_files

FileState = tuple[int, int]  # a file's size in bytes and time of change in ns


def file_state(path: str) -> FileState | None:
    """A file's size and time of change; None if it is missing."""
    with suppress(OSError, ValueError):  # ValueError: a null byte in a manifest's path
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    return None


@contextmanager
def file_decoder(files: Sequence[tuple[str, FileState | None]], resize: str) -> Generator[Decode]:
    """A `Decode` of files, by several processes where that pays: starting them costs half a second."""
    paths = [path for path, _ in files]
    total = sum(state[0] for _, state in files if state)
    workers = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ExitStack() as stack:
        pool: ProcessPoolExecutor | None = None
        if workers > 1 and (len(paths) >= 10_000 or total >= 8e6):
            # Spawned, not forked: a forked copy of a process with threads (torch has them) may hang.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)
        step = 256 if total < 16_000 * len(paths) else 16
        chunks = [paths[start : start + step] for start in range(0, len(paths), step)]

        def decode(size: int | None, channels: int | None) -> Iterator[Outcome]:
            read = partial(decode_files, size=size, channels=channels, resize=resize)
            done = 0
            if pool:
                # Workers die where memory is short, or where a script without an `if __name__` guard starts them.
                with suppress(BrokenProcessPool):
                    for outcomes in pool.map(read, chunks):
                        yield from outcomes
                        done += 1
            yield from chain.from_iterable(map(read, chunks[done:]))

        yield decode


def _start_worker() -> None:
    """Leave interrupts to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
