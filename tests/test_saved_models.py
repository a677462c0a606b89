"""Saved models: which are refused, and which one of a run is used."""

from __future__ import annotations

import keras
import pytest

from flowers17_tfdata.models import saved_models
from flowers17_tfdata.models.saved_models import Validation, kept_stage


def _save(workdir, stage, accuracy=None, loss=1.0):
    inputs = keras.Input([2])
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    extras = {"class_names": ["a", "b"]}
    if accuracy is not None:
        extras["validation"] = {"accuracy": accuracy, "loss": loss}
    path = saved_models.model_path(workdir, stage)
    saved_models.save_classifier(model, path, extras)
    return path


@pytest.mark.parametrize(
    ("head", "finetuned", "kept"),
    [
        ((0.9, 0.5), (0.8, 0.4), "transfer"),
        ((0.8, 0.4), (0.9, 0.5), "finetune"),
        # As many are right: the one that was surer of it.
        ((0.9, 0.4), (0.9, 0.5), "transfer"),
        ((0.9, 0.5), (0.9, 0.4), "finetune"),
        ((0.9, 0.5), (0.9, 0.5), "finetune"),
        # One of them was not validated.
        ((None, 0.5), (0.1, 2.0), "finetune"),
        ((0.9, 0.5), (None, 0.4), "finetune"),
    ],
)
def test_the_better_one_by_validation_is_kept(tmp_path, head, finetuned, kept):
    _save(tmp_path, "transfer", *head)
    assert kept_stage(tmp_path) == "transfer"
    _save(tmp_path, "finetune", *finetuned)
    assert kept_stage(tmp_path) == kept
    # A refit is of it, and goes before it.
    _save(tmp_path, "refit")
    assert kept_stage(tmp_path) == "refit"
    assert kept_stage(tmp_path, before_refit=True) == kept


def test_what_there_is_is_kept(tmp_path):
    assert kept_stage(tmp_path) is None
    assert kept_stage(tmp_path / "nowhere") is None
    _save(tmp_path, "refit")
    assert kept_stage(tmp_path) == "refit"
    assert kept_stage(tmp_path, before_refit=True) is None
    # Fine-tuned from another run's head.
    _save(tmp_path, "finetune", 0.5)
    assert kept_stage(tmp_path, before_refit=True) == "finetune"


def test_the_validation_is_saved_with_the_model(tmp_path):
    path = _save(tmp_path, "transfer", 0.75, 0.25)
    assert saved_models.validation_of(path) == Validation(0.75, 0.25)
    assert saved_models.validation_of(_save(tmp_path, "finetune")) is None
    inputs = keras.Input([2])
    plain = tmp_path / "plain.keras"
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(plain)
    assert saved_models.validation_of(plain) is None
