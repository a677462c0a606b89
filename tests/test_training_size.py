"""A classifier that trains on smaller images than it is evaluated on."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.models import (
    classifier,
    freezing,
    saved_models,
    training_size,
)
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.inference import Inference
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
    assert training_size.training_model(model, config) is None


def test_it_takes_small_images_and_changes_nothing_else(model):
    images = np.random.default_rng(0).normal(
        size=[2, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3]
    )
    config, before = model.get_config(), model(images)
    reduced = training_size.training_model(model, SIZES)
    assert reduced.input_shape == (None, 24, 24, 3)
    assert reduced(images[:, :24, :24]).shape == (2, 5)
    np.testing.assert_array_equal(model(images), before)
    assert model.get_config() == config


def test_training_on_small_images_trains_the_model(model):
    freezing.unfreeze_from(
        classifier.get_backbone(model), "block2", 32, keep_batch_norm=True
    )
    reduced = training_size.training_model(model, SIZES)
    for a, b in zip(
        reduced.trainable_variables, model.trainable_variables, strict=True
    ):
        assert a is b
    trainer = Trainer(
        weights=FlatWeights(model),
        training_model=reduced,
        strategy=tf.distribute.get_strategy(),
        global_batch_size=8,
        optimizer=keras.optimizers.SGD(0.1),
    )
    batch = fakes.make_batch(8)
    batch = batch._replace(labels=batch.labels % 5)
    inference = Inference(model, trainer.strategy)
    before = inference.loss_and_accuracy([batch])
    small = batch._replace(inputs=batch.inputs[:, :24, :24])
    fakes.train_step(trainer, small)
    assert inference.loss_and_accuracy([batch]) != before


def test_the_saved_model_takes_images_of_the_evaluation(model, tmp_path):
    training_size.training_model(model, SIZES)
    path = tmp_path / "model.keras"
    saved_models.save_classifier(model, path, {"class_names": list("abcde")})
    loaded = saved_models.load_classifier(path, "--model")
    assert loaded.input_shape[1] == fakes.IMAGE_SIZE
    images = np.ones([1, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3], np.float32)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_images_that_are_too_small_for_the_backbone_are_refused(model):
    config = dataclasses.replace(SIZES, train_scale=0.25)
    with pytest.raises(ConfigError, match=r"--train_scale=0.25 .* 8 pixels"):
        training_size.training_model(model, config)
