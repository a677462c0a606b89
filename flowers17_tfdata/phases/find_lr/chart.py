"""The curve of a range test, as the report's charts look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.charts import Chart, make_chart

SHOWN_NAMES = {
    "valley": "valley",
    "steepest": "steepest",
    "minimum": "minimum / 10",
}
_COLOURS = {
    "valley": charts.VALIDATION,
    "steepest": charts.TEST,
    "minimum": charts.MUTED,
}


def curve_chart(result: Mapping[str, Any], chosen: str) -> Chart:
    """Returns the losses over the learning rates, the suggestions marked.

    Args:
      result: contents of `find_lr.json`.
      chosen: name of the suggestion.
    """
    figure = go.Figure()
    hover = "%{fullData.name} %{y:.3f} at %{x:.2e}<extra></extra>"
    figure.add_scatter(
        x=result["rates"],
        y=result["losses"],
        name="loss of a batch",
        mode="lines",
        line={"color": charts.OTHER, "width": 1},
        hovertemplate=hover,
    )
    figure.add_scatter(
        x=result["rates"],
        y=result["smoothed"],
        name="smoothed",
        mode="lines",
        line={"color": charts.TRAIN, "width": 2.75},
        hovertemplate=hover,
    )
    low, high = _loss_range(result)
    for name, rate in result["suggestions"].items():
        # A series of two points, not a shape: it is named in the legend.
        figure.add_scatter(
            x=[rate, rate],
            y=[low, high],
            name=f"{SHOWN_NAMES[name]}: {rate:.2g}",
            mode="lines",
            line={
                "color": _COLOURS[name],
                "width": 2.25 if name == chosen else 1.5,
                "dash": "solid" if name == chosen else "dot",
            },
            hovertemplate="%{fullData.name}<extra></extra>",
        )
    figure.update_xaxes(
        title_text="learning rate (logarithmic)",
        type="log",
        dtick=1,
        exponentformat="power",
    )
    figure.update_yaxes(
        title_text="training loss, nats", range=[low, high], zeroline=False
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 64, "b": 8})
    return make_chart(
        "chart-find-lr",
        f"Training loss of {result['stage']} over the learning rate",
        figure,
        height=440,
    )


def _loss_range(result: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the losses that the chart shows, lowest and highest.

    What diverges may be a million times the rest: cut off at what the smoothed
    loss was before its minimum, and a fifth.
    """
    smoothed, losses = result["smoothed"], result["losses"]
    if not smoothed:
        return 0.0, 1.0
    lowest = smoothed.index(min(smoothed))
    return 0.9 * min(losses), 1.2 * max(smoothed[: lowest + 1])
