"""Folded models compute the same without the batch-norms that can be merged."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.models import (
    batch_norm,
    classifier,
    folding,
    freezing,
    saved_models,
)
from flowers17_tfdata.training import optimizers
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.trainer import Trainer
from tests import fakes

_CONVOLUTIONS = (
    layers.Conv2D,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
)


def _randomize(model):
    """Sets batch-norms and biases to random values."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        ranges = {"bias": (-0.3, 0.3)}
        if isinstance(layer, layers.BatchNormalization):
            ranges = {
                "gamma": (0.5, 1.5),
                "beta": (-0.3, 0.3),
                "moving_mean": (-0.3, 0.3),
                "moving_variance": (0.5, 2),
            }
        for name, bounds in ranges.items():
            variable = getattr(layer, name, None)
            if variable is not None:
                variable.assign(rng.uniform(*bounds, variable.shape))
    return model


def _images(model, batch_size=2):
    shape = (batch_size, *model.input_shape[1:])
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def _output(model):
    outputs = model(_images(model), training=False)
    return keras.ops.convert_to_numpy(outputs).astype(np.float64)


def _assert_computes_the_same(folded, model, tolerance=2e-6):
    """The tolerance is relative to the largest output."""
    expected = _output(model)
    size = np.abs(expected).max()
    assert size > 1e-2
    assert np.abs(_output(folded) - expected).max() <= tolerance * size


def _names(model):
    return {layer.name for layer in model._flatten_layers()}


def _norms(model):
    return {layer.name for layer in batch_norm.batch_norm_layers(model)}


def _graph(connect, channels=4):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([8, 8, channels], name="input")
    return _randomize(keras.Model(inputs, connect(inputs), name="graph"))


def _chain(*chain):
    def connect(x):
        for layer in chain:
            x = layer(x)
        return x

    return _graph(connect)


def _conv(name="conv", **kwargs):
    return layers.Conv2D(6, 3, name=name, **kwargs)


def _bn(name="bn", **kwargs):
    return layers.BatchNormalization(name=name, **kwargs)


_KINDS = pytest.mark.parametrize(
    "convolution",
    [
        _conv,
        lambda: _conv(use_bias=False),
        lambda: _conv(groups=2, strides=2, padding="same"),
        lambda: layers.DepthwiseConv2D(3, name="conv"),
        lambda: layers.DepthwiseConv2D(
            3, name="conv", depth_multiplier=2, use_bias=False
        ),
        lambda: layers.SeparableConv2D(6, 3, name="conv", use_bias=False),
        lambda: layers.SeparableConv2D(
            6, 3, name="conv", depth_multiplier=2, padding="same"
        ),
    ],
    ids=[
        "conv",
        "no bias",
        "groups",
        "depthwise",
        "multiplier",
        "separable",
        "separable with bias",
    ],
)


@_KINDS
def test_every_kind_of_convolution(convolution):
    model = _chain(convolution(), _bn(), layers.ReLU(name="relu"))
    before = [np.array(w) for w in model.get_weights()]
    folded = folding.fold_batch_norm(model)
    assert [x.name for x in folded.layers] == ["input", "conv", "relu"]
    assert folded.name == "graph"
    assert folded.input_shape == model.input_shape
    assert folded.output_shape == model.output_shape
    _assert_computes_the_same(folded, model)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@_KINDS
def test_scales_are_what_kernels_were_multiplied_by(convolution):
    model = _chain(convolution(), _bn(trainable=False))
    ((name, scale),) = folding.merged_scales(model).items()
    assert name == "conv"
    folded = folding.fold_batch_norm(model).get_layer("conv")
    kernels = [
        [keras.ops.convert_to_numpy(w) for w in layer.weights if w.ndim == 4]
        for layer in (model.get_layer("conv"), folded)
    ]
    # The last kernel of a separable convolution.
    before, after = (k[-1] for k in kernels)
    np.testing.assert_allclose(after, before * scale, rtol=1e-6)
    assert np.ptp(scale) > 0.1


