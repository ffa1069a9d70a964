"""Pictures: matplotlib figures for the page and for papers, the map that shows images on hovering, thumbnails."""

import re
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

INK, BLUE, ORANGE, GREY = "#222222", "#3b7ddd", "#e0702c", "#8a8f98"


STYLE: Any = {  # matplotlib types each key
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",  # text stays text: small, and in the reader's font
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


# Twenty colours that hold on black and on white; further classes repeat them.
PALETTE = (
    *(
        "#4e79a7",
        "#f28e2b",
        "#59a14f",
        "#e15759",
        "#b07aa1",
        "#76b7b2",
        "#edc948",
        "#ff9da7",
        "#9c755f",
        "#79706e",
    ),
    *(
        "#3b7ddd",
        "#d37295",
        "#8cd17d",
        "#b6992d",
        "#499894",
        "#a0cbe8",
        "#fabfd2",
        "#d7b5a6",
        "#86bcb6",
        "#c23b75",
    ),
)


CURVES = {
    "loss": "Loss (mean over active triplets)",
    "active_share": "Share of triplets still active",
    "mean_distance": "Mean distance of two images",
    "val_knn": "Validation kNN accuracy",
    "val_triplet": "Validation triplet accuracy",
}


NUMBERED = 20  # classes whose confusions are written into the cells


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def draw_curves(history: Sequence[Mapping[str, Any]], kept: int) -> dict[str, Figure]:
    """One small figure a logged value, an epoch a point, the kept epoch marked; empty below two epochs."""
    figures = {}
    for name, caption in CURVES.items():
        values = {
            log["epoch"]: log[name] for log in history if log[name] is not None
        }  # not every epoch is validated
        if len(values) < 2:
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure(3.2, 2.1)
            axes.axvline(kept, color=ORANGE, linewidth=1, linestyle=(0, (3, 2)))
            axes.plot(list(values), list(values.values()), color=BLUE, linewidth=1.6)
            axes.plot([kept], [values[kept]], "o", color=ORANGE, markersize=4)
            axes.set_title(caption, fontsize=9, loc="left", color=INK)
            axes.set_xlabel("epoch")
            axes.locator_params(integer=True, axis="x", nbins=6)
            axes.locator_params(axis="y", nbins=5)
        figures[f"training-{name.replace('_', '-')}"] = figure
    return figures


def draw_distances(positives: np.ndarray, negatives: np.ndarray) -> Figure:
    """Shares of pairs of one class and of two by distance; the bins are even over [0, 2]."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 2.8)
        edges = np.linspace(0, 2, len(positives) + 1)
        for counts, name, colour in (
            (positives, "same class", BLUE),
            (negatives, "two classes", ORANGE),
        ):
            if total := counts.sum():
                axes.stairs(counts / total, edges, fill=True, color=colour, alpha=0.35)
                axes.stairs(
                    counts / total,
                    edges,
                    color=colour,
                    linewidth=1.4,
                    label=f"{name} ({total:,} pairs)",
                )
        axes.set_xlim(0, 2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance of two test images")
        axes.set_ylabel("share of pairs")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.28), fontsize=8)
    return figure


def draw_reliability(
    lines: Sequence[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]],
) -> Figure:
    """Share right against confidence, a dot a bin, with Wilson's interval: few images leave much open.

    lines: captions and what `stages.score.reliability` returns, before and after temperature.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 2.8)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (3, 2)))
        for (caption, (counts, confidence, share)), colour, marker in zip(
            lines, (ORANGE, BLUE), "so", strict=True
        ):
            for count, x, y in zip(counts, confidence, share, strict=True):
                if count:
                    interval = stats.binomtest(round(count * y), int(count)).proportion_ci(
                        method="wilson"
                    )
                    axes.plot(
                        [x, x], [interval.low, interval.high], color=colour, linewidth=1, alpha=0.35
                    )
            axes.plot(confidence, share, marker, color=colour, markersize=4.5, label=caption)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("the classifier's confidence")
        axes.set_ylabel("share right")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.28), fontsize=8)
    return figure


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Rows: the class; columns: what it was taken for; colour: share of the row. Up to 20 classes have names and numbers."""
    few = len(classes) <= NUMBERED
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        side = 1.6 + 0.32 * len(classes) if few else 5.2
        figure, axes = _figure(side, side)
        shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
        colours = matplotlib.colors.LinearSegmentedColormap.from_list(
            "share", [(*matplotlib.colors.to_rgb(BLUE), a) for a in (0, 1)]
        )
        axes.imshow(np.sqrt(shares), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel("taken for")
        axes.set_ylabel("is")
        if few:
            names = [_plain(name) for name in classes]
            turned = any(len(name) > 2 for name in names)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks(range(len(names)), names, parse_math=False)
            axes.tick_params(axis="x", rotation=90 if turned else 0)
            for row, column in zip(*np.nonzero(confusion), strict=True):
                ink = "white" if shares[row, column] > 0.4 else INK
                axes.text(
                    column,
                    row,
                    str(confusion[row, column]),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=ink,
                )
    return figure


def draw_scores(rows: Sequence[tuple[str, float, float | None, float | None]]) -> Figure:
    """The comparison as dots with intervals. rows: caption, value, low, high; the first on top."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 0.6 + 0.28 * len(rows))
        for place, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot(
                    [low, high],
                    [place, place],
                    color=BLUE,
                    linewidth=4,
                    alpha=0.4,
                    solid_capstyle="butt",
                )
            axes.plot([value], [place], "o", color=BLUE, markersize=4)
        axes.set_yticks(range(len(rows)), [caption for caption, *_ in rows])
        axes.invert_yaxis()
        axes.set_xlim(right=1.005)
        axes.set_xlabel("share, with its 95 % interval")
    return figure


