"""Charts of the model's predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.charts import Chart
from flowers17_tfdata.scoring.reliability import Reliability
from flowers17_tfdata.scoring.scores import wilson_interval
from flowers17_tfdata.scoring.trust_scores import RiskCoverage

# A larger matrix is hard to read.
_MOST_CLASSES = 60


def confusion_chart(evaluation: Mapping[str, Any]) -> Chart | None:
    """Returns the confusion matrix, or None if there are too many classes.

    Rows are the true classes. The colour shows the fraction of the row. Correct
    and wrong predictions have separate colour scales: otherwise the few
    mistakes would be invisible beside the many correct predictions.

    Args:
      evaluation: contents of `evaluation.json`.
    """
    names = [charts.label(name) for name in evaluation["class_names"]]
    matrix = np.asarray(evaluation["confusion_matrix"])
    n = len(names)
    if n > _MOST_CLASSES:
        return None
    fraction = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(n, dtype=bool)
    most_wrong = max(0.25, float(fraction[~diagonal].max(initial=0)))
    figure = go.Figure()
    groups = (diagonal, "hit", 1.0), (~diagonal, "miss", most_wrong)
    # The colours are the CSS variables --hit-low, --miss-high, ...
    for mask, scale, top in groups:
        shown = mask & (matrix > 0)
        figure.add_heatmap(
            z=np.where(shown, fraction, np.nan).tolist(),
            zmin=0,
            zmax=top,
            text=np.where(shown, matrix.astype(str), "").tolist(),
            colorscale=[
                [0, f"var(--{scale}-low)"],
                [1, f"var(--{scale}-high)"],
            ],
            showscale=False,
            hoverongaps=False,
            xgap=2,
            ygap=2,
            texttemplate="%{text}",
            textfont={"color": f"var(--{scale}-text)", "size": 11},
            hovertemplate="%{y} taken for %{x}:<br>%{text} images, "
            "%{z:.0%} of the class<extra></extra>",
        )
    # Not Plotly's category axis, which merges classes with the same label.
    ticks = {"tickvals": list(range(n)), "ticktext": names, "showgrid": False}
    figure.update_xaxes(
        **ticks,
        range=[-0.5, n - 0.5],
        side="top",
        tickangle=-90,
        title_text="predicted class",
    )
    figure.update_yaxes(**ticks, range=[n - 0.5, -0.5], title_text="true class")
    figure.update_layout(margin_t=8)
    size = 22 * n + 150  # A cell is wide enough for a count of two digits.
    return charts.make_chart(
        "chart-confusion",
        "Confusion matrix: rows are the true classes, columns the predicted",
        figure,
        height=max(size, 360),
        min_width=size,
    )


def reliability_chart(
    reliability: Reliability, before: Reliability | None
) -> Chart:
    """Returns the reliability diagram: accuracy by confidence.

    Args:
      reliability: how well the model's probabilities hold.
      before: the same without the temperature; None: there is none.
    """
    bins = reliability.bins
    accuracy = np.array([b.accuracy for b in bins])
    intervals = [wilson_interval(b.correct, b.num_examples) for b in bins]
    low, high = np.transpose(intervals)
    figure = go.Figure()
    figure.add_bar(
        x=[(b.low + b.high) / 2 for b in bins],
        y=accuracy.tolist(),
        width=0.92 / reliability.num_bins,
        name="accuracy (95 % interval)",
        marker={"color": charts.TRAIN, "opacity": 0.5},
        error_y={
            "array": (high - accuracy).tolist(),
            "arrayminus": (accuracy - low).tolist(),
            "color": charts.INK,
            "thickness": 1.25,
        },
        customdata=[[b.num_examples, b.confidence] for b in bins],
        hovertemplate="accuracy %{y:.1%} on %{customdata[0]} images, "
        "mean confidence %{customdata[1]:.1%}<extra></extra>",
    )
    if before is not None:
        figure.add_scatter(
            x=[b.confidence for b in before.bins],
            y=[b.accuracy for b in before.bins],
            mode="markers",
            name="before the temperature",
            marker={"color": charts.VALIDATION, "symbol": "diamond", "size": 8},
            customdata=[[b.num_examples] for b in before.bins],
            hovertemplate="before: accuracy %{y:.1%} on %{customdata[0]} "
            "images, mean confidence %{x:.1%}<extra></extra>",
        )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="accuracy = confidence",
        line={"color": charts.MUTED, "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    figure.update_xaxes(tickformat=".0%", range=[0, 1], title_text="confidence")
    figure.update_yaxes(
        tickformat=".0%", range=[0, 1.02], title_text="accuracy"
    )
    return charts.make_chart(
        "chart-reliability",
        "Reliability diagram: accuracy by confidence",
        figure,
        height=420,
    )


def risk_coverage_chart(curve: RiskCoverage) -> Chart:
    """Returns the accuracy by the share of pictures that are turned away."""
    # Where few are answered, the interval says nothing.
    shown = curve.coverage >= 0.5
    away = (1 - curve.coverage[shown]).tolist()
    figure = go.Figure()
    figure.add_scatter(
        x=away + away[::-1],
        y=curve.high[shown].tolist() + curve.low[shown].tolist()[::-1],
        fill="toself",
        fillcolor=charts.TRAIN,
        opacity=0.2,
        line={"width": 0},
        name="95 % interval",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=away,
        y=curve.accuracy[shown].tolist(),
        mode="lines",
        name="accuracy on the others",
        line={"color": charts.TRAIN},
        hovertemplate="%{x:.1%} turned away: %{y:.1%}<extra></extra>",
    )
    figure.update_xaxes(
        tickformat=".0%", range=[0, 0.5], title_text="turned away"
    )
    figure.update_yaxes(tickformat=".1%", title_text="accuracy")
    return charts.make_chart(
        "chart-risk-coverage",
        "Accuracy when the pictures with the largest unknown score go",
        figure,
        height=320,
    )
