"""Every example exactly once, in a reproducible order, on any replicas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config import InputConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import input_pipeline
from tests import fakes

NUM_EXAMPLES = 60
PLAIN = InputConfig(image_size=fakes.IMAGE_SIZE, augmentation="none")


def _identity(images):
    return images


def _context(pipelines: int, pipeline: int, replicas: int):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


def _ids(batch) -> list[int]:
    """Indices of the examples that count in a batch."""
    ids = batch.images[:, 0, 0, 0].numpy().astype(int)
    return [i for i, w in zip(ids, batch.weights.numpy(), strict=True) if w]


def _train(batch_size, config=PLAIN, **kwargs):
    return input_pipeline.make_train_dataset(
        fakes.make_examples(NUM_EXAMPLES),
        config,
        _identity,
        global_batch_size=batch_size,
        seed=kwargs.pop("seed", 3),
        **kwargs,
    )


def _eval(batch_size, **kwargs):
    return input_pipeline.make_eval_dataset(
        fakes.make_examples(NUM_EXAMPLES),
        PLAIN,
        _identity,
        global_batch_size=batch_size,
        **kwargs,
    )


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize(
    "batch_size", [6, NUM_EXAMPLES - 6, NUM_EXAMPLES, NUM_EXAMPLES + 6]
)
def test_eval_sees_every_example_once(batch_size, replicas):
    batches = list(_eval(batch_size, input_context=_context(1, 0, replicas)))
    steps = -(-NUM_EXAMPLES // batch_size)
    assert len(batches) == steps * replicas
    assert {len(b.labels) for b in batches} == {batch_size // replicas}
    assert sorted(i for b in batches for i in _ids(b)) == list(
        range(NUM_EXAMPLES)
    )


@pytest.mark.parametrize(
    "batch_size", [NUM_EXAMPLES - 1, NUM_EXAMPLES, NUM_EXAMPLES + 1]
)
@pytest.mark.parametrize("make", [_train, _eval])
def test_batch_sizes_around_the_number_of_examples(make, batch_size):
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, batch_size)
    assert steps == (2 if batch_size < NUM_EXAMPLES else 1)
    batches = list(make(batch_size).take(steps))
    assert sorted(i for b in batches for i in _ids(b)) == list(
        range(NUM_EXAMPLES)
    )


@pytest.mark.parametrize("batch_size", [7, 15, 60])
def test_each_train_epoch_visits_every_example_once(batch_size):
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, batch_size)
    batches = list(_train(batch_size).take(3 * steps))
    epochs = [
        [i for b in batches[e * steps : (e + 1) * steps] for i in _ids(b)]
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_EXAMPLES))
    assert epochs[0] != epochs[1] != epochs[2]


def test_labels_follow_their_images():
    for batch in _train(16).take(8):
        expected = batch.images[:, 0, 0, 0].numpy() % fakes.NUM_CLASSES
        np.testing.assert_array_equal(batch.labels.numpy(), expected)


def test_workers_share_an_epoch_without_overlap():
    one = list(_train(12).take(5))
    shares = [
        list(_train(12, input_context=_context(2, worker, 4)).take(10))
        for worker in range(2)
    ]
    for step, batch in enumerate(one):
        # Two workers of two replicas: their four batches are the global one.
        parts = [shares[w][2 * step + r] for w in range(2) for r in range(2)]
        images = tf.concat([part.images for part in parts], axis=0)
        np.testing.assert_array_equal(images, batch.images)


def test_same_seed_same_batches_other_seed_other_order():
    config = dataclasses.replace(PLAIN, augmentation="affine")
    first, again = (next(iter(_train(16, config))) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    other = next(iter(_train(16, seed=4)))
    assert _ids(next(iter(_train(16)))) != _ids(other)


@pytest.mark.parametrize("augmentation", ["affine", "keras"])
def test_resumed_pipeline_continues_exactly(augmentation):
    config = dataclasses.replace(PLAIN, augmentation=augmentation)
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, 16)
    whole = list(_train(16, config).take(3 * steps))
    resumed = list(_train(16, config, initial_epoch=2).take(steps))
    for a, b in zip(whole[2 * steps :], resumed, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_evaluation_is_not_augmented_and_training_is():
    noise = fakes.make_noise_examples(8)
    config = dataclasses.replace(PLAIN, augmentation="affine")
    evaluated = next(
        iter(
            input_pipeline.make_eval_dataset(
                noise, config, _identity, global_batch_size=8
            )
        )
    )
    np.testing.assert_array_equal(
        evaluated.images, tf.cast(noise.images, tf.float32)
    )
    trained = next(
        iter(
            input_pipeline.make_train_dataset(
                noise, config, _identity, global_batch_size=8, seed=0
            )
        )
    )
    assert np.abs(trained.images.numpy() - noise.images.numpy()).max() > 10


def test_element_spec_is_static():
    spec = _train(12).element_spec
    assert spec.images.shape == (12, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3)
    assert spec.images.dtype == tf.float32
    assert spec.labels.dtype == tf.int64
    assert spec.weights.shape == (12,)


def test_uncached_images_are_the_cached_ones():
    noise = fakes.make_noise_examples(6)
    encoded = tf.stack([tf.io.encode_png(i) for i in noise.images])
    batches = [
        next(
            iter(
                input_pipeline.make_eval_dataset(
                    input_pipeline.Examples(images, noise.labels),
                    PLAIN,
                    _identity,
                    global_batch_size=6,
                )
            )
        )
        for images in (noise.images, encoded)
    ]
    np.testing.assert_array_equal(batches[0].images, batches[1].images)


def test_batch_size_must_fit_the_replicas():
    with pytest.raises(UserError, match=r"--global_batch_size.*\(3\); got 16"):
        _train(16, input_context=_context(1, 0, 3))


class _OneSplitSource:
    """A source with the given encoded images."""

    name = "fake"

    def __init__(self, encoded):
        self._encoded = encoded

    def read(self, split):
        return tf.data.Dataset.from_tensor_slices(self._encoded).map(
            lambda image: {
                "image": image,
                "label": tf.constant(1, tf.int64),
                "id": tf.constant("broken.jpg"),
            }
        )


def test_load_examples_decodes_resizes_and_caches():
    image = tf.fill([50, 70, 3], tf.constant(90, tf.uint8))
    source = _OneSplitSource([tf.io.encode_png(image).numpy()])
    examples = input_pipeline.load_examples(source, "train", PLAIN)
    assert examples.images.dtype == tf.uint8
    assert np.all(examples.images.numpy() == 90)
    uncached = dataclasses.replace(PLAIN, cache="none")
    examples = input_pipeline.load_examples(source, "train", uncached)
    assert examples.images.dtype == tf.string


def test_undecodable_image_is_named():
    source = _OneSplitSource([b"not a jpeg"])
    with pytest.raises(UserError, match=r"broken\.jpg can't be decoded") as e:
        input_pipeline.load_examples(source, "train", PLAIN)
    assert "\n" not in str(e.value)
