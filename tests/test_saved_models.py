"""Saved models: which are refused, and which one a run uses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import trained_model
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.models import (
    backbones,
    batch_norm,
    classifier,
    folding,
    saved_models,
)
from flowers17_tfdata.models.saved_models import Validation, kept_stage
from flowers17_tfdata.trained_model import TrainedModel
from tests import fakes


def test_saved_classifier_loads_equal(tmp_path, tiny_backbone):
    config = ModelConfig(backbone=tiny_backbone, weights="none", head_units=4)
    model = classifier.build_classifier(
        config, image_size=32, num_classes=5, seed=0
    )
    path = tmp_path / "model.keras"
    saved_models.save_classifier(model, path, {"class_names": list("abcde")})
    assert saved_models.read_extras(path) == {"class_names": list("abcde")}
    loaded = saved_models.load_classifier(path, "--model")
    images = tf.random.normal([2, 32, 32, 3])
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)
    assert classifier.get_backbone(loaded).name == "tinynet"


def test_unloadable_models_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--model .* does not exist"):
        saved_models.load_classifier(tmp_path / "none.keras", "--model")
    path = tmp_path / "bad.keras"
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="can't be loaded") as error:
        saved_models.load_classifier(path, "--model")
    assert "\n" not in str(error.value)


def test_a_model_that_brings_code_is_refused(tmp_path):
    inputs = keras.Input([4])
    outputs = keras.layers.Lambda(lambda x: print("run") or x)(inputs)
    path = tmp_path / "hostile.keras"
    keras.Model(inputs, outputs).save(path)
    with pytest.raises(
        UserError, match=r"can't be loaded.*code execution"
    ) as error:
        saved_models.load_classifier(path, "--model")
    assert "\n" not in str(error.value)


def _foreign(tiny_backbone, *, size=32, channels=3, activation=None):
    backbone = backbones.build_backbone(tiny_backbone, 32, "none")
    inputs = keras.Input([size, size, channels])
    x = inputs
    if channels != 3:
        x = keras.layers.Conv2D(3, 1)(x)
    x = keras.layers.GlobalAveragePooling2D()(backbone(x))
    return keras.Model(inputs, keras.layers.Dense(4, activation)(x))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation": "softmax"}, "must return logits"),
        ({"channels": 1}, "must take square RGB images"),
        ({"size": None}, "must take square RGB images"),
    ],
)
def test_other_models_are_refused_by_file(
    tiny_backbone, tmp_path, changes, expected
):
    path = tmp_path / "foreign.keras"
    _foreign(tiny_backbone, **changes).save(path)
    with pytest.raises(UserError, match=expected) as error:
        saved_models.load_classifier(path, "--model")
    assert str(error.value).startswith(f"--model {path}")
    assert "\n" not in str(error.value)


def test_a_sequential_model_of_another_program_can_be_folded(
    tiny_backbone, tmp_path
):
    model = keras.Sequential(
        [
            keras.Input([32, 32, 3]),
            backbones.build_backbone(tiny_backbone, 32, "none"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )
    path = tmp_path / "sequential.keras"
    model.save(path)
    loaded = saved_models.load_classifier(path, "--model")
    folded = folding.fold_batch_norm(loaded)
    assert not batch_norm.batch_norm_layers(folded)
    images = tf.random.normal([2, 32, 32, 3])
    np.testing.assert_allclose(folded(images), model(images), atol=1e-5)


def test_a_model_on_an_unknown_backbone_is_refused(tmp_path):
    inner = keras.Sequential([keras.Input([32, 32, 3]), keras.layers.Flatten()])
    model = keras.Sequential([inner, keras.layers.Dense(4)])
    path = tmp_path / "unknown.keras"
    model.save(path)
    with pytest.raises(
        UserError, match=r"--model .* registered one .* is 'sequential"
    ):
        saved_models.load_classifier(path, "--model")


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
        # At the same accuracy, the lower loss counts.
        ((0.9, 0.4), (0.9, 0.5), "transfer"),
        ((0.9, 0.5), (0.9, 0.4), "finetune"),
        ((0.9, 0.5), (0.9, 0.5), "finetune"),
        # Only one of them was validated.
        ((None, 0.5), (0.1, 2.0), "finetune"),
        ((0.9, 0.5), (None, 0.4), "finetune"),
    ],
)
def test_the_better_one_by_validation_is_kept(tmp_path, head, finetuned, kept):
    _save(tmp_path, "transfer", *head)
    assert kept_stage(tmp_path) == "transfer"
    _save(tmp_path, "finetune", *finetuned)
    assert kept_stage(tmp_path) == kept
    # A refitted model is used first.
    _save(tmp_path, "refit")
    assert kept_stage(tmp_path) == "refit"
    assert kept_stage(tmp_path, before_refit=True) == kept


def test_what_there_is_is_kept(tmp_path):
    assert kept_stage(tmp_path) is None
    assert kept_stage(tmp_path / "nowhere") is None
    _save(tmp_path, "refit")
    assert kept_stage(tmp_path) == "refit"
    assert kept_stage(tmp_path, before_refit=True) is None
    # This run fine-tuned another run's head.
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


@pytest.mark.parametrize(
    ("now", "explained"),
    [(("0_rose", "1_lily"), True), (("0_rose", "lily"), False)],
)
def test_a_model_of_names_without_numbers_is_explained(now, explained):
    """An earlier version left the numbers out of the names."""
    text = trained_model._dropped_numbers(("rose", "lily"), now)
    assert bool(text) is explained


def test_class_names_of_a_model_are_in_one_form():
    extras = {"class_names": ["rose\u0301"]}
    model = trained_model.TrainedModel(None, None, extras, None, None, None)
    assert model.class_names == ("ros\u00e9",)


def test_another_model_s_results_have_names_of_their_own(tmp_path):
    work, other = tmp_path / "work", tmp_path / "other"
    for folder in (work, other):
        folder.mkdir()
        (folder / "model_transfer.keras").touch()

    def suffix(path, workdir=work):
        model = fakes.make_model()
        trained = TrainedModel(path, model, {}, None, None, None)
        return trained.suffix_in(workdir)

    assert suffix(work / "model_transfer.keras") == ""
    assert suffix(other / ".." / "work" / "model_transfer.keras") == ""
    assert suffix(work / "older.keras") == "_older"
    assert suffix(other / "model_transfer.keras") == "_other_model_transfer"
    # A workdir without a model has no results to keep.
    assert suffix(work / "older.keras", tmp_path) == ""
