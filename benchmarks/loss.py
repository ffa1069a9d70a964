"""Speed of the triplet loss compared with other libraries, forward and backward.

    python benchmarks/loss.py [--json FILE] [--quick]

Batches have K = 32 images per class, D = 128, float32. The contenders are interleaved in one
process. Times are medians of 5 runs after a warm-up. The limit is the cost that no loss over all
pairs can avoid: the distance matrix, forward and backward, with `torch.cdist` or with a matrix
product, whichever is faster on this computer. Before timing, loss and gradient are compared with
those of the other library. The column `apart` is the larger relative difference.
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

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.embedding.loss import triplet_loss

K = 32
MARGIN = 0.2
RUNS = 5
Loss = Callable[[Tensor, Tensor], Tensor]


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Return unit vectors around class centres, with active and inactive triplets, and labels."""
    torch.manual_seed(size)
    labels = torch.arange(size // K).repeat_interleave(K)
    centres = F.normalize(torch.randn(size // K, 128), dim=1)[labels]
    return F.normalize(centres + 0.12 * torch.randn(size, 128), dim=1), labels


def ours(mining: str) -> Loss:
    return lambda vectors, labels: triplet_loss(vectors, labels, mining=mining, margin=MARGIN).loss


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import TripletMarginLoss

    loss: Loss = TripletMarginLoss(margin=MARGIN)
    return loss


def sentence_transformers(mining: str) -> Loss:
    from sentence_transformers.sentence_transformer import losses

    distance = losses.BatchHardTripletLossDistanceFunction.eucledian_distance
    loss_classes = {
        "batch-all": losses.BatchAllTripletLoss,
        "batch-hard": losses.BatchHardTripletLoss,
        "semi-hard": losses.BatchSemiHardTripletLoss,
    }
    loss = loss_classes[mining](None, distance_metric=distance, margin=MARGIN)
    return lambda vectors, labels: loss.compute_loss_from_embeddings([vectors], labels)


def sum_of_cdist(vectors: Tensor, labels: Tensor) -> Tensor:
    return torch.cdist(vectors, vectors).sum()


def sum_of_product(vectors: Tensor, labels: Tensor) -> Tensor:
    return (2 - 2 * vectors @ vectors.T).clamp_min(1e-12).sqrt().sum()


def seconds(loss: Loss, vectors: Tensor, labels: Tensor) -> float:
    """Return the time of one forward and backward pass."""
    leaf = vectors.clone().requires_grad_()
    start = time.perf_counter()
    loss(leaf, labels).backward()
    return time.perf_counter() - start


def relative_difference(a: Loss, b: Loss, vectors: Tensor, labels: Tensor) -> float:
    """Return the larger of the relative differences of loss and of gradient (in norm)."""
    values, gradients = [], []
    for loss in (a, b):
        leaf = vectors.clone().requires_grad_()
        # Normalise inside the graph: losses that normalise again then have the same gradient.
        value = loss(F.normalize(leaf, dim=1), labels)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    gradient_difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    return max(abs(values[0] / values[1] - 1), float(gradient_difference))


def median_times(contenders: dict[str, Loss], vectors: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the median time of each contender in seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(1 + RUNS):
        for name, loss in contenders.items():
            elapsed = seconds(loss, vectors, labels)
            if run > 0:  # the first run is the warm-up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(mining: str, size: int, peer_name: str | None, peer: Loss | None) -> dict[str, Any]:
    """Return one row of the table; times are in milliseconds."""
    vectors, labels = batch(size)
    contenders = {"ours": ours(mining), "cdist": sum_of_cdist, "product": sum_of_product}
    difference = None
    if peer is not None:
        contenders["peer"] = peer
        difference = relative_difference(ours(mining), peer, vectors, labels)
    times = median_times(contenders, vectors, labels)
    return {
        "work": f"{mining} {size}",
        "ours": 1e3 * times["ours"],
        "peer": 1e3 * times["peer"] if peer else None,
        "peer_name": peer_name,
        "ratio": times["peer"] / times["ours"] if peer else None,
        "limit": 1e3 * min(times["cdist"], times["product"]),
        "unit": "ms",
        "difference": difference,
    }


def measure_memory() -> dict[str, Any]:
    """Return the row of the largest batch's peak memory, measured in a separate process."""
    code = (
        "import benchmarks.loss as b; vectors, labels = b.batch(8192); "
        "b.seconds(b.ours('batch-all'), vectors, labels); b.print_peak_memory()"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "work": "batch-all 8192 memory",
        "ours": float(completed.stdout),
        "peer": None,
        "peer_name": None,
        "ratio": None,
        "limit": None,
        "unit": "GB",
        "difference": None,
    }


def print_peak_memory() -> None:
    """Print the peak memory of this process in GB; Linux only.

    `getrusage` would include the parent process, up to `exec`.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e6)


def measure(quick: bool) -> list[dict[str, Any]]:
    """Return all rows of the table."""
    comparisons = [
        ("batch-all", 512, "pytorch-metric-learning", metric_learning()),
        ("batch-all", 1024, "sentence-transformers", sentence_transformers("batch-all")),
        ("batch-all", 2048, None, None),
    ]
    for mining in ("semi-hard", "batch-hard"):
        for size in (256, 1024):
            peer = sentence_transformers(mining)
            comparisons.append((mining, size, "sentence-transformers", peer))
    if quick:
        return [compare(*comparison) for comparison in comparisons if comparison[1] <= 512]
    return [*(compare(*comparison) for comparison in comparisons), measure_memory()]


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'work':24}{'ours':>10}{'peer':>10}{'ratio':>8}{'limit':>10}{'apart':>9}  peer")
    for row in rows:
        line = f"{row['work']:24}"
        for key, width in (("ours", 10), ("peer", 10), ("ratio", 8), ("limit", 10)):
            text = "-" if row[key] is None else f"{row[key]:.2f}"
            line += f"{text:>{width}}"
        apart = "-" if row["difference"] is None else f"{row['difference']:.0e}"
        print(f"{line}{apart:>9}  {row['peer_name'] or ''} ({row['unit']})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="only the small batches")
    options = parser.parse_args()
    rows = measure(options.quick)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
