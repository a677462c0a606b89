"""The phase: a range test of a stage, `find_lr.json` and `find_lr.html`."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

import flowers17_tfdata
from flowers17_tfdata import files, machine, terminal
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.phases import train
from flowers17_tfdata.phases.find_lr import curve as curve_lib
from flowers17_tfdata.phases.find_lr.chart import SHOWN_NAMES, curve_chart
from flowers17_tfdata.phases.find_lr.curve import Curve
from flowers17_tfdata.phases.report import page
from flowers17_tfdata.session import Session

# A training step each, from a rate that changes nothing to one that ruins all.
NUM_STEPS = 100
FIRST_RATE, LAST_RATE = 1e-6, 1.0

# fastai's default, too: of the three it depends least on a single step.
_CHOSEN = "valley"

_ENDS = {
    "diverged": "where the loss diverged",
    "not finite": "where the loss was not finite any more",
    "": "where the test ended",
}


def run_range_test(session: Session) -> None:
    """Tries rising learning rates on a stage; tells which one to take.

    The stage is made as its own phase makes it and thrown away. All workers
    of a cluster see the same losses and end at the same step.

    Raises:
      UserError: what the stage starts from isn't there, or the loss doesn't
        fall at any of the rates.
    """
    name = session.config.find_lr.find_lr_stage
    stage = train.open_stage(session, name, rising_rates())
    curve = Curve()
    title = f"find_lr: {name}"
    with terminal.EpochProgress(title, NUM_STEPS) as progress:
        for rate, loss in stage.try_steps(NUM_STEPS):
            curve.add(rate, loss)
            progress.advance(1, f"learning rate {rate:.1e}, loss {loss:.3f}")
            if curve.ended:
                break
    result = _make_result(session, curve)
    if session.workers.is_chief:
        path = session.output / "find_lr.json"
        files.write_json(path, result)
        text = page.render(make_context(result), "find_lr.html")
        files.write_text(path.with_suffix(".html"), text)
        _tell(result, path)
    session.workers.barrier()
    if not result["suggestions"]:
        raise UserError(
            f"the loss of {name} doesn't fall at learning rates from "
            f"{FIRST_RATE:g} to {LAST_RATE:g} ({_describe_steps(result)}): "
            "what it trains knows these images already, or can't learn them"
        )


def rising_rates() -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule from `FIRST_RATE` to `LAST_RATE`.

    Each step multiplies the rate by the same factor: what matters of a rate is
    its order of magnitude.
    """
    return keras.optimizers.schedules.ExponentialDecay(
        FIRST_RATE,
        decay_steps=NUM_STEPS - 1,
        decay_rate=LAST_RATE / FIRST_RATE,
    )


def _make_result(session: Session, curve: Curve) -> dict[str, Any]:
    """Returns the contents of `find_lr.json`."""
    config = session.config
    name = config.find_lr.find_lr_stage
    suggestions = curve_lib.suggest(curve, NUM_STEPS)
    flag = ""
    if suggestions:
        flag = f"--{name}_learning_rate={suggestions[_CHOSEN]:.2g}"
    return {
        "stage": name,
        "dataset": session.source.name,
        "optimizer": getattr(config.optimization, f"{name}_optimizer"),
        "flag": flag,
        "suggestion": suggestions.get(_CHOSEN),
        "suggestions": suggestions,
        "ended": curve.ended,
        "still_falls": curve_lib.still_falls(curve, NUM_STEPS),
        "rates": curve.rates,
        "losses": curve.losses,
        "smoothed": curve.smoothed,
        "flags": config_lib.to_values(config)
        | {"precision": session.precision},
        "num_replicas": session.strategy.num_replicas_in_sync,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
    }


def make_context(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `templates/find_lr.html` names.

    Args:
      result: contents of `find_lr.json`.
    """
    return {
        "result": result,
        "chosen": _CHOSEN,
        "shown_names": SHOWN_NAMES,
        "end": _ENDS[result["ended"]],
        "chart": curve_chart(result, _CHOSEN),
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": flowers17_tfdata.__version__,
    }


def _tell(result: Mapping[str, Any], path: pathlib.Path) -> None:
    others = ", ".join(
        f"{SHOWN_NAMES[name]} {rate:.2g}"
        for name, rate in result["suggestions"].items()
        if name != _CHOSEN
    )
    if result["flag"]:
        terminal.say(
            f"find_lr: {result['flag']} ({_CHOSEN}; {others}), from "
            + _describe_steps(result)
            + (
                "; the loss still falls there: higher rates may do, too"
                if result["still_falls"]
                else ""
            ),
            stage=result["stage"],
            suggestion=result["suggestion"],
            suggestions=result["suggestions"],
        )
    html = path.with_suffix(".html")
    terminal.say(
        f"find_lr: the curve is in {html}, its numbers in {path}",
        report=str(html),
    )


def _describe_steps(result: Mapping[str, Any]) -> str:
    rates = result["rates"]
    if not rates:
        return "no step: the first loss was not finite"
    return (
        f"{len(rates)} steps at {rates[0]:.2g} to {rates[-1]:.2g}, "
        f"{_ENDS[result['ended']]}"
    )
