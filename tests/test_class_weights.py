"""`--class_weights=balanced`: what it changes, and what it must not change."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.input import feature_cache, input_pipeline
from flowers17_tfdata.input.examples import DecodedImages, Examples
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.phases import train_data
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

CONFIG = InputConfig(image_size=fakes.IMAGE_SIZE, augment_on="host")
BATCH = 8
# Nine examples make two batches of 8; the second is mostly padding.
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
BALANCED = np.array([0.5, 1.5, 3.0], np.float32)


def test_balanced_weights_are_in_inverse_proportion():
    got = train_data.balanced_class_weights(LABELS, 3)
    # n / (num_classes * n_c)
    np.testing.assert_allclose(got, [9 / 18, 9 / 6, 9 / 3])
    assert got.dtype == np.float32
    assert got[LABELS].mean() == pytest.approx(1)


def test_a_class_without_images_does_not_count():
    got = train_data.balanced_class_weights(LABELS, 5)
    np.testing.assert_allclose(got, [*BALANCED, 0, 0])
    assert got[LABELS].mean() == pytest.approx(1)


def _make_images(class_weights, context=None):
    pixels = fakes.make_noise_examples(len(LABELS)).images.pixels
    return input_pipeline.make_train_dataset(
        Examples(DecodedImages(pixels), LABELS),
        CONFIG,
        fakes.preprocess_input,
        global_batch_size=BATCH,
        seed=0,
        input_context=context,
        class_weights=class_weights,
    )


def _make_features(class_weights):
    values = np.random.default_rng(0).normal(size=[2, len(LABELS), 4])
    return feature_cache.make_train_dataset(
        Features(values.astype(np.float32), LABELS),
        global_batch_size=BATCH,
        seed=0,
        class_weights=class_weights,
    )


@pytest.mark.parametrize("make", [_make_images, _make_features])
def test_weights_are_those_of_the_classes_and_nothing_else_changes(make):
    for plain, weighted in zip(
        make(None).take(4), make(BALANCED).take(4), strict=True
    ):
        for name in ("inputs", "labels", "transforms"):
            np.testing.assert_array_equal(
                getattr(plain, name), getattr(weighted, name)
            )
        expected = plain.weights.numpy() * BALANCED[plain.labels.numpy()]
        np.testing.assert_array_equal(weighted.weights, expected)
        # Padding stays padding.
        padding = plain.weights.numpy() == 0
        assert not weighted.weights.numpy()[padding].any()


@pytest.mark.parametrize("make", [_make_images, _make_features])
def test_an_epochs_weights_have_the_mean_1(make):
    epoch = [batch.weights.numpy() for batch in make(BALANCED).take(2)]
    assert np.sum(epoch) == pytest.approx(len(LABELS))


def test_evaluation_is_not_weighted():
    batches = input_pipeline.make_eval_dataset(
        Examples(
            DecodedImages(np.zeros([9, 32, 32, 3], np.uint8)),
            LABELS,
        ),
        CONFIG,
        fakes.preprocess_input,
        global_batch_size=BATCH,
    )
    weights = np.concatenate([batch.weights for batch in batches])
    assert weights.tolist() == [1] * 9 + [0] * 7


def _trainer(strategy=None) -> Trainer:
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        weights = FlatWeights(fakes.make_model())
        optimizer = keras.optimizers.SGD(0.5)
    return Trainer(
        weights=weights,
        strategy=strategy,
        optimizer=optimizer,
        global_batch_size=BATCH,
    )


def test_counts_and_accuracy_stay_unweighted():
    examples, padded = 5, 3
    batch = fakes.make_batch(BATCH, padded)
    weights = batch.weights * tf.constant([4, 0.5, 0.25, 2, 3, 9, 9, 9.0])
    one, other = _trainer(), _trainer()
    plain = fakes.train_step(one, batch)
    weighted = fakes.train_step(other, batch._replace(weights=weights))
    assert float(plain.examples) == float(weighted.examples) == examples
    assert float(plain.correct) == float(weighted.correct)
    assert float(plain.loss) != pytest.approx(float(weighted.loss))


def test_the_loss_is_the_weighted_sum():
    batch = fakes.make_batch(BATCH)
    weights = np.linspace(0.2, 3, BATCH).astype(np.float32)
    trainer = _trainer()
    logits = trainer.model(batch.inputs)
    losses = keras.ops.sparse_categorical_crossentropy(
        batch.labels, logits, from_logits=True
    ).numpy()
    totals = fakes.train_step(
        trainer, batch._replace(weights=tf.constant(weights))
    )
    assert float(totals.loss) == pytest.approx(
        float((losses * weights).sum()), rel=1e-5
    )


def test_two_replicas_equal_one(mirrored_strategy):
    one, two = _trainer(), _trainer(mirrored_strategy)
    halves = iter(
        mirrored_strategy.distribute_datasets_from_function(
            lambda context: _make_images(BALANCED, context)
        )
    )
    # The second step has one example, so one replica has only padding.
    for batch in _make_images(BALANCED).take(2):
        np.testing.assert_allclose(
            fakes.train_step(one, batch)[:3],
            two.train_steps(halves, tf.constant(1))[:3],
            rtol=1e-5,
        )
    two.weights.store()
    for a, b in zip(
        one.model.trainable_variables,
        two.model.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a),
            keras.ops.convert_to_numpy(b),
            atol=1e-6,
        )


def _minority_recall(class_weights) -> float:
    """Trains on classes of 190 and 10 examples; returns the latter's recall."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 190 + [1] * 10)
    values = rng.normal(size=[1, 200, 2]) + 1.2 * labels[None, :, None]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    trainer = Trainer(
        weights=FlatWeights(model),
        strategy=tf.distribute.get_strategy(),
        optimizer=keras.optimizers.SGD(0.5),
        global_batch_size=20,
    )
    batches = feature_cache.make_train_dataset(
        Features(values.astype(np.float32), labels),
        global_batch_size=20,
        seed=0,
        class_weights=class_weights,
    )
    trainer.train_steps(iter(batches), tf.constant(200))
    trainer.weights.store()
    unseen = rng.normal(size=[500, 2]).astype(np.float32) + 1.2
    return float(np.mean(np.argmax(model(unseen), axis=1) == 1))


def test_the_small_class_is_recognized_more_often():
    labels = np.array([0] * 190 + [1] * 10)
    balanced = train_data.balanced_class_weights(labels, 2)
    assert _minority_recall(None) < 0.4
    assert _minority_recall(balanced) > 0.65
