"""Figures of unseen classes and unknown images."""

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.numbers import count_of
from pipeline.report.plots import BLUE, DASHED, GREY, INK, ORANGE, STYLE, new_figure
from stages.evaluation.results import RocCurve

BINS = 40  # bins of the histograms
CURVES = {  # name of the vectors -> caption and colour
    "embedding": ("embedding", BLUE),
    "trunk": ("pretrained trunk", "#59a14f"),
    "untrained": ("before training", ORANGE),
    "pixel": ("raw pixels", GREY),
}


def draw_roc(curves: Mapping[str, RocCurve]) -> Figure:
    """Draw ROC curves of verification, one per kind of vectors.

    Args:
        curves: Curves by the names in ``CURVES``. Those without points are omitted.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.2, 2.8)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED)
        for name, (caption, colour) in CURVES.items():
            curve = curves.get(name)
            if curve is not None and len(curve.false_accept_rate):
                axes.plot(*curve, color=colour, linewidth=1.6, label=caption)
        axes.set_xlim(-0.01, 1)
        axes.set_ylim(0, 1.01)
        axes.set_xlabel("false accept rate: pairs of two classes")
        axes.set_ylabel("true accept rate: pairs of one class")
        axes.legend(loc="lower right", fontsize=8)
    return figure


def draw_unknown(
    known: np.ndarray, unknown: np.ndarray, threshold: float, unknown_name: str
) -> Figure:
    """Draw the distances of known and of unknown images to the nearest training image.

    Args:
        known: Distances of the known test images, shape (N,).
        unknown: Distances of the unknown images, shape (U,). NaN values are dropped.
        threshold: Distance above which images are rejected. Without a finite one there is no line.
        unknown_name: Caption of the unknown images.
    """
    unknown = unknown[~np.isnan(unknown)]
    farthest = max(known.max(initial=0.0), unknown.max(initial=0.0), 1e-6)
    edges = np.linspace(0, 1.02 * farthest, BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(4.2, 3.1)
        for values, name, colour in ((known, "known", BLUE), (unknown, unknown_name, ORANGE)):
            if len(values):
                shares = np.histogram(values, edges)[0] / len(values)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
                label = f"{name} ({count_of(len(values), 'image')})"
                axes.stairs(shares, edges, color=colour, linewidth=1.4, label=label)
        if math.isfinite(threshold):
            axes.axvline(
                threshold, color=INK, linewidth=1, linestyle=DASHED, label="rejected above"
            )
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance to the nearest training image")
        axes.set_ylabel("share of images")
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.36), fontsize=8)
    return figure
