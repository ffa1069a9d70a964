"""Worker processes decode files in order, and memory is bounded."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any

import pytest

from pipeline.data import decoding_pool
from pipeline.data.decode import decode_files
from pipeline.data.decoding_pool import file_decoder

PATHS = [f"missing/{number}.png" for number in range(1000)]


class FakePool(Executor):
    """Pool that runs each task at once and breaks at one of them."""

    def __init__(self, broken_task: int | None = None) -> None:
        self.submitted = 0
        self.broken_task = broken_task

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.submitted == self.broken_task:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(task(*arguments))
        self.submitted += 1
        return future


@pytest.fixture
def use_pool(monkeypatch):
    """Return a function that makes `file_decoder` use a given pool of two workers."""

    def use(pool: FakePool) -> None:
        monkeypatch.setattr(decoding_pool, "worker_pool", lambda _: nullcontext(pool))
        monkeypatch.setattr(decoding_pool, "_available_cpus", lambda: 2)
        monkeypatch.setattr(decoding_pool, "POOL_FILES", 10)
        monkeypatch.setattr(decoding_pool, "SMALL_FILES_PER_TASK", 10)
        monkeypatch.setattr(decoding_pool, "decode_files", lambda paths, **_: list(paths))

    return use


@pytest.mark.parametrize("broken_task", [None, 0, 7])
def test_files_are_decoded_in_order_also_if_the_pool_breaks(use_pool, broken_task):
    use_pool(FakePool(broken_task))
    with file_decoder([(path, (1, 0)) for path in PATHS], "pad") as decoder:
        assert list(decoder.decode(8, 1)) == PATHS


def test_few_results_are_in_memory_at_once(use_pool):
    pool = FakePool()
    use_pool(pool)
    with file_decoder([(path, (1, 0)) for path in PATHS], "pad") as decoder:
        outcomes = decoder.decode(8, 1)
        for _ in range(10 * 50):  # 50 of 100 tasks
            next(outcomes)
    assert 50 < pool.submitted <= 50 + 2 * decoding_pool.TASKS_PER_WORKER


def test_worker_processes_give_the_same_outcomes(monkeypatch):
    monkeypatch.setattr(decoding_pool, "POOL_FILES", 10)
    monkeypatch.setattr(decoding_pool, "_available_cpus", lambda: 2)
    with file_decoder([(path, None) for path in PATHS], "pad") as decoder:
        outcomes = list(decoder.decode(8, 1))
    assert outcomes == decode_files(PATHS, size=8, channels=1, resize="pad")
