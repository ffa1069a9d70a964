"""Speed and memory of a trained network."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import pytest
from checkpoint_files import write_file

from pipeline import network_cost
from pipeline.network_cost import measure_cost, peak_memory


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "embedding.safetensors"
    write_file("embedding", path)
    return path


def test_time_is_divided_by_the_images_of_a_batch(checkpoint, monkeypatch):
    sizes = []

    @contextmanager
    def threads(workers):
        with ThreadPoolExecutor(workers) as pool:
            yield pool

    def embed(network, blocks, *, device):
        sizes.append(len(blocks[0]))

    clock = iter(range(100))
    monkeypatch.setattr(network_cost, "worker_pool", threads)
    monkeypatch.setattr(network_cost, "keep_freed_memory", lambda _: None)
    monkeypatch.setattr(network_cost, "embed_images", embed)
    monkeypatch.setattr(network_cost.time, "perf_counter", lambda: next(clock))
    cost = measure_cost(checkpoint, device="cpu", threads=1)
    assert cost.seconds_per_image == 1 / 32 and set(sizes) == {32}
    assert len(sizes) == 6  # the first one is not timed


@pytest.mark.parametrize("error", [BrokenProcessPool, MemoryError, RuntimeError])
def test_a_process_that_fails_gives_no_values(checkpoint, monkeypatch, error):
    @contextmanager
    def broken(_):
        raise error
        yield

    monkeypatch.setattr(network_cost, "worker_pool", broken)
    cost = measure_cost(checkpoint, device="cpu", threads=1)
    assert cost[:2] == (None, None) and error.__name__ in cost.problem


def _peak_after(size: int, queue) -> None:
    array = np.ones(size, dtype=np.uint8)
    del array
    queue.put(peak_memory())


def test_peak_memory_counts_what_was_freed_again():
    before, size = peak_memory(), 2**30
    if before is None:
        pytest.skip("not available on this system")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_peak_after, args=(size, queue))
    process.start()
    peak = queue.get(timeout=60)
    process.join()
    assert peak > size


@pytest.mark.slow
def test_measures_in_a_process_of_its_own(checkpoint):
    large = np.ones(3 * 2**30, dtype=np.uint8)  # memory of this process, which must not count
    cost = measure_cost(checkpoint, device="cpu", threads=1)
    assert large.all() and cost.seconds_per_image and cost.memory
    assert 0 < cost.seconds_per_image < 1
    assert 50 * 2**20 < cost.memory < 2**31