def test_scales_are_those_of_frozen_batch_norm():
    model = _chain(
        *(_conv("a"), _bn("frozen", trainable=False)),
        *(_conv("b"), _bn("trained")),
    )
    assert set(folding.merged_scales(model)) == {"a"}
    assert folding.merged_scales(folding.fold_batch_norm(model)) == {}
    # A sequential backbone is not folded.
    sequential = keras.Sequential([keras.Input([8, 8, 3]), _conv(), _bn()])
    assert folding.merged_scales(sequential) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False},
        {"axis": 3, "epsilon": 0.1},
    ],
)
def test_every_kind_of_batch_norm(arguments):
    model = _chain(_conv(), _bn(**arguments))
    folded = folding.fold_batch_norm(model)
    assert [x.name for x in folded.layers] == ["input", "conv"]
    _assert_computes_the_same(folded, model)


def test_weights_are_rounded_once():
    model = _chain(_conv(use_bias=False), _bn(center=False))
    conv, bn = model.layers[1:]
    bn.moving_mean.assign(np.zeros(6))
    folded = folding.fold_batch_norm(model).get_layer("conv").kernel
    gamma, variance, kernel = (
        np.float64(keras.ops.convert_to_numpy(v))
        for v in (bn.gamma, bn.moving_variance, conv.kernel)
    )
    exact = kernel * (gamma / np.sqrt(variance + bn.epsilon))
    np.testing.assert_array_max_ulp(
        keras.ops.convert_to_numpy(folded), exact.astype(np.float32), 1
    )


def _output_used_twice(x):
    x = _conv()(x)
    return layers.Add()([_bn()(x), x])


def _norm_after_add(x):
    return _bn()(layers.Add()([_conv()(x), _conv("other")(x)]))


def _shared_convolution(x):
    conv = _conv()
    return layers.Add()([_bn()(conv(x)), conv(2 * x)])


def _shared_norm(x):
    bn = _bn()
    return layers.Add()([bn(_conv()(x)), bn(_conv("other")(x))])


