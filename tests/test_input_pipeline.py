"""Every example exactly once, in a reproducible order, on any replicas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.input import augmentation, input_pipeline
from flowers17_tfdata.input.examples import DecodedImages, Examples
from flowers17_tfdata.models import backbones
from tests import fakes

NUM_EXAMPLES = 60
PLAIN = InputConfig(image_size=fakes.IMAGE_SIZE, augmentation="none")
HOST = dataclasses.replace(PLAIN, augmentation="affine", augment_on="host")
DEVICE = dataclasses.replace(HOST, augment_on="device")


def _identity(images):
    return images


def _name(config):
    return f"{config.augmentation}-{config.augment_on}"


def _context(pipelines: int, pipeline: int, replicas: int):
    return tf.distribute.InputContext(pipelines, pipeline, replicas)


def _ids(batch) -> list[int]:
    """Returns the indices of a batch's examples without padding."""
    ids = batch.inputs[:, 0, 0, 0].numpy().astype(int)
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


def _eval(batch_size, config=PLAIN, **kwargs):
    return input_pipeline.make_eval_dataset(
        fakes.make_examples(NUM_EXAMPLES),
        config,
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


@pytest.mark.parametrize("config", [HOST, DEVICE], ids=_name)
def test_transforms_stay_with_their_images_on_any_replicas(config):
    transforms = augmentation.draw_transforms(config, 0, 0, NUM_EXAMPLES)
    one, two = (
        list(
            _eval(
                8,
                config,
                transforms=transforms,
                input_context=_context(1, 0, replicas),
            )
        )
        for replicas in (1, 2)
    )
    # Every pixel has the value of the image's index.
    ids = [i for b in one for i in _ids(b)]
    assert ids == list(range(NUM_EXAMPLES))
    assert [i for b in two for i in _ids(b)] == ids
    if config is DEVICE:
        sent = np.concatenate([b.transforms[b.weights > 0] for b in one])
        np.testing.assert_array_equal(sent, transforms)


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
        expected = batch.inputs[:, 0, 0, 0].numpy() % fakes.NUM_CLASSES
        np.testing.assert_array_equal(batch.labels.numpy(), expected)


def _assert_equal(a, b):
    for field in input_pipeline.Batch._fields:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def _concat(batches):
    return input_pipeline.Batch(
        *(tf.concat(parts, axis=0) for parts in zip(*batches, strict=True))
    )


@pytest.mark.parametrize("config", [PLAIN, HOST, DEVICE], ids=_name)
def test_workers_share_an_epoch_without_overlap(config):
    """Also in the second epoch. 60 examples make the last step padded."""
    one = list(_train(16, config).take(8))
    shares = [
        list(_train(16, config, input_context=_context(2, w, 4)).take(16))
        for w in range(2)
    ]
    for step, batch in enumerate(one):
        # Two workers of two replicas: their four batches are the global one.
        parts = [shares[w][2 * step + r] for w in range(2) for r in range(2)]
        assert {len(part.labels) for part in parts} == {4}
        _assert_equal(_concat(parts), batch)


def test_same_seed_same_batches_other_seed_other_order():
    config = dataclasses.replace(PLAIN, augmentation="affine")
    first, again = (next(iter(_train(16, config))) for _ in range(2))
    np.testing.assert_array_equal(first.inputs, again.inputs)
    other = next(iter(_train(16, seed=4)))
    assert _ids(next(iter(_train(16)))) != _ids(other)


def test_resumed_pipeline_continues_exactly():
    config = dataclasses.replace(PLAIN, augmentation="affine")
    steps = input_pipeline.steps_per_epoch(NUM_EXAMPLES, 16)
    whole = list(_train(16, config).take(3 * steps))
    resumed = list(_train(16, config, initial_epoch=2).take(steps))
    for a, b in zip(whole[2 * steps :], resumed, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
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
    pixels = noise.images.pixels.astype(np.float32)
    np.testing.assert_array_equal(evaluated.inputs, pixels)
    trained = next(
        iter(
            input_pipeline.make_train_dataset(
                noise, config, _identity, global_batch_size=8, seed=0
            )
        )
    )
    order = input_pipeline.epoch_order(8, 0, tf.constant(0, tf.int64))
    for image, index in zip(trained.inputs.numpy(), order, strict=True):
        assert np.abs(image - pixels[index]).max() > 10


def test_element_spec_is_static():
    spec = _train(12).element_spec
    assert spec.inputs.shape == (12, fakes.IMAGE_SIZE, fakes.IMAGE_SIZE, 3)
    assert spec.inputs.dtype == tf.float32
    assert spec.labels.dtype == tf.int64
    assert spec.weights.shape == (12,)


@pytest.mark.parametrize("augmentation", ["none", "affine"])
def test_number_of_threads_changes_nothing(monkeypatch, augmentation):
    config = dataclasses.replace(PLAIN, augmentation=augmentation)
    batches = []
    for cores in (1, 3):
        monkeypatch.setattr(machine, "num_cores", lambda n=cores: n)
        batches.append(list(_train(7, config).take(18)))
    for a, b in zip(*batches, strict=True):
        _assert_equal(a, b)


def _noise_batches(make, config, batch_size, count, **kwargs):
    noise = kwargs.pop("examples", None) or fakes.make_noise_examples(12)
    dataset = make(
        noise, config, _identity, global_batch_size=batch_size, **kwargs
    )
    return list(dataset.take(count))


@pytest.mark.parametrize("config", [HOST, DEVICE], ids=_name)
def test_augmentation_does_not_depend_on_the_batch_size(config):
    make = input_pipeline.make_train_dataset
    large = _noise_batches(make, config, 12, 2, seed=1)
    small = _noise_batches(make, config, 4, 6, seed=1)
    for epoch in range(2):
        _assert_equal(_concat(small[3 * epoch : 3 * epoch + 3]), large[epoch])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_host_makes_what_the_model_computes_in(dtype):
    batch = next(iter(_train(12, HOST, compute_dtype=dtype)))
    assert batch.inputs.dtype == dtype
    assert batch.transforms.shape == (12, 0)
    # Nothing is left to be done.
    stage = input_pipeline.make_device_stage(HOST, _identity, dtype)
    assert stage(batch) is batch.inputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_device_does_what_the_host_does(dtype):
    """Except that the host rounds to whole gray levels."""
    preprocess = backbones.get_preprocess("vgg16")
    pictures = fakes.make_smooth_examples(12)

    def first(config):
        dataset = input_pipeline.make_train_dataset(
            pictures,
            config,
            preprocess,
            global_batch_size=12,
            seed=1,
            compute_dtype=dtype,
        )
        return next(iter(dataset))

    on_host, on_device = first(HOST), first(DEVICE)
    assert on_device.inputs.dtype == tf.uint8
    assert on_device.transforms.shape == (12, 8)
    np.testing.assert_array_equal(on_host.labels, on_device.labels)
    # The images are as stored: the device does everything.
    order = input_pipeline.epoch_order(12, 1, tf.constant(0, tf.int64))
    np.testing.assert_array_equal(
        on_device.inputs, pictures.images.pixels[order]
    )
    stage = input_pipeline.make_device_stage(DEVICE, preprocess, dtype)
    for run in (stage, tf.function(stage)):
        inputs = run(on_device)
        assert inputs.dtype == dtype
        differences = np.abs(
            tf.cast(inputs, tf.float32) - tf.cast(on_host.inputs, tf.float32)
        )
        assert differences.mean() < (0.6 if dtype != "bfloat16" else 0.7)
        assert differences.max() < 3
    untouched = preprocess(tf.cast(on_device.inputs, tf.float32))
    assert np.abs(untouched - tf.cast(inputs, tf.float32)).mean() > 10


def test_device_normalizes_evaluation_and_does_not_augment_it():
    preprocess = backbones.get_preprocess("vgg16")
    batch = next(iter(_eval(12, DEVICE)))
    assert batch.inputs.dtype == tf.uint8
    assert batch.transforms.shape == (12, 0)
    inputs = input_pipeline.make_device_stage(DEVICE, preprocess)(batch)
    np.testing.assert_array_equal(
        inputs, preprocess(tf.cast(batch.inputs, tf.float32))
    )


@pytest.mark.parametrize("augment_on", ["host", "device"])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    # Subtracts from BGR; the others scale: by 1 / 127.5, compiled.
    [("vgg16", 0.0), ("inception_v3", 2e-7), ("densenet121", 1e-6)],
)
def test_normalization_is_the_backbones_own(name, tolerance, augment_on):
    """For every gray level and channel, up to float32's last bit."""
    gray = np.arange(256, dtype=np.uint8)
    pixels = np.stack([gray, gray[::-1], np.roll(gray, 100)], axis=-1)
    size = fakes.IMAGE_SIZE
    pixels = np.resize(pixels.reshape(8, 32, 3), [1, size, size, 3])
    images = DecodedImages(pixels)
    preprocess = backbones.get_preprocess(name)
    config = dataclasses.replace(PLAIN, augment_on=augment_on)
    batch = next(
        iter(
            input_pipeline.make_eval_dataset(
                Examples(images, np.zeros(1, np.int64)),
                config,
                preprocess,
                global_batch_size=1,
            )
        )
    )
    stage = input_pipeline.make_device_stage(config, preprocess)
    expected = preprocess(tf.constant(pixels, tf.float32))
    np.testing.assert_allclose(stage(batch), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", ["train", "eval"])
def test_images_decoded_at_each_reading_are_the_cached_ones(make):
    in_memory = fakes.make_noise_examples(6)
    encoded = [tf.io.encode_png(i).numpy() for i in in_memory.images.pixels]
    in_file = Examples(
        fakes.encode_images(encoded, fakes.IMAGE_SIZE), in_memory.labels
    )
    kwargs = {"seed": 1} if make == "train" else {}
    make = getattr(input_pipeline, f"make_{make}_dataset")
    a, b = (
        _noise_batches(make, PLAIN, 4, 4, examples=examples, **kwargs)
        for examples in (in_memory, in_file)
    )
    for batch, other in zip(a, b, strict=True):
        _assert_equal(batch, other)


@pytest.mark.parametrize("config", [HOST, DEVICE], ids=_name)
def test_augmented_view_is_what_that_epoch_of_training_shows(config):
    num_examples, epoch = 12, 2

    def view(number, seed=5):
        (batch,) = _noise_batches(
            input_pipeline.make_eval_dataset,
            config,
            num_examples,
            2,
            transforms=augmentation.draw_transforms(
                config, seed, number, num_examples
            )
            if number
            else None,
        )
        return batch

    (trained,) = _noise_batches(
        input_pipeline.make_train_dataset,
        config,
        num_examples,
        1,
        seed=5,
        initial_epoch=epoch,
    )
    order = input_pipeline.epoch_order(
        num_examples, 5, tf.constant(epoch, tf.int64)
    )
    shown = view(epoch)
    for field in input_pipeline.Batch._fields:
        # Graph and eager kernels may round differently, and so may a pixel.
        atol = 1 if field == "inputs" else 1e-5
        np.testing.assert_allclose(
            tf.gather(getattr(shown, field), order),
            getattr(trained, field),
            atol=atol,
        )
    _assert_equal(shown, view(epoch))
    stage = input_pipeline.make_device_stage(config, _identity)
    for other in (view(0), view(1), view(epoch, seed=6)):
        differences = np.abs(stage(shown) - stage(other))
        assert np.all(differences.max((1, 2, 3)) > 10)


@pytest.mark.parametrize("gpus", [0, 1])
def test_where_there_is_a_gpu_it_augments(monkeypatch, gpus):
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: ["gpu"] * gpus
    )

    def resolve(**kwargs):
        return input_pipeline.resolve_augment_on(InputConfig(**kwargs))

    assert resolve() == ("device" if gpus else "host")
    assert resolve(augmentation="none") == ("device" if gpus else "host")
    assert resolve(augment_on="host") == "host"
    assert resolve(augment_on="device") == "device"


REDUCED = fakes.IMAGE_SIZE // 2


@pytest.mark.parametrize("augmentation", ["affine", "none"])
def test_training_images_can_be_smaller_than_evaluations(augmentation):
    config = dataclasses.replace(
        PLAIN, augmentation=augmentation, train_scale=0.5
    )
    (trained,) = _train(NUM_EXAMPLES, config).take(1)
    assert trained.inputs.shape[1:] == (REDUCED, REDUCED, 3)
    # Every pixel has the value of the image's index, also after resampling.
    order = input_pipeline.epoch_order(
        NUM_EXAMPLES, 3, tf.constant(0, tf.int64)
    )
    np.testing.assert_allclose(trained.inputs[:, 1, 1, 0], order, atol=1e-3)
    (evaluated,) = _eval(NUM_EXAMPLES, config)
    assert evaluated.inputs.shape[1:3] == (fakes.IMAGE_SIZE,) * 2


@pytest.mark.parametrize("crop", [0.3, 1.0])
def test_host_and_device_make_the_same_smaller_images(crop):
    images = fakes.make_smooth_examples(8)
    shown = []
    for config in (HOST, DEVICE):
        config = dataclasses.replace(config, train_scale=0.5, crop=crop)
        batches = input_pipeline.make_train_dataset(
            images, config, _identity, global_batch_size=8, seed=1
        )
        (batch,) = batches.take(1)
        stage = input_pipeline.make_device_stage(config, _identity)
        shown.append(stage(batch))
    assert shown[0].shape == shown[1].shape == (8, REDUCED, REDUCED, 3)
    difference = np.abs(shown[0] - shown[1])
    assert difference.mean() < 0.6 and difference.max() < 4


def test_a_smaller_image_shows_what_the_resized_one_would():
    images = fakes.make_smooth_examples(4)
    config = dataclasses.replace(PLAIN, train_scale=0.5)
    batches = input_pipeline.make_train_dataset(
        images, config, _identity, global_batch_size=4, seed=1
    )
    (batch,) = batches.take(1)
    order = input_pipeline.epoch_order(4, 1, tf.constant(0, tf.int64))
    pixels = tf.gather(images.images.pixels, order)
    expected = tf.image.resize(pixels, [REDUCED, REDUCED])
    assert np.abs(batch.inputs - expected).max() < 2
