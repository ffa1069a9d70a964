"""The interactive map that shows an image on hovering."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.escape import printable
from pipeline.report.evaluated_run import EvaluatedRun
from pipeline.report.plots import PALETTE
from pipeline.report.thumbnails import small_thumbnails, unpadded_image
from stages.evaluation.explore import Exploration

# Bokeh's tooltips are in a shadow DOM, which the page's style sheet does not reach.
TOOLTIP_STYLE = "font: 13px/1.4 system-ui, sans-serif; max-width: 220px; overflow-wrap: anywhere"
IMAGE_STYLE = "width: 112px; height: 112px; object-fit: contain; image-rendering: pixelated"


def map_of_run(run: EvaluatedRun, exploration: Exploration) -> Any:
    """Return the interactive map of a run's test images as a JSON object for Bokeh."""
    test, prediction = run.images, run.evaluation.prediction
    rows = exploration.mapped.tolist()
    lines = [
        (
            test.ids[row],
            f"true class: {test.classes[int(test.labels[row])]}",
            f"classifier: {test.classes[prediction.classifier[row]]}",
            f"kNN: {test.classes[prediction.knn[row]]}",
        )
        for row in rows
    ]
    return hover_map(
        exploration.points,
        colours=test.labels[rows].tolist(),
        thumbnails=small_thumbnails([unpadded_image(test, row, run.data.origin) for row in rows]),
        lines=lines,
    )


def hover_map(
    points: np.ndarray,
    *,
    colours: Sequence[int],
    thumbnails: Sequence[str],
    lines: Sequence[Sequence[str]],
) -> Any:
    """Return a Bokeh scatter plot that shows an image and lines of text on hovering.

    Args:
        points: Coordinates, float32, shape (M, 2).
        colours: Index into the palette per point. The palette repeats.
        thumbnails: Image per point, as a data URI.
        lines: Lines of text per point, the same number for all. Bokeh escapes them.

    Returns:
        A JSON object. The page must escape it.
    """
    from bokeh.embed import json_item  # slow to import
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    columns: dict[str, Any] = {
        "x": points[:, 0].tolist(),
        "y": points[:, 1].tolist(),
        "colour": [PALETTE[colour % len(PALETTE)] for colour in colours],
        "image": list(thumbnails),
    }
    tooltip = f'<img src="@image" alt="" style="{IMAGE_STYLE}">'
    for index, column in enumerate(zip(*lines, strict=True)):
        columns[f"line{index}"] = [printable(line) for line in column]
        tooltip += f"<div>@line{index}</div>"
    plot = figure(
        sizing_mode="stretch_width",
        height=480,
        toolbar_location="above",
        tools="pan,wheel_zoom,box_zoom,reset",
        active_drag=None,
    )
    plot.scatter(
        "x",
        "y",
        source=ColumnDataSource(columns),
        size=7,
        fill_color="colour",
        line_color=None,
        fill_alpha=0.8,
    )
    tooltips = f'<div class="hover" style="{TOOLTIP_STYLE}">{tooltip}</div>'
    plot.add_tools(HoverTool(tooltips=tooltips, point_policy="follow_mouse"))
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.toolbar.logo = None
    return json_item(plot)


def map_script() -> str:
    """Return Bokeh's JavaScript, so that the page needs no network."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
