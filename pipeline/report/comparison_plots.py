"""Figures of a comparison: accuracy with intervals, and accuracy against speed."""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.escape import printable
from pipeline.report.comparison import MAIN, METRICS, RANDOM, ComparedRun, Comparison
from pipeline.report.plots import BLUE, GREY, ORANGE, PALETTE, STYLE, new_figure
from stages.evaluation.metric_definitions import METRICS as DEFINITIONS

COMPARISON_FIGURES = ("compared", "compared-speed")
COLOURS = dict(zip(METRICS, (BLUE, ORANGE, GREY), strict=True))
MAX_NAME = 32  # characters
MARKERS = "osD^vPX"
LEGEND_COLUMNS = 2


def draw_comparison(comparison: Comparison) -> dict[str, Figure]:
    """Draw the figures of a comparison.

    Args:
        comparison: Result of the comparison.

    Returns:
        Matplotlib figures by name, one of ``COMPARISON_FIGURES``. Without a test image of a known
        class there are none; speed is drawn only if two runs have a time.
    """
    entries = [entry for entry in comparison.finished if entry.score(MAIN).count]
    if not entries:
        return {}
    entries.sort(key=lambda entry: -(entry.score(MAIN).value or 0))
    figures = {"compared": _draw_accuracy(entries)}
    timed = [entry for entry in entries if entry.seconds_per_image]
    if len(timed) > 1 and comparison.field == "network":
        figures["compared-speed"] = _draw_speed(timed)
    return figures


def _draw_accuracy(entries: Sequence[ComparedRun]) -> Figure:
    """Draw one row per run with a dot and an interval per metric."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.2, 1.1 + 0.5 * len(entries))
        for metric, offset in zip(METRICS, (-0.22, 0.0, 0.22), strict=True):
            colour, title = COLOURS[metric], DEFINITIONS[metric].title
            axes.plot([], [], "o", color=colour, markersize=4, label=title)
            for row, entry in enumerate(entries):
                score, y = entry.score(metric), row + offset
                if score.value is None:
                    continue
                if score.low is not None and score.high is not None:
                    wide: Any = {"linewidth": 4, "alpha": 0.4, "solid_capstyle": "butt"}
                    axes.plot([score.low, score.high], [y, y], color=colour, **wide)
                axes.plot([score.value], [y], "o", color=colour, markersize=4)
        names = [_label(entry) for entry in entries]
        axes.set_yticks(range(len(entries)), names, parse_math=False)
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(right=1.005)
        axes.set_xlabel("score with 95% CI")
        figure.legend(loc="outside upper left", fontsize=8, ncols=3)
    return figure


def _draw_speed(entries: Sequence[ComparedRun]) -> Figure:
    """Draw classification accuracy against the time per image.

    The names are in a legend: next to the dots they would cover intervals and each other.
    """
    rows = math.ceil(len(entries) / LEGEND_COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.2, 2.9 + 0.2 * rows)
        styles = zip(entries, cycle(PALETTE), cycle(MARKERS), strict=False)
        for entry, colour, marker in styles:
            score, seconds = entry.score(MAIN), entry.seconds_per_image
            assert score.value is not None and seconds is not None  # others are left out
            x, name = 1000 * seconds, _label(entry)
            if score.low is not None and score.high is not None:
                axes.plot([x, x], [score.low, score.high], color=colour, linewidth=3, alpha=0.4)
            axes.plot([x], [score.value], marker, color=colour, markersize=6, label=name)
        legend = figure.legend(loc="outside upper left", fontsize=8, ncols=LEGEND_COLUMNS)
        for text in legend.get_texts():
            text.set_parse_math(False)
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("milliseconds per image (logarithmic)")
        axes.set_ylabel("classification accuracy")
    return figure


def _plain(value: float, _: object) -> str:
    return f"{value:g}"


def _label(entry: ComparedRun) -> str:
    """Return a run's name, with a second line if its network starts with random weights."""
    return f"{_short(entry.name)}\n({RANDOM})" if entry.starts_random else _short(entry.name)


def _short(name: str) -> str:
    name = printable(name.replace("\n", " "))
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\u2026"
