"""A network that trains on smaller images than it evaluates."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import classifier, freezing, training_size
from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

SIZES = InputConfig(image_size=fakes.IMAGE_SIZE, train_scale=0.75)


@pytest.fixture
def model(tiny_backbone) -> keras.Model:
    config = ModelConfig(backbone=tiny_backbone, weights="none", head_units=8)
    return classifier.build_classifier(
        config, image_size=fakes.IMAGE_SIZE, num_classes=5, seed=0
    )


def test_one_size_needs_no_second_model(model):
    config = InputConfig(image_size=fakes.IMAGE_SIZE)
    assert training_size.for_training(model, config) is model
    assert training_size.training_model(model, config) is None


def test_it_computes_the_same_and_takes_both_sizes(model):
    rebuilt = training_size.for_training(model, SIZES)
    images = np.random.default_rng(0).normal(
        size=[2, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3]
    )
    np.testing.assert_array_equal(rebuilt(images), model(images))
    assert rebuilt.input_shape == model.input_shape
    reduced = training_size.training_model(rebuilt, SIZES)
    assert reduced.input_shape == (None, 24, 24, 3)
    assert reduced(images[:, :24, :24]).shape == (2, 5)


def test_what_is_frozen_stays_so(model):
    freezing.unfreeze_from(
        classifier.get_backbone(model), "block2", 32, keep_batch_norm=False
    )
    rebuilt = training_size.for_training(model, SIZES)
    assert len(rebuilt.non_trainable_weights) > 0
    assert [v.path for v in rebuilt.trainable_weights] == [
        v.path for v in model.trainable_weights
    ]


def test_training_the_one_trains_the_other(model):
    rebuilt = training_size.for_training(model, SIZES)
    freezing.unfreeze_from(
        classifier.get_backbone(rebuilt), "block2", 32, keep_batch_norm=True
    )
    reduced = training_size.training_model(rebuilt, SIZES)
    for ours, theirs in zip(
        reduced.trainable_variables, rebuilt.trainable_variables, strict=True
    ):
        assert ours is theirs
    trainer = Trainer(
        model=rebuilt,
        training_model=reduced,
        strategy=tf.distribute.get_strategy(),
        global_batch_size=8,
        optimizer=keras.optimizers.SGD(0.1),
    )
    batch = fakes.make_batch(8)
    batch = batch._replace(labels=batch.labels % 5)
    before = float(trainer.eval_step(batch).loss)
    small = batch._replace(inputs=batch.inputs[:, :24, :24])
    trainer.train_step(small)
    assert float(trainer.eval_step(batch).loss) != before


def test_the_saved_model_takes_evaluations_size(model, tmp_path):
    rebuilt = training_size.for_training(model, SIZES)
    path = tmp_path / "model.keras"
    classifier.save_classifier(rebuilt, path, {"class_names": list("abcde")})
    loaded = classifier.load_classifier(path, "--model")
    assert loaded.input_shape[1] == fakes.IMAGE_SIZE
    images = np.ones([1, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3], np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_too_small_for_the_backbone_is_told(model):
    config = dataclasses.replace(SIZES, train_scale=0.25)
    rebuilt = training_size.for_training(model, config)
    with pytest.raises(ConfigError, match=r"--train_scale=0.25 .* 8 pixels"):
        training_size.training_model(rebuilt, config)
