"""The report as text for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.summary import verdicts
from pipeline.report.tables import text_table
from pipeline.report.write import report_files


def report_text(
    runs: Sequence[EvaluatedRun], out: Path, figures: Path | None, *, pooled: bool = False
) -> str:
    """Return the table of scores, the findings and the written files.

    Args:
        runs: Evaluated runs.
        out: Folder of the report.
        figures: Folder of the figures, if they were written.
        pooled: True if the runs repeat one experiment with different seeds.
    """
    findings = "\n".join(verdicts(runs, pooled=pooled))
    lines = [f"{text_table(runs, pooled=pooled)}\n\n{findings}\n", *map(str, report_files(out))]
    if figures:
        lines.append(f"{figures}: the figures")
    return "\n".join(lines)
