"""The step: replicas equal one device, padding, loss scaling."""

from __future__ import annotations

import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

BATCH = 8


def _trainer(strategy=None, optimizer=None, l2=0.0, **kwargs):
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = fakes.make_model(l2=l2)
        weights = FlatWeights(model)
        optimizer = (optimizer or keras.optimizers.SGD)(0.5)
    return Trainer(
        weights=weights,
        strategy=strategy,
        optimizer=optimizer,
        global_batch_size=BATCH,
        **kwargs,
    )


def _weights(trainer):
    trainer.weights.store()
    variables = trainer.model.trainable_variables
    return [keras.ops.convert_to_numpy(v) for v in variables]


@pytest.mark.parametrize("padding", [0, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l2": 0.1},
        {"label_smoothing": 0.2},
    ],
    ids=["plain", "regularized", "smoothed"],
)
def test_two_replicas_equal_one(mirrored_strategy, options, padding):
    """Also if the last batch has only padding for one replica."""
    batch = fakes.make_batch(BATCH, padding)
    one, two = _trainer(**options), _trainer(mirrored_strategy, **options)
    for _ in range(3):
        a = fakes.train_step(one, batch)
        b = fakes.train_step(two, batch)
        # Everything except the waiting time.
        np.testing.assert_allclose(a[:3], b[:3], rtol=1e-5)
    for a, b in zip(_weights(one), _weights(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for replica in two.model.trainable_variables:
        values = mirrored_strategy.experimental_local_results(replica.value)
        np.testing.assert_array_equal(values[0], values[1])


def test_padding_examples_do_not_count():
    padded = fakes.make_batch(BATCH, 3)
    poisoned = padded.inputs.numpy()
    poisoned[-3:] = 1e30
    clean, dirty = _trainer(), _trainer()
    expected = fakes.train_step(clean, padded)
    totals = fakes.train_step(
        dirty, padded._replace(inputs=tf.constant(poisoned))
    )
    assert float(totals.examples) == BATCH - 3
    np.testing.assert_allclose(totals.loss, expected.loss, rtol=1e-6)
    _assert_close(clean, dirty)


def test_gradient_is_of_the_mean_smoothed_cross_entropy():
    batch = fakes.make_batch(BATCH)
    trainer = _trainer(label_smoothing=0.1)
    model = fakes.make_model()
    loss_fn = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1
    )
    targets = tf.one_hot(batch.labels, fakes.NUM_CLASSES)
    with tf.GradientTape() as tape:
        loss = loss_fn(targets, model(batch.inputs))
    variables = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(loss, variables)
    totals = fakes.train_step(trainer, batch)
    np.testing.assert_allclose(totals.loss / BATCH, loss, rtol=1e-5)
    for new, old, gradient in zip(
        _weights(trainer), variables, gradients, strict=True
    ):
        np.testing.assert_allclose(new, old - 0.5 * gradient, atol=1e-6)


def test_gradients_alone_are_those_of_a_step(strategy):
    """They change no weight, and are the step of SGD at a rate of 1."""
    batch = fakes.make_batch(BATCH)
    trainer = _trainer(strategy, lambda _: keras.optimizers.SGD(1.0))
    before = _weights(trainer)
    distributed = next(fakes.iterate(strategy, [batch]))
    total = float(trainer.sum_gradients(distributed, tf.constant(3)))
    for a, b in zip(_weights(trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    fakes.train_step(trainer, batch)
    moved = [b - a for a, b in zip(_weights(trainer), before, strict=True)]
    assert total == pytest.approx(3 * sum(m.sum() for m in moved), rel=1e-3)
    assert abs(total) > 1e-3


def test_losses_of_layers_count():
    """Those of weights, and those that layers add when they are called."""

    def make(activity):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3])
        x = keras.layers.Flatten()(inputs)
        regularizer = keras.regularizers.L2(0.1) if activity else None
        outputs = keras.layers.Dense(
            fakes.NUM_CLASSES, activity_regularizer=regularizer
        )(x)
        return Trainer(
            weights=FlatWeights(keras.Model(inputs, outputs)),
            strategy=tf.distribute.get_strategy(),
            optimizer=keras.optimizers.SGD(1e-3),
            global_batch_size=BATCH,
        )

    plain, regularized = make(False), make(True)
    for trainer in (plain, regularized):
        fakes.train_step(trainer, fakes.make_batch(BATCH))
    norms = [
        np.linalg.norm(t.model(fakes.make_batch(BATCH).inputs))
        for t in (plain, regularized)
    ]
    assert norms[1] < 0.99 * norms[0]


def test_a_constraint_is_refused():
    inputs = keras.Input([4])
    dense = keras.layers.Dense(3, kernel_constraint="non_neg", name="last")
    model = keras.Model(inputs, dense(inputs))
    with pytest.raises(UserError, match="last/kernel has a constraint"):
        FlatWeights(model)
    dense.trainable = False
    FlatWeights(model)


def _scaled_sgd(learning_rate):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(learning_rate), initial_scale=1024.0
    )


