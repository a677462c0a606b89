"""What more photographs would buy: `learning_curve.json` and its chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts, record
from flowers17_tfdata.phases.report.charts import Chart
from flowers17_tfdata.session import Session


def read_curve(session: Session) -> dict[str, Any] | None:
    """Returns `learning_curve.json`, if it is of this data and backbone.

    Raises:
      UserError: the file is damaged.
    """
    curve = record.read_if_there(session.workdir / "learning_curve.json")
    if curve is None or curve["dataset"] != session.source.name:
        return None
    config, flags = session.config, curve["flags"]
    made_with = flags["backbone"], flags["image_size"]
    used = config.model.backbone, config.input.image_size
    return curve if made_with == used else None


def gains_chart(result: Mapping[str, Any]) -> Chart:
    """Returns the accuracy over the number of photographs, with its law.

    Args:
      result: the contents of `learning_curve.json`.
    """
    figure = go.Figure()
    law = result["law"]
    if law:
        ends = result["curve"][0], result["predictions"][-1]
        x = np.geomspace(*(end["num_images"] for end in ends))
        share = (x / law["num_images"]) ** -law["exponent"]
        share = (1 - law["floor"]) * share + law["floor"]
        figure.add_scatter(
            x=x.tolist(),
            y=(1 - law["error"] * share).tolist(),
            mode="lines",
            name="law",
            line={"color": charts.OTHER, "dash": "dash", "width": 1.5},
            hoverinfo="skip",
        )
    for name, key, colour in (
        ("measured (95 % interval)", "curve", charts.TRAIN),
        ("predicted", "predictions", charts.VALIDATION),
    ):
        points = result[key]
        accuracy = np.array([point["accuracy"] for point in points])
        limits = np.array([point["accuracy_interval"] for point in points])
        if points:
            figure.add_scatter(
                x=[point["num_images"] for point in points],
                y=accuracy.tolist(),
                mode="markers",
                name=name,
                marker={"color": colour, "size": 9},
                error_y={
                    "array": np.maximum(limits[:, 1] - accuracy, 0).tolist(),
                    "arrayminus": np.maximum(
                        accuracy - limits[:, 0], 0
                    ).tolist(),
                    "color": colour,
                    "thickness": 1.5,
                },
                hovertemplate="%{y:.1%} with %{x:.0f} photographs",
            )
    # Few enough not to touch.
    shown = [*result["curve"][:-1:2], *result["predictions"]]
    ticks = [round(point["num_images"]) for point in shown]
    figure.update_xaxes(
        title_text="photographs to train on (logarithmic)",
        type="log",
        tickvals=ticks,
        ticktext=[str(tick) for tick in ticks],
    )
    figure.update_yaxes(title_text="accuracy", tickformat=".0%")
    return charts.make_chart(
        "chart-more-photographs",
        "Accuracy of the head over the number of photographs",
        figure,
        height=380,
    )
