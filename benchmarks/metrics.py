"""All measures of a split beside the peer's two: d = 128, float32, 10 classes.

    python benchmarks/metrics.py [--json FILE] [--quick]

Ours: triplet accuracy over all triplets with its jackknife interval, precision@1, R-precision, MAP@R, mean average
precision and recall@k, exact, in one pass. The peer's: `AccuracyCalculator` of pytorch-metric-learning, precision@1 and
MAP@R alone, searching with faiss. The limit: the matrix product of all pairs and numpy's sort of its rows, alone, on one
thread each block. Medians of 5, taking turns; the large split runs once, in a process of its own, and has no peer.
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

from stages.evaluation.retrieval import measure_split
from stages.evaluation.statistics import triplet_accuracy

CLASSES = 10


def split(size: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around class centres, some classes overlapping."""
    torch.manual_seed(size)
    labels = torch.randint(0, CLASSES, (size,))
    centres = F.normalize(torch.randn(CLASSES, 128), dim=1)[labels]
    return F.normalize(centres + 0.12 * torch.randn(size, 128), dim=1), labels


def ours(vectors: Tensor, labels: Tensor) -> tuple[float, float, float]:
    measures = measure_split(vectors, labels)
    return (
        triplet_accuracy(measures)[0],
        float(np.nanmean(measures.precision_at_1)),
        float(np.nanmean(measures.map_at_r)),
    )


def peers(vectors: Tensor, labels: Tensor) -> tuple[float, float, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, device=torch.device("cpu"))
    found = calculator.get_accuracy(vectors, labels)
    return float("nan"), found[names[0]], found[names[1]]


def limit(vectors: Tensor, labels: Tensor) -> None:
    for start in range(0, len(vectors), 256):
        np.sort((vectors[start : start + 256] @ vectors.T).numpy(), axis=1)


def seconds(work: Callable[[Tensor, Tensor], Any], vectors: Tensor, labels: Tensor) -> float:
    start = time.perf_counter()
    work(vectors, labels)
    return time.perf_counter() - start


def once(size: int) -> None:
    """Time and memory above the input, printed; run in a process of its own."""
    vectors, labels = split(size)
    ours(vectors[:500], labels[:500])  # whatever is loaded on first use
    before = peak()
    elapsed = seconds(ours, vectors, labels)
    print(elapsed, peak() - before)


def peak() -> float:
    """The process's largest memory in GB, from Linux; `getrusage` would count the parent's before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def alone(size: int) -> tuple[float, float]:
    code = f"import benchmarks.metrics as b; b.once({size})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed, gigabytes = map(float, done.stdout.split())
    return elapsed, gigabytes


def rows(quick: bool) -> list[dict[str, Any]]:
    size = 2000 if quick else 10000
    vectors, labels = split(size)
    a, b = ours(vectors, labels), peers(vectors, labels)
    print(
        f"precision@1 {a[1]:.6f} and the peer's {b[1]:.6f}; MAP@R {a[2]:.6f} and {b[2]:.6f}; triplet accuracy {a[0]:.6f}"
    )
    times: dict[str, list[float]] = {"ours": [], "peer": [], "limit": []}
    for _ in range(5):
        for name, work in (("ours", ours), ("peer", peers), ("limit", limit)):
            times[name].append(seconds(work, vectors, labels))
    middle = {name: statistics.median(values) for name, values in times.items()}
    nothing = {"peer": None, "peer_name": None, "ratio": None, "limit": None}
    table: list[dict[str, Any]] = [
        {
            "work": f"measures {size}",
            "ours": middle["ours"],
            "peer": middle["peer"],
            "peer_name": "pytorch-metric-learning",
            "ratio": middle["peer"] / middle["ours"],
            "limit": middle["limit"],
            "unit": "s",
        }
    ]
    for large in () if quick else (10000, 60000):
        elapsed, gigabytes = alone(large)
        if large > size:
            table.append({"work": f"measures {large}", "ours": elapsed, **nothing, "unit": "s"})
        table.append(
            {
                "work": f"measures {large} memory above the input",
                "ours": gigabytes,
                **nothing,
                "unit": "GB",
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="2,000 images, and no large split")
    options = parser.parse_args()
    table = rows(options.quick)
    print(f"{'work':40}{'ours':>9}{'peer':>9}{'ratio':>8}{'limit':>9}  unit")
    for row in table:
        shown = [
            f"{row[key]:.2f}" if row[key] is not None else "-"
            for key in ("ours", "peer", "ratio", "limit")
        ]
        print(
            f"{row['work']:40}{shown[0]:>9}{shown[1]:>9}{shown[2]:>8}{shown[3]:>9}  {row['unit']}"
        )
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
