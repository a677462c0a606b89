"""Charts of accuracy, loss and learning rate over the epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.charts import Chart
from flowers17_tfdata.phases.report.record import StageRecord

# The title, the columns of `metrics.jsonl` and the format of the y axis.
_CURVES = (
    ("Accuracy", ("train_accuracy", "validation_accuracy"), ".0%"),
    ("Loss", ("train_loss", "validation_loss"), ""),
    ("Learning rate", ("learning_rate",), ".1e"),
)
_COLOURS = (charts.TRAIN, charts.VALIDATION)
_MOST_TICKS = 8


def training_charts(stages: Sequence[StageRecord]) -> list[Chart]:
    """Returns a chart for each quantity, with the stages in succession.

    A head that was solved for has one epoch, which makes no curve: without
    other stages there are no charts.
    """
    if all(len(stage.epochs) < 2 for stage in stages):
        return []
    return [_training_chart(stages, *curve) for curve in _CURVES]


def _training_chart(
    stages: Sequence[StageRecord],
    title: str,
    columns: Sequence[str],
    tick_format: str,
) -> Chart:
    figure = go.Figure()
    offset = 0
    for stage in stages:
        epochs = [line["epoch"] for line in stage.epochs]
        for column, colour in zip(columns, _COLOURS, strict=False):
            name = column.partition("_")[0]
            figure.add_scatter(
                x=[offset + epoch for epoch in epochs],
                y=[line[column] for line in stage.epochs],
                # Draw across epochs that were not validated.
                connectgaps=True,
                customdata=epochs,
                name=name,
                legendgroup=column,
                showlegend=stage is stages[0] and len(columns) > 1,
                mode="lines+markers",
                line={"color": colour, "width": 2.25},
                hovertemplate=f"{stage.title}, epoch %{{customdata}}<br>"
                f"{column.replace('_', ' ')}: %{{y}}<extra></extra>",
            )
        # The stage's left border, its title and its best epoch. A head that was
        # solved has one epoch, too narrow for a title.
        line = {"color": charts.MUTED, "width": 1}
        figure.add_vline(
            x=offset + 0.5,
            line=line,
            annotation_text=stage.title if len(epochs) > 1 else "",
            annotation_position="top right",
            annotation_yanchor="bottom",
        )
        if stage.best_epoch is not None:
            best = offset + stage.best_epoch
            figure.add_vline(x=best, line=line | {"dash": "dot"})
        offset += max(epochs)
    figure.update_xaxes(
        title_text="epoch, counted over all stages",
        tick0=0,
        dtick=math.ceil(offset / _MOST_TICKS),
        range=[0.5, offset + 0.5],
        showgrid=False,
    )
    figure.update_yaxes(rangemode="tozero", tickformat=tick_format)
    name = "chart-" + title.lower().replace(" ", "-")
    return charts.make_chart(name, title, figure)
