"""Evaluated runs and the paired tests between them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch

from pipeline.data.dataset import Dataset
from pipeline.enrolments import enrolled_count
from stages.evaluation.holm import holm_adjust
from stages.evaluation.paired_tests import compare_runs
from stages.evaluation.results import Evaluation, PairedTest, Score
from stages.records import Embeddings, Split

POOLED = "pooled"  # name of the run that pools all folds, if nothing is compared


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """A trained run and its scores on the test split.

    Attributes:
        run: Name of the run.
        embedding: Record of the embedding checkpoint.
        classifier: Record of the classifier checkpoint.
        data: Images and splits of the run.
        test: Embeddings of the test images of known classes.
        gallery: Embeddings of the training images, and then of enrolled ones.
        gallery_ids: Ids of these images.
        evaluation: Scores, paired tests and predictions on the test images.
        validation: Embeddings of the validation images, if there are any.
        rejection_distance: Distance to the nearest training image above which an image is rejected
            by default; infinite if none is, or if it differs from fold to fold.
        folds: The pooled runs, repeat by repeat. Empty without cross-validation.
        deviation: Standard deviation of each score over repeats, or over folds without repeats.
        whole: Data set with all test images, if those of ``data`` are a random sample of them.
    """

    run: str
    embedding: Mapping[str, Any]
    classifier: Mapping[str, Any]
    data: Dataset
    test: Embeddings
    gallery: Embeddings
    gallery_ids: tuple[str, ...]
    evaluation: Evaluation
    validation: Embeddings | None = None
    rejection_distance: float = math.inf
    folds: tuple["EvaluatedRun", ...] = ()
    deviation: tuple[Score, ...] = ()
    whole: Dataset | None = None

    @property
    def images(self) -> Split:
        """Return the test images of known classes. There are none if all classes are unseen."""
        return self.data.test or self.data.train.select(torch.empty(0, dtype=torch.int64))

    @property
    def pretrained(self) -> bool:
        """Return True if training started from a pretrained trunk."""
        return bool(self.embedding.get("weights"))

    @property
    def enrolled(self) -> bool:
        """Return True if images were enrolled into the classifier."""
        return enrolled_count(self.classifier) > 0

    @property
    def training(self) -> Embeddings:
        """Return the gallery without enrolled images."""
        rows = slice(len(self.gallery) - enrolled_count(self.classifier))
        gallery = self.gallery
        return Embeddings(gallery.vectors[rows], gallery.labels[rows], gallery.classes)

    @property
    def calibration_count(self) -> int:
        """Return the number of validation images, the most of all folds.

        Typicality compares images near the classes that were trained on with them.
        """
        return max(int(run.embedding["counts"]["val"]) for run in self.folds or (self,))

    @property
    def enrolled_calibration_count(self) -> int | None:
        """Return the number of enrolled images with which images near new classes are compared.

        None without a new class.
        """
        enrolments = self.classifier.get("enrolled", ())
        if not any(item["new_classes"] for item in enrolments):
            return None
        return sum(int(item["distances"]) for item in enrolments)

    @property
    def calibrated(self) -> bool:
        """Return True if the temperature was fitted, in at least one of the folds."""
        return any(run.classifier["calibrated"] for run in self.folds or (self,))

    @property
    def repeats(self) -> int:
        """Return the number of predictions per test image."""
        if not self.test:
            return 1
        return len(self.images) // self.evaluation.score("knn_accuracy").count


class RunComparison(NamedTuple):
    """A paired test between two runs.

    Attributes:
        run_a: Name of the first run.
        run_b: Name of the second run.
        paired: Result of the test, ``run_a`` minus ``run_b``.
        p_holm: P-value adjusted by Holm's method for the number of pairs of runs; None for a test
            within one run.
    """

    run_a: str
    run_b: str
    paired: PairedTest
    p_holm: float | None = None


def compare_runs_pairwise(
    runs: Sequence[EvaluatedRun],
) -> tuple[list[RunComparison], list[str]]:
    """Compare each run with each later one.

    Args:
        runs: Evaluated runs with unique names.

    Returns:
        The paired tests, with p-values adjusted for the number of pairs within a metric, and one
        message per pair of runs whose test images differ.
    """
    comparisons: list[RunComparison] = []
    messages = []
    for a, b in combinations(runs, 2):
        fingerprints = str(a.embedding["fingerprint"]), str(b.embedding["fingerprint"])
        if fingerprints[0] == fingerprints[1] and a.images.ids == b.images.ids:
            tests = compare_runs(a.evaluation, b.evaluation)
            comparisons += [RunComparison(a.run, b.run, paired) for paired in tests]
        else:
            messages.append(
                f"{a.run} and {b.run} cannot be compared image by image: their test splits differ "
                f"(fingerprints {fingerprints[0][:12]} and {fingerprints[1][:12]}); "
                "train both on the same source with the same --split-seed"
            )
    return _with_adjusted_p_values(comparisons), messages


def _with_adjusted_p_values(comparisons: Sequence[RunComparison]) -> list[RunComparison]:
    """Adjust the p-values of each metric for the number of pairs of runs."""
    adjusted = list(comparisons)
    for metric in {comparison.paired.metric_a for comparison in comparisons}:
        rows = [row for row, item in enumerate(comparisons) if item.paired.metric_a == metric]
        values = holm_adjust([comparisons[row].paired.p_value for row in rows])
        for row, value in zip(rows, values, strict=True):
            adjusted[row] = comparisons[row]._replace(p_holm=value)
    return adjusted
