"""Inference: outputs in order, loss and accuracy, on any number of replicas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.training import inference
from flowers17_tfdata.training.inference import Inference
from tests import fakes

BATCH = 8


def _model(strategy):
    with strategy.scope():
        return fakes.make_model()


def test_loss_and_accuracy(strategy):
    """14 examples and two of padding make two batches."""
    batches = [fakes.make_batch(BATCH), fakes.make_batch(BATCH, 2, seed=1)]
    model = _model(strategy)
    calls = []
    loss, accuracy = Inference(model, strategy).loss_and_accuracy(
        fakes.iterate(strategy, batches), lambda: calls.append(1)
    )
    logits = np.concatenate([model(b.inputs) for b in batches])[:-2]
    labels = np.concatenate([b.labels for b in batches])[:-2]
    log_p = tf.nn.log_softmax(logits).numpy()[np.arange(14), labels]
    assert loss == pytest.approx(-log_p.mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).mean())
    assert len(calls) == 2


def test_padding_examples_do_not_count():
    strategy = tf.distribute.get_strategy()
    clean = fakes.make_batch(BATCH, 3)
    inputs = clean.inputs.numpy()
    inputs[-3:] = np.nan
    dirty = clean._replace(inputs=tf.constant(inputs))
    run = Inference(fakes.make_model(), strategy).loss_and_accuracy
    assert run([clean]) == pytest.approx(run([dirty]))


@pytest.mark.parametrize("num_examples", [7, 8, 9, 21])
def test_outputs_are_in_order_and_complete(strategy, num_examples):
    examples = fakes.make_noise_examples(num_examples)
    model = _model(strategy)
    outputs = inference.ImageInference(
        model,
        strategy,
        InputConfig(image_size=fakes.IMAGE_SIZE),
        fakes.preprocess_input,
    ).outputs(examples, BATCH)
    found = inference.collect(outputs, "test", -(-num_examples // BATCH))
    images = examples.images.pixels.astype(np.float32)
    expected = model(fakes.preprocess_input(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_may_be_transformed():
    """Every other image becomes its mirror image."""
    examples = fakes.make_smooth_examples(6)
    mirror = [-1, 0, fakes.IMAGE_SIZE - 1, 0, 1, 0, 0, 0]
    transforms = np.array([[1, 0, 0, 0, 1, 0, 0, 0], mirror], np.float32)
    found = inference.collect(
        inference.ImageInference(
            keras.Sequential(
                [keras.Input([32, 32, 3]), keras.layers.Flatten()]
            ),
            tf.distribute.get_strategy(),
            InputConfig(image_size=fakes.IMAGE_SIZE, augment_on="host"),
            lambda images: images,
        ).outputs(examples, 4, np.tile(transforms, [3, 1])),
        "test",
        2,
    ).reshape(6, 32, 32, 3)
    pixels = examples.images.pixels
    np.testing.assert_array_equal(found[::2], pixels[::2])
    np.testing.assert_array_equal(found[1::2], pixels[1::2, :, ::-1])


def test_many_passes_trace_the_model_once():
    """TensorFlow warns of a function that is traced again and again."""
    traced = []

    def preprocess(images):
        if not tf.executing_eagerly():
            traced.append(images)
        return fakes.preprocess_input(images)

    run = inference.ImageInference(
        fakes.make_model(),
        tf.distribute.get_strategy(),
        # Where the model's function normalizes the images.
        InputConfig(image_size=fakes.IMAGE_SIZE, augment_on="device"),
        preprocess,
    )
    for num_examples in (7, 9, 12):
        list(run.outputs(fakes.make_noise_examples(num_examples), BATCH))
    assert len(traced) == 1


def test_device_stage_makes_the_inputs(strategy):
    batch = fakes.make_batch(BATCH, 2)
    raw = batch._replace(
        inputs=(batch.inputs - 3) / 2, transforms=tf.fill([BATCH, 8], 3.0)
    )
    model = _model(strategy)
    plain = Inference(model, strategy)
    staged = Inference(
        model,
        strategy,
        lambda batch: 2 * batch.inputs + tf.reduce_mean(batch.transforms),
    )
    results = [
        run.loss_and_accuracy(fakes.iterate(strategy, [given]))
        for run, given in ((plain, batch), (staged, raw))
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_only_three_numbers_leave_the_device_whatever_the_classes():
    """A confusion matrix of 10,000 classes would take 400 MB per step."""
    inputs = keras.Input([4])
    model = keras.Model(inputs, keras.layers.Dense(10_000)(inputs))
    strategy = tf.distribute.get_strategy()
    run = Inference(model, strategy)
    batch = fakes.make_batch(BATCH)._replace(inputs=tf.ones([BATCH, 4]))
    step = run._summed_scores.get_concrete_function(batch)
    assert step.structured_outputs.shape == [3]
    sizes = [
        np.prod(tensor.shape)
        for operation in step.graph.get_operations()
        for tensor in operation.outputs
        if tensor.shape.is_fully_defined()
    ]
    # No tensor is larger than the logits.
    assert max(sizes) <= BATCH * 10_000
