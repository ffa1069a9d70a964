"""The tables of a comparison, and its result as text for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.comparison import MAIN, METRICS, RANDOM, Comparison
from pipeline.report.comparison_verdict import verdict_of_comparison
from pipeline.report.formats import (
    UNDEFINED,
    format_interval,
    format_p_value,
    format_percent,
    format_points,
    listed,
)
from stages.settings import AUTO


def comparison_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the formatted cells of the table of evaluated runs, best first.

    Args:
        comparison: Result of the comparison.
    """
    best = comparison.best
    entries = list(comparison.finished)
    entries.sort(key=lambda entry: -(entry.score(MAIN).value or 0))
    rows = []
    for entry in entries:
        remark = RANDOM if entry.starts_random else ""
        if entry.name == AUTO and entry.settings:
            remark = entry.settings.network
        row = {"name": entry.name, "remark": f"({remark})" if remark else ""}
        row |= {"size": str(entry.size), "is_best": "yes" * (entry is best)}
        for metric in METRICS:
            score = entry.score(metric)
            row[metric] = format_percent(score.value)
            row[f"{metric}_interval"] = format_interval(score)
        difference = comparison.difference(entry, best) if best and entry is not best else None
        row["difference"] = row["difference_interval"] = row["p_holm"] = ""
        if difference:
            row["difference"] = format_points(difference.value, decimals=1)
            low, high = (format_points(x, decimals=1) for x in (difference.low, difference.high))
            row["difference_interval"] = f"{low} to {high}"
            row["p_holm"] = format_p_value(difference.p_holm)
        seconds, memory, training = (
            entry.seconds_per_image,
            entry.memory,
            entry.training_seconds,
        )
        row["milliseconds"] = UNDEFINED if seconds is None else f"{1000 * seconds:.3g}"
        row["memory"] = UNDEFINED if memory is None else f"{memory / 2**20:,.0f}"
        row["training"] = UNDEFINED if training is None else f"{training:,.0f}"
        rows.append(row)
    return rows


def comparison_text(comparison: Comparison, files: Sequence[Path]) -> str:
    """Return the table for a terminal, the written files, and at last the verdict.

    Args:
        comparison: Result of the comparison.
        files: Files that were written.
    """
    header = (
        comparison.nouns[0],
        *("accuracy", "95% CI", "kNN", "MAP@R", "difference", "95% CI", "p (Holm)"),
        *("ms/image", "MiB", "training s"),
    )
    cells: list[tuple[str, ...]] = [header]
    for row in comparison_rows(comparison):
        names = (
            *(MAIN, f"{MAIN}_interval", "knn_accuracy", "map_at_r"),
            *("difference", "difference_interval", "p_holm"),
            *("milliseconds", "memory", "training"),
        )
        name = f"{row['name']} {row['remark']}".rstrip()
        cells.append((name, *(row[column] for column in names)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        first = f"{line[0]:<{widths[0]}}"
        texts = [f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *texts]).rstrip())
    lines += ["", *_failures(comparison), *(str(file) for file in files)]
    return "\n".join([*lines, "", verdict_of_comparison(comparison)])


def _failures(comparison: Comparison) -> list[str]:
    """Return one sentence per reason for which networks could not be evaluated."""
    names: dict[str, list[str]] = {}
    for entry in comparison.failed:
        names.setdefault(entry.error, []).append(entry.name)
    singular, plural = comparison.nouns
    return [
        f"The {singular if len(same) == 1 else plural} {listed(same)} could not be evaluated: "
        f"{error}."
        for error, same in names.items()
    ]
