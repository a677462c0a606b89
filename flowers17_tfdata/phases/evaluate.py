"""The phase `evaluate`."""

from __future__ import annotations

from typing import Any

from flowers17_tfdata import terminal, timings, trained_model
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.errors import AccuracyGateMissed
from flowers17_tfdata.session import Session


def evaluate(session: Session) -> None:
    """Evaluates a saved model on `--split`; see `evaluate_split`.

    Raises:
      AccuracyGateMissed: below `--assert_accuracy_at_least`.
    """
    check_gate(session.config, evaluate_without_gate(session))


def evaluate_without_gate(session: Session) -> dict[str, Any]:
    """Returns the contents of the `evaluation.json` that it writes."""
    split = session.config.evaluation.split
    with timings.measure(session.output, "evaluation"):
        trained = trained_model.load_model_for(session)
        evaluation, _ = trained_model.evaluate_split(session, trained, split)
    terminal.show_evaluation(evaluation)
    return evaluation


def check_gate(config: Config, evaluation: dict[str, Any]) -> None:
    """Checks an evaluation against `--assert_accuracy_at_least`.

    Raises:
      AccuracyGateMissed: the evaluation's accuracy is lower.
    """
    gate = config.evaluation.assert_accuracy_at_least
    if evaluation["accuracy"] < gate:
        raise AccuracyGateMissed(
            f"accuracy {evaluation['accuracy']:.4f} on {evaluation['split']} "
            f"is below --assert_accuracy_at_least={gate}"
        )