def draw_map(points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """The flat map without images, for paper; a legend up to 20 classes."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = _figure(5.2, 4)
        for label in np.unique(labels):
            chosen = labels == label
            axes.scatter(
                points[chosen, 0],
                points[chosen, 1],
                s=6,
                color=PALETTE[label % len(PALETTE)],
                linewidths=0,
                label=_plain(classes[label]),
            )
        axes.set_axis_off()
        if len(classes) <= NUMBERED:
            legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def _plain(name: str) -> str:
    """A name that fits beside a figure: short, and encodable whatever the file system gave."""
    name = name.encode("utf-8", "replace").decode()
    return name if len(name) <= 16 else f"{name[:15]}\u2026"


def to_svg(figure: Figure, name: str) -> bytes:
    """The same bytes for the same figure; `name` keeps the ids of figures on one page apart."""
    return _save(figure, "svg", {"svg.hashsalt": name}, metadata={"Date": None})


def to_png(figure: Figure) -> bytes:
    """300 dots an inch, on white."""
    return _save(
        figure,
        "png",
        {"savefig.transparent": False},
        dpi=300,
        facecolor="white",
        metadata={"Software": None},
    )


def _save(figure: Figure, kind: str, style: Any, **options: Any) -> bytes:
    content = BytesIO()
    with matplotlib.rc_context({**STYLE, **style}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # class names in any script; in SVG the reader's font has it
        figure.savefig(content, format=kind, **options)
    return content.getvalue()


def inline_svg(figure: Figure, name: str, caption: str) -> str:
    """The figure for the page: as wide as there is room, in the page's ink, described for who can't see it."""
    svg = to_svg(figure, name).decode()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S).replace(
        INK, "currentColor"
    )
    width, height = (round(96 * side) for side in figure.get_size_inches())
    size = f'viewBox="0 0 {0.75 * width:g} {0.75 * height:g}" role="img" aria-label="{caption}" style="max-width: {width}px"'
    return re.sub(r'width="[^"]*pt" height="[^"]*pt" viewBox="[^"]*"', size, svg, count=1)
