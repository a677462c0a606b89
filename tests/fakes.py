"""Tiny stand-ins: images, examples, a backbone. No network, no weights."""

from __future__ import annotations

import time

import cv2
import keras
import numpy as np
import tensorflow as tf

from flowers17_tfdata.data.source import Source
from flowers17_tfdata.input.examples import (
    DecodedImages,
    EncodedImages,
    Examples,
)
from flowers17_tfdata.input.input_pipeline import Batch
from flowers17_tfdata.models import backbones
from flowers17_tfdata.training.trainer import Trainer, TrainTotals

IMAGE_SIZE = 32
NUM_CLASSES = 17


def preprocess_input(x):
    """Normalizes images for the tiny backbone: [0, 255] to [-1, 1]."""
    return x / 127.5 - 1.0


def build_tiny_net(input_shape, weights=None) -> keras.Model:
    """Builds a backbone of two convolutions, with random weights."""
    del weights
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, strides=4, name="block1_conv")(inputs)
    x = keras.layers.BatchNormalization(name="block1_bn")(x)
    x = keras.layers.ReLU(name="block1_relu")(x)
    x = keras.layers.Conv2D(16, 3, strides=2, name="block2_conv")(x)
    x = keras.layers.BatchNormalization(name="block2_bn")(x)
    x = keras.layers.ReLU(name="block2_relu")(x)
    return keras.Model(inputs, x)


def register_tiny_net() -> str:
    """Registers the tiny backbone and returns its name."""
    backbones.register("tiny_net", build_tiny_net, preprocess_input)
    return "tiny_net"


def make_examples(
    num_examples: int, num_classes: int = NUM_CLASSES
) -> Examples:
    """Makes images whose pixels all have the value of the image's index.

    Labels are the index modulo `num_classes`.
    """
    index = np.arange(num_examples)
    images = np.broadcast_to(
        index.astype(np.uint8)[:, None, None, None],
        [num_examples, IMAGE_SIZE, IMAGE_SIZE, 3],
    )
    return Examples(DecodedImages(images), index % num_classes)


def make_noise_examples(num_examples: int, seed: int = 0) -> Examples:
    """Makes random images and labels, for steps that need a gradient."""
    rng = np.random.default_rng(seed)
    shape = [num_examples, IMAGE_SIZE, IMAGE_SIZE, 3]
    return Examples(
        DecodedImages(rng.integers(0, 256, shape, np.uint8)),
        rng.integers(0, NUM_CLASSES, num_examples),
    )


def make_smooth_image(
    height: int, width: int, seed: int = 0, cells: int = 4
) -> np.ndarray:
    """Makes a random uint8 RGB picture without sharp edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, [cells, cells, 3], np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def make_smooth_examples(num_examples: int, seed: int = 0) -> Examples:
    """Makes smooth pictures, which rounding in a resampler hardly changes."""
    pixels = [
        make_smooth_image(IMAGE_SIZE, IMAGE_SIZE, seed + k)
        for k in range(num_examples)
    ]
    return Examples(
        DecodedImages(np.stack(pixels)), np.arange(num_examples) % NUM_CLASSES
    )


def encode_images(
    encoded: list[bytes], image_size: int, ratio: int = 1
) -> EncodedImages:
    """Makes a store that decodes the given images when they are read."""
    return EncodedImages(
        np.frombuffer(b"".join(encoded), np.uint8),
        np.cumsum([len(data) for data in encoded]),
        np.full(len(encoded), ratio),
        image_size,
    )


def make_batch(num_examples: int, num_padding: int = 0, seed: int = 0) -> Batch:
    """Makes a batch in [-1, 1]; its last `num_padding` examples are padding."""
    examples = make_noise_examples(num_examples, seed)
    weights = np.ones(num_examples, np.float32)
    weights[num_examples - num_padding :] = 0
    return Batch(
        tf.cast(examples.images.pixels, tf.float32) / 127.5 - 1,
        tf.constant(examples.labels),
        tf.constant(weights),
        tf.zeros([num_examples, 0]),
    )


def make_model(
    dropout: float = 0.0, l2: float = 0.0, seed: int = 0
) -> keras.Model:
    """Builds a small classifier without batch-norm."""
    keras.utils.set_random_seed(seed)
    regularizer = keras.regularizers.L2(l2) if l2 else None
    inputs = keras.Input([IMAGE_SIZE, IMAGE_SIZE, 3])
    x = keras.layers.Conv2D(
        4, 3, strides=4, activation="relu", kernel_regularizer=regularizer
    )(inputs)
    x = keras.layers.GlobalAveragePooling2D(name="pooler")(x)
    x = keras.layers.Dropout(dropout, seed=seed)(x)
    return keras.Model(
        inputs, keras.layers.Dense(NUM_CLASSES, dtype="float32")(x)
    )


def make_linear_model() -> keras.Model:
    """Builds a classifier of 4 x 4 mean colors, which sees what is where."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([IMAGE_SIZE, IMAGE_SIZE, 3])
    x = keras.layers.AveragePooling2D(IMAGE_SIZE // 4)(inputs)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(x))


def iterate(strategy: tf.distribute.Strategy, batches, wait_secs: float = 0.0):
    """Makes an iterator that gives each replica its share of each batch."""
    size = batches[0].labels.shape[0]
    examples = tf.nest.map_structure(
        lambda *parts: tf.concat(parts, axis=0), *batches
    )

    def wait(weights):
        time.sleep(wait_secs)
        return weights

    def arrive_late(batch):
        weights = tf.numpy_function(wait, [batch.weights], tf.float32)
        weights = tf.ensure_shape(weights, batch.weights.shape)
        return batch._replace(weights=weights)

    def make(context):
        share = size // context.num_replicas_in_sync
        dataset = tf.data.Dataset.from_tensor_slices(examples)
        dataset = dataset.batch(share, drop_remainder=True)
        return dataset.map(arrive_late) if wait_secs else dataset

    return iter(strategy.distribute_datasets_from_function(make))


def train_step(trainer: Trainer, batch: Batch) -> TrainTotals:
    """Trains on one batch, which the replicas share."""
    batches = iterate(trainer.strategy, [batch])
    totals = trainer.train_steps(batches, tf.constant(1))
    trainer.weights.store()
    return totals


class FakeSource(Source):
    """A data set in memory: `{split: [(id, label, encoded image)]}`."""

    def __init__(self, class_names, examples, **attributes):
        super().__init__(
            name=attributes.pop("name", "fake/config/1.0.0"),
            class_names=tuple(class_names),
            split_sizes={s: len(rows) for s, rows in examples.items()},
            **attributes,
        )
        object.__setattr__(self, "_examples", examples)

    def read(self, split):
        ids, labels, images = zip(*self._examples[split], strict=True)
        return tf.data.Dataset.from_tensor_slices(
            {
                "image": list(images),
                "label": np.array(labels, np.int64),
                "id": list(ids),
            }
        )
