"""Backbones, freezing, batch-norm, the classifier, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.models import (
    backbones,
    batch_norm,
    classifier,
    folding,
    freezing,
    saved_models,
    training_size,
)
from tests import fakes


def _build(backbone, weights="none", **kwargs):
    return classifier.build_classifier(
        ModelConfig(backbone=backbone, weights=weights, **kwargs),
        image_size=fakes.IMAGE_SIZE,
        num_classes=fakes.NUM_CLASSES,
        seed=0,
    )


@pytest.fixture
def tiny_weights(tmp_path, tiny_backbone) -> str:
    """A weights file of the tiny backbone; its batch-norm means are not 0."""
    keras.utils.set_random_seed(5)
    model = fakes.build_tiny_net((fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3))
    for layer in batch_norm.batch_norm_layers(model):
        layer.moving_mean.assign(layer.moving_mean + 0.1)
    path = str(tmp_path / "tiny.weights.h5")
    model.save_weights(path)
    return path


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("inception_v3", [0, 127.5, 255], [-1, 0, 1]),
        ("xception", [0, 127.5, 255], [-1, 0, 1]),
        ("resnet50v2", [0, 127.5, 255], [-1, 0, 1]),
        ("mobilenet_v2", [0, 127.5, 255], [-1, 0, 1]),
        # Rescales inside the network.
        ("efficientnetv2-b0", [0, 127.5, 255], [0, 127.5, 255]),
        # BGR minus the ImageNet mean.
        (
            "vgg16",
            [0, 127.5, 255],
            [255 - 103.939, 127.5 - 116.779, 0 - 123.68],
        ),
    ],
)
def test_preprocessing_is_the_backbones_own(name, image, expected):
    preprocess = backbones.get_preprocess(name)
    images = tf.constant(image, tf.float32)[None, None, None]
    np.testing.assert_allclose(preprocess(images)[0, 0, 0], expected, rtol=1e-5)
    mapped = tf.data.Dataset.from_tensors(images).map(preprocess)
    np.testing.assert_array_equal(
        next(iter(mapped)), preprocess(tf.identity(images))
    )


@pytest.mark.parametrize("name", ["mobilenet", "Tiny-Net", "resnet50v2"])
def test_the_name_of_the_network_leads_back_to_the_backbone(name):
    """That is how a saved model finds its preprocessing."""
    backbone = backbones.build_backbone(name, 32, "none")
    found = backbones.canonical_name(backbone.name)
    assert found == backbones.canonical_name(name)
    assert found in backbones.available_backbones()


def test_a_registered_backbone(tmp_path):
    def build(input_shape, weights):
        if weights is not None:
            raise ValueError("there are no published weights")
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))

    name = f"My-Net_{tmp_path.name}"
    with pytest.raises(ConfigError, match=r"--backbone must name .* got"):
        _build(name)
    backbones.register(name, build, lambda images: images / 255)
    model = _build(name.upper())
    assert model(tf.zeros([2, 32, 32, 3])).shape == (2, fakes.NUM_CLASSES)
    path = tmp_path / "model.keras"
    saved_models.save_classifier(model, path, {})
    loaded = saved_models.load_classifier(path, "--model")
    preprocess = backbones.get_preprocess(classifier.get_backbone(loaded).name)
    assert float(preprocess(tf.constant(51.0))) == pytest.approx(0.2)
    # The weights of the backbone can be loaded.
    weights = tmp_path / "my.weights.h5"
    classifier.get_backbone(model).save_weights(weights)
    again = backbones.build_backbone(name, 32, str(weights))
    for a, b in zip(
        again.weights, classifier.get_backbone(model).weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigError, match="no published weights"):
        _build(name, "imagenet")
    with pytest.raises(ConfigError, match="did you mean my"):
        _build(f"{name}x")


def test_efficientnet_weights_from_a_file_are_refused():
    with pytest.raises(ConfigError, match="scales their inputs differently"):
        backbones.build_backbone("efficientnet-b0", 32, "x.weights.h5")


def test_model_of_another_backbone_is_refused(tiny_backbone):
    model = _build(tiny_backbone)
    classifier.check_backbone(model, "x", "Tiny_Net")
    with pytest.raises(ConfigError, match="--backbone must be tinynet"):
        classifier.check_backbone(model, "x", "vgg16")


def test_unknown_backbone_names_the_close_ones():
    with pytest.raises(ConfigError, match=r"--backbone.*got.*inceptionv3"):
        backbones.get_preprocess("inceptoin_v3")


def test_too_small_images_are_refused():
    with pytest.raises(ConfigError, match="--image_size=64") as error:
        backbones.build_backbone("inception_v3", 64, "none")
    assert "\n" not in str(error.value)


def test_unreachable_imagenet_weights_name_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise Exception("URL fetch failure on https://...: no network")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(UserError, match=r"--weights=PATH.*--weights=none") as e:
        backbones.build_backbone("mobilenet_v2", 96, "imagenet")
    assert "\n" not in str(e.value)


def test_weights_of_another_architecture_are_refused(tmp_path, tiny_backbone):
    inputs = keras.Input([8, 8, 3])
    other = keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs))
    path = str(tmp_path / "other.weights.h5")
    other.save_weights(path)
    with pytest.raises(UserError, match="are not weights of tiny_net") as e:
        backbones.build_backbone(tiny_backbone, 32, path)
    assert "\n" not in str(e.value)


def test_damaged_weights_are_refused(tmp_path, tiny_weights, tiny_backbone):
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n garbage")
    with pytest.raises(UserError, match="are not weights of tiny_net"):
        backbones.build_backbone(tiny_backbone, 32, str(path))


def test_nan_weights_are_refused(tmp_path, tiny_backbone):
    model = fakes.build_tiny_net((32, 32, 3))
    model.layers[1].bias.assign(np.full(8, np.nan))
    path = str(tmp_path / "nan.weights.h5")
    model.save_weights(path)
    with pytest.raises(UserError, match="NaN or infinity"):
        backbones.build_backbone(tiny_backbone, 32, path)


def test_weights_file_is_loaded(tiny_weights, tiny_backbone):
    model = backbones.build_backbone(tiny_backbone, 32, tiny_weights)
    mean = batch_norm.batch_norm_layers(model)[0].moving_mean
    np.testing.assert_allclose(mean, 0.1, rtol=1e-6)


def test_head_and_float32_logits(tiny_backbone):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = _build(tiny_backbone, head_units=12)
    assert [layer.name for layer in model.layers[-4:]] == [
        "pooler",
        "head_dense",
        "head_dropout",
        "predictions",
    ]
    assert model.get_layer("head_dense").units == 12
    assert model.get_layer("pooler").compute_dtype == "bfloat16"
    assert model(tf.zeros([1, 32, 32, 3])).dtype == tf.float32
    assert "head_dense" not in [
        layer.name for layer in _build(tiny_backbone, head_units=0).layers
    ]


def test_frozen_backbone_trains_the_head_alone(tiny_backbone):
    model = _build(tiny_backbone, head_units=8)
    classifier.get_backbone(model).trainable = False
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "head_dense",
        "predictions",
    }


def test_unfreeze_from_a_layer_a_block_all():
    keras.utils.set_random_seed(0)
    backbone = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(75, 75, 3)
    )
    for name, convolutions in (
        ("all", 94),
        # The stem has 5, each block below 7.
        ("mixed2", 94 - 5 - 3 * 7),
        ("mixed10", 0),
    ):
        backbone.trainable = False
        freezing.unfreeze_from(backbone, name, 32, keep_batch_norm=True)
        kernels = [v for v in backbone.trainable_variables if v.ndim == 4]
        assert len(kernels) == convolutions, name


def test_block_prefix_does_not_take_longer_numbers(tiny_backbone):
    model = classifier.get_backbone(_build(tiny_backbone))
    freezing.unfreeze_from(model, "block2", 32, keep_batch_norm=False)
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "block2_conv",
        "block2_bn",
    }
    with pytest.raises(ConfigError, match=r"--unfreeze_from.*got 'block'"):
        freezing.unfreeze_from(model, "block", 32, keep_batch_norm=False)


@pytest.mark.parametrize("keep", [True, False])
def test_batch_norm_statistics_stay_if_kept(tiny_backbone, keep, tmp_path):
    """Also in a model that was saved and loaded."""
    model = _build(tiny_backbone)
    backbone = classifier.get_backbone(model)
    freezing.unfreeze_from(backbone, "all", 32, keep_batch_norm=keep)
    model.save(tmp_path / "model.keras")
    images = tf.random.normal([4, 32, 32, 3])
    loaded = saved_models.load_classifier(tmp_path / "model.keras", "--model")
    for each in (model, loaded):
        each(images, training=True)
        moved = [
            not np.all(keras.ops.convert_to_numpy(layer.moving_mean) == 0)
            for layer in batch_norm.batch_norm_layers(each)
        ]
        assert moved == [not keep] * 2


@pytest.mark.parametrize("frozen", [True, False])
def test_measured_statistics_are_those_of_the_data(tiny_backbone, frozen):
    model = _build(tiny_backbone, dropout=0.5)
    backbone = classifier.get_backbone(model)
    if frozen:
        backbone.trainable = False
    kernels = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    rng = np.random.default_rng(0)
    batches = rng.normal(2, 3, [3, 8, 32, 32, 3]).astype(np.float32)
    batch_norm.measure_statistics(model, batches)
    first = backbone.get_layer("block1_bn")
    convolution = backbone.get_layer("block1_conv")
    values = np.stack([convolution(b) for b in batches])
    np.testing.assert_allclose(
        first.moving_mean, values.mean((0, 1, 2, 3)), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        first.moving_variance,
        values.var((0, 1, 2, 3)),
        rtol=1e-3,
    )
    assert first.trainable is not frozen
    for value, old in zip(model.trainable_variables, kernels, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("head_units", [0, 8])
def test_a_linear_head_starts_from_zeros(tiny_backbone, head_units):
    """With a hidden layer, zeros would block its gradient."""
    model = _build(tiny_backbone, head_units=head_units)
    kernel = model.get_layer("predictions").kernel.numpy()
    assert np.any(kernel) == (head_units > 0)


def test_statistics_are_measured_without_dropout():
    def build(rate):
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Dropout(rate),
                keras.layers.Conv2D(4, 3, kernel_initializer="ones"),
                keras.layers.BatchNormalization(),
            ]
        )

    batches = np.random.default_rng(0).normal(2, 3, [3, 8, 8, 8, 3])
    with_dropout, without = build(0.5), build(0.0)
    for model in (with_dropout, without):
        batch_norm.measure_statistics(model, batches.astype(np.float32))
    assert with_dropout.layers[0].rate == 0.5
    for a, b in zip(
        with_dropout.layers[-1].weights, without.layers[-1].weights, strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_statistics_of_the_given_layers_are_set(tiny_backbone):
    """Also if they are measured again after the weights have changed."""
    model = _build(tiny_backbone)
    batches = np.random.default_rng(0).normal(2, 3, [2, 8, 32, 32, 3])
    batches = batches.astype(np.float32)
    backbone = classifier.get_backbone(model)
    first, second = (backbone.get_layer(f"block{k}_bn") for k in (1, 2))
    first.trainable = False
    measurer = batch_norm.StatisticsMeasurer(model, [second])
    measurer.run(batches)
    assert not np.any(first.moving_mean)
    once = keras.ops.convert_to_numpy(second.moving_mean)
    assert np.any(once)
    kernel = backbone.get_layer("block2_conv").kernel
    kernel.assign(2 * kernel)
    measurer.run(batches)
    np.testing.assert_allclose(second.moving_mean, 2 * once, rtol=1e-4)


def test_measured_batch_norm_is_the_same_on_two_replicas(
    tiny_backbone, mirrored_strategy
):
    rng = np.random.default_rng(0)
    batches = rng.normal(2, 3, [3, 8, 32, 32, 3]).astype(np.float32)

    def features(strategy, measure):
        with strategy.scope():
            model = _build(tiny_backbone)
        if measure:
            batch_norm.measure_statistics(model, batches)
        extractor = classifier.get_feature_extractor(model)
        return extractor.predict_on_batch(batches[0])

    one = features(tf.distribute.get_strategy(), True)
    two = features(mirrored_strategy, True)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
    own = features(tf.distribute.get_strategy(), False)
    assert not np.allclose(own, one, rtol=0.1)


def test_models_that_do_not_fit_the_data_are_refused():
    with pytest.raises(UserError, match="--image_size=32; got 64"):
        classifier.check_classifier(fakes.make_model(), "x", 64, 17)
    with pytest.raises(UserError, match=r"17 classes; .* has 5"):
        classifier.check_classifier(fakes.make_model(), "x", 32, 5)


def test_learning_rates_rise_from_the_lowest_trained_layer(tiny_backbone):
    config = ModelConfig(backbone=tiny_backbone, weights="none", head_units=0)
    model = classifier.build_classifier(
        config, image_size=32, num_classes=5, seed=0
    )
    backbone = classifier.get_backbone(model)

    def scales(lowest):
        found = freezing.learning_rate_scales(model, lowest, {}, "adamw")
        return dict(
            zip(
                (
                    v.path.rpartition("classifier/")[2]
                    for v in model.trainable_variables
                ),
                found,
                strict=True,
            )
        )

    freezing.unfreeze_from(backbone, "all", 32, keep_batch_norm=True)
    found = scales(0.01)
    # Input, then conv, batch-norm and ReLU twice: positions 1 and 4 of 7.
    by_layer = {path.split("/")[-2]: s for path, s in found.items()}
    assert by_layer["block1_conv"] == pytest.approx(0.01)
    assert by_layer["block2_conv"] == pytest.approx(0.1)
    assert by_layer["predictions"] == 1
    assert set(scales(1.0).values()) == {1.0}
    # The lowest rate belongs to the lowest trained layer.
    freezing.unfreeze_from(backbone, "block2", 32, keep_batch_norm=True)
    by_layer = {p.split("/")[-2]: s for p, s in scales(0.01).items()}
    assert by_layer["block2_conv"] == pytest.approx(0.01)
    backbone.trainable = False
    assert set(scales(0.01).values()) == {1.0}


@pytest.mark.parametrize(
    ("optimizer", "power"), [("adam", 1), ("adamw", 1), ("sgd", 2)]
)
def test_learning_rates_of_channels(tiny_backbone, optimizer, power):
    model = folding.fold_batch_norm(_build(tiny_backbone))
    freezing.unfreeze_from(
        classifier.get_backbone(model), "all", 32, keep_batch_norm=True
    )
    given = np.linspace(-2, 2, 16)
    found = dict(
        zip(
            ("/".join(v.path.split("/")[-2:]) for v in model.trainable_weights),
            freezing.learning_rate_scales(
                model, 1.0, {"block2_conv": given}, optimizer
            ),
            strict=True,
        )
    )
    share = found.pop("block2_conv/kernel")
    np.testing.assert_allclose(share, np.abs(given) ** power, rtol=1e-6)
    assert {float(share) for share in found.values()} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "mobilenet_v2", "resnet50v2"])
def test_real_backbones_fold_and_take_two_sizes(name):
    config = ModelConfig(backbone=name, weights="none")
    sizes = InputConfig(image_size=128, train_scale=0.75)
    model = classifier.build_classifier(
        config, image_size=128, num_classes=3, seed=0
    )
    folded = folding.fold_batch_norm(model)
    images = np.random.default_rng(0).normal(size=[1, 128, 128, 3])
    np.testing.assert_allclose(folded(images), model(images), atol=1e-3)
    reduced = training_size.training_model(folded, sizes)
    assert reduced(images[:, :96, :96]).shape == (1, 3)


def _trained_kernels(backbone) -> list[str]:
    """Returns the layers whose kernel trains, from the input onwards."""
    return [
        layer.name
        for layer in backbone.layers
        if any("kernel" in v.name for v in layer.trainable_variables)
    ]


@pytest.mark.parametrize(
    ("name", "image_size", "first", "num_frozen"),
    [
        # Maps of 48, then 24, then 12 pixels of 96.
        ("mobilenet", 96, "conv_dw_4", 7),
        # 53, 51, 25, 23, then 11 pixels of 107: all but the stem.
        ("inceptionv3", 107, "", 5),
        # 8, then 3 pixels of 32.
        ("tinynet", 32, "block2_conv", 1),
    ],
)
@pytest.mark.parametrize("any_size", [False, True])
def test_auto_unfreezes_from_an_eighth_of_the_image_on(
    name, image_size, first, num_frozen, any_size
):
    size = None if any_size else image_size
    backbone = backbones.available_backbones()[name].build(
        input_shape=(size, size, 3), weights=None
    )
    everything = _trained_kernels(backbone)
    freezing.unfreeze_from(backbone, "auto", image_size, keep_batch_norm=False)
    trained = _trained_kernels(backbone)
    assert trained == everything[num_frozen:]
    # Keras numbers the layers of InceptionV3 in the order of their creation.
    assert trained[0] == first or not first
    # Batch-norm below that layer stays frozen.
    norms = batch_norm.batch_norm_layers(backbone)
    assert [n.trainable for n in norms] == sorted(n.trainable for n in norms)
    assert {n.trainable for n in norms} == {False, True}


@pytest.mark.parametrize("size", [96, 97, 103])
def test_auto_rounds_an_eighth_up_as_padding_does(size):
    inputs = x = keras.Input([size, size, 3])
    for k in range(4):
        x = keras.layers.Conv2D(
            2, 3, strides=2, padding="same", name=f"conv{k}"
        )(x)
    backbone = keras.Model(inputs, x)
    freezing.unfreeze_from(backbone, "auto", size, keep_batch_norm=True)
    assert _trained_kernels(backbone) == ["conv2", "conv3"]


def test_auto_never_freezes_everything():
    inputs = keras.Input([32, 32, 3])
    x = keras.layers.Conv2D(4, 3, strides=2)(inputs)
    backbone = keras.Model(inputs, keras.layers.ReLU()(x))
    freezing.unfreeze_from(backbone, "auto", 32, keep_batch_norm=True)
    assert len(_trained_kernels(backbone)) == 1
