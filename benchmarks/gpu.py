"""Speed of training, loss and metrics on a GPU, and whether its results equal those of the CPU.

    python benchmarks/gpu.py [--device cuda] [--quick] [--json FILE]

Training: images per second of stage one on 60,000 images of 28 x 28, in batches of 10 classes with
16 images each; the limit is the same network on one batch that stays on the device, forward,
backward and optimiser. Loss: batch-all on 4,096 and 16,384 vectors; the limit is the distance
matrix, forward and backward. Metrics: triplets and rankings of 60,000 vectors, once; and the
largest difference between the measures on the device and on the CPU for 5,000 vectors. Times are
medians of 5 runs after a warm-up run. `--device cpu --quick` only shows that the program works.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loss import batch, ours, sum_of_product
from benchmarks.metrics import random_split
from pipeline.device import choose_precision, start_device
from stages.embedding.muon import Muon
from stages.embedding.train import Step, train_embedding
from stages.evaluation.triplets_and_rankings import measure_split
from stages.network.embedding_net import EmbeddingNet, to_device
from stages.records import Split
from stages.settings import EmbedSettings

P, K = 10, 16
WARM_UP_STEPS, RUNS = 20, 5
Row = dict[str, Any]


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(work: Callable[[], object], device: torch.device, runs: int = RUNS) -> float:
    """Return the median time of some work, after one run that warms up."""
    times = []
    for _ in range(1 + runs):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def random_images(count: int) -> Split:
    """Return random images of 10 classes: what they show does not change the speed."""
    return Split(
        store=torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8),
        rows=torch.arange(count),
        labels=torch.arange(count) % P,
        classes=tuple("0123456789"),
        ids=tuple(str(row) for row in range(count)),
    )


def train_seconds(train: Split, device: torch.device, precision: torch.dtype, steps: int) -> float:
    """Return the time of some steps of stage one."""
    times = []

    def on_step(step: Step) -> bool:
        if step.done in (WARM_UP_STEPS, WARM_UP_STEPS + steps):
            wait(device)
            times.append(time.perf_counter())
        return len(times) == 2

    settings = EmbedSettings(classes_per_batch=P, images_per_class=K)
    train_embedding(train, None, settings, device=device, precision=precision, on_step=on_step)
    return times[1] - times[0]


def limit_seconds(train: Split, device: torch.device, precision: torch.dtype, steps: int) -> float:
    """Return the time of some steps on one batch, without sampling, augmentation and loss."""
    network = to_device(EmbeddingNet(1, 28, 128), device).train()
    optimiser = Muon(network.parameter_groups(3e-3), weight_decay=1e-2)
    pixels = train.take(slice(P * K)).to(device)
    direction = torch.randn(P * K, 128, device=device)

    def run() -> None:
        for _ in range(steps):
            mixed = precision != torch.float32
            with torch.autocast(device.type, dtype=precision, enabled=mixed):
                vectors = network(pixels)
            optimiser.zero_grad(set_to_none=True)
            vectors.backward(direction)
            optimiser.step()

    return median_seconds(run, device, runs=1)


def training_rows(device: torch.device, quick: bool) -> list[Row]:
    train, steps = random_images(4_000 if quick else 60_000), 5 if quick else 300
    precisions = dict.fromkeys((torch.float32, choose_precision("auto", device)))
    rows = []
    for precision in precisions:
        times: dict[str, list[float]] = {"ours": [], "limit": []}
        for _ in range(RUNS):
            times["ours"].append(train_seconds(train, device, precision, steps))
            times["limit"].append(limit_seconds(train, device, precision, steps))
        rate = {name: P * K * steps / statistics.median(values) for name, values in times.items()}
        rows.append({"work": f"training, {precision}", "unit": "images/s", **rate})
    return rows


def loss_rows(device: torch.device, quick: bool) -> list[Row]:
    rows = []
    for size in (512,) if quick else (4_096, 16_384):
        vectors, labels = batch(size)
        leaf = vectors.to(device).requires_grad_()

        def ours_once(leaf: torch.Tensor = leaf, labels: torch.Tensor = labels) -> None:
            ours("batch-all")(leaf, labels).backward()

        def limit_once(leaf: torch.Tensor = leaf, labels: torch.Tensor = labels) -> None:
            sum_of_product(leaf, labels).backward()

        times = {
            "ours": 1e3 * median_seconds(ours_once, device),
            "limit": 1e3 * median_seconds(limit_once, device),
        }
        rows.append({"work": f"batch-all loss of {size:,} vectors", "unit": "ms", **times})
    return rows


def metrics_rows(device: torch.device, quick: bool) -> list[Row]:
    vectors, labels = random_split(1_000 if quick else 60_000)
    start = time.perf_counter()
    measure_split(vectors, labels, device=device)
    seconds = time.perf_counter() - start
    few, few_labels = random_split(500 if quick else 5_000)
    on_device = measure_split(few, few_labels, margin=0.1, device=device)
    on_cpu = measure_split(few, few_labels, margin=0.1)
    difference = max(
        float(np.nanmax(np.abs(np.asarray(a, float) - b) / np.maximum(1, np.abs(b))))
        for a, b in zip(on_device, on_cpu, strict=True)
    )
    return [
        {"work": f"metrics of {len(labels):,} vectors", "ours": seconds, "unit": "s"},
        {"work": "largest difference to the CPU", "ours": difference, "unit": "(relative)"},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    device = start_device(options.device, None)
    rows = [
        *training_rows(device, options.quick),
        *loss_rows(device, options.quick),
        *metrics_rows(device, options.quick),
    ]
    for row in rows:
        limit = f", limit {row['limit']:.4g}" if "limit" in row else ""
        print(f"{row['work']:36} {row['ours']:.4g}{limit} {row['unit']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
