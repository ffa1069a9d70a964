"""Evaluate unseen classes and compare the time with the plain way.

    python benchmarks/unseen.py [--json FILE] [--quick]

10,000 images of 100 classes: an embedding and an untrained network with 128 dimensions, and raw
pixels with 784. We compute all retrieval and verification scores of the three, each with its
interval from the leave-one-class-out jackknife. The plain ways are compared at smaller sizes: the
ROC curve of scikit-learn over all pairs, and a loop that repeats all measures without each class.
The limit is the matrix product of all pairs for the three kinds of vectors. Times are medians of 5
interleaved runs. The large split runs once, in a separate process.
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
from metrics import peak_memory, print_rows, row_without_peer
from torch import Tensor

from stages.distance import exact_distances
from stages.evaluation.class_jackknife import class_groups
from stages.evaluation.left_out_rankings import rank_without_each_class
from stages.evaluation.triplets_and_rankings import measure_split
from stages.evaluation.unseen import evaluate_unseen
from stages.evaluation.verification import verify_without_each_class
from stages.records import Embeddings

DIM, PIXELS = 128, 784


def random_vectors(size: int, classes: int, dim: int, noise: float) -> Tensor:
    """Return unit vectors around class centres; image i has class i modulo the classes."""
    torch.manual_seed(size + dim)
    centres = F.normalize(torch.randn(classes, dim), dim=1)[torch.arange(size) % classes]
    return F.normalize(centres + noise * torch.randn(size, dim), dim=1)


def inputs(size: int, classes: int) -> tuple[Embeddings, Tensor, Tensor]:
    """Return embedding, raw pixels and embedding before training."""
    labels = torch.arange(size) % classes
    vectors = random_vectors(size, classes, DIM, 0.12)
    test = Embeddings(vectors, labels, tuple(map(str, range(classes))))
    pixels = 255 * random_vectors(size, classes, PIXELS, 0.2).abs()
    return test, pixels, random_vectors(size, classes, DIM, 0.4)


def evaluate(test: Embeddings, pixels: Tensor, untrained: Tensor) -> None:
    evaluate_unseen(test, {"pixel": pixels, "untrained": untrained})


def print_cost(size: int, classes: int) -> None:
    """Print seconds, and GB of the whole process and above the input."""
    large = inputs(size, classes)
    evaluate(*inputs(300, 10))  # load everything that is imported on first use
    before = peak_memory()
    start = time.perf_counter()
    evaluate(*large)
    print(time.perf_counter() - start, peak_memory(), peak_memory() - before)


def cost_in_new_process(size: int, classes: int) -> list[float]:
    process = subprocess.run(
        [sys.executable, "-c", f"import unseen; unseen.print_cost({size}, {classes})"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(value) for value in process.stdout.split()]


def verification_by_sklearn(vectors: Tensor, labels: Tensor) -> float:
    """Return the AUC of all pairs; memory grows with the square of the images."""
    from sklearn.metrics import roc_auc_score, roc_curve

    rows, columns = torch.triu_indices(len(labels), len(labels), 1)
    scores = -exact_distances(vectors, vectors)[rows, columns].numpy()
    same_class = (labels[rows] == labels[columns]).numpy()
    roc_curve(same_class, scores)
    return float(roc_auc_score(same_class, scores))


def rankings_by_loop(vectors: Tensor, labels: Tensor) -> float:
    """Measure the split again without each class; return the mean MAP@R."""
    values = []
    for label in labels.unique():
        kept = labels != label
        values.append(float(measure_split(vectors[kept], labels[kept]).map_at_r.mean()))
    return statistics.fmean(values)


def our_verification(vectors: Tensor, labels: Tensor) -> float:
    estimates, _ = verify_without_each_class(vectors, labels, class_groups(labels))
    return estimates["verification_auc"].value


def our_rankings(vectors: Tensor, labels: Tensor) -> float:
    estimates, _ = rank_without_each_class(vectors, labels, class_groups(labels))
    return float(estimates["map_at_r"].left_out.mean())


def compare(
    work: str, ours: Callable[..., float], peer: Callable[..., float], name: str, size: int
) -> dict[str, Any]:
    """Return the row of two functions that must return the same value."""
    labels = torch.arange(size) % 50
    vectors = random_vectors(size, 50, DIM, 0.12)
    times: dict[Callable[..., float], list[float]] = {ours: [], peer: []}
    values = {}
    for _ in range(5):
        for function, seconds in times.items():
            start = time.perf_counter()
            values[function] = function(vectors, labels)
            seconds.append(time.perf_counter() - start)
    print(f"{work}: {values[ours]:.9f}, {name} {values[peer]:.9f}")
    our_time, peer_time = statistics.median(times[ours]), statistics.median(times[peer])
    return {
        "work": f"{work} {size}",
        "ours": our_time,
        "peer": peer_time,
        "peer_name": name,
        "ratio": peer_time / our_time,
        "limit": None,
        "unit": "s",
    }


def matrix_products(size: int) -> float:
    """Return the seconds for the products of all pairs of the three kinds of vectors."""
    start = time.perf_counter()
    for dim in (DIM, DIM, PIXELS):
        vectors = torch.randn(size, dim)
        for block in vectors.split(512):
            block @ vectors.T
    return time.perf_counter() - start


def run(quick: bool) -> list[dict[str, Any]]:
    """Return the rows of the result."""
    size = 1000 if quick else 2000
    rows = [
        compare("verification", our_verification, verification_by_sklearn, "scikit-learn", size),
        compare("rankings without each class", our_rankings, rankings_by_loop, "plain loop", size),
    ]
    if not quick:
        seconds, whole, above = cost_in_new_process(10000, 100)
        work = "unseen 10000 images of 100 classes"
        rows.append(row_without_peer(work, seconds, "s"))
        rows[-1]["limit"] = matrix_products(10000)
        rows.append(row_without_peer(f"{work}, peak memory of the process", whole, "GB"))
        rows.append(row_without_peer(f"{work}, memory above the input", above, "GB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file for the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="1,000 images and no large split")
    options = parser.parse_args()
    rows = run(options.quick)
    print_rows(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
