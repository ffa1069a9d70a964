"""Compared networks, losses or mining modes: their scores, costs and paired tests."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from pipeline.escape import escape_formula
from pipeline.report.evaluated_run import EvaluatedRun, RunComparison, compare_runs_pairwise
from pipeline.report.formats import is_significant_p
from pipeline.report.shown_settings import applicable_settings
from stages.evaluation.results import Score
from stages.settings import EmbedSettings

MAIN = "classification_accuracy"  # decides which run is the best
METRICS = (MAIN, "knn_accuracy", "map_at_r")
SETTINGS = ("network", "weights", "trunk", "loss", "mining")
RANDOM = "random weights"
NOUNS = {
    "network": ("network", "networks"),
    "loss": ("loss", "losses"),
    "mining": ("mining mode", "mining modes"),
}


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One of the compared networks, losses or mining modes.

    Attributes:
        name: Name as the user gave it.
        settings: Settings of stage one, without ``auto``; None if they are invalid.
        size: Side of the images in pixels, if it is known.
        run: Evaluated run, or None if it has failed.
        error: Why it has failed; else empty.
        training_seconds: Seconds that both stages of training have taken, over all folds, without
            the features of a frozen trunk.
        seconds_per_image: Seconds to embed a decoded image; None if unknown.
        memory: Peak memory of embedding in bytes; None if unknown.
    """

    name: str
    settings: EmbedSettings | None
    size: int | None
    run: EvaluatedRun | None = None
    error: str = ""
    training_seconds: float | None = None
    seconds_per_image: float | None = None
    memory: int | None = None

    @property
    def starts_random(self) -> bool:
        """True for a network of a library without pretrained weights."""
        settings = self.settings
        if settings is None or self.name != settings.network:  # a loss or a mining mode
            return False
        return settings.from_library and settings.weights == "none"

    @property
    def title(self) -> str:
        """The name, with a remark if the network starts with random weights."""
        return f"{self.name} ({RANDOM})" if self.starts_random else self.name

    def score(self, metric: str) -> Score:
        """Return a score on the test split."""
        assert self.run is not None
        return self.run.evaluation.score(metric)


class Difference(NamedTuple):
    """Difference of the classification accuracies of two runs on the same images.

    Attributes:
        value: First minus second, in [-1, 1].
        low: Lower bound of the 95% confidence interval.
        high: Upper bound.
        p_value: P-value of the paired test.
        p_holm: P-value adjusted for the number of pairs.
    """

    value: float
    low: float
    high: float
    p_value: float
    p_holm: float

    @property
    def significant(self) -> bool:
        """True if the adjusted p-value is below 0.05."""
        return is_significant_p(self.p_holm)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result of `pipeline compare`.

    Attributes:
        field: Setting that differs: ``network``, ``loss`` or ``mining``.
        entries: Runs in the order in which they were given, with the failed ones.
        folds: Number of folds; 0 without cross-validation.
        interrupted: True if the comparison was interrupted, so some entries are missing.
    """

    field: str
    entries: tuple[ComparedRun, ...]
    folds: int = 0
    interrupted: bool = False

    @property
    def finished(self) -> tuple[ComparedRun, ...]:
        """The entries with an evaluated run."""
        return tuple(entry for entry in self.entries if entry.run is not None)

    @property
    def failed(self) -> tuple[ComparedRun, ...]:
        """The entries without an evaluated run."""
        return tuple(entry for entry in self.entries if entry.run is None)

    @property
    def runs(self) -> tuple[EvaluatedRun, ...]:
        """The evaluated runs."""
        return tuple(entry.run for entry in self.entries if entry.run is not None)

    @property
    def nouns(self) -> tuple[str, str]:
        """Noun for the compared setting, in the singular and the plural."""
        return NOUNS[self.field]

    @property
    def pairs(self) -> int:
        """Number of pairs of runs."""
        return len(self.runs) * (len(self.runs) - 1) // 2

    @cached_property
    def best(self) -> ComparedRun | None:
        """The run with the highest classification accuracy; the faster one of equal runs.

        None if no image of a known class was tested.
        """
        measured = [entry for entry in self.finished if entry.score(MAIN).count]

        def rank(entry: ComparedRun) -> tuple[float, float]:
            seconds = entry.seconds_per_image
            return -(entry.score(MAIN).value or 0), float("inf") if seconds is None else seconds

        return min(measured, key=rank) if measured else None

    @cached_property
    def tests(self) -> list[RunComparison]:
        """The paired tests of all metrics between the evaluated runs."""
        return compare_runs_pairwise(self.runs)[0]

    @cached_property
    def _main_tests(self) -> dict[tuple[str, str], RunComparison]:
        return {
            (item.run_a, item.run_b): item for item in self.tests if item.paired.metric_a == MAIN
        }

    def difference(self, a: ComparedRun, b: ComparedRun) -> Difference | None:
        """Return the difference of two runs' classification accuracies, or None if undefined."""
        item = self._main_tests.get((a.name, b.name))
        sign = 1
        if item is None:
            item, sign = self._main_tests.get((b.name, a.name)), -1
        if item is None or item.p_holm is None:
            return None
        paired = item.paired
        if paired.difference is None or paired.low is None or paired.high is None:
            return None
        assert paired.p_value is not None  # as p_holm
        low, high = sorted((sign * paired.low, sign * paired.high))
        # Adding 0 turns a negative zero into zero.
        return Difference(sign * paired.difference + 0.0, low, high, paired.p_value, item.p_holm)


def compared_table(comparison: Comparison) -> pd.DataFrame:
    """Return `compared.csv`: one row per network, loss or mining mode, with the failed ones.

    Args:
        comparison: Result of the comparison.
    """
    best = comparison.best
    rows = []
    for entry in comparison.entries:
        row: dict[str, object] = {"run": escape_formula(entry.name)}
        applicable = applicable_settings(vars(entry.settings)) if entry.settings else {}
        for name in SETTINGS:
            value = applicable.get(name)
            row[name] = None if value is None else escape_formula(str(value))
        row["size"] = entry.size
        for metric in METRICS:
            score = entry.score(metric) if entry.run else None
            row[metric] = score and _rounded(score.value)
            row[f"{metric}_low"] = score and _rounded(score.low)
            row[f"{metric}_high"] = score and _rounded(score.high)
        difference = None
        if best and entry.run and entry is not best:
            difference = comparison.difference(entry, best)
        row["compared_with"] = escape_formula(best.name) if best and difference else None
        row["difference"] = difference and _rounded(difference.value)
        row["difference_low"] = difference and _rounded(difference.low)
        row["difference_high"] = difference and _rounded(difference.high)
        row["p_value"] = difference and f"{difference.p_value:.6g}"
        row["p_holm"] = difference and f"{difference.p_holm:.6g}"
        row["seconds_per_image"] = _significant(entry.seconds_per_image)
        row["memory_bytes"] = entry.memory
        row["training_seconds"] = _significant(entry.training_seconds)
        row["error"] = escape_formula(entry.error) or None
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _significant(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
