"""Flat weights train as Keras trains each variable, in far fewer operations."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.models import batch_norm, folding
from flowers17_tfdata.phases.benchmark import step_overhead
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

BATCH = 8
CONFIG = OptimizationConfig(weight_decay=0.1)
_RATES = {"sgd": 0.2, "adam": 0.02, "adamw": 0.02}


def _values(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def _train(strategy, name, batches, scale_loss=False):
    """Trains by flat weights; returns the weights of the model."""
    with strategy.scope():
        weights = FlatWeights(fakes.make_model())
        optimizer = optimizers.make_optimizer(
            name, _RATES[name], CONFIG, scale_loss=scale_loss
        )
    trainer = Trainer(
        weights=weights,
        strategy=strategy,
        optimizer=optimizer,
        global_batch_size=BATCH,
    )
    for batch in batches:
        fakes.train_step(trainer, batch)
    return _values(trainer.model.trainable_variables)


def _train_by_keras(name, batches):
    """Trains each variable by Keras's own optimizer."""
    model = fakes.make_model()
    optimizer = {
        "sgd": keras.optimizers.SGD(0.2, momentum=0.9),
        "adam": keras.optimizers.Adam(0.02),
        "adamw": keras.optimizers.AdamW(0.02, weight_decay=0.1),
    }[name]
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables = model.trainable_variables

    # As a graph, in which the kernels of half precision are the trainer's.
    @tf.function
    def gradients(batch):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                batch.labels, model(batch.inputs, training=True)
            )
            loss = tf.reduce_sum(losses * batch.weights) / BATCH
        return tape.gradient(loss, [v.value for v in variables])

    for batch in batches:
        optimizer.apply(gradients(batch), variables)
    return _values(model.trainable_variables)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("policy", "atol"),
    [("float32", 1e-6), ("mixed_bfloat16", 5e-3), ("mixed_float16", 5e-3)],
)
def test_steps_are_those_of_keras(strategy, name, policy, atol):
    keras.config.set_dtype_policy(policy)
    batches = [fakes.make_batch(BATCH, k, seed=k) for k in range(4)]
    found = _train(strategy, name, batches, policy == "mixed_float16")
    expected = _train_by_keras(name, batches)
    start = _values(fakes.make_model().trainable_variables)
    for a, b, before in zip(found, expected, start, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
        assert np.abs(a - before).max() > atol


def test_layers_read_their_own_dtype_and_nothing_is_cast_twice():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = fakes.make_model()
    weights = FlatWeights(model)
    assert len(weights.variables) == 4

    @tf.function
    def forward(images):
        with weights.substituted() as read:
            dtypes.extend(value.dtype.name for value in read)
            return model(images)

    dtypes: list[str] = []
    images = tf.TensorSpec(
        [1, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3], "bfloat16"
    )
    graph = forward.get_concrete_function(images).graph
    # The convolution, then the last layer, which computes in float32.
    assert dtypes == ["bfloat16"] * 2 + ["float32"] * 2
    cast = [
        op.inputs[0].shape
        for op in graph.get_operations()
        if op.type == "Cast" and op.inputs[0].op.type == "ReadVariableOp"
    ]
    # One cast per flat variable, not per layer.
    bfloat16, float32 = weights.variables[:2], weights.variables[2:]
    assert cast == [flat.shape for flat in bfloat16]
    assert [flat.name for flat in float32] == [
        "decayed_float32",
        "undecayed_float32",
    ]


def test_storing_and_loading_copy_the_weights(strategy):
    with strategy.scope():
        model = fakes.make_model()
        weights = FlatWeights(model)
    before = _values(model.trainable_variables)
    for flat in weights.variables:
        flat.assign(2 * flat)
    for a, b in zip(_values(model.trainable_variables), before, strict=True):
        np.testing.assert_array_equal(a, b)
    weights.store()
    for a, b in zip(_values(model.trainable_variables), before, strict=True):
        np.testing.assert_array_equal(a, 2 * b)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        variable.assign(value)
    weights.load()
    weights.store()
    for a, b in zip(_values(model.trainable_variables), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_of_layers_advances_but_moving_averages_do_not():
    inputs = keras.Input([4])
    x = keras.layers.BatchNormalization()(inputs)
    dropout = keras.layers.Dropout(0.5, seed=0)
    model = keras.Model(inputs, dropout(x))
    weights = FlatWeights(model)
    seed = dropout.seed_generator.state.numpy()
    (norm,) = batch_norm.batch_norm_layers(model)
    images = 100 * tf.random.stateless_normal([64, 4], [0, 1]) + 7
    with weights.substituted():
        outputs = model(images, training=True)
    assert np.any(dropout.seed_generator.state.numpy() != seed)
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(4))
    # It normalizes by the statistics of the batch; dropout doubles the rest.
    centered = images - tf.reduce_mean(images, axis=0)
    expected = 2 * centered / tf.math.reduce_std(images, axis=0)
    kept = outputs != 0
    np.testing.assert_allclose(outputs[kept], expected[kept], rtol=1e-3)


def test_a_step_of_inception_v3_has_few_operations():
    """The number of operations limits a step on a GPU."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(75, 75, 3), pooling="avg"
    )
    for layer in batch_norm.batch_norm_layers(backbone):
        layer.trainable = False
    logits = keras.layers.Dense(17, dtype="float32")(backbone.output)
    model = folding.fold_batch_norm(
        keras.Model(backbone.input, logits), frozen_only=True
    )
    trainer = Trainer(
        weights=FlatWeights(model),
        strategy=tf.distribute.get_strategy(),
        optimizer=optimizers.make_optimizer(
            "adamw", 0.01, CONFIG, scale_loss=False
        ),
        global_batch_size=1,
    )
    batch = fakes.make_batch(1)._replace(inputs=tf.zeros([1, 75, 75, 3]))
    batches = iter(tf.data.Dataset.from_tensors(batch))
    step = trainer.train_steps.get_concrete_function(batches, tf.constant(1))
    assert step_overhead.count_nodes(step) < 2500
