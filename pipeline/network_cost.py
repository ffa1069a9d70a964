"""Measure the speed and the memory of a trained embedding, in a process of its own."""

import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.checkpoint import load_embedding
from pipeline.data.decoding_pool import worker_pool
from pipeline.device import keep_freed_memory, start_device
from pipeline.image_vectors import PART_SIZE
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.network.inference import BLOCK_SIZE, embed_images

REPEATS = 5
MAX_SECONDS = 20.0  # no repeat starts later than this


class NetworkCost(NamedTuple):
    """Cost of embedding images that are already decoded.

    Attributes:
        seconds_per_image: Median over repeats of the time of a batch, divided by its images; None
            if it could not be measured.
        memory: Peak memory in bytes: of the process, or of the GPU if the network is on one; None
            if it is unknown.
        problem: Why nothing could be measured; else empty.
    """

    seconds_per_image: float | None
    memory: int | None
    problem: str = ""


def measure_cost(checkpoint: Path, *, device: str, threads: int) -> NetworkCost:
    """Measure the cost of a trained network in a new process, so that nothing else counts.

    The process loads the checkpoint and embeds a batch of random images as `pipeline predict` would
    embed decoded ones: 32 images on a CPU, 128 on another device. The first batch is not timed.

    Args:
        checkpoint: Checkpoint of stage one.
        device: Type of the device.
        threads: Number of CPU threads.

    Returns:
        The cost; without values if the process could not be started, was killed, or had too little
        memory.
    """
    try:
        with worker_pool(1) as pool:
            return pool.submit(_measure, checkpoint, device, threads).result()
    # The error of a process that was killed, and those of torch, are RuntimeErrors.
    except (RuntimeError, OSError, MemoryError) as error:
        return NetworkCost(None, None, f"{type(error).__name__}: {error}"[:200])


def _measure(checkpoint: Path, device: str, threads: int) -> NetworkCost:
    """Load the network and embed a batch several times. Runs in the new process."""
    keep_freed_memory(device)  # as the command line does
    chosen = start_device(device, threads)
    network = to_device(load_embedding(checkpoint).network, chosen)
    seconds = _batch_seconds(network, chosen)
    memory = peak_memory()
    if chosen.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    elif chosen.type != "cpu":
        memory = None  # the process does not count the memory of the device
    return NetworkCost(seconds, memory)


def _batch_seconds(network: EmbeddingNet, device: torch.device) -> float:
    """Return the median seconds per image."""
    size, channels = int(str(network.config["size"])), int(str(network.config["channels"]))
    count = PART_SIZE if device.type == "cpu" else BLOCK_SIZE
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    start = time.perf_counter()
    embed_images(network, [images], device=device)
    repeats: list[float] = []
    while not repeats or (len(repeats) < REPEATS and time.perf_counter() - start < MAX_SECONDS):
        before = time.perf_counter()
        embed_images(network, [images], device=device)  # on the CPU at the end, so it is finished
        repeats.append(time.perf_counter() - before)
    return statistics.median(repeats) / count


def peak_memory() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None if unknown."""
    with suppress(OSError, ValueError):
        # Linux. The value of getrusage would include the process that has started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else 1024 * peak
