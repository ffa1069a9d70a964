"""The interactive map that shows images on hovering."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report.plots import PALETTE


def hover_map(
    points: np.ndarray,
    *,
    colours: Sequence[int],
    thumbnails: Sequence[str],
    lines: Sequence[Sequence[str]],
) -> Any:
    """A Bokeh plot as a JSON object that the page's own script shows; hovering shows image and lines of text.

    points: (M, 2). colours: M places in the palette. lines: M times the same number of texts, shown as they are: Bokeh
    escapes them, and so must the page escape the JSON.
    """
    from bokeh.embed import json_item  # slow to import
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    texts = {f"line{place}": list(column) for place, column in enumerate(zip(*lines, strict=True))}
    source = ColumnDataSource(
        {
            "x": points[:, 0].tolist(),
            "y": points[:, 1].tolist(),
            "colour": [PALETTE[place % len(PALETTE)] for place in colours],
            "image": list(thumbnails),
            **texts,
        }
    )
    plot = figure(
        sizing_mode="stretch_width",
        height=480,
        toolbar_location="above",
        tools="pan,wheel_zoom,box_zoom,reset",
        active_drag=None,
    )
    plot.scatter(
        "x", "y", source=source, size=7, fill_color="colour", line_color=None, fill_alpha=0.8
    )
    rows = "".join(f"<div>@{name}</div>" for name in texts)
    plot.add_tools(
        HoverTool(
            tooltips=f'<div class="hover"><img src="@image" alt="">{rows}</div>',
            point_policy="follow_mouse",
        )
    )
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None
    plot.background_fill_color = plot.border_fill_color = None
    plot.toolbar.logo = None
    return json_item(plot)


def map_script() -> str:
    """Bokeh's own JavaScript, to stand in the page: without it there would be a request."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
