"""Matplotlib figures for the page and for papers."""

import re
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.escape import printable
from stages.evaluation.statistics import wilson_interval

INK, BLUE, ORANGE, GREY = "#222222", "#3b7ddd", "#e0702c", "#8a8f98"
DASHED = (0, (3, 2))

STYLE: Any = {  # Any: matplotlib's stubs type each key
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # keep text as text: small, and in the reader's font
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.transparent": True,
}

# Twenty colours that are visible on black and on white. Further classes repeat them.
PALETTE = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1"),
    *("#76b7b2", "#edc948", "#ff9da7", "#9c755f", "#79706e"),
    *("#3b7ddd", "#d37295", "#8cd17d", "#b6992d", "#499894"),
    *("#a0cbe8", "#fabfd2", "#d7b5a6", "#86bcb6", "#c23b75"),
)

CURVES = {
    "loss": "Training loss",
    "active_share": "Share of active triplets",
    "mean_distance": "Mean pairwise distance",
    "val_knn": "Validation kNN accuracy",
    "val_triplet": "Validation triplet accuracy",
    "val_recall": "Recall@1 on held-out classes",
}

LABELLED_CLASSES = 20  # above, confusion matrix and map omit class names
LABEL_LENGTH = 16  # characters of a class name


def draw_curves(history: Sequence[Mapping[str, Any]], kept: int) -> dict[str, Figure]:
    """Draw one training curve per logged value.

    Args:
        history: Logged values per epoch. Values may be None: not every epoch is validated.
        kept: Epoch whose weights were kept. It is marked.

    Returns:
        Figures by name. Values that were logged in fewer than two epochs have none.
    """
    figures = {}
    for name, title in CURVES.items():
        values = {log["epoch"]: log[name] for log in history if log[name] is not None}
        if len(values) < 2:
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = new_figure(3.2, 2.1)
            axes.axvline(kept, color=ORANGE, linewidth=1, linestyle=DASHED)
            axes.plot(list(values), list(values.values()), color=BLUE, linewidth=1.6)
            axes.plot([kept], [values[kept]], "o", color=ORANGE, markersize=4)
            axes.set_title(title, fontsize=9, loc="left", color=INK)
            axes.set_xlabel("epoch")
            axes.locator_params(integer=True, axis="x", nbins=6)
            axes.locator_params(axis="y", nbins=5)
        figures[f"training-{name.replace('_', '-')}"] = figure
    return figures


def draw_distances(positives: np.ndarray, negatives: np.ndarray) -> Figure:
    """Draw the distributions of the distances within a class and between classes.

    Args:
        positives: Number of pairs of the same class per bin. The bins divide [0, 2] evenly.
        negatives: Number of pairs of different classes per bin.
    """
    edges = np.linspace(0, 2, len(positives) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.2, 2.8)
        for counts, name, colour in (
            (positives, "same class", BLUE),
            (negatives, "different classes", ORANGE),
        ):
            total = counts.sum()
            if total:
                shares, label = counts / total, f"{name} ({total:,} pairs)"
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
                axes.stairs(shares, edges, color=colour, linewidth=1.4, label=label)
        axes.set_xlim(0, 2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance between two test images")
        axes.set_ylabel("share of pairs")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.28), fontsize=8)
    return figure


