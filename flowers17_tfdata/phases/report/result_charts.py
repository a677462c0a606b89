"""Charts of what a model gets right, and of the data it was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from flowers17_tfdata.phases.report import charts
from flowers17_tfdata.phases.report.calibration import Calibration
from flowers17_tfdata.phases.report.charts import Chart, make_chart
from flowers17_tfdata.scoring.scores import wilson_interval

# Beyond, names and counts of a confusion matrix can't be read.
MOST_CLASSES_IN_FULL = 60
_MOST_CLASSES_WITH_COUNTS = 35
_BLOCKS = 100

_SPLIT_COLOURS = {
    "train": charts.TRAIN,
    "validation": charts.VALIDATION,
    "test": charts.TEST,
}


def confusion_chart(confusion: np.ndarray, names: Sequence[str]) -> Chart:
    """Returns the confusion matrix: rows are true classes.

    Hits and mistakes have a colour scale each, or the few mistakes would be
    invisible beside the hits. Colour is the share of the row.

    Args:
      confusion: int `[classes, classes]`, at most `MOST_CLASSES_IN_FULL`.
      names: of the classes.
    """
    n = len(names)
    counts = n <= _MOST_CLASSES_WITH_COUNTS
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(n, dtype=bool)
    figure = go.Figure()
    for mask, scale, top in (
        (diagonal, "hit", 1.0),
        (~diagonal, "miss", max(0.25, float(share[~diagonal].max(initial=0)))),
    ):
        shown = mask & (confusion > 0)
        figure.add_heatmap(
            z=np.where(shown, share, np.nan).tolist(),
            zmin=0,
            zmax=top,
            colorscale=[
                [0, f"var(--{scale}-low)"],
                [1, f"var(--{scale}-high)"],
            ],
            showscale=False,
            hoverongaps=False,
            xgap=2,
            ygap=2,
            text=_counts(confusion, shown),
            texttemplate="%{text}" if counts else None,
            textfont={"color": f"var(--{scale}-text)", "size": 11},
            hovertext=_hover_texts(confusion, shown, names),
            hovertemplate="%{hovertext}, %{z:.0%} of them<extra></extra>",
        )
    axis = charts.category_axis(names)
    figure.update_xaxes(
        **axis, side="top", tickangle=-45, title_text="taken for"
    )
    figure.update_yaxes(**axis, title_text="true class")
    figure.update_yaxes(range=[n - 0.5, -0.5])
    figure.update_layout(margin={"l": 8, "r": _overhang(names), "t": 8, "b": 8})
    cell_height, cell_width = (26, 22) if counts else (14, 14)
    return make_chart(
        "chart-confusion",
        "Confusion matrix: rows are the true classes, columns what they were "
        "taken for",
        figure,
        height=max(cell_height * n + 150, 360),
        # Narrower, it scrolls: a count of two digits fills a cell.
        min_width=min(cell_width * n + 150, 900),
    )


def _overhang(names: Sequence[str]) -> int:
    """Returns how far labels at 45 degrees reach beyond the chart, pixels.

    At 5 pixels a character and 14 a column (the least there is of both).
    """
    columns_after = range(len(names) - 1, -1, -1)
    return 8 + max(
        5 * len(charts.label(name)) - 14 * after
        for name, after in zip(names, columns_after, strict=True)
    )


def _counts(confusion: np.ndarray, shown: np.ndarray) -> list[list[str]]:
    return np.where(shown, confusion.astype(str), "").tolist()


def _hover_texts(
    confusion: np.ndarray, shown: np.ndarray, names: Sequence[str]
) -> list[list[str]]:
    texts = np.full(confusion.shape, "", object)
    names = [charts.label(name) for name in names]
    for row, column in np.argwhere(shown):
        texts[row, column] = (
            f"{names[row]} taken for {names[column]}:<br>"
            f"{confusion[row, column]} images"
        )
    return texts.tolist()


def block_confusion_chart(confusion: np.ndarray) -> Chart:
    """Returns the confusion matrix of many classes, summed over blocks."""
    n = len(confusion)
    size = -(-n // _BLOCKS)
    starts = np.arange(0, n, size)
    blocks = np.add.reduceat(confusion, starts, axis=0)
    blocks = np.add.reduceat(blocks, starts, axis=1)
    figure = go.Figure(
        go.Heatmap(
            x0=size / 2 - 0.5,
            dx=size,
            y0=size / 2 - 0.5,
            dy=size,
            z=np.where(blocks > 0, np.log10(1 + blocks), np.nan).tolist(),
            customdata=blocks.tolist(),
            colorscale=[[0, "var(--hit-low)"], [1, "var(--hit-high)"]],
            showscale=False,
            hovertemplate="around class %{y:.0f} taken for around %{x:.0f}: "
            "%{customdata} images<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="taken for (class number)")
    figure.update_yaxes(title_text="true class", autorange="reversed")
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8})
    return make_chart(
        "chart-confusion",
        f"Confusion matrix in blocks of {size} classes",
        figure,
        height=520,
        min_width=520,
    )


def calibration_chart(calibration: Calibration) -> Chart:
    """Returns the reliability diagram above the number of images a bin."""
    m = calibration.num_bins
    centres = (np.arange(m) + 0.5) / m
    figure = make_subplots(
        rows=2,
        shared_xaxes=True,
        row_heights=[0.74, 0.26],
        vertical_spacing=0.06,
    )
    figure.add_traces(_reliability_traces(calibration, centres), rows=1, cols=1)
    figure.add_bar(
        x=centres.tolist(),
        y=calibration.counts.tolist(),
        width=0.92 / m,
        marker={"color": charts.OTHER},
        showlegend=False,
        hovertemplate="%{y} images<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%", zeroline=False)
    figure.update_xaxes(title_text="confidence", row=2, col=1)
    figure.update_yaxes(
        range=[0, 1.02], tickformat=".0%", title_text="accuracy", row=1, col=1
    )
    figure.update_yaxes(title_text="images", nticks=3, row=2, col=1)
    figure.update_layout(margin={"l": 8, "r": 12, "t": 44, "b": 8})
    return make_chart(
        "chart-calibration",
        "Reliability diagram: accuracy by confidence, and images in each bin",
        figure,
        height=460,
    )


def _reliability_traces(calibration: Calibration, centres: np.ndarray) -> list:
    filled = calibration.counts > 0
    accuracy = calibration.accuracy[filled]
    confidence = calibration.confidence[filled].tolist()
    low, high = np.transpose(
        [
            wilson_interval(int(k), int(n))
            for k, n in zip(
                calibration.correct[filled],
                calibration.counts[filled],
                strict=True,
            )
        ]
    )
    return [
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="as confident as right",
            line={"color": charts.MUTED, "dash": "dash", "width": 1.5},
            hoverinfo="skip",
        ),
        go.Bar(
            x=centres[filled].tolist(),
            y=accuracy.tolist(),
            width=0.92 / calibration.num_bins,
            name="accuracy (95 % interval)",
            marker={"color": charts.TRAIN, "opacity": 0.5},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - accuracy).tolist(),
                "arrayminus": (accuracy - low).tolist(),
                "color": charts.INK,
                "thickness": 1.25,
                "width": 3,
            },
            hovertemplate="accuracy %{y:.1%}<extra></extra>",
        ),
        go.Scatter(
            x=confidence,
            y=confidence,
            mode="markers",
            name="mean confidence",
            marker={
                "color": charts.VALIDATION,
                "size": 8,
                "line": {"color": "var(--surface)", "width": 1.5},
            },
            hovertemplate="mean confidence %{y:.1%}<extra></extra>",
        ),
    ]


def split_chart(
    splits: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> Chart:
    """Returns the images of each class, stacked by split.

    Args:
      splits: of `audit.json`.
      names: of the classes.
    """
    figure = go.Figure()
    for split, counts in splits.items():
        figure.add_bar(
            y=list(range(len(names))),
            x=[counts["per_class"].get(name, 0) for name in names],
            orientation="h",
            name=charts.label(split),
            marker={"color": _SPLIT_COLOURS.get(split, charts.OTHER)},
            hovertemplate=f"{charts.label(split)}: %{{x}}<extra></extra>",
        )
    figure.update_yaxes(**charts.category_axis(names))
    figure.update_yaxes(range=[len(names) - 0.5, -0.5])
    figure.update_xaxes(title_text="images")
    figure.update_layout(
        barmode="stack",
        bargap=0.3,
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        legend_traceorder="normal",
    )
    return make_chart(
        "chart-splits",
        "Images of each class by split",
        figure,
        height=110 + 22 * len(names),
    )
