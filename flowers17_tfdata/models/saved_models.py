"""The models that a run has saved, and which of them is used from then on."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from flowers17_tfdata.models import classifier


class Validation(NamedTuple):
    """What a saved model is worth on the validation split, by one look.

    Attributes:
      accuracy: in [0, 1].
      loss: cross-entropy without label smoothing, nats.
    """

    accuracy: float
    loss: float


def model_path(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns where a stage's model is saved."""
    return workdir / f"model_{stage}.keras"


def validation_of(path: pathlib.Path) -> Validation | None:
    """Reads how a saved model did; None: nobody validated it."""
    recorded = classifier.read_extras(path).get("validation")
    try:
        return Validation(float(recorded["accuracy"]), float(recorded["loss"]))
    except (TypeError, KeyError, ValueError):
        return None


def kept_stage(
    workdir: pathlib.Path, *, before_refit: bool = False
) -> str | None:
    """Returns the stage whose model later phases use.

    That is the refitted model; else, of the fine-tuned one and the head, the
    one with the higher validation accuracy, of equal ones with the lower loss.

    Args:
      workdir: of the run.
      before_refit: leave the refitted model out.

    Returns:
      `transfer`, `finetune` or `refit`; None: the run has saved no model.
    """
    if not before_refit and model_path(workdir, "refit").exists():
        return "refit"
    paths = {s: model_path(workdir, s) for s in ("transfer", "finetune")}
    saved = [stage for stage, path in paths.items() if path.exists()]
    if len(saved) < 2:
        return saved[0] if saved else None
    head, finetuned = (validation_of(paths[stage]) for stage in saved)
    if head is None or finetuned is None:
        return "finetune"
    if (head.accuracy, -head.loss) > (finetuned.accuracy, -finetuned.loss):
        return "transfer"
    return "finetune"
