"""CSV tables and the table for the terminal."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pipeline.escape import escape_formula
from pipeline.numbers import format_share
from pipeline.report.evaluated_run import (
    POOLED,
    EvaluatedRun,
    RunComparison,
)
from pipeline.report.formats import LEVEL
from stages.evaluation.metric_definitions import METRICS
from stages.evaluation.pooling import pool_runs
from stages.evaluation.results import ENROLLED, UNSEEN, Evaluation, Predictions, Score
from stages.evaluation.scores import WITHOUT_DUPLICATES
from stages.records import Split
from stages.settings import REJECT

SCORE_COLUMNS = ["run", "metric", "split", "value", "ci_low", "ci_high", "count", "definition"]
PAIRED_COLUMNS = [
    *("run_a", "metric_a", "run_b", "metric_b", "split"),
    *("difference", "ci_low", "ci_high", "p_value", "count", "test", "p_holm"),
]


def accuracy_table(runs: Sequence[EvaluatedRun], *, pooled: bool = False) -> pd.DataFrame:
    """Return `accuracy.csv`: one row per run and score.

    Folds have rows of their run, of each fold and of the standard deviation, ``std``, or
    ``NAME/std`` where several networks are compared.

    Args:
        runs: Evaluated runs.
        pooled: True to add the runs ``mean`` and ``std``.
    """
    with_folds = [fold_or_run for run in runs for fold_or_run in (*run.folds, run)]
    named_scores = [(run.run, run.evaluation.scores) for run in with_folds]
    for run in runs:
        if run.folds:
            name = "std" if run.run == POOLED else f"{run.run}/std"
            named_scores.append((name, run.deviation))
    if pooled:
        named_scores += _mean_and_deviation(runs)
    rows = [
        [
            *(escape_formula(name), score.metric, score.split),
            *(_share(score.value), _share(score.low), _share(score.high)),
            *(score.count, score.definition),
        ]
        for name, scores in named_scores
        for score in scores
    ]
    return pd.DataFrame(rows, columns=SCORE_COLUMNS, dtype=object)


def comparison_table(
    runs: Sequence[EvaluatedRun], comparisons: Sequence[RunComparison] = ()
) -> pd.DataFrame:
    """Return `comparisons.csv`: one row per paired test, within each run and between runs.

    Args:
        runs: Evaluated runs.
        comparisons: Paired tests between the runs.
    """
    within = [
        RunComparison(run.run, run.run, paired)
        for run in runs
        for paired in run.evaluation.paired_tests
    ]
    rows = [
        [
            *(escape_formula(run_a), paired.metric_a, escape_formula(run_b), paired.metric_b),
            *(paired.split, _difference(paired.difference)),
            *(_difference(paired.low), _difference(paired.high), _p_value(paired.p_value)),
            *(paired.count, paired.test, _p_value(p_holm)),
        ]
        for run_a, run_b, paired, p_holm in (*within, *comparisons)
    ]
    return pd.DataFrame(rows, columns=PAIRED_COLUMNS, dtype=object)


def prediction_table(run: EvaluatedRun) -> pd.DataFrame:
    """Return the rows of `predictions.csv` for one run: one row per test image.

    Images of classes that were not trained on come last, with the split ``test-unseen``, or
    ``test-enrolled`` if the class was enrolled.
    """
    table = _prediction_rows(run, run.images, run.evaluation.prediction, "test")
    if run.data.unseen is None or run.evaluation.unseen_prediction is None:
        return table
    unseen = _prediction_rows(run, run.data.unseen, run.evaluation.unseen_prediction, UNSEEN)
    if run.evaluation.enrolled is not None:
        unseen.loc[run.evaluation.enrolled, "split"] = ENROLLED
    return pd.concat([table, unseen])


def _prediction_rows(
    run: EvaluatedRun, images: Split, prediction: Predictions, split: str
) -> pd.DataFrame:
    labels = np.array([escape_formula(name) for name in images.classes], dtype=object)
    predicted = np.array([escape_formula(name) for name in run.test.classes], dtype=object)
    nearest_ids = [run.gallery_ids[row] for row in prediction.nearest]
    rejected = prediction.typicality < REJECT  # NaN is not below
    return pd.DataFrame(
        {
            "run": escape_formula(run.run),
            "id": [escape_formula(name) for name in images.ids],
            "label": labels[images.labels.numpy()],
            "knn_label": predicted[prediction.knn],
            "classifier_label": predicted[prediction.classifier],
            "classifier_probability": [_share(value) for value in prediction.probability],
            "triplet_accuracy": [_share(value) for value in prediction.triplet_accuracy],
            "nearest_id": [escape_formula(name) for name in nearest_ids],
            "split": split,
            "typicality": [_share(value) for value in prediction.typicality],
            "known": np.where(rejected, "false", "true"),
        },
        # pandas would make text of pyarrow, if that is installed, which cannot hold a file name
        # that is not UTF-8.
        dtype=object,
    )


def text_table(runs: Sequence[EvaluatedRun], *, pooled: bool = False) -> str:
    """Return the scores for a terminal.

    Args:
        runs: Evaluated runs. One run is shown with its intervals, several in columns.
        pooled: True to add the columns ``mean`` and ``std``.
    """
    if len(runs) == 1:
        return _single_run_table(shown_scores(runs[0].evaluation))
    names, rows = side_by_side(runs, pooled=pooled)
    width = max(len(title) for title, _ in rows)
    lines = [" " * width + _columns(names, names)]
    for title, scores in rows:
        values = [_share(score.value, 4, missing="-") for score in scores]
        lines.append(f"{title:{width}}" + _columns(names, values))
    return "\n".join(lines)


def shown_scores(evaluation: Evaluation) -> list[Score]:
    """Return the scores in the order of the report.

    Scores without duplicates are left out if there are no duplicates, and undefined scores of
    unseen classes, or if there are no test images of known classes.
    """
    keys = {(score.metric, score.split) for score in evaluation.scores}
    scores = [evaluation.score(*key) for key in _in_order(keys, evaluation.leaked)]
    tested = len(evaluation.prediction.knn) > 0
    return [score for score in scores if score.count or (tested and score.split != UNSEEN)]


def _in_order(keys: Iterable[tuple[str, str]], leaked: object) -> list[tuple[str, str]]:
    """Sort metrics and splits: unseen classes last, a metric without duplicates below itself."""
    order = list(METRICS)
    shown = [key for key in keys if leaked or key[1] != WITHOUT_DUPLICATES]
    return sorted(shown, key=lambda key: (key[1] == UNSEEN, order.index(key[0]), key[1]))


def score_title(score: Score) -> str:
    """Return the title of a score's metric, with its split where that is not clear."""
    metric = METRICS[score.metric]
    suffix = ", without duplicates" if score.split == WITHOUT_DUPLICATES else ""
    if score.split == ENROLLED:
        suffix = ", enrolled classes"
    if score.split == UNSEEN and metric.group != "unknown":
        suffix = ", unseen classes"
    return metric.title + suffix


