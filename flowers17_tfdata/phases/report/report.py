"""Runs the phase: reads the workdir and writes `report.html`."""

from __future__ import annotations

import pathlib
from typing import Any

from flowers17_tfdata import files, terminal, timings, trained_model
from flowers17_tfdata.models import classifier, saved_models
from flowers17_tfdata.phases.report import (
    audit_findings,
    augmented_views,
    cases,
    more_photographs,
    page,
    pictures,
    record,
    reproduce,
    result_charts,
    tables,
    turned_away,
)
from flowers17_tfdata.phases.report.training_curves import training_charts
from flowers17_tfdata.scoring import trust_scores
from flowers17_tfdata.scoring.predictions import (
    Predictions,
    load,
    predictions_path,
)
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

_VIEWED_IMAGES = 4
_VIEWS = 6
_VIEW_SIDE = 160


def write_report(session: Session) -> None:
    """Writes `report.html`; evaluates the model first if necessary.

    Another model than the run's own has a page of its own, see
    `TrainedModel.suffix_in`.

    Raises:
      UserError: there is no model or no such split, or a file in the workdir
        is damaged.
    """
    split = session.config.evaluation.split
    session.source.check_split(split)
    trained = trained_model.load_model_for(session)
    found = _load_evaluation(session, trained, split)
    # The chief may see a file before the others do: all evaluate, or none.
    if not session.workers.all(found is not None) or found is None:
        terminal.say(f"report: evaluating {trained.path} on {split}")
        found = trained_model.evaluate_split(session, trained, split)
    if session.workers.is_chief:
        suffix = trained.suffix_in(session.workdir)
        path = session.output / f"report{suffix}.html"
        context = _make_context(session, trained, *found)
        files.write_text(path, page.render(context))
        size = path.stat().st_size / 1e6
        terminal.say(f"report: {path} ({size:.1f} MB)", report=str(path))
    session.workers.barrier()


def _load_evaluation(
    session: Session, trained: TrainedModel, split: str
) -> tuple[dict[str, Any], Predictions] | None:
    """Returns the workdir's evaluation and predictions if they still hold.

    Returns None if they are missing, older than the model, or made with
    another model, data set or split.
    """
    suffix = trained.suffix_in(session.workdir)
    scored = session.workdir / f"evaluation{suffix}.json"
    predicted = predictions_path(session.workdir, split, suffix)
    if not (scored.exists() and predicted.exists()):
        return None
    evaluation = files.read_json(scored)
    expected = {
        "split": split,
        "dataset": session.source.name,
        "class_names": list(session.source.class_names),
    }
    times = [path.stat().st_mtime for path in (trained.path, scored, predicted)]
    if (
        any(evaluation.get(name) != x for name, x in expected.items())
        or pathlib.Path(evaluation["model"]).resolve() != trained.path.resolve()
        or times[0] > min(times)
    ):
        return None
    return evaluation, load(predicted)


def _make_context(
    session: Session,
    trained: TrainedModel,
    evaluation: dict[str, Any],
    predictions: Predictions,
) -> dict[str, Any]:
    """Returns the variables of `templates/report.html`."""
    workdir, split = session.workdir, evaluation["split"]
    # Otherwise the workdir's flags, curves and times are another model's.
    trained_here = trained.was_trained_in(workdir)
    config = None
    if trained_here:
        config = record.read_if_there(workdir / "config.json")
    stages = record.read_stages(workdir) if trained_here else []
    flags = config["flags"] if config else {}
    seed = flags.get("seed", session.config.runtime.seed)
    changed = reproduce.changed_flags(flags)
    audit = record.read_if_there(workdir / "audit.json")
    logits, labels = predictions.logits, predictions.labels
    measured = trust_scores.measure_reliability(logits, labels)
    before = None
    if trained.trust is not None:
        before = trust_scores.measure_reliability(
            logits * trained.trust.temperature, labels
        )
    curve = more_photographs.read_curve(session) if trained_here else None
    return {
        "dataset": session.source.name,
        "workdir": str(workdir),
        "model": str(trained.path),
        "backbone": classifier.get_backbone(trained.model).name,
        **tables.result(evaluation),
        "stages": stages,
        "fine_tuning": (
            saved_models.fine_tuning_outcome(workdir) if stages else ""
        ),
        "training_charts": training_charts(stages),
        "label_smoothing": flags.get("label_smoothing", 0.0),
        "confusion_chart": result_charts.confusion_chart(evaluation),
        "cases": cases.make_cases(session, trained, predictions, split),
        "reliability": measured,
        "reliability_chart": result_charts.reliability_chart(measured, before),
        "turned_away": (
            turned_away.make(session, trained, predictions, split)
            if trained.trust and "trust" in evaluation
            else None
        ),
        "extension": (
            record.read_if_there(workdir / "extension.json")
            if trained_here
            else None
        ),
        "learning_curve": curve,
        "gains_chart": more_photographs.gains_chart(curve) if curve else None,
        "audit": audit,
        "findings": (
            audit_findings.show(audit, session.source) if audit else None
        ),
        "is_imbalanced": bool(audit)
        and audit["imbalance"] >= terminal.IMBALANCED,
        "input": session.config.input,
        "augmentation": augmented_views.describe(session.config.input),
        "seed": seed,
        "views": _augmented_views(session, seed),
        "times": timings.read(workdir) if trained_here else {},
        "config": config,
        "changed_flags": changed,
        "training_command": reproduce.command(changed),
        "report_command": reproduce.command(
            {"phase": "report", "workdir": workdir, "split": split}
        ),
    }


def _augmented_views(session: Session, seed: int) -> list[list[str]]:
    """Returns a row of data URIs for each image; none without a train split."""
    if "train" not in session.source.split_sizes:
        return []
    rows = augmented_views.make_views(
        session.source,
        session.config.input,
        num_images=_VIEWED_IMAGES,
        num_views=_VIEWS,
        seed=seed,
    )
    return [
        [pictures.to_data_uri(view, _VIEW_SIDE) for view in row] for row in rows
    ]
