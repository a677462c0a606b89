"""Features: computed once, saved completely or not at all, then batched."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.input import feature_cache, input_pipeline
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import classifier
from flowers17_tfdata.training import inference
from tests import fakes

NUM_EXAMPLES = 30
NUM_VIEWS = 3


def _features(num_examples=NUM_EXAMPLES, num_views=NUM_VIEWS) -> Features:
    """Makes features with the values `[view, index]`."""
    view, index = np.meshgrid(
        np.arange(num_views), np.arange(num_examples), indexing="ij"
    )
    values = np.stack([view, index], axis=-1).astype(np.float32)
    return Features(values, np.arange(num_examples) % fakes.NUM_CLASSES)


def _train(batch_size, features=None, **kwargs):
    return feature_cache.make_train_dataset(
        features or _features(),
        global_batch_size=batch_size,
        seed=kwargs.pop("seed", 3),
        **kwargs,
    )


def _eval(batch_size, **kwargs):
    return feature_cache.make_eval_dataset(
        _features(), global_batch_size=batch_size, **kwargs
    )


def _shown(batches) -> list[tuple[int, int]]:
    """Returns the (view, index) of all examples but padding, in order."""
    rows = np.concatenate([b.inputs.numpy()[b.weights > 0] for b in batches])
    return [(int(view), int(index)) for view, index in rows]


def _context(pipelines, pipeline, replicas):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


@pytest.mark.parametrize("batch_size", [7, 15, 30, 32])
def test_each_epoch_shows_every_example_once_and_the_next_view(batch_size):
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, batch_size)
    batches = list(_train(batch_size).take((NUM_VIEWS + 1) * steps))
    assert {b.inputs.shape for b in batches} == {(batch_size, 2)}
    epochs = [
        _shown(batches[k : k + steps]) for k in range(0, len(batches), steps)
    ]
    for epoch, shown in enumerate(epochs):
        views = dict((index, view) for view, index in shown)
        assert len(shown) == NUM_EXAMPLES
        assert views == {
            i: (i + epoch) % NUM_VIEWS for i in range(NUM_EXAMPLES)
        }
    # After as many epochs as there are views, each example has shown each view.
    assert sorted(pair for shown in epochs[:NUM_VIEWS] for pair in shown) == [
        (view, index)
        for view in range(NUM_VIEWS)
        for index in range(NUM_EXAMPLES)
    ]
    orders = [[index for _, index in shown] for shown in epochs]
    assert all(orders[0] != order for order in orders[1:])


def test_labels_follow_and_padding_has_no_weight():
    batches = list(_train(32).take(2)) + list(_eval(32))
    for batch in batches:
        np.testing.assert_array_equal(
            batch.labels, batch.inputs[:, 1].numpy() % fakes.NUM_CLASSES
        )
        np.testing.assert_array_equal(batch.weights, [1] * 30 + [0] * 2)
        assert batch.transforms.shape == (32, 0)
        assert batch.inputs.dtype == tf.float32


def test_order_is_that_of_the_images():
    images = input_pipeline.make_train_dataset(
        fakes.make_examples(NUM_EXAMPLES),
        InputConfig(image_size=fakes.IMAGE_SIZE, augmentation="none"),
        lambda x: x,
        global_batch_size=7,
        seed=3,
    )
    for a, b in zip(images.take(6), _train(7).take(6), strict=True):
        np.testing.assert_array_equal(a.inputs[:, 0, 0, 0], b.inputs[:, 1])
        np.testing.assert_array_equal(a.weights, b.weights)


def test_resumption_continues_exactly():
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, 7)
    whole = list(_train(7).take(3 * steps))
    resumed = list(_train(7, initial_epoch=2).take(steps))
    for a, b in zip(whole[2 * steps :], resumed, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert _shown(_train(7, seed=4).take(steps)) != _shown(whole[:steps])


@pytest.mark.parametrize("batch_size", [7, 30, 32])
def test_evaluation_is_the_clean_view_in_order(batch_size):
    assert _shown(_eval(batch_size)) == [(0, i) for i in range(NUM_EXAMPLES)]


@pytest.mark.parametrize("make", [_train, _eval])
def test_replicas_share_a_step(make):
    one = list(make(8).take(4))
    shares = [
        list(make(8, input_context=_context(2, worker, 4)).take(8))
        for worker in range(2)
    ]
    for step, batch in enumerate(one):
        parts = [shares[w][2 * step + r] for w in range(2) for r in range(2)]
        for field in ("inputs", "labels", "weights"):
            np.testing.assert_array_equal(
                tf.concat([getattr(part, field) for part in parts], axis=0),
                getattr(batch, field),
            )


def test_key_tells_every_part():
    parts = {
        "weights": "a",
        "input": {"rotation": 30.0, "zoom": 0.2},
        "seed": 0,
        "versions": {"keras": "3"},
    }
    key = feature_cache.cache_key(parts)
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")
    reordered = dict(reversed(parts.items()))
    reordered["input"] = {"zoom": 0.2, "rotation": 30.0}
    assert feature_cache.cache_key(reordered) == key
    changed = [
        parts | {"weights": "b"},
        parts | {"input": {"rotation": 31.0, "zoom": 0.2}},
        parts | {"seed": 1},
        parts | {"versions": {"keras": "4"}},
        {k: v for k, v in parts.items() if k != "seed"},
    ]
    keys = {feature_cache.cache_key(other) for other in changed}
    assert len(keys - {key}) == len(changed)


def _arrays():
    values = np.random.default_rng(0).normal(size=[2, 30, 16])
    values = values.astype(np.float32)
    return {"values": values, "more": values[:1, :9]}


def _assert_arrays(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values)


def test_saved_then_loaded(tmp_path):
    path = tmp_path / "features" / "key.npz"
    assert feature_cache.load(path) is None
    files.write_arrays(path, _arrays())
    _assert_arrays(feature_cache.load(path), _arrays())
    assert os.listdir(path.parent) == ["key.npz"]


def _cut(data):
    return data[: len(data) // 2]


def _flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        lambda data: data[:-1],
        _flip,
        lambda data: b"",
        lambda data: b"garbage",
        lambda data: b"\x93NUMPY",
    ],
    ids=[
        "half",
        "last byte missing",
        "flipped byte",
        "empty",
        "garbage",
        "another format",
    ],
)
def test_damaged_file_is_written_anew(tmp_path, damage):
    path = tmp_path / "key.npz"
    files.write_arrays(path, _arrays())
    path.write_bytes(damage(path.read_bytes()))
    assert feature_cache.load(path) is None
    files.write_arrays(path, _arrays())
    _assert_arrays(feature_cache.load(path), _arrays())
    assert os.listdir(tmp_path) == ["key.npz"]


@pytest.fixture
def model(tiny_backbone) -> keras.Model:
    return _build(tiny_backbone)


def _build(backbone, head_units=12):
    return classifier.build_classifier(
        ModelConfig(backbone=backbone, weights="none", head_units=head_units),
        image_size=fakes.IMAGE_SIZE,
        num_classes=fakes.NUM_CLASSES,
        seed=0,
    )


def test_head_takes_features_standardized(model):
    # One view is a hundred times the other; the last channel is constant.
    channels = model.get_layer("pooler").output.shape[-1]
    features = np.random.default_rng(0).uniform(size=(2, 50, channels))
    features *= np.array([1, 100])[:, np.newaxis, np.newaxis]
    features[..., -1] = 0
    head = classifier.get_standardizing_head(model, features)
    assert [layer.name for layer in head.layers] == [
        "features",
        "standardization",
        "head_dense",
        "head_dropout",
        "predictions",
    ]
    standardized = np.asarray(
        head.get_layer("standardization")(features.reshape(-1, channels))
    )
    np.testing.assert_allclose(standardized.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(standardized.std(0)[:-1], 1, rtol=1e-3)
    np.testing.assert_array_equal(standardized[:, -1], 0)


@pytest.mark.parametrize("head_units", [0, 12])
def test_training_the_head_trains_the_classifier(tiny_backbone, head_units):
    model = _build(tiny_backbone, head_units)
    extractor = classifier.get_feature_extractor(model)
    batch = fakes.make_batch(8)
    features = extractor(batch.inputs).numpy()
    head = classifier.get_standardizing_head(model, features)
    own = {id(v.value) for v in model.trainable_variables}
    assert {id(v.value) for v in head.trainable_variables} < own
    before = head(features).numpy()
    head.compile(keras.optimizers.SGD(1.0), "mse")
    head.fit(features, tf.one_hot(batch.labels, fakes.NUM_CLASSES), verbose=0)
    after = head(features).numpy()
    assert np.abs(after - before).max() > 1e-2
    classifier.absorb_standardization(head)
    np.testing.assert_allclose(model(batch.inputs), after, rtol=1e-4, atol=1e-5)


def test_digest_tells_other_weights(tiny_backbone):
    first, same = (
        classifier.get_feature_extractor(_build(tiny_backbone))
        for _ in range(2)
    )
    digest = inference.weights_digest(first)
    assert inference.weights_digest(same) == digest
    # The digest includes batch-norm statistics.
    moving_mean = next(v for v in first.variables if "moving_mean" in v.path)
    moving_mean.assign(moving_mean + 1e-6)
    assert inference.weights_digest(first) != digest
