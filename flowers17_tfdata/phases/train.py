"""The phases `transfer`, `finetune`, `refit`, and `train`: the whole job."""

from __future__ import annotations

from flowers17_tfdata.phases import evaluate, extension, prepare
from flowers17_tfdata.phases.report.report import write_report
from flowers17_tfdata.phases.train_stages import train_stages
from flowers17_tfdata.session import Session


def transfer(session: Session) -> None:
    """Fits the head; writes `model_transfer.keras`."""
    train_stages(session, ["transfer"])


def finetune(session: Session) -> None:
    """Trains the upper backbone too; writes `model_finetune.keras`."""
    train_stages(session, ["finetune"])


def refit(session: Session) -> None:
    """Trains the better stage's model on validation, too.

    Writes `model_refit.keras`.
    """
    train_stages(session, ["refit"])


def train(session: Session) -> None:
    """Audits, runs all stages, evaluates on `--split`, and reports.

    Raises:
      AccuracyGateMissed: below `--assert_accuracy_at_least`.
    """
    # A misspelt split must not wait for the end of the training.
    session.source.check_split(session.config.evaluation.split)
    if not prepare.is_prepared(session):
        prepare.prepare(session)
    train_stages(session, session.config.optimization.stages)
    evaluation = evaluate.evaluate_without_gate(session)
    if session.config.data.extends:
        extension.compare_with_earlier(session)
    # The report comes first: a missed gate is when one wants to read it.
    write_report(session)
    evaluate.check_gate(session.config, evaluation)
