"""Charts of how a run was trained, and of where its time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.charts import Chart, make_chart
from flowers17_tfdata.phases.report.record import StageRecord

STAGE_TITLES = {
    "transfer": "Transfer",
    "finetune": "Fine-tune",
    "refit": "Refit",
}
_MOST_TICKS = 8


def learning_charts(stages: Sequence[StageRecord]) -> list[Chart]:
    """Returns the curves of all stages, one after another.

    Accuracy, loss, learning rate, images/s, and the share of the time that the
    training waited for data.
    """
    return [
        _curves(
            stages,
            "accuracy",
            "Accuracy",
            {"train_accuracy": "train", "validation_accuracy": "validation"},
            axis={"tickformat": ".0%", "rangemode": "tozero"},
            height=320,
        ),
        _curves(
            stages,
            "loss",
            "Loss",
            {"train_loss": "train", "validation_loss": "validation"},
            axis={"rangemode": "tozero"},
            height=320,
        ),
        _curves(
            stages,
            "learning-rate",
            "Learning rate",
            {"learning_rate": "learning rate"},
            axis={"rangemode": "tozero", "exponentformat": "e"},
        ),
        _curves(
            stages,
            "images-per-sec",
            "Images per second",
            {"images_per_sec": "images/s"},
            # Cached features are hundreds of times as fast as images.
            axis={"type": "log", "dtick": 1},
        ),
        _curves(
            stages,
            "data-wait",
            "Waiting for data",
            {"data_wait_fraction": "share of the time"},
            axis={"tickformat": ".1%", "rangemode": "tozero"},
        ),
    ]


def _curves(
    stages: Sequence[StageRecord],
    name: str,
    title: str,
    columns: Mapping[str, str],
    *,
    axis: Mapping,
    height: int = 220,
) -> Chart:
    figure = go.Figure()
    colours = (charts.TRAIN, charts.VALIDATION)
    offset, ticks = 0, []
    step = -(-sum(len(stage.epochs) for stage in stages) // _MOST_TICKS)
    for stage in stages:
        epochs = [line["epoch"] for line in stage.epochs]
        x = [offset + epoch for epoch in epochs]
        for colour, (column, shown) in zip(
            colours, columns.items(), strict=False
        ):
            figure.add_scatter(
                x=x,
                y=[line[column] for line in stage.epochs],
                # Over epochs that weren't validated.
                connectgaps=True,
                customdata=epochs,
                name=shown,
                legendgroup=column,
                showlegend=stage is stages[0] and len(columns) > 1,
                mode="lines+markers" if len(x) < 60 else "lines",
                line={"color": colour, "width": 2.25},
                marker={"size": 5, "color": colour},
                hovertemplate=f"{stage.name} epoch %{{customdata}}<br>"
                f"{shown}: %{{y}}<extra></extra>",
            )
        _mark_stage(figure, stage, offset)
        ticks += [(offset + e, str(e)) for e in epochs if e % step == 0]
        offset += max(epochs)
    figure.update_xaxes(
        title_text="epoch within the stage",
        tickangle=0,
        tickvals=[value for value, _ in ticks],
        ticktext=[text for _, text in ticks],
        range=[0.5, offset + 0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(**axis)
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 48 if len(columns) > 1 else 22, "b": 8}
    )
    return make_chart(f"chart-{name}", title, figure, height=height)


def _mark_stage(figure: go.Figure, stage: StageRecord, offset: int) -> None:
    """Draws the divider before a stage, its name, and its best epoch."""
    if offset:
        figure.add_vline(
            x=offset + 0.5, line={"color": charts.MUTED, "width": 1}
        )
    figure.add_annotation(
        x=offset + 0.5,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left",
        yshift=2,
        text=STAGE_TITLES[stage.name],
        showarrow=False,
        font={"size": 11.5, "color": charts.MUTED},
    )
    if stage.best_epoch is not None:
        figure.add_vline(
            x=offset + stage.best_epoch,
            line={"color": charts.MUTED, "width": 1, "dash": "dot"},
        )


def time_chart(parts: Mapping[str, float]) -> Chart:
    """Returns the parts of a run's wall time, the longest first."""
    ordered = sorted(parts.items(), key=lambda item: item[1])
    names = [name for name, _ in ordered]
    seconds = [value for _, value in ordered]
    total = sum(seconds) or 1.0
    figure = go.Figure(
        go.Bar(
            x=seconds,
            y=list(range(len(names))),
            orientation="h",
            marker={"color": charts.TRAIN},
            text=[f"{s:,.1f} s · {s / total:.0%}" for s in seconds],
            textposition="auto",
            textangle=0,
            insidetextfont={"color": "var(--surface)"},
            outsidetextfont={"color": charts.INK},
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(**charts.category_axis(names))
    figure.update_xaxes(
        title_text="seconds",
        nticks=5,
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8}, bargap=0.35)
    return make_chart(
        "chart-time",
        "Seconds by part of the run",
        figure,
        height=70 + 30 * len(names),
    )