def side_by_side(
    runs: Sequence[EvaluatedRun], *, pooled: bool
) -> tuple[list[str], list[tuple[str, list[Score]]]]:
    """Return the names of the runs, and a title and the runs' scores per metric and split.

    Args:
        runs: Evaluated runs.
        pooled: True to add the runs ``mean`` and ``std``.
    """
    named_scores = [(run.run, run.evaluation.scores) for run in runs]
    if pooled:
        named_scores += _mean_and_deviation(runs)
    by_key = [
        {(score.metric, score.split): score for score in scores} for _, scores in named_scores
    ]
    leaked = any(run.evaluation.leaked for run in runs)
    rows = []
    for metric, split in _in_order({key for scores in by_key for key in scores}, leaked):
        missing = Score.undefined(metric, split, "not measured in this run")
        same = [scores.get((metric, split), missing) for scores in by_key]
        rows.append((score_title(missing), same))
    return [name for name, _ in named_scores], rows


def _mean_and_deviation(runs: Sequence[EvaluatedRun]) -> list[tuple[str, tuple[Score, ...]]]:
    means, deviations = pool_runs([run.evaluation for run in runs])
    return [("mean", means), ("std", deviations)]


def _single_run_table(scores: Sequence[Score]) -> str:
    cells = [("", "value", "95% CI", "count")]
    for score in scores:
        interval = ""
        if score.low is not None and score.high is not None:
            interval = f"{format_share(score.low, 4)}\u2013{format_share(score.high, 4)}"
        value = _share(score.value, 4, missing="-")
        cells.append((score_title(score), value, interval, f"{score.count:,}"))
    titles, values, intervals, _ = zip(*cells, strict=True)
    width = max(map(len, titles))
    # Scores next to 0 and 1 have more decimals than others.
    value_width = max(8, max(map(len, values)) + 1)
    interval_width = max(18, max(map(len, intervals)) + 1)
    units = ["", *(" " + _unit(score) for score in scores)]
    return "\n".join(
        f"{title:{width}}{value:>{value_width}}   {interval:<{interval_width}}{count:>11}{unit}"
        for (title, value, interval, count), unit in zip(cells, units, strict=True)
    )


def _unit(score: Score) -> str:
    unit = METRICS[score.metric].unit
    return unit if score.count == 1 else f"{unit}s"


def _columns(names: Sequence[str], texts: Sequence[str]) -> str:
    """Return one line of a table, right-aligned in columns that fit the names."""
    widths = [max(8, len(name)) + 2 for name in names]
    return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))


def _share(value: float | None, decimals: int = 6, *, missing: str = "") -> str:
    return missing if value is None or math.isnan(value) else format_share(value, decimals)


def _difference(value: float | None) -> str:
    """Return 6 decimals, and all digits where they would round to -1, 0 or 1."""
    if value is None:
        return ""
    text = f"{value:.6f}"
    return repr(float(value)) if float(text) in (-1, 0, 1) and float(text) != value else text


def _p_value(value: float | None) -> str:
    """Return 6 digits, and all digits where they would hide that the value is significant."""
    if value is None:
        return ""
    text = f"{value:.6g}"
    return text if (float(text) < LEVEL) == (value < LEVEL) else repr(float(value))
