"""Compute all measures of a split and compare the time with pytorch-metric-learning.

    python benchmarks/metrics.py [--json FILE] [--quick]

The vectors have 128 dimensions, float32, in 10 classes. We compute triplet accuracy over all
triplets with its jackknife interval, precision@1, R-precision, MAP@R, mean average precision and
recall@k, exactly, in one pass. The peer is ``AccuracyCalculator`` of pytorch-metric-learning, which
computes only precision@1 and MAP@R and searches with faiss. The limit is the matrix product of all
pairs and numpy's sort of its rows, with one thread per block. Times are medians of 5 interleaved
runs. The large split runs once, in a separate process, without a peer. For a million images, a
sample of queries is measured and the time of all of them is computed from it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.evaluation.statistics import triplet_accuracy
from stages.evaluation.triplets_and_rankings import measure_split

CLASSES = 10
MILLION = 1_000_000


def random_split(size: int) -> tuple[Tensor, Tensor]:
    """Return unit vectors around class centres, with some overlap between classes."""
    torch.manual_seed(size)
    labels = torch.randint(0, CLASSES, (size,))
    centres = F.normalize(torch.randn(CLASSES, 128), dim=1)[labels]
    return F.normalize(centres + 0.12 * torch.randn(size, 128), dim=1), labels


def ours(vectors: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return triplet accuracy, precision@1 and MAP@R."""
    measures = measure_split(vectors, labels)
    return (
        triplet_accuracy(measures)[0],
        float(np.nanmean(measures.precision_at_1)),
        float(np.nanmean(measures.map_at_r)),
    )


def peer(vectors: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return precision@1 and MAP@R."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, device=torch.device("cpu"))
    accuracy = calculator.get_accuracy(vectors, labels)
    return accuracy[names[0]], accuracy[names[1]]


def limit(vectors: Tensor, labels: Tensor) -> None:
    for start in range(0, len(vectors), 256):
        np.sort((vectors[start : start + 256] @ vectors.T).numpy(), axis=1)


def seconds(work: Callable[[Tensor, Tensor], Any], vectors: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    work(vectors, labels)
    return time.perf_counter() - start


def print_cost(size: int) -> None:
    """Print the time and the memory above the input; to be run in a separate process."""
    vectors, labels = random_split(size)
    ours(vectors[:500], labels[:500])  # load everything that is imported on first use
    before = peak_memory()
    elapsed = seconds(ours, vectors, labels)
    print(elapsed, peak_memory() - before)


def peak_memory() -> float:
    """Return the peak memory of this process in GB, from Linux.

    ``getrusage`` would also count the memory of the parent process before ``exec``.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def print_million_cost() -> None:
    """Print the hours per core for a million images; to be run in a separate process.

    Two samples of queries against all images are measured, in processor time on one thread. Their
    difference leaves out what is done once.
    """
    torch.set_num_threads(1)
    vectors, labels = random_split(MILLION)
    queries = (labels == 0).nonzero().flatten()
    measured = []
    for count in (64, 192):
        start = time.process_time()
        measure_split(vectors, labels, queries=queries[:count])
        measured.append(time.process_time() - start)
    print((measured[1] - measured[0]) / 128 * MILLION / 3600)


def run_in_new_process(call: str) -> list[float]:
    """Return the numbers that a function of this module prints."""
    process = subprocess.run(
        [sys.executable, "-c", f"import benchmarks.metrics as b; b.{call}"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in process.stdout.split()]


def row_without_peer(work: str, value: float, unit: str) -> dict[str, Any]:
    row: dict[str, Any] = {"work": work, "ours": value}
    return {**row, "peer": None, "peer_name": None, "ratio": None, "limit": None, "unit": unit}


def run(quick: bool) -> list[dict[str, Any]]:
    """Return the rows of the result."""
    size = 2000 if quick else 10000
    vectors, labels = random_split(size)
    triplet, precision, map_at_r = ours(vectors, labels)
    peer_precision, peer_map = peer(vectors, labels)
    print(f"precision@1: {precision:.6f}, peer {peer_precision:.6f}")
    print(f"MAP@R: {map_at_r:.6f}, peer {peer_map:.6f}")
    print(f"triplet accuracy: {triplet:.6f}")
    times: dict[str, list[float]] = {"ours": [], "peer": [], "limit": []}
    for _ in range(5):
        times["ours"].append(seconds(ours, vectors, labels))
        times["peer"].append(seconds(peer, vectors, labels))
        times["limit"].append(seconds(limit, vectors, labels))
    median = {name: statistics.median(values) for name, values in times.items()}
    rows: list[dict[str, Any]] = [
        {
            "work": f"measures {size}",
            "ours": median["ours"],
            "peer": median["peer"],
            "peer_name": "pytorch-metric-learning",
            "ratio": median["peer"] / median["ours"],
            "limit": median["limit"],
            "unit": "s",
        }
    ]
    if quick:
        return rows
    for large in (10000, 60000):
        elapsed, gigabytes = run_in_new_process(f"print_cost({large})")
        if large > size:
            rows.append(row_without_peer(f"measures {large}", elapsed, "s"))
        rows.append(row_without_peer(f"measures {large} memory above the input", gigabytes, "GB"))
    (hours,) = run_in_new_process("print_million_cost()")
    rows.append(row_without_peer(f"measures {MILLION}, hours per core", hours, "h"))
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'work':40}{'ours':>9}{'peer':>9}{'ratio':>8}{'limit':>9}  unit")
    for row in rows:
        line = f"{row['work']:40}"
        for key, width in (("ours", 9), ("peer", 9), ("ratio", 8), ("limit", 9)):
            value = "-" if row[key] is None else f"{row[key]:.2f}"
            line += f"{value:>{width}}"
        print(f"{line}  {row['unit']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="2,000 images and no large split")
    options = parser.parse_args()
    rows = run(options.quick)
    print_rows(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
