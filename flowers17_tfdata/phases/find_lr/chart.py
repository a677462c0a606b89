"""The chart of a range test, in the style of the report's charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.charts import Chart, make_chart


def curve_chart(result: Mapping[str, Any]) -> Chart:
    """Returns the losses over the learning rates, the suggestion marked.

    Args:
      result: the contents of `find_lr_STAGE.json`.
    """
    rates = result["rates"]
    low, high = _loss_range(result)
    lines = [
        ("loss of a batch", rates, result["losses"], charts.OTHER, 1),
        ("smoothed", rates, result["smoothed"], charts.TRAIN, 2.75),
    ]
    rate = result["suggestion"]
    if rate:
        # A series of two points, not a shape, which the legend would not name.
        label = f"suggestion: {rate:.2g}"
        lines.append((label, [rate, rate], [low, high], charts.VALIDATION, 2))
    figure = go.Figure()
    for label, x, y, colour, width in lines:
        figure.add_scatter(
            x=x,
            y=y,
            name=label,
            mode="lines",
            line={"color": colour, "width": width},
            hovertemplate="%{y:.3f} at %{x:.2e}",
        )
    figure.update_xaxes(
        title_text="learning rate (logarithmic)",
        type="log",
        dtick=1,
        exponentformat="power",
    )
    figure.update_yaxes(title_text="training loss, nats", range=[low, high])
    figure.update_layout(margin_t=64)
    return make_chart(
        "chart-find-lr",
        f"Training loss of {result['stage']} over the learning rate",
        figure,
        height=440,
    )


def _loss_range(result: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the lowest and the highest loss that the chart shows.

    A loss that diverges may be a million times the others. The chart ends a
    fifth above the highest smoothed loss before the minimum.
    """
    smoothed, losses = result["smoothed"], result["losses"]
    if not smoothed:
        return 0.0, 1.0
    lowest = smoothed.index(min(smoothed))
    return 0.9 * min(losses), 1.2 * max(smoothed[: lowest + 1])
