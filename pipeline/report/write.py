"""Write the files of the report."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.files import write_atomically
from pipeline.report.class_table import class_score_table
from pipeline.report.comparison import Comparison, compared_table
from pipeline.report.comparison_plots import draw_comparison
from pipeline.report.evaluated_run import EvaluatedRun, RunComparison, compare_runs_pairwise
from pipeline.report.figures import FIGURES, draw_figures
from pipeline.report.page import render_page
from pipeline.report.plots import to_png, to_svg
from pipeline.report.suspects import suspect_table
from pipeline.report.tables import accuracy_table, comparison_table, prediction_table
from stages.errors import PipelineError
from stages.evaluation.explore import explore

NAMES = (
    *("accuracy.csv", "comparisons.csv", "predictions.csv", "classes.csv", "suspects.csv"),
    "report.html",
)
COMPARED = "compared.csv"  # of `pipeline compare` only


def report_files(folder: Path, *, compared: bool = False) -> list[Path]:
    """Return the files of a report.

    Args:
        folder: Folder of the report.
        compared: True for a report of `pipeline compare`.
    """
    return [folder / name for name in ((COMPARED, *NAMES) if compared else NAMES)]


def figure_files(folder: Path) -> list[Path]:
    """Return the files of all figures that a report can have."""
    return [folder / f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")]


def refuse_to_replace_folds(folder: Path, force: bool) -> None:
    """Raise an error if a report would be replaced whose models were not kept.

    These are reports on cross-validation and of `pipeline compare`.

    Args:
        folder: Folder of the report to write.
        force: Accept that the report is replaced.

    Raises:
        PipelineError: If the folder holds such a report.
    """
    if force:
        return
    if (folder / COMPARED).is_file():
        raise PipelineError(
            f"{folder}: holds a comparison, whose models were not kept; use another --out, or "
            "--force to replace it"
        )
    path = folder / NAMES[0]
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        runs = {row[0] for row in csv.reader(file) if row}
    if {"pooled", "std"} <= runs:
        raise PipelineError(
            f"{folder}: holds a report on cross-validation, whose models were not kept; use "
            "another --out, or --force to replace the report"
        )


def write_report(
    folder: Path,
    runs: Sequence[EvaluatedRun],
    *,
    figures: Path | None = None,
    pooled: bool = False,
    comparison: Comparison | None = None,
) -> None:
    """Write the CSV files and `report.html`, each of them atomically.

    Args:
        folder: Folder of the report.
        runs: Evaluated runs.
        figures: Folder for the first run's figures as SVG and PNG. None for no such files.
        pooled: True if the runs repeat one experiment with different seeds. The report then
            contains their mean and standard deviation.
        comparison: Result of `pipeline compare` with these runs.
    """
    # Folds have different embeddings, so they share no map and no distances.
    has_map = runs[0].test and not runs[0].folds
    exploration = explore(runs[0].test) if has_map else None
    drawn = [draw_figures(runs[0], exploration), *(draw_figures(run, None) for run in runs[1:])]
    if comparison:
        drawn[0] |= draw_comparison(comparison)
    between: list[RunComparison] = []
    if not pooled:
        between = comparison.tests if comparison else compare_runs_pairwise(runs)[0]
    options: Any = {"comparisons": between, "pooled": pooled, "comparison": comparison}
    predictions = [prediction_table(fold) for run in runs for fold in run.folds or (run,)]
    contents = {
        "accuracy.csv": accuracy_table(runs, pooled=pooled).to_csv(index=False),
        "comparisons.csv": comparison_table(runs, between).to_csv(index=False),
        "predictions.csv": pd.concat(predictions).to_csv(index=False),
        "classes.csv": class_score_table(runs).to_csv(index=False),
        "suspects.csv": suspect_table(runs).to_csv(index=False),
        "report.html": render_page(runs, exploration, drawn, **options),
    }
    assert tuple(contents) == NAMES
    if comparison:
        contents[COMPARED] = compared_table(comparison).to_csv(index=False)
    else:
        (folder / COMPARED).unlink(missing_ok=True)  # of a report that is replaced
    for name, content in contents.items():
        # Ids in the CSV files keep the bytes of file names that are not UTF-8. The page has none.
        write_atomically(folder / name, content.encode("utf-8", "surrogateescape"))
    if figures:
        for name, figure in drawn[0].items():
            write_atomically(figures / f"{name}.svg", to_svg(figure, name))
            write_atomically(figures / f"{name}.png", to_png(figure))