def test_overflow_on_replica_1_alone_skips_the_step_on_both(mirrored_strategy):
    batch = fakes.make_batch(BATCH)
    inputs = batch.inputs.numpy()
    inputs[-1] = np.inf
    overflowing = batch._replace(inputs=tf.constant(inputs))
    trainer = _trainer(mirrored_strategy, _scaled_sgd)
    before = _weights(trainer)
    fakes.train_step(trainer, overflowing)
    for a, b in zip(_weights(trainer), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert trainer.optimizer.dynamic_scale.value.numpy() == 512.0
    fakes.train_step(trainer, batch)
    after = _weights(trainer)
    assert all(np.all(np.isfinite(w)) for w in after)
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))


def test_loss_scaling_changes_nothing_but_rounding():
    batch = fakes.make_batch(BATCH)
    plain = _trainer()
    scaled = _trainer(optimizer=_scaled_sgd)
    for trainer in (plain, scaled):
        fakes.train_step(trainer, batch)
    for a, b in zip(_weights(plain), _weights(scaled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def _assert_close(trainer, other, atol=1e-6):
    for a, b in zip(_weights(trainer), _weights(other), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, None])
def test_many_steps_in_one_call_are_the_same_steps(strategy, optimizer):
    batches = [fakes.make_batch(BATCH, k, seed=k) for k in range(5)]
    single, many = (_trainer(strategy, optimizer) for _ in range(2))
    before = _weights(many)
    iterator = fakes.iterate(strategy, batches)
    sums = [single.train_steps(iterator, tf.constant(1)) for _ in batches]
    iterator = fakes.iterate(strategy, batches)
    # The second call continues where the first one stopped.
    totals = [many.train_steps(iterator, tf.constant(n)) for n in (2, 3)]
    for name in ("loss", "correct", "examples"):
        np.testing.assert_allclose(
            sum(getattr(t, name) for t in totals),
            sum(getattr(t, name) for t in sums),
            rtol=1e-6,
        )
    assert float(totals[0].examples) == 2 * BATCH - 1
    _assert_close(many, single)
    changed = [a - b for a, b in zip(_weights(many), before, strict=True)]
    assert all(np.abs(c).max() > 1e-3 for c in changed)


def test_waiting_for_batches_is_measured(strategy):
    """It counts at least half of the delay, and at most the elapsed time."""
    trainer = _trainer(strategy)
    batches = [fakes.make_batch(BATCH, seed=k) for k in range(5)]
    trainer.train_steps(
        fakes.iterate(strategy, batches[:1], 0.01), tf.constant(1)
    )
    iterator = fakes.iterate(strategy, batches, wait_secs=0.2)
    for count in (1, 3):
        start = time.perf_counter()
        totals = trainer.train_steps(iterator, tf.constant(count))
        waited = float(totals.wait_secs)
        assert 0.1 * count < waited < time.perf_counter() - start
    assert float(totals.examples) == 3 * BATCH


def test_computing_is_not_waiting():
    def slow_stage(batch):
        def sleep(inputs):
            time.sleep(0.2)
            return inputs

        inputs = tf.numpy_function(sleep, [batch.inputs], tf.float32)
        return tf.ensure_shape(inputs, batch.inputs.shape)

    trainer = _trainer(device_stage=slow_stage)
    batches = [fakes.make_batch(BATCH, seed=k) for k in range(4)]
    iterator = fakes.iterate(trainer.strategy, batches)
    trainer.train_steps(iterator, tf.constant(1))
    start = time.perf_counter()
    waited = float(trainer.train_steps(iterator, tf.constant(3)).wait_secs)
    assert 0 <= waited < 0.5 * (time.perf_counter() - start)


def test_what_needs_no_batch_does_not_start_while_waiting():
    """Otherwise computation would be counted as waiting."""
    starts = []

    def stage(batch):
        def mark(step):
            starts.append(time.perf_counter())
            return np.float32(0 * step)

        step = trainer.optimizer.iterations.value
        zero = tf.numpy_function(mark, [step], tf.float32, stateful=False)
        return batch.inputs + tf.ensure_shape(zero, [])

    trainer = _trainer(device_stage=stage)
    batches = [fakes.make_batch(BATCH, seed=k) for k in range(3)]
    trainer.train_steps(
        fakes.iterate(trainer.strategy, batches), tf.constant(1)
    )
    iterator = fakes.iterate(trainer.strategy, batches, wait_secs=0.3)
    starts.clear()
    start = time.perf_counter()
    trainer.train_steps(iterator, tf.constant(1))
    assert starts[0] - start > 0.2


def test_device_stage_makes_the_inputs(strategy):
    def double(batch):
        return 2 * batch.inputs + tf.reduce_mean(batch.transforms)

    batch = fakes.make_batch(BATCH, 2)
    raw = batch._replace(
        inputs=(batch.inputs - 3) / 2, transforms=tf.fill([BATCH, 8], 3.0)
    )
    plain, staged = _trainer(strategy), _trainer(strategy, device_stage=double)
    for trainer, given in ((plain, batch), (staged, raw)):
        trainer.train_steps(fakes.iterate(strategy, [given]), tf.constant(1))
    _assert_close(plain, staged)


@pytest.mark.parametrize(
    ("strategy", "xla", "programs"),
    [
        ("one_device", "off", set()),
        ("one_device", "auto", {"apply"}),
        ("one_device", "on", {"forward_backward_update"}),
        ("two_replicas", "auto", set()),
        ("two_replicas", "on", {"gradients_and_totals"}),
    ],
    indirect=["strategy"],
)
def test_what_is_compiled(strategy, xla, programs):
    trainer = _trainer(strategy, xla=xla)
    batches = fakes.iterate(strategy, [fakes.make_batch(BATCH)])
    step = trainer.train_steps.get_concrete_function(batches, tf.constant(1))
    compiled = {
        re.sub(r"__inference_+(.+)_\d+", r"\1", function.signature.name)
        for function in step.graph.as_graph_def().library.function
        if function.attr["_XlaMustCompile"].b
    }
    # The program on one device holds the forward and backward pass.
    assert compiled - {"gradients_and_totals"} == programs - {
        "gradients_and_totals"
    }
    assert ("gradients_and_totals" in compiled) == (xla == "on")


@pytest.mark.parametrize(
    ("strategy", "policy"),
    [
        ("one_device", "float32"),
        ("one_device", "mixed_float16"),
        ("two_replicas", "mixed_float16"),
    ],
    indirect=["strategy"],
)
def test_xla_changes_nothing_but_rounding(strategy, policy):
    keras.config.set_dtype_policy(policy)
    half = policy == "mixed_float16"
    batches = [fakes.make_batch(BATCH, k, seed=k) for k in range(3)]
    plain, compiled = (
        _trainer(
            strategy,
            _scaled_sgd if half else None,
            l2=0.01,
            label_smoothing=0.1,
            xla=xla,
        )
        for xla in ("off", "on")
    )
    totals = [
        trainer.train_steps(fakes.iterate(strategy, batches), tf.constant(3))
        for trainer in (plain, compiled)
    ]
    np.testing.assert_allclose(totals[0].loss, totals[1].loss, rtol=1e-3)
    _assert_close(plain, compiled, atol=2e-3 if half else 1e-6)
    # Skipped steps would agree too.
    fresh = _trainer(strategy, l2=0.01)
    for new, old in zip(_weights(compiled), _weights(fresh), strict=True):
        assert np.abs(new - old).max() > 2e-2


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_each_variable_has_its_share_of_the_learning_rate(strategy, name):
    """The share scales the step itself, with every optimizer."""
    config = OptimizationConfig(weight_decay=0.0)
    batch = fakes.make_batch(BATCH)

    def steps(rate_scales):
        with strategy.scope():
            weights = FlatWeights(fakes.make_model())
            optimizer = optimizers.make_optimizer(
                name,
                0.5,
                config,
                scale_loss=False,
                rate_scales=rate_scales and weights.flatten(rate_scales),
            )
        trainer = Trainer(
            weights=weights,
            strategy=strategy,
            optimizer=optimizer,
            global_batch_size=BATCH,
        )
        before = _weights(trainer)
        fakes.train_step(trainer, batch)
        return [b - a for a, b in zip(before, _weights(trainer), strict=True)]

    # The first variable has one rate per channel.
    channels = np.linspace(0, 1, 4, dtype=np.float32)
    scales = [channels, *map(np.float32, (0.1, 0.5, 1))]
    for whole, scaled, scale in zip(
        steps(None), steps(scales), scales, strict=True
    ):
        assert np.abs(whole).max() > 0
        np.testing.assert_allclose(scaled, whole * scale, atol=1e-6)
