"""The triplet loss beside the peers': forward and backward, d = 128, float32, K = 32.

    python benchmarks/loss.py [--json FILE] [--quick]

Contenders take turns, medians of 5 (after a warm-up), in one process. The limit is what no loss over all pairs can
avoid: the distance matrix, forward and backward, by `torch.cdist` or by a matrix product, whichever is faster here.
Before timing, loss and gradient are compared with the peer's; a row says how far apart they are.
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
Loss = Callable[[Tensor, Tensor], Tensor]


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around class centres, half trained: some triplets are active, some are not."""
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


def sentence(name: str) -> Loss:
    from sentence_transformers.sentence_transformer import losses

    distance = losses.BatchHardTripletLossDistanceFunction.eucledian_distance
    kind = {
        "batch-all": losses.BatchAllTripletLoss,
        "batch-hard": losses.BatchHardTripletLoss,
        "semi-hard": losses.BatchSemiHardTripletLoss,
    }
    loss = kind[name](None, distance_metric=distance, margin=MARGIN)
    return lambda vectors, labels: loss.compute_loss_from_embeddings([vectors], labels)


def by_cdist(vectors: Tensor, labels: Tensor) -> Tensor:
    return torch.cdist(vectors, vectors).sum()


def by_product(vectors: Tensor, labels: Tensor) -> Tensor:
    return (2 - 2 * vectors @ vectors.T).clamp_min(1e-12).sqrt().sum()


def seconds(loss: Loss, vectors: Tensor, labels: Tensor) -> float:
    leaf = vectors.clone().requires_grad_()
    start = time.perf_counter()
    loss(leaf, labels).backward()
    return time.perf_counter() - start


def difference(a: Loss, b: Loss, vectors: Tensor, labels: Tensor) -> float:
    """The larger of the relative differences of loss and gradient (norm of the difference by norm)."""
    values, gradients = [], []
    for loss in (a, b):
        leaf = vectors.clone().requires_grad_()
        # Normalised inside the graph: a peer that normalises differs only along the vector itself.
        value = loss(F.normalize(leaf, dim=1), labels)
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    return max(
        abs(values[0] / values[1] - 1),
        float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
    )


def race(contenders: dict[str, Loss], vectors: Tensor, labels: Tensor) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(6):
        for name, loss in contenders.items():
            elapsed = seconds(loss, vectors, labels)
            if turn:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def rows(quick: bool) -> list[dict[str, Any]]:
    works = [
        ("batch-all", 512, "pytorch-metric-learning", metric_learning()),
        ("batch-all", 1024, "sentence-transformers", sentence("batch-all")),
        ("batch-all", 2048, None, None),
        *(
            (mode, size, "sentence-transformers", sentence(mode))
            for mode in ("semi-hard", "batch-hard")
            for size in (256, 1024)
        ),
    ]
    table = []
    for mining, size, name, peer in works:
        if quick and size > 512:
            continue
        vectors, labels = batch(size)
        contenders = {"ours": ours(mining), "cdist": by_cdist, "product": by_product} | (
            {"peer": peer} if peer else {}
        )
        apart = difference(ours(mining), peer, vectors, labels) if peer else None
        times = race(contenders, vectors, labels)
        limit = min(times["cdist"], times["product"])
        table.append(
            {
                "work": f"{mining} {size}",
                "ours": 1e3 * times["ours"],
                "peer": 1e3 * times["peer"] if peer else None,
                "peer_name": name,
                "ratio": times["peer"] / times["ours"] if peer else None,
                "limit": 1e3 * limit,
                "unit": "ms",
                "difference": apart,
            }
        )
    if not quick:
        # In a process of its own: the peak is the process's, and the peers' must not count.
        code = "import benchmarks.loss as b; v, l = b.batch(8192); b.seconds(b.ours('batch-all'), v, l); b.peak()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        peak = {
            "work": "batch-all 8192 memory",
            "ours": float(done.stdout),
            "peer": None,
            "peer_name": None,
            "ratio": None,
        }
        table.append({**peak, "limit": None, "unit": "GB", "difference": None})
    return table


def peak() -> None:
    """The process's largest memory in GB, from Linux; `getrusage` would count the parent's before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="only the small batches")
    options = parser.parse_args()
    table = rows(options.quick)
    print(f"{'work':24}{'ours':>10}{'peer':>10}{'ratio':>8}{'limit':>10}{'apart':>9}  peer")
    for row in table:
        shown = [
            f"{row[key]:.2f}" if row[key] is not None else "-"
            for key in ("ours", "peer", "ratio", "limit")
        ]
        apart = f"{row['difference']:.0e}" if row["difference"] is not None else "-"
        print(
            f"{row['work']:24}{shown[0]:>10}{shown[1]:>10}{shown[2]:>8}{shown[3]:>10}{apart:>9}  {row['peer_name'] or ''} ({row['unit']})"
        )
    if options.json:
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