class _Doubled(layers.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


@pytest.mark.parametrize(
    "connect",
    [
        lambda x: _bn()(_conv(activation="relu")(x)),
        _output_used_twice,
        _norm_after_add,
        _shared_convolution,
        _shared_norm,
        lambda x: _bn()(layers.AveragePooling2D(2)(_conv()(x))),
        lambda x: _bn(axis=1)(_conv()(x)),
        lambda x: _bn()(_conv()(x), training=True),
        lambda x: _bn()(_Doubled(6, 3, name="conv")(x)),
        lambda x: _bn(dtype="float32")(_conv(dtype="mixed_bfloat16")(x)),
        lambda x: _bn()(x),
    ],
    ids=[
        "activation",
        "output used twice",
        "after an addition",
        "shared convolution",
        "shared batch-norm",
        "after pooling",
        "not the channels",
        "batch statistics",
        "subclass",
        "another dtype",
        "no convolution",
    ],
)
def test_what_cannot_be_merged_stays(connect):
    model = _graph(connect)
    with keras.utils.custom_object_scope({"_Doubled": _Doubled}):
        folded = folding.fold_batch_norm(model)
    assert folded.get_config() == model.get_config()
    np.testing.assert_array_equal(_output(folded), _output(model))


def test_convolution_that_is_an_output_stays():
    inputs = keras.Input([8, 8, 3])
    x = _conv()(inputs)
    y = _bn()(x)
    model = keras.Model(inputs, {"raw": x, "normalized": y})
    assert _norms(folding.fold_batch_norm(model)) == {"bn"}
    # Cut out of the model, the same layers can be merged.
    model = _randomize(keras.Model(inputs, y))
    folded = folding.fold_batch_norm(model)
    assert not _norms(folded)
    _assert_computes_the_same(folded, model)


def test_several_outputs_keep_their_structure():
    inputs = keras.Input([8, 8, 3])
    a, b = _bn("a")(_conv("conv_a")(inputs)), _bn("b")(_conv("conv_b")(inputs))
    model = _randomize(keras.Model(inputs, {"a": a, "b": [b]}))
    folded = folding.fold_batch_norm(model)
    assert not _norms(folded)
    images = _images(model)
    expected, actual = model(images), folded(images)
    assert set(actual) == {"a", "b"}
    np.testing.assert_allclose(actual["a"], expected["a"], atol=1e-5)
    np.testing.assert_allclose(actual["b"][0], expected["b"][0], atol=1e-5)


def test_input_normalization_is_copied():
    """Unlike other layers, it computes constants from its weights."""
    norm = layers.Normalization(name="normalization")
    norm.adapt(np.random.default_rng(0).normal(3, 2, [64, 8, 8, 4]))
    model = _chain(norm, _conv(), _bn())
    folded = folding.fold_batch_norm(model)
    assert not _norms(folded)
    _assert_computes_the_same(folded, model)


def _build_classifier(backbone):
    config = ModelConfig(backbone=backbone, weights="none", head_units=8)
    return _randomize(
        classifier.build_classifier(
            config,
            image_size=fakes.IMAGE_SIZE,
            num_classes=fakes.NUM_CLASSES,
            seed=0,
        )
    )


@pytest.mark.parametrize("loaded", [False, True])
def test_nested_classifier(tiny_backbone, loaded, tmp_path):
    model = _build_classifier(tiny_backbone)
    if loaded:
        model.save(tmp_path / "model.keras")
        model = saved_models.load_classifier(
            tmp_path / "model.keras", "--model"
        )
    folded = folding.fold_batch_norm(model)
    assert _names(folded) == _names(model) - {"block1_bn", "block2_bn"}
    assert [x.name for x in folded.layers] == [x.name for x in model.layers]
    assert classifier.get_backbone(folded).name == "tinynet"
    _assert_computes_the_same(folded, model)


def test_trainable_flags_stay(tiny_backbone):
    model = _build_classifier(tiny_backbone)
    for backbone_trains in (True, False):
        backbone = classifier.get_backbone(model)
        freezing.unfreeze_from(backbone, "block2", 32, keep_batch_norm=True)
        if not backbone_trains:
            backbone.trainable = False
        folded = folding.fold_batch_norm(model)
        flags = {x.name: x.trainable for x in model._flatten_layers()}
        for layer in folded._flatten_layers():
            if not isinstance(layer, layers.InputLayer):
                assert layer.trainable is flags[layer.name], layer.name
        # The merged bias trains with its kernel.
        assert {v.path for v in folded.trainable_variables} == {
            v.path for v in model.trainable_variables
        }


def test_folded_kernels_move_as_unfolded_ones_did(tiny_backbone):
    """With Adam, whose steps don't depend on the gradient's scale."""
    model = _build_classifier(tiny_backbone)
    backbone = classifier.get_backbone(model)
    norm = backbone.get_layer("block2_bn")
    # A scale may be negative.
    norm.gamma.assign(norm.gamma * np.resize([1.0, -1.0], 16))
    freezing.unfreeze_from(backbone, "all", 32, keep_batch_norm=True)
    scales = folding.merged_scales(backbone)
    folded = folding.fold_batch_norm(model, frozen_only=True)
    kernels = {}
    for name, trained in (("model", model), ("folded", folded)):
        shares = freezing.learning_rate_scales(
            trained, 0.1, scales if trained is folded else {}, "adam"
        )
        weights = FlatWeights(trained)
        optimizer = optimizers.make_optimizer(
            "adam",
            1e-2,
            OptimizationConfig(),
            scale_loss=False,
            rate_scales=weights.flatten(shares),
        )
        trainer = Trainer(
            weights=weights,
            strategy=tf.distribute.get_strategy(),
            global_batch_size=8,
            optimizer=optimizer,
        )
        before = _kernels(trained)
        fakes.train_step(trainer, fakes.make_batch(8))
        kernels[name] = [
            b - a for a, b in zip(before, _kernels(trained), strict=True)
        ]
    for name, moved, expected in zip(
        ("block1_conv", "block2_conv"),
        kernels["folded"],
        kernels["model"],
        strict=True,
    ):
        assert np.abs(expected).max() > 1e-4
        # Except where the gradient is hardly above Adam's epsilon.
        close = np.isclose(moved, expected * scales[name], rtol=1e-2)
        assert close.mean() > 0.9


def _kernels(model):
    return [
        keras.ops.convert_to_numpy(
            classifier.get_backbone(model).get_layer(name).kernel
        )
        for name in ("block1_conv", "block2_conv")
    ]


def test_what_trains_is_kept(tiny_backbone):
    model = _build_classifier(tiny_backbone)
    backbone = classifier.get_backbone(model)
    freezing.unfreeze_from(backbone, "block2", 32, keep_batch_norm=False)
    folded = folding.fold_batch_norm(model, frozen_only=True)
    assert _norms(folded) == {"block2_bn"}
    _assert_computes_the_same(folded, model)
    # Also in training, where it normalizes by the batch.
    images = _images(model, batch_size=8)
    expected = keras.ops.convert_to_numpy(model(images, training=True))
    np.testing.assert_allclose(
        folded(images, training=True), expected, rtol=1e-4, atol=1e-4
    )


def test_policies_stay(tiny_backbone):
    """The global policy during folding does not matter."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _build_classifier(tiny_backbone)
    keras.config.set_dtype_policy("float32")
    folded = folding.fold_batch_norm(model)
    assert not _norms(folded)
    policies = {x.name: x.dtype_policy.name for x in model._flatten_layers()}
    assert "mixed_bfloat16" in policies.values()
    for layer in folded._flatten_layers():
        if not isinstance(layer, layers.InputLayer):
            assert layer.dtype_policy.name == policies[layer.name], layer.name
    assert {v.dtype for v in folded.weights} == {"float32"}
    assert folded.compute_dtype == model.compute_dtype
    # bfloat16 has eight bits of mantissa.
    _assert_computes_the_same(folded, model, tolerance=0.03)


def test_half_precision_variables():
    keras.config.set_dtype_policy("bfloat16")
    model = _chain(_conv(), _bn())
    folded = folding.fold_batch_norm(model)
    assert {v.dtype for v in folded.weights} == {"bfloat16"}
    _assert_computes_the_same(folded, model, tolerance=0.03)


def test_model_without_batch_norm_comes_back_equal():
    model = _randomize(fakes.make_model(dropout=0.5, l2=1e-3))
    folded = folding.fold_batch_norm(model)
    assert folded is not model
    assert folded.get_config() == model.get_config()
    np.testing.assert_array_equal(_output(folded), _output(model))


@pytest.mark.slow
def test_saved_folded_model_needs_keras_alone(tmp_path, tiny_backbone):
    model = _build_classifier(tiny_backbone)
    folding.fold_batch_norm(model).save(tmp_path / "folded.keras")
    np.save(tmp_path / "images.npy", _images(model))
    code = (
        "import keras, numpy as np, sys\n"
        "model = keras.models.load_model('folded.keras')\n"
        "assert 'flowers17_tfdata' not in sys.modules\n"
        "outputs = model(np.load('images.npy'), training=False)\n"
        "np.save('outputs.npy', outputs)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"), _output(model), rtol=1e-4, atol=1e-5
    )


def test_in_a_strategy_scope(mirrored_strategy, tiny_backbone):
    with mirrored_strategy.scope():
        model = _build_classifier(tiny_backbone)
        folded = folding.fold_batch_norm(model)
    assert not _norms(folded)
    for variable in folded.weights:
        assert isinstance(variable.value, tf.distribute.DistributedValues)
    images = _images(model)
    replicas = mirrored_strategy.experimental_local_results(
        mirrored_strategy.run(
            tf.function(lambda x: folded(x, training=False)), args=(images,)
        )
    )
    assert len(replicas) == 2
    for outputs in replicas:
        np.testing.assert_allclose(
            outputs, _output(model), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size", "before", "left"),
    [
        ("MobileNetV2", 32, 52, 0),
        ("InceptionV3", 75, 94, 0),
        ("Xception", 71, 40, 0),
        # Batch-norms that follow an addition or a pooling stay.
        ("ResNet50V2", 32, 49, 17),
    ],
)
def test_keras_applications(name, image_size, before, left):
    keras.utils.set_random_seed(0)
    model = _randomize(
        getattr(keras.applications, name)(
            include_top=False,
            weights=None,
            input_shape=(image_size, image_size, 3),
        )
    )
    folded = folding.fold_batch_norm(model)
    assert len(_norms(model)) == before
    assert len(_norms(folded)) == left
    assert all(
        not isinstance(parent.operation, _CONVOLUTIONS)
        for layer in batch_norm.batch_norm_layers(folded)
        for parent in layer._inbound_nodes[0].parent_nodes
    )
    # Only merged batch-norms disappear.
    assert _names(folded) - _norms(folded) == _names(model) - _norms(model)
    _assert_computes_the_same(folded, model, tolerance=1e-5)
