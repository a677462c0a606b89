"""The look that all charts share: fonts, colours and axes.

Colours are the page's CSS variables. The page's script replaces them by their
values, so that charts follow the light and the dark theme.
"""

from __future__ import annotations

import html
import json
from typing import Any, NamedTuple

import plotly.graph_objects as go

from flowers17_tfdata.errors import one_line

TRAIN, VALIDATION, TEST, OTHER = (
    f"var(--series-{k})" for k in ("train", "validation", "test", "other")
)
INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--grid)"

_LONGEST_LABEL = 30
_AXIS = {
    "gridcolor": GRID,
    "linecolor": GRID,
    "zeroline": False,
    "automargin": True,
    "fixedrange": True,
    "title": {"font": {"size": 11.5}, "standoff": 10},
}
# Replaces Plotly's own template: 7 kB per chart, for one theme.
_TEMPLATE = {
    "layout": {
        "font": {"family": "inherit", "size": 12.5, "color": MUTED},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "var(--surface-2)", "font": {"color": INK}},
        # Above everything that is drawn on the plot.
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "font": {"color": INK},
        },
        "margin": {"l": 8, "r": 8, "t": 48, "b": 8},
        "dragmode": False,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
      name: the id of the chart's HTML element.
      label: the title, which screen readers read out.
      height: the height in pixels.
      min_width: the width in pixels below which the chart scrolls.
      figure: Plotly's JSON object.
    """

    name: str
    label: str
    height: int
    min_width: int
    figure: dict[str, Any]


def make_chart(
    name: str,
    label: str,
    figure: go.Figure,
    *,
    height: int = 300,
    min_width: int = 0,
) -> Chart:
    """Turns a figure into a chart with the common look."""
    figure.update_layout(template=_TEMPLATE, height=height)
    # Not `to_dict`, which may contain NaN and NumPy arrays.
    return Chart(name, label, height, min_width, json.loads(figure.to_json()))


def label(name: str) -> str:
    """Returns a name as a chart's text, short and without markup.

    Plotly reads a subset of HTML in every text.
    """
    return html.escape(one_line(name, _LONGEST_LABEL))
