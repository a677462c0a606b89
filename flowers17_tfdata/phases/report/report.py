"""The phase: gathers what the workdir holds, writes `report.html`."""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from typing import Any

import flowers17_tfdata
from flowers17_tfdata import files, terminal, trained_model
from flowers17_tfdata.models import classifier
from flowers17_tfdata.phases.report import cases, contents, page
from flowers17_tfdata.phases.report.record import read_record
from flowers17_tfdata.scoring import predictions as predictions_lib
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel


def write_report(session: Session) -> None:
    """Writes `report.html`; evaluates the model first where that is due.

    Raises:
      UserError: no model, no such split, a damaged file in the workdir.
    """
    split = session.config.evaluation.split
    session.source.check_split(split)
    trained = trained_model.load_model_for(session)
    found = _load_evaluation(session, trained, split)
    # The chief may see a file before the others do: all evaluate, or none.
    if not session.workers.all(found is not None):
        terminal.say(f"report: evaluating {trained.path} on {split}")
        found = trained_model.evaluate_split(session, trained, split)
    if session.workers.is_chief:
        path = session.output / "report.html"
        text = page.render(_make_context(session, trained, *found))
        files.write_text(path, text)
        size = len(text.encode())
        terminal.say(f"report: {path} ({size / 1e6:.1f} MB)", report=str(path))
    session.workers.barrier()


def _load_evaluation(
    session: Session, trained: TrainedModel, split: str
) -> tuple[dict[str, Any], Predictions] | None:
    """Returns the workdir's evaluation, unless it is of something else.

    Of another split, another model or data set, of other views, or older than
    the model.
    """
    path = session.workdir / "evaluation.json"
    predicted = predictions_lib.predictions_path(session.workdir, split)
    if not (path.exists() and predicted.exists()):
        return None
    evaluation = files.read_json(path)
    changed = trained.path.stat().st_mtime
    if (
        evaluation["split"] != split
        or evaluation["dataset"] != session.source.name
        # Before there were views, it didn't say.
        or evaluation.get("views") != session.config.evaluation.tta
        or evaluation["class_names"] != list(session.source.class_names)
        or not _is_same_file(evaluation["model"], trained.path)
        or min(p.stat().st_mtime for p in (path, predicted)) < changed
    ):
        return None
    return evaluation, predictions_lib.load(predicted)


def _is_same_file(recorded: str, path: pathlib.Path) -> bool:
    return pathlib.Path(recorded).resolve() == path.resolve()


def _make_context(
    session: Session,
    trained: TrainedModel,
    evaluation: dict[str, Any],
    predictions: Predictions,
) -> dict[str, Any]:
    record = read_record(session.workdir)
    if not trained.was_trained_in(session.workdir):
        # Its flags, curves and times are another model's.
        record = dataclasses.replace(record, config=None, stages=[], parts={})
    flags = record.config["flags"] if record.config else {}
    names, split = session.source.class_names, evaluation["split"]
    backbone = classifier.get_backbone(trained.model).name
    shown = cases.make_cases(session, trained, predictions, split)
    seed = flags.get("seed", session.config.runtime.seed)
    return {
        "dataset": session.source.name,
        "written": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "version": flowers17_tfdata.__version__,
        "headline": contents.headline(
            evaluation, record, str(trained.path), backbone
        ),
        "learning": contents.learning(
            record, flags.get("label_smoothing", 0.0)
        ),
        "confusions": contents.confusions(evaluation),
        "per_class": contents.per_class(evaluation),
        "cases": shown,
        "calibration": contents.calibration(predictions),
        "audit": contents.audit(record, names, session.source.name),
        "augmentation": _augmentation(session, seed),
        "time": contents.time_spent(record),
        "reproduction": contents.reproduction(
            record, str(session.config.workdir), split
        ),
        "workdir": str(session.workdir),
    }


def _augmentation(session: Session, seed: int) -> dict[str, Any]:
    options = session.config.input
    return {
        "options": options,
        "seed": seed,
        "rows": cases.make_view_rows(session, seed),
    }
