"""CSV and terminal tables."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.escape import escape_formula
from pipeline.report.evaluated_run import EvaluatedRun, RunComparison, compare_runs_pairwise
from stages.evaluation.metrics import METRICS
from stages.evaluation.pooling import pool_runs
from stages.evaluation.results import Evaluation, Score
from stages.evaluation.scores import WITHOUT_DUPLICATES

SCORE_COLUMNS = ("run", "metric", "split", "value", "ci_low", "ci_high", "count", "definition")


PAIRED_COLUMNS = (
    "run_a metric_a run_b metric_b split difference ci_low ci_high p_value count test".split()  # noqa: SIM905  # as the contract has it
)


def accuracy_table(comparisons: Sequence[EvaluatedRun], *, pooled: bool = False) -> pd.DataFrame:
    """One row a run and figure, with the contract's columns; pooled, the runs `mean` and `std` too; of folds, each and `std`."""
    runs = [(run.run, run.evaluation.scores) for one in comparisons for run in (*one.folds, one)]
    runs += [("std", one.deviation) for one in comparisons if one.folds]
    if pooled:
        runs += zip(
            ("mean", "std"), pool_runs([one.evaluation for one in comparisons]), strict=True
        )
    rows = [
        (
            escape_formula(run),
            s.metric,
            s.split,
            _digits(s.value),
            _digits(s.low),
            _digits(s.high),
            s.count,
            s.definition,
        )
        for run, scores in runs
        for s in scores
    ]
    return pd.DataFrame(rows, columns=list(SCORE_COLUMNS))


def comparison_table(comparisons: Sequence[EvaluatedRun], *, pooled: bool = False) -> pd.DataFrame:
    """One row a paired test, within each run and between runs on the same images, with the contract's columns."""
    within = [
        RunComparison(one.run, one.run, paired)
        for one in comparisons
        for paired in one.evaluation.paired_tests
    ]
    between = [] if pooled else compare_runs_pairwise(comparisons)[0]
    rows = [
        (
            *(escape_formula(run_a), p.metric_a, escape_formula(run_b), p.metric_b, p.split),
            *(
                _digits(p.difference),
                _digits(p.low),
                _digits(p.high),
                "" if p.p_value is None else f"{p.p_value:.6g}",
            ),
            *(p.count, p.test),
        )
        for run_a, run_b, p in (*within, *between)
    ]
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def prediction_table(comparison: EvaluatedRun) -> pd.DataFrame:
    """One row a test image, with the contract's columns."""
    test, prediction = comparison.images, comparison.evaluation.prediction
    names = np.array([escape_formula(name) for name in test.classes], dtype=object)
    triplet = [
        ("" if math.isnan(value) else f"{value:.6f}") for value in prediction.triplet_accuracy
    ]
    return pd.DataFrame(
        {
            "run": escape_formula(comparison.run),
            "id": [escape_formula(name) for name in test.ids],
            "label": names[test.labels.numpy()],
            "knn_label": names[prediction.knn],
            "classifier_label": names[prediction.classifier],
            "classifier_probability": [f"{value:.6f}" for value in prediction.probability],
            "triplet_accuracy": triplet,
            "nearest_id": [
                escape_formula(comparison.gallery_ids[row]) for row in prediction.nearest
            ],
        }
    )


def text_table(comparisons: Sequence[EvaluatedRun], *, pooled: bool = False) -> str:
    """The comparison for a terminal: one run with its intervals, several side by side."""
    if len(comparisons) == 1:
        lines = [f"{'':34}{'value':>8}   {'95 % interval':<18}{'counted':>14}"]
        for score in shown_scores(comparisons[0].evaluation):
            value = "-" if score.value is None else f"{score.value:.4f}"
            interval = (
                ""
                if score.low is None or score.high is None
                else f"{score.low:.4f} to {score.high:.4f}"
            )
            unit = "triplets" if score.metric == "triplet_accuracy" else "images"
            lines.append(
                f"{score_title(score):34}{value:>8}   {interval:<18}{score.count:>14,} {unit}"
            )
        return "\n".join(lines)
    names, rows = side_by_side(comparisons, pooled=pooled)
    widths = [max(8, len(name)) + 2 for name in names]
    lines = [
        " " * 34 + "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    ]
    for title, scores in rows:
        cells = ("-" if score.value is None else f"{score.value:.4f}" for score in scores)
        lines.append(
            f"{title:34}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    return "\n".join(lines)


def shown_scores(scored: Evaluation) -> list[Score]:
    """The figures that people see: those without duplicates only where there are duplicates."""
    both = zip(
        *(
            [score for score in scored.scores if score.split == split]
            for split in ("test", WITHOUT_DUPLICATES)
        ),
        strict=True,
    )
    return [score for pair in both for score in (pair if scored.leaked else pair[:1])]


def score_title(score: Score) -> str:
    return METRICS[score.metric].title + (
        ", no copies" if score.split == WITHOUT_DUPLICATES else ""
    )


def side_by_side(
    comparisons: Sequence[EvaluatedRun], *, pooled: bool
) -> tuple[list[str], list[tuple[str, list[Score]]]]:
    runs = [(one.run, one.evaluation.scores) for one in comparisons]
    if pooled:
        runs += zip(
            ("mean", "std"), pool_runs([one.evaluation for one in comparisons]), strict=True
        )
    leaked = any(one.evaluation.leaked for one in comparisons)
    rows = [
        (score_title(same[0]), list(same))
        for same in zip(*(scores for _, scores in runs), strict=True)
    ]
    rows.sort(
        key=lambda row: list(METRICS).index(row[1][0].metric)
    )  # with copies and without, side by side
    return [name for name, _ in runs], [row for row in rows if leaked or row[1][0].split == "test"]
