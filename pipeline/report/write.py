"""Write the report's files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.files import write_atomically
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.figures import draw_figures
from pipeline.report.page import render_page
from pipeline.report.plots import to_png, to_svg
from pipeline.report.tables import accuracy_table, comparison_table, prediction_table
from stages.evaluation.explore import explore


def write_report(
    folder: Path,
    comparisons: Sequence[EvaluatedRun],
    *,
    figures: Path | None = None,
    pooled: bool = False,
) -> None:
    """Write the CSVs and `report.html` below the folder, each whole or not at all, and the first run's figures below `figures`.

    pooled: the runs are repetitions of one, so that their mean and deviation mean something.
    """
    explored = (
        None if comparisons[0].folds else explore(comparisons[0].test)
    )  # folds share no space
    drawn = [
        draw_figures(comparison, explored if place == 0 else None)
        for place, comparison in enumerate(comparisons)
    ]
    for name, content in (
        ("accuracy.csv", accuracy_table(comparisons, pooled=pooled).to_csv(index=False)),
        ("comparisons.csv", comparison_table(comparisons, pooled=pooled).to_csv(index=False)),
        (
            "predictions.csv",
            pd.concat(
                [prediction_table(fold) for one in comparisons for fold in one.folds or (one,)]
            ).to_csv(index=False),
        ),
        ("report.html", render_page(comparisons, explored, drawn, pooled=pooled)),
    ):
        write_atomically(folder / name, content.encode("utf-8", "surrogateescape"))
    if figures:
        for name, figure in drawn[0].items():
            write_atomically(figures / f"{name}.svg", to_svg(figure, name))
            write_atomically(figures / f"{name}.png", to_png(figure))
