"""Time and accuracy of `pipeline embed` from image files on, compared with a peer's recipe.

    python benchmarks/training.py --accuracy [--sets mnist,fashion] [--epochs 1,2,3,default]

Each training is a new process, and the time is that of the whole process: start-up,
decoding, training, validation and saving. The peer's recipe is `benchmarks/peer_recipe.py`, five
epochs. Ours has default settings except for the number of epochs; `default` leaves that open too.
The sets have about 4,000 training images of 28 x 28 pixels, `benchmarks/image_folders.py`. The test
images are read once, after all training. Accuracy is that of kNN with k = 5.

For each number of epochs: median seconds and mean accuracy over the seeds, with 95% confidence
intervals over images, because the seeds share them. At the end of each set: how much sooner than
the peer the first of our runs ends whose mean accuracy is at least the peer's.
"""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peer_recipe
from benchmarks.image_folders import SETS
from pipeline.checkpoint import load_embedding
from pipeline.data.dataset import Dataset
from pipeline.data.sources import load_dataset
from stages.evaluation.knn import knn
from stages.network.embedding_net import EmbeddingNet
from stages.network.inference import embed_split
from stages.network.initialization import pixel_statistics
from stages.settings import ReadSettings

ROOT = Path(__file__).resolve().parents[1]
PEER = "pytorch-metric-learning"
CPU = torch.device("cpu")
Row = dict[str, Any]
Runs = dict[str, list[EmbeddingNet]]
Seconds = dict[str, list[float]]


def measure(
    folder: Path, *, sets: Sequence[str], epochs: Sequence[str], network: str, seeds: Sequence[int]
) -> list[Row]:
    """Train all contenders on all sets and return one row per set and number of epochs."""
    rows = []
    for name in sets:
        root = SETS[name](folder / name)
        data = load_dataset(str(root), ReadSettings(), cache=folder / "cache")
        contenders = [*(["peer"] if network == "conv" else []), *epochs]  # its only network is conv
        seconds: Seconds = {contender: [] for contender in contenders}
        trained: Runs = {contender: [] for contender in contenders}
        for seed in seeds:
            for contender in contenders:
                ending = "pt" if contender == "peer" else "safetensors"
                out = folder / f"{name}-{contender}-{seed}.{ending}"
                command = (
                    peer_command(root, data, seed, out)
                    if contender == "peer"
                    else our_command(root, network, contender, seed, out)
                )
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
                seconds[contender].append(time.perf_counter() - start)
                trained[contender].append(load(out, data, is_peer=contender == "peer"))
        rows += compare(f"{name} {network}", data, seconds, trained)
    return rows


def our_command(root: Path, network: str, epochs: str, seed: int, out: Path) -> list[str]:
    command = [sys.executable, "-m", "pipeline", "embed", "--data", str(root), "--quiet"]
    command += ["--network", network, "--seed", str(seed), "--device", "cpu", "--out", str(out)]
    command += ["--cache", f"{out}.cache"]  # a new one: decoding is part of the time
    return command if epochs == "default" else [*command, "--epochs", epochs]


def peer_command(root: Path, data: Dataset, seed: int, out: Path) -> list[str]:
    mean, std = pixel_statistics(data.train)
    command = [sys.executable, "-m", "benchmarks.peer_recipe", str(root), "--out", str(out)]
    return [*command, "--seed", str(seed), "--mean", str(float(mean)), "--std", str(float(std))]


def load(path: Path, data: Dataset, *, is_peer: bool) -> EmbeddingNet:
    if not is_peer:
        return load_embedding(path).network
    network = peer_recipe.new_network(0.0, 1.0)
    network.load_state_dict(torch.load(path))
    return network.eval()


def correct_by_knn(network: EmbeddingNet, data: Dataset) -> np.ndarray:
    """Return 1 per test image that kNN with k = 5 classifies correctly, else 0; float (N,)."""
    assert data.test is not None
    gallery = embed_split(network, data.train, device=CPU)
    queries = embed_split(network, data.test, device=CPU)
    predicted = knn(queries.vectors, gallery.vectors, gallery.labels, k=5).labels
    return (predicted == data.test.labels.numpy()).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% confidence interval of the mean over images."""
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def compare(work: str, data: Dataset, seconds: Seconds, trained: Runs) -> list[Row]:
    correct = {
        name: np.array([correct_by_knn(network, data) for network in networks])  # (seeds, images)
        for name, networks in trained.items()
    }
    rows: list[Row] = []
    for name, runs in correct.items():
        row: Row = {
            "work": f"{work}: {'peer' if name == 'peer' else f'{name} epochs'}",
            "seconds": statistics.median(seconds[name]),
            "accuracy": float(runs.mean()),
            "interval": interval(runs.mean(0)),
            "each": [round(float(run.mean()), 4) for run in runs],
            "each_seconds": [round(value, 2) for value in seconds[name]],
        }
        if name != "peer" and "peer" in correct:
            row["difference"] = interval(runs.mean(0) - correct["peer"].mean(0))
            row["ratio"] = statistics.median(seconds["peer"]) / row["seconds"]
        rows.append(row)
    if "peer" in correct:
        as_good = [row for row in rows[1:] if row["accuracy"] >= rows[0]["accuracy"]]
        best = min(as_good, key=lambda row: float(row["seconds"]), default=None)
        rows[0]["sooner"] = best and best["ratio"]
    return rows


def describe(row: Row) -> str:
    low, high = row["interval"]
    text = f"{row['work']:32} {row['seconds']:6.1f} s  {row['accuracy']:.4f} ({low:.4f}–{high:.4f})"
    if "difference" in row:
        low, high = row["difference"]
        text += f"  {row['ratio']:.1f} x as fast as {PEER}, difference {low:+.4f} to {high:+.4f}"
    if row.get("sooner"):
        text += f"  reached {row['sooner']:.1f} times as fast by ours"
    return f"{text}  each {row['each']}"
