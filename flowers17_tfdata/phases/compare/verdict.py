"""Prints the result of a comparison: a table, and a sentence."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flowers17_tfdata import terminal
from flowers17_tfdata.errors import counted

SIDES = ("compare", "baseline")


def show(comparison: Mapping[str, Any]) -> None:
    """Prints the contents of `comparison.json`."""
    split, pairs = comparison["split"], comparison["pairs"]
    pooled = comparison["pooled"]
    rows = [row for pair in pairs for row in _rows(pair)]
    if len(pairs) > 1:
        names = {"compare": "all compared", "baseline": "all baselines"}
        rows += _rows({**pooled, **names})
    terminal.show_table(
        f"{split} split, {pooled['num_images']} images",
        ["workdir", "accuracy, %", "alone", "points", "p"],
        rows,
        records=pairs,
    )
    left_out = sum(pair["left_out"] for pair in pairs)
    if left_out:
        terminal.say(
            f"left out: {counted(left_out, 'answer')} to images that "
            "--corrections relabelled or dropped in one run of a pair",
            left_out=left_out,
        )
    for side in SIDES:
        models = dict.fromkeys(
            pathlib.Path(pair[f"{side}_model"]).name for pair in pairs
        )
        terminal.say(f"{side}: {'; '.join(models)}")
    terminal.say(f"{split}: {_verdict(comparison)}", split=split, **pooled)


def _rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    """Returns a row for each side; the first also has the difference."""
    rows = []
    for side in SIDES:
        accuracy = _points(figures[f"{side}_accuracy"])
        # The pooled figures have no interval.
        if f"{side}_interval" in figures:
            accuracy += f" ({_span(figures[f'{side}_interval'])})"
        alone = figures[f"only_{side}_right"]
        rows.append([figures[side], accuracy, alone, "", ""])
    difference = _points(figures["difference"])
    interval = _span(figures["difference_interval"])
    p_value = _p_value(figures["p_value"]).removeprefix("= ")
    rows[0][3:] = [f"{difference} ({interval})", p_value]
    return rows


def _verdict(comparison: Mapping[str, Any]) -> str:
    """Returns a sentence that names the better side, if there is one."""
    pooled, pairs = comparison["pooled"], comparison["pairs"]
    # A single run is named by its folder, several by the flag's value.
    names = [(pairs[0] if len(pairs) == 1 else comparison)[s] for s in SIDES]
    difference, interval = pooled["difference"], pooled["difference_interval"]
    if difference < 0:
        # Name the better side first.
        names.reverse()
        difference, interval = -difference, [-x for x in interval[::-1]]
    points = f"{_points(difference)} points"
    figures = (
        f"95 % interval {_span(interval)}, p {_p_value(pooled['p_value'])}"
    )
    if pooled["beyond_chance"]:
        return f"{names[0]} is better than {names[1]} by {points} ({figures})"
    return (
        f"the difference between {names[0]} and {names[1]} ({points}, "
        f"{figures}) is within what chance explains"
    )


def _points(fraction: float) -> str:
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def _span(interval: Sequence[float]) -> str:
    return " to ".join(map(_points, interval))


def _p_value(p: float) -> str:
    return f"= {p:.4f}" if p >= 0.0001 else "< 0.0001"
