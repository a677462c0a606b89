"""The step: replicas equal one device, padding, clipping, loss scaling."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

BATCH = 8


def _trainer(strategy=None, optimizer=None, l2=0.0, **kwargs):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = fakes.make_model(l2=l2)
        optimizer = (optimizer or keras.optimizers.SGD)(0.5)
    return Trainer(
        model=model,
        strategy=strategy,
        optimizer=optimizer,
        global_batch_size=BATCH,
        **kwargs,
    )


def _split(strategy, batch):
    """Hands each replica its half of a batch."""
    half = BATCH // 2

    def value(context):
        start = context.replica_id_in_sync_group * half
        return tf.nest.map_structure(lambda x: x[start : start + half], batch)

    return strategy.experimental_distribute_values_from_function(value)


def _weights(trainer):
    variables = trainer.model.trainable_variables
    return [keras.ops.convert_to_numpy(v) for v in variables]


@pytest.mark.parametrize("padding", [0, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l2": 0.1},
        {"label_smoothing": 0.2, "global_clip_norm": 0.01},
    ],
    ids=["plain", "regularized", "smoothed_clipped"],
)
def test_two_replicas_equal_one(mirrored_strategy, options, padding):
    """Also where a padded last batch leaves one replica with nothing."""
    batch = fakes.make_batch(BATCH, padding)
    one, two = _trainer(**options), _trainer(mirrored_strategy, **options)
    for _ in range(3):
        a = one.train_step(batch)
        b = two.train_step(_split(mirrored_strategy, batch))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(_weights(one), _weights(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for replica in two.model.trainable_variables:
        values = mirrored_strategy.experimental_local_results(replica.value)
        np.testing.assert_array_equal(values[0], values[1])


def test_padding_examples_do_not_count():
    padded, poisoned = fakes.make_batch(BATCH, 3), fakes.make_batch(BATCH, 3)
    images = padded.images.numpy()
    images[-3:] = np.nan
    poisoned = poisoned._replace(images=tf.constant(images))
    trainer = _trainer()
    clean, dirty = trainer.train_step(padded), None
    assert float(clean.examples) == BATCH - 3
    evaluated = trainer.eval_step(padded)
    assert float(tf.reduce_sum(evaluated.confusion)) == BATCH - 3
    dirty = trainer.eval_step(poisoned)
    np.testing.assert_allclose(dirty.loss, evaluated.loss, rtol=1e-6)


def test_gradient_is_of_the_mean_smoothed_cross_entropy():
    batch = fakes.make_batch(BATCH)
    trainer = _trainer(label_smoothing=0.1)
    model = fakes.make_model()
    loss_fn = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1
    )
    targets = tf.one_hot(batch.labels, fakes.NUM_CLASSES)
    with tf.GradientTape() as tape:
        loss = loss_fn(targets, model(batch.images))
    variables = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(loss, variables)
    totals = trainer.train_step(batch)
    np.testing.assert_allclose(totals.loss / BATCH, loss, rtol=1e-5)
    for new, old, gradient in zip(
        _weights(trainer), variables, gradients, strict=True
    ):
        np.testing.assert_allclose(new, old - 0.5 * gradient, atol=1e-6)


def test_clipping_bounds_the_global_norm():
    batch = fakes.make_batch(BATCH)
    trainer = _trainer(global_clip_norm=1e-3)
    before = _weights(trainer)
    trainer.train_step(batch)
    change = [a - b for a, b in zip(_weights(trainer), before, strict=True)]
    norm = np.sqrt(sum(np.sum(c**2) for c in change))
    np.testing.assert_allclose(norm, 0.5 * 1e-3, rtol=1e-3)


def _scaled_sgd(learning_rate):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(learning_rate), initial_scale=1024.0
    )


@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_overflow_on_replica_1_alone_skips_the_step_on_both(
    mirrored_strategy, clip
):
    batch = fakes.make_batch(BATCH)
    images = batch.images.numpy()
    images[-1] = np.inf
    overflowing = batch._replace(images=tf.constant(images))
    trainer = _trainer(mirrored_strategy, _scaled_sgd, global_clip_norm=clip)
    before = _weights(trainer)
    trainer.train_step(_split(mirrored_strategy, overflowing))
    for a, b in zip(_weights(trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert trainer.optimizer.dynamic_scale.value.numpy() == 512.0
    trainer.train_step(_split(mirrored_strategy, batch))
    after = _weights(trainer)
    assert all(np.all(np.isfinite(w)) for w in after)
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_loss_scaling_changes_nothing_but_rounding(clip):
    batch = fakes.make_batch(BATCH)
    plain = _trainer(global_clip_norm=clip)
    scaled = _trainer(optimizer=_scaled_sgd, global_clip_norm=clip)
    for trainer in (plain, scaled):
        trainer.train_step(batch)
    for a, b in zip(_weights(plain), _weights(scaled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_eval_totals():
    batch = fakes.make_batch(BATCH, 2)
    trainer = _trainer()
    logits = trainer.model(batch.images).numpy()[:-2]
    labels = batch.labels.numpy()[:-2]
    totals = trainer.eval_step(batch)
    expected = np.zeros([fakes.NUM_CLASSES] * 2)
    np.add.at(expected, (labels, logits.argmax(1)), 1)
    np.testing.assert_array_equal(totals.confusion, expected)
    ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
    assert float(totals.top_5_correct) == (ranks < 5).sum()
    log_p = tf.nn.log_softmax(logits).numpy()[np.arange(len(labels)), labels]
    np.testing.assert_allclose(totals.loss, -log_p.sum(), rtol=1e-5)
