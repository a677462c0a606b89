"""Runs the phase: a range test, `find_lr_STAGE.json` and `.html`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from flowers17_tfdata import files, terminal
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.phases import train_stages
from flowers17_tfdata.phases.find_lr.chart import curve_chart
from flowers17_tfdata.phases.find_lr.curve import Curve, still_falls, suggest
from flowers17_tfdata.phases.report import page
from flowers17_tfdata.session import Session

# One training step each, from a rate that changes nothing to one that ruins
# everything.
NUM_STEPS = 100
FIRST_RATE, LAST_RATE = 1e-6, 1.0

_ENDS = {
    "diverged": "where the loss diverged",
    "not finite": "where the loss was not finite any more",
    "": "where the test ended",
}


def run_range_test(session: Session) -> None:
    """Tries rising learning rates on a stage and suggests one.

    The stage is opened as its own phase opens it, and then discarded. All
    workers of a cluster see the same losses and end at the same step.

    Raises:
      UserError: the model that the stage starts from is missing, or the loss
        doesn't fall at any of the rates.
    """
    name = session.config.find_lr.find_lr_stage
    stage = train_stages.open_stage(session, name, rising_rates())
    curve = Curve()
    with terminal.EpochProgress(f"find_lr: {name}", NUM_STEPS) as progress:
        for rate, loss in stage.try_steps(NUM_STEPS):
            curve.add(rate, loss)
            progress.advance(1, f"learning rate {rate:.1e}, loss {loss:.3f}")
            if curve.ended:
                break
    result = _make_result(session, curve)
    if session.workers.is_chief:
        _write(result, session.output / f"find_lr_{name}.json")
    session.workers.barrier()
    if not result["suggestion"]:
        raise UserError(
            f"the loss of {name} doesn't fall at learning rates from "
            f"{FIRST_RATE:g} to {LAST_RATE:g} ({_describe_steps(result)}): "
            "the model has learned these images already, or can't learn them"
        )


def rising_rates() -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule from `FIRST_RATE` to `LAST_RATE`.

    Each step multiplies the rate by the same factor, since its order of
    magnitude is what matters.
    """
    return keras.optimizers.schedules.ExponentialDecay(
        FIRST_RATE,
        decay_steps=NUM_STEPS - 1,
        decay_rate=LAST_RATE / FIRST_RATE,
    )


def _make_result(session: Session, curve: Curve) -> dict[str, Any]:
    """Returns the contents of `find_lr_STAGE.json`."""
    config = session.config
    name = config.find_lr.find_lr_stage
    rate = suggest(curve, NUM_STEPS)
    return {
        "stage": name,
        "dataset": session.source.name,
        "optimizer": config.optimization.stage(name).optimizer,
        "flag": f"--{name}_learning_rate={rate:.2g}" if rate else "",
        "suggestion": rate,
        "ended": curve.ended,
        "still_falls": still_falls(curve, NUM_STEPS),
        "rates": curve.rates,
        "losses": curve.losses,
        "smoothed": curve.smoothed,
        **session.record(),
    }


def _write(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes the result as JSON and as a page, and prints it."""
    html = path.with_suffix(".html")
    files.write_json(path, result)
    context = {
        "result": result,
        "end": _ENDS[result["ended"]],
        "chart": curve_chart(result),
    }
    files.write_text(html, page.render(context, "find_lr.html"))
    if result["flag"]:
        hint = "; the loss still falls there: higher rates may work, too"
        terminal.say(
            f"find_lr: {result['flag']}, from {_describe_steps(result)}"
            f"{hint if result['still_falls'] else ''}",
            stage=result["stage"],
            suggestion=result["suggestion"],
        )
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
