"""Saved classifiers: writing and reading them, and which one of a run is used.

A model's file is a `.keras` file, which is a zip, with two members more that
Keras ignores: the extras, JSON, and the numbers of `Trust`.
"""

from __future__ import annotations

import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.models import backbones
from flowers17_tfdata.models.trust import Trust, from_arrays

_EXTRAS = "flowers17_tfdata.json"
_TRUST = "flowers17_tfdata.npz"


def save_classifier(
    model: keras.Model,
    path: pathlib.Path,
    extras: Mapping[str, Any],
    trust: Trust | None = None,
) -> None:
    """Writes a model to a `.keras` file, whole or not at all.

    Args:
      model: a classifier.
      path: the file to write.
      extras: what `read_extras` will return, JSON-serializable. It includes
        `class_names`, in the order of the labels.
      trust: what `read_trust` will return.

    Raises:
      UserError: the file can't be written.
    """
    with files.whole_file(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_EXTRAS, json.dumps(extras))
            if trust is not None:
                content = io.BytesIO()
                np.savez(content, **trust.to_arrays())  # type: ignore[arg-type]
                archive.writestr(_TRUST, content.getvalue())


def read_extras(path: pathlib.Path) -> dict[str, Any]:
    """Returns the extras of a saved model; {} if another program saved it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(_EXTRAS))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return {}


def read_trust(path: pathlib.Path) -> Trust | None:
    """Returns what was fitted to a saved model; None if nothing was."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read(_TRUST))
        with np.load(content) as arrays:
            return from_arrays(arrays)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def load_classifier(path: str | pathlib.Path, flag: str) -> keras.Model:
    """Loads a classifier from a `.keras` file.

    Args:
      path: the file to read.
      flag: the flag that named it, for the error message.

    Raises:
      UserError: the file is missing or damaged, holds no classifier of the form
        that the rest of the package relies on, or its backbone is unknown.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist")
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    # Keras raises whatever the zip, JSON or HDF5 reader does.
    except Exception as error:
        raise UserError(
            f"{flag} {path} can't be loaded as a .keras model: "
            f"{one_line(error, 160)}"
        ) from error
    if isinstance(model, keras.Sequential):
        # From another program. Folding takes functional models only.
        model = keras.Model(model.inputs, model.outputs[0], name=model.name)
    _check_form(model, f"{flag} {path}")
    return model


def _check_form(model: keras.Model, what: str) -> None:
    """Raises UserError, which starts with `what`, if it is no classifier."""
    match model.input_shape, model.output_shape:
        case (_, int(height), int(width), 3), (_, int()) if height == width:
            pass
        case images, outputs:
            raise UserError(
                f"{what} must take square RGB images of one size and return "
                f"one number for each class; it takes {images} and returns "
                f"{outputs}"
            )
    last = model.layers[-1]
    linear = keras.activations.linear
    if isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", linear) is not linear
    ):
        raise UserError(
            f"{what} must return logits; its last layer {last.name} has an "
            "activation, which would be applied twice"
        )
    inner = [x.name for x in model.layers if isinstance(x, keras.Model)]
    name = inner[0] if inner else ""
    known = backbones.available_backbones()
    if backbones.canonical_name(name) not in known:
        raise UserError(
            f"{what} must stand on a backbone of keras.applications or a "
            "registered one (models.backbones.register), whose preprocessing "
            f"is known; its backbone is {name!r}"
        )


class Validation(NamedTuple):
    """A saved model's result on the validation split.

    Attributes:
      accuracy: in [0, 1].
      loss: cross-entropy without label smoothing, in nats.
    """

    accuracy: float
    loss: float


def model_path(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns the path of a stage's saved model."""
    return workdir / f"model_{stage}.keras"


def validation_of(path: pathlib.Path) -> Validation | None:
    """Reads a saved model's validation result; None if it has none."""
    recorded: Any = read_extras(path).get("validation")
    try:
        return Validation(float(recorded["accuracy"]), float(recorded["loss"]))
    except (TypeError, KeyError, ValueError):
        return None


def kept_stage(
    workdir: pathlib.Path, *, before_refit: bool = False
) -> str | None:
    """Returns the stage whose model later phases use.

    That is the refitted model if there is one. Otherwise it is the fine-tuned
    model or the transfer stage's, whichever has the higher validation accuracy,
    or, if these are equal, the lower validation loss.

    Args:
      workdir: the run's folder.
      before_refit: ignore the refitted model.

    Returns:
      `transfer`, `finetune` or `refit`; None if the run has saved no model.
    """
    if not before_refit and model_path(workdir, "refit").exists():
        return "refit"
    saved = {
        stage: validation_of(model_path(workdir, stage))
        for stage in ("finetune", "transfer")
        if model_path(workdir, stage).exists()
    }
    validated = {s: v for s, v in saved.items() if v is not None}
    if len(validated) < 2:
        return next(iter(saved), None)
    return max(
        validated, key=lambda s: (validated[s].accuracy, -validated[s].loss)
    )


def fine_tuning_outcome(workdir: pathlib.Path) -> str:
    """Says whether fine-tuning helped, and so which model is kept.

    '' if the workdir does not hold the validated models of both stages.
    """
    before, after = (
        validation_of(model_path(workdir, stage))
        for stage in ("transfer", "finetune")
    )
    if not before or not after:
        # Fine-tuning started from another run's model.
        return ""
    accuracies = f"{before.accuracy:.1%} -> {after.accuracy:.1%}"
    if before.accuracy == after.accuracy:
        accuracies += f", loss {before.loss:.3f} -> {after.loss:.3f}"
    if kept_stage(workdir, before_refit=True) == "finetune":
        return f"fine-tuning helped on validation: {accuracies}"
    return (
        f"fine-tuning did not help on validation ({accuracies}): kept the "
        f"head, {model_path(workdir, 'transfer')}"
    )
