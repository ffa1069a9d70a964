"""Compare the pretrained trunks that pip can install on public sets of photos and icons.

    python -m benchmarks.trunks --work DIR [--sets photos,animals,...] [--json FILE]

Each set is divided into five stratified folds. Every image is classified once, by logistic
regression on the frozen trunk's features of the images in the other folds, with the same penalty
for all trunks. Trunks are compared image by image with McNemar's test. The pooled rows count each
image once: the sets `photos` and `animals` are parts of `stamps`, so they are not in it.

Features are kept in DIR. Seconds per image are medians over blocks of 16 images on one thread; the
trunks take turns, so that other work on the machine slows down all of them alike.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from benchmarks.photo_sets import Files, photo_sets
from pipeline.data.decode import read_pixels
from pipeline.weights import input_spec, load_weights
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.statistics import wilson_interval
from stages.evaluation.trunk_baselines import logistic_regression
from stages.network.embedding_net import EmbeddingNet
from stages.settings import EFFICIENTNETS, EmbedSettings

SETS = ("photos", "animals", "stamps", "oxygen", "gnome")
POOLED = ("stamps", "oxygen", "gnome")  # no image is in two of them
FOLDS, BLOCK, TIMED_BLOCKS = 5, 16, 7


def load_trunk(name: str) -> EmbeddingNet:
    """Return a network with a trunk's ImageNet weights, at the size that they expect."""
    weights = load_weights(EmbedSettings(network=name, weights="default", trunk="frozen"))
    assert weights is not None
    network = EmbeddingNet(
        3,
        input_spec(name).size,
        128,
        name=name,
        trunk="frozen",
        pretrained=True,
        mean=weights.mean,
        std=weights.std,
    )
    network.load_trunk(weights.tensors, where=name)
    return network.eval()


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Read image files, uint8 (N, 3, size, size)."""
    images = []
    for path in paths:
        pixels = read_pixels(str(path), size=size, channels=3, resize="pad-repeat")
        if isinstance(pixels, str):
            raise SystemExit(f"{path}: {pixels}")
        images.append(torch.from_numpy(pixels.copy()))
    return torch.stack(images)


def features_of(network: EmbeddingNet, files: Files, work: Path) -> Tensor:
    """Return the trunk features of image files, float32 (N, F); computed once per file."""
    cache = work / f"{network.config['name']}.features.pt"
    known: dict[str, Tensor] = torch.load(cache) if cache.exists() else {}
    missing = [path for path, _ in files if str(path) not in known]
    with torch.inference_mode():
        for start in range(0, len(missing), BLOCK):
            paths = missing[start : start + BLOCK]
            rows = network.features(read_images(paths, int(str(network.config["size"]))))
            known |= {str(path): row.clone() for path, row in zip(paths, rows, strict=True)}
    if missing:
        torch.save(known, cache)
    return torch.stack([known[str(path)] for path, _ in files])


def classified_correctly(features: Tensor, labels: np.ndarray) -> np.ndarray:
    """Return True for each image that logistic regression on the other folds classifies right."""
    correct = np.zeros(len(labels), bool)
    targets = torch.from_numpy(labels)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(np.zeros(len(labels)), labels):
        predictions = logistic_regression(features[test], features[train], targets[train])
        correct[test] = predictions.labels == labels[test]
    return correct


def seconds_per_image(networks: Sequence[EmbeddingNet], files: Files) -> dict[str, float]:
    """Return each trunk's median seconds per image on one thread; the trunks take turns."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {str(network.config["name"]): [] for network in networks}
    paths = [path for path, _ in files[:BLOCK]]
    blocks = [read_images(paths, int(str(network.config["size"]))) for network in networks]
    with torch.inference_mode():
        for _ in range(TIMED_BLOCKS + 1):
            for network, images in zip(networks, blocks, strict=True):
                start = time.perf_counter()
                network.features(images)
                times[str(network.config["name"])].append((time.perf_counter() - start) / BLOCK)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def accuracy_rows(results: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return one row per set and trunk, and one per set and pair of trunks."""
    rows: list[dict[str, Any]] = []
    for name, trunks in results.items():
        for trunk, correct in trunks.items():
            low, high = wilson_interval(correct.mean(), len(correct))
            scores = {"value": correct.mean(), "ci_low": low, "ci_high": high}
            rows.append({"set": name, "trunk": trunk, "count": len(correct), **scores})
        for a, b in combinations(trunks, 2):
            paired = mcnemar_test(a, b, "test", trunks[a], trunks[b])
            scores = {"value": paired.difference, "ci_low": paired.low}
            scores |= {"ci_high": paired.high, "p_value": paired.p_value}
            rows.append({"set": name, "trunk": f"{a} - {b}", "count": paired.count, **scores})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--trunks", default=",".join(EFFICIENTNETS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sets = photo_sets(arguments.work, tuple(arguments.sets.split(",")))
    networks = [load_trunk(name) for name in arguments.trunks.split(",")]
    results: dict[str, dict[str, np.ndarray]] = {}
    for photos in sets:
        _, labels = np.unique([label for _, label in photos.files], return_inverse=True)
        for network in networks:
            features = features_of(network, photos.files, arguments.work)
            correct = classified_correctly(features, labels)
            results.setdefault(photos.name, {})[str(network.config["name"])] = correct
    pooled = [results[name] for name in POOLED if name in results]
    results["pooled"] = {
        str(network.config["name"]): np.concatenate(
            [correct[str(network.config["name"])] for correct in pooled]
        )
        for network in networks
    }
    rows = accuracy_rows(results)
    for row in rows:
        interval = f"{row['value']:7.2%}  {row['ci_low']:7.2%} to {row['ci_high']:7.2%}"
        p_value = f"  p = {row['p_value']:.3f}" if "p_value" in row else ""
        print(f"{row['set']:8} {row['count']:5} {row['trunk']:40} {interval}{p_value}")
    seconds = seconds_per_image(networks, sets[0].files)
    for name, value in seconds.items():
        print(f"{name}: {value * 1000:.1f} ms per image")
    if arguments.json:
        arguments.json.write_text(json.dumps({"scores": rows, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