def draw_reliability(
    lines: Sequence[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]],
) -> Figure:
    """Draw a reliability diagram: accuracy against confidence, with Wilson intervals.

    Args:
        lines: Captions and the arrays from :func:`stages.evaluation.calibration_error.reliability`,
            before temperature scaling and, if the temperature was fitted, after it.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.2, 2.8)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED)
        for (caption, (counts, confidence, accuracy)), colour, marker in zip(
            lines, (ORANGE, BLUE), "so", strict=False
        ):
            for count, x, y in zip(counts, confidence, accuracy, strict=True):
                if count:
                    low, high = wilson_interval(y, int(count))
                    axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.35)
            axes.plot(confidence, accuracy, marker, color=colour, markersize=4.5, label=caption)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.28), fontsize=8)
    return figure


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix. Up to 20 classes have names and counts.

    Args:
        confusion: Counts by true class (row) and predicted class (column).
        classes: Class names.
    """
    labelled = len(classes) <= LABELLED_CLASSES
    side = 1.6 + 0.32 * len(classes) if labelled else 5.2
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = new_figure(side, side)
        blue = matplotlib.colors.to_rgb(BLUE)
        colours = matplotlib.colors.LinearSegmentedColormap.from_list(
            "share", [(*blue, 0), (*blue, 1)]
        )
        # The square root makes rare errors visible.
        axes.imshow(np.sqrt(shares), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        if labelled:
            names = [_short_name(name) for name in classes]
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks(range(len(names)), names, parse_math=False)
            rotated = any(len(name) > 2 for name in names)
            axes.tick_params(axis="x", rotation=90 if rotated else 0)
            centred: Any = {"ha": "center", "va": "center", "fontsize": 7.5}
            for row, column in zip(*np.nonzero(confusion), strict=True):
                ink = "white" if shares[row, column] > 0.4 else INK
                axes.text(column, row, str(confusion[row, column]), color=ink, **centred)
    return figure


def draw_scores(rows: Sequence[tuple[str, float, float | None, float | None]]) -> Figure:
    """Draw scores as dots with confidence intervals.

    Args:
        rows: Title, value, and lower and upper bound of each score, from top to bottom.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(5.2, 0.6 + 0.28 * len(rows))
        wide: Any = {"linewidth": 4, "alpha": 0.4, "solid_capstyle": "butt"}
        for y, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=BLUE, **wide)
            axes.plot([value], [y], "o", color=BLUE, markersize=4)
        axes.set_yticks(range(len(rows)), [title for title, *_ in rows])
        axes.invert_yaxis()
        axes.set_xlim(right=1.005)
        axes.set_xlabel("score with 95% CI")
    return figure


def draw_map(points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the map of the embedding. Up to 20 classes have a legend.

    Args:
        points: Coordinates, shape (M, 2).
        labels: Class index per point, int64, shape (M,).
        classes: Class names.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = new_figure(5.2, 4)
        axes.set_axis_off()
        if len(classes) > LABELLED_CLASSES:
            colours = [PALETTE[label % len(PALETTE)] for label in labels]
            x, y = points.T
            axes.scatter(x, y, s=6, color=colours, linewidths=0)
        else:
            for label in np.unique(labels):
                x, y = points[labels == label].T
                name, colour = _short_name(classes[label]), PALETTE[label % len(PALETTE)]
                axes.scatter(x, y, s=6, color=colour, linewidths=0, label=name)
            legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def to_svg(figure: Figure, name: str) -> bytes:
    """Return a figure as SVG, with the same bytes for the same figure.

    Args:
        figure: Matplotlib figure.
        name: Seed of the SVG ids. Figures on one page need different names.
    """
    return _save(figure, "svg", {"svg.hashsalt": name}, metadata={"Date": None})


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG with 300 dots per inch and a white background."""
    options: Any = {"dpi": 300, "facecolor": "white", "metadata": {"Software": None}}
    return _save(figure, "png", {"savefig.transparent": False}, **options)


def inline_svg(figure: Figure, name: str, caption: str) -> str:
    """Return a figure as an SVG element that adapts to the page's width and colours.

    Args:
        figure: Matplotlib figure.
        name: Seed of the SVG ids. Figures on one page need different names.
        caption: Description for screen readers.
    """
    svg = to_svg(figure, name).decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width, height = (round(96 * side) for side in figure.get_size_inches())
    size = (
        f'viewBox="0 0 {0.75 * width:g} {0.75 * height:g}" '
        f'role="img" aria-label="{caption}" style="max-width: {width}px"'
    )
    return re.sub(r'width="[^"]*pt" height="[^"]*pt" viewBox="[^"]*"', size, svg, count=1)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _short_name(name: str) -> str:
    """Return a class name that fits into a figure and can be encoded."""
    name = printable(name.replace("\n", " "))
    return name if len(name) <= LABEL_LENGTH else f"{name[: LABEL_LENGTH - 1]}\u2026"


def _save(figure: Figure, kind: str, style: Any, **options: Any) -> bytes:
    content = BytesIO()
    with matplotlib.rc_context({**STYLE, **style}), warnings.catch_warnings():
        # Class names can be in any script. In SVG the reader's font has the glyphs.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(content, format=kind, **options)
    return content.getvalue()
