"""What the charts have in common: size, fonts, colours, their JSON.

Colours are the page's CSS variables. The page's script puts in their values,
so that charts follow the light and the dark theme.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import markupsafe
import plotly.graph_objects as go

TRAIN, VALIDATION, TEST, OTHER = (
    f"var(--series-{k})" for k in ("train", "validation", "test", "other")
)
INK, MUTED, GRID = "var(--ink)", "var(--muted)", "var(--grid)"

_LONGEST_LABEL = 30


class Chart(NamedTuple):
    """A chart in the page.

    Attributes:
      name: id of its element.
      label: what it shows, for those who can't see it.
      height: pixels.
      min_width: pixels; where the page is narrower, the chart scrolls.
      figure: JSON, safe within a script element.
    """

    name: str
    label: str
    height: int
    min_width: int
    figure: markupsafe.Markup


def make_chart(
    name: str,
    label: str,
    figure: go.Figure,
    *,
    height: int = 300,
    min_width: int = 0,
) -> Chart:
    """Gives a figure the common look and turns it into a `Chart`."""
    figure.update_layout(
        # Plotly's own template is 7 kB of colours for one theme.
        template=None,
        height=height,
        font={"family": "inherit", "size": 12.5, "color": MUTED},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "bgcolor": "var(--surface-2)",
            "bordercolor": GRID,
            "font": {"color": INK, "family": "inherit"},
        },
        legend={
            "orientation": "h",
            "x": 0,
            # Above all that stands on the plot itself.
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "font": {"color": INK},
        },
        dragmode=False,
    )
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zerolinecolor": GRID,
        "automargin": True,
        "fixedrange": True,
        "title": {"font": {"size": 11.5}, "standoff": 10},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return Chart(name, label, height, min_width, _script_json(figure))


def _script_json(figure: go.Figure) -> markupsafe.Markup:
    text = json.dumps(json.loads(figure.to_json()), separators=(",", ":"))
    # Nothing in it may end the script element or start a comment.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def label(name: str) -> str:
    """Returns a name as a chart's text, short and without markup.

    Plotly reads a subset of HTML in every text.
    """
    if len(name) > _LONGEST_LABEL:
        name = name[: _LONGEST_LABEL - 1] + "…"
    return html.escape(name)


def category_axis(names: Sequence[str]) -> dict[str, Any]:
    """Returns an axis whose positions 0, 1, ... are named.

    Not Plotly's category axis: it merges names that are alike.
    """
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [label(name) for name in names],
        "range": [-0.5, len(names) - 0.5],
        "showgrid": False,
        "zeroline": False,
    }
