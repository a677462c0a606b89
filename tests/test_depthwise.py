"""A faster kernel for depthwise convolutions computes the same numbers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.models import classifier, depthwise, training_size

SLOW = "DepthwiseConv2dNativeBackpropInput"
KERNEL_GRADIENT = "DepthwiseConv2dNativeBackpropFilter"

CASES = [
    {"strides": 2, "padding": "same", "use_bias": False},
    {"strides": 2, "padding": "valid", "activation": "relu6"},
    {"strides": 3, "padding": "same", "depth_multiplier": 2},
]


def _model(dtype, **options) -> keras.Model:
    """Builds a model whose nested model has the layer."""
    keras.utils.set_random_seed(0)
    inner_inputs = keras.Input([13, 13, 4], name="inner_images")
    x = keras.layers.Activation("linear", dtype=dtype)(inner_inputs)
    x = keras.layers.DepthwiseConv2D(
        3, bias_initializer="random_normal", dtype=dtype, name="conv", **options
    )(x)
    inner = keras.Model(inner_inputs, x, name="inner")
    inputs = keras.Input([13, 13, 4], name="images")
    return keras.Model(inputs, inner(inputs))


def _convolution(model) -> keras.layers.DepthwiseConv2D:
    return model.get_layer("inner").get_layer("conv")


def _images() -> tf.Tensor:
    """Makes images whose values bfloat16 represents exactly."""
    images = np.random.default_rng(0).normal(size=[8, 13, 13, 4])
    return tf.cast(tf.cast(images, tf.bfloat16), tf.float32)


def _gradients(model, images):
    """Returns the gradients of images, kernel (and bias), and the graph."""
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = tf.cast(model(images, training=True), tf.float32)
            weights = tf.cos(tf.range(tf.size(outputs), dtype=tf.float32))
            loss = tf.tensordot(tf.reshape(outputs, [-1]), weights, 1)
        return tape.gradient(loss, [images, *variables])

    graph = step.get_concrete_function(images).graph
    return step(images), graph


def _dtypes(graph, name) -> set[tf.DType]:
    """Returns the dtypes of the strided operations of a type in a graph."""
    return {
        operation.get_attr("T")
        for operation in graph.get_operations()
        if operation.type == name and max(operation.get_attr("strides")) > 1
    }


@pytest.mark.parametrize("options", CASES)
def test_gradients_are_those_of_float32_but_for_rounding(options):
    mixed = _model("mixed_bfloat16", **options)
    full = _model("float32", **options)
    for v in mixed.variables:
        v.assign(tf.cast(tf.cast(v.value, tf.bfloat16), tf.float32))
    full.set_weights(mixed.get_weights())
    slow, graph = _gradients(mixed, _images())
    assert _dtypes(graph, SLOW) == {tf.bfloat16}
    depthwise.avoid_slow_gradient(mixed)
    found, graph = _gradients(mixed, _images())
    expected, _ = _gradients(full, _images())
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert a.dtype == b.dtype == tf.float32
        size = np.abs(b).max()
        assert size > 0.1
        # Sums of numbers with 8 bits of mantissa.
        assert np.abs(a - b).max() < 2**-7 * size
        assert np.abs(a - b).mean() < 2**-9 * size
    # The gradient of the bias doesn't change.
    for a, b in zip(found[2:], slow[2:], strict=True):
        np.testing.assert_array_equal(a, b)
    # The kernel with the fast gradient was used.
    assert _dtypes(graph, SLOW) == {tf.float32}
    assert _dtypes(graph, KERNEL_GRADIENT) == {tf.bfloat16}


@pytest.mark.parametrize("options", CASES)
def test_outputs_stay_bit_for_bit(options):
    model = _model("mixed_bfloat16", **options)

    def outputs():
        # A graph that fuses operations rounds differently.
        both = [model(_images()), tf.function(lambda x: model(x))(_images())]
        assert {x.dtype for x in both} == {tf.bfloat16}
        return tf.cast(both, tf.float32)

    before = outputs()
    depthwise.avoid_slow_gradient(model)
    np.testing.assert_array_equal(outputs(), before)


def test_it_trains_the_layer_as_it_is_now():
    """The replaced gradient uses the current weights."""
    model = _model("mixed_bfloat16", **CASES[0])
    depthwise.avoid_slow_gradient(model)
    once = model(_images())
    kernel = _convolution(model).kernel
    kernel.assign(2 * kernel)
    twice = model(_images())
    np.testing.assert_array_equal(
        tf.cast(twice, tf.float32), 2 * tf.cast(once, tf.float32)
    )


@pytest.mark.parametrize("options", CASES)
def test_the_saved_file_holds_a_plain_layer(tmp_path, options):
    model = _model("mixed_bfloat16", **options)
    config = _convolution(model).get_config()
    depthwise.avoid_slow_gradient(model)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    layer = _convolution(loaded)
    assert type(layer) is keras.layers.DepthwiseConv2D
    assert "call" not in vars(layer)
    assert layer.get_config() == config
    np.testing.assert_array_equal(
        tf.cast(loaded(_images()), tf.float32),
        tf.cast(model(_images()), tf.float32),
    )


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {}),
        ("mixed_float16", {}),
        ("mixed_bfloat16", {"strides": 1}),
        ("mixed_bfloat16", {"strides": 1, "dilation_rate": 2}),
        ("mixed_bfloat16", {}),
    ],
)
def test_other_layers_are_left_alone(dtype, changes):
    model = _model(dtype, **CASES[0] | changes)
    depthwise.avoid_slow_gradient(model)
    slow = dtype == "mixed_bfloat16" and not changes
    assert ("call" in vars(_convolution(model))) == slow


def test_where_there_is_a_gpu_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    model = _model("mixed_bfloat16", **CASES[0])
    depthwise.avoid_slow_gradient(model)
    assert "call" not in vars(_convolution(model))


@pytest.mark.slow
def test_training_on_smaller_images_avoids_it_too():
    keras.config.set_dtype_policy("mixed_bfloat16")
    sizes = InputConfig(image_size=64, train_scale=0.75)
    model = classifier.build_classifier(
        ModelConfig(backbone="mobilenet", weights="none"),
        image_size=64,
        num_classes=3,
        seed=0,
    )
    images = tf.random.stateless_uniform([2, 48, 48, 3], [0, 0])

    def slow_dtypes():
        reduced = training_size.training_model(model, sizes)
        return _dtypes(_gradients(reduced, images)[1], SLOW)

    layers = [
        layer
        for layer in classifier.get_backbone(model).layers
        if isinstance(layer, keras.layers.DepthwiseConv2D)
        and layer.strides == (2, 2)
    ]
    assert len(layers) == 4
    assert slow_dtypes() == {tf.bfloat16}
    depthwise.avoid_slow_gradient(model)
    assert all("call" in vars(layer) for layer in layers)
    assert slow_dtypes() == {tf.float32}
