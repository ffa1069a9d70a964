"""Compare a frozen trunk with our projection to logistic regression on the same trunk's features.

    python -m benchmarks.frozen_trunk --work DIR           # all sets that are installed
    python -m benchmarks.frozen_trunk --work DIR --quick   # three small sets, in some minutes
    python -m benchmarks.frozen_trunk --work DIR --sets photos,oxygen --network efficientnet-lite2

Each set is cross-validated with `--trunk frozen --weights default` and otherwise default settings.
kNN and classification are ours; the baselines are kNN and scikit-learn's logistic regression on the
trunk's features, with C and k chosen on the same validation images. The paired test is McNemar's,
over all images of the set. `benchmarks/photo_sets.py` lists the sets and what to install for them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.photo_sets import NAMES, PhotoSet, photo_sets, write_manifest
from pipeline.commands.folds import run_folds
from pipeline.context import RunContext
from stages.evaluation.paired_tests import mcnemar_test
from stages.evaluation.results import Evaluation
from stages.settings import ClassifySettings, EmbedSettings, ReadSettings

QUICK = ("photos", "animals", "gnome")
# Our score, the baseline that it should not be below, and who computes the baseline.
PAIRS = (
    ("classification_accuracy", "trunk_logistic_accuracy", "scikit-learn"),
    ("knn_accuracy", "trunk_knn_accuracy", "plain loop"),
)


def cross_validate(photos: PhotoSet, options: argparse.Namespace) -> tuple[Evaluation, float]:
    """Return the pooled evaluation of all folds, and the seconds that they took."""
    manifest = write_manifest(photos, options.work / f"{photos.name}.csv")
    settings = EmbedSettings(
        network=options.network, weights="default", trunk="frozen", seed=options.seed
    )
    context = RunContext(
        device="cpu", quiet=True, cache=options.work / "cache", threads=options.threads
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (run,) = run_folds(
            str(manifest),
            ReadSettings(split_seed=options.seed),
            settings,
            ClassifySettings(),
            folds=options.folds,
            out=Path(folder),
            context=context,
        )
    return run.evaluation, time.perf_counter() - start


def compare(photos: PhotoSet, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Print the scores and paired tests of a set, and return them as rows."""
    rows = []
    for ours, baseline, peer in PAIRS:
        a, b = evaluation.score(ours), evaluation.score(baseline)
        correct = evaluation.correct
        test = mcnemar_test(ours, baseline, "test", correct[ours], correct[baseline])
        for score in (a, b):
            print(f"  {score.metric:24} {score.value:.3f} ({score.low:.3f} to {score.high:.3f})")
        print(
            f"  difference {100 * test.difference:+.1f} points "
            f"({100 * test.low:+.1f} to {100 * test.high:+.1f}), p = {test.p_value:.3f}",
            flush=True,
        )
        row = {
            "work": f"{photos.name} {a.count} images {ours}",
            "ours": a.value,
            "peer": b.value,
            "peer_name": peer,
            "ratio": a.value / b.value,
            "limit": None,
            "unit": "accuracy",
            "difference": test.difference,
            "ci_low": test.low,
            "ci_high": test.high,
            "p_value": test.p_value,
        }
        rows.append(row)
    return rows


def main() -> None:
    """Parse the options, cross-validate the sets and print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder for tables and caches, kept for reruns")
    parser.add_argument("--sets", help=f"comma-separated, of: {', '.join(NAMES)}")
    parser.add_argument("--network", default="efficientnet-lite0")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = tuple(options.sets.split(",")) if options.sets else QUICK if options.quick else NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"--sets {', '.join(sorted(unknown))}: unknown; use {', '.join(NAMES)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        for photos in photo_sets(options.work, names):
            evaluation, seconds = cross_validate(photos, options)
            classes = len({label for _, label in photos.files})
            print(
                f"{photos.name}: {len(photos.files):,} images of {classes} classes, "
                f"{options.folds} folds in {seconds:.0f} s"
            )
            rows += compare(photos, evaluation)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
