"""Measures the same work in stock Keras, in a process of its own.

That process (see `worker`) runs under TensorFlow's own defaults for threads,
oneDNN and dtype policy instead of this program's.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np

from flowers17_tfdata.config.config import Config
from flowers17_tfdata.phases.benchmark import measurement

# Lets tf.data's autotuner settle before the clock runs.
_AUTOTUNE_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Work:
    """The work to measure.

    Attributes:
      images: a folder of class folders of image files.
      num_classes: the number of classes.
      batches_per_call: the number of batches in a call of `predict` or `fit`:
        as many as our own rows take before they return to Python.
      config: the backbone, batch size, image size and augmentation ranges.
    """

    images: pathlib.Path
    num_classes: int
    batches_per_call: int
    config: Config

    @property
    def batch_size(self) -> int:
        return self.config.optimization.global_batch_size


def _keras_layers(work: Work) -> Callable[[], float]:
    import keras
    import tensorflow as tf

    from flowers17_tfdata.models import backbones

    options, layers = work.config.input, keras.layers
    augment = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(options.rotation / 360, fill_mode="nearest"),
            layers.RandomTranslation(
                options.shift, options.shift, fill_mode="nearest"
            ),
            layers.RandomZoom(options.zoom, options.zoom, fill_mode="nearest"),
        ]
    )
    preprocess = backbones.get_preprocess(work.config.model.backbone)
    cached = keras.utils.image_dataset_from_directory(
        work.images,
        image_size=(options.image_size,) * 2,
        batch_size=work.batch_size,
        verbose=False,
    ).cache()
    for _ in cached:
        pass
    dataset = (
        cached.repeat()
        .map(
            lambda x, y: (preprocess(augment(x, training=True)), y),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE)
    )

    def run() -> float:
        # A new iterator each time, as for our own pipeline.
        batches = iter(dataset)
        for _ in range(_AUTOTUNE_BATCHES):
            next(batches)
        return measurement.rate(lambda: len(next(batches)[1]))

    return run


def _model(work: Work):
    import keras

    from flowers17_tfdata.models import backbones

    size = work.config.input.image_size
    backbone = backbones.build_backbone(
        work.config.model.backbone, size, "none"
    )
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = keras.layers.Dense(work.num_classes, activation="softmax")(x)
    model = keras.Model(backbone.input, x)
    model.compile("adam", "sparse_categorical_crossentropy")
    count = work.batch_size * work.batches_per_call
    images = np.zeros([count, size, size, 3], np.float32)
    return model, images, {"batch_size": work.batch_size, "verbose": 0}


def _predict(work: Work) -> Callable[[], float]:
    model, images, arguments = _model(work)
    return lambda: measurement.rate(
        lambda: len(model.predict(images, **arguments))
    )


def _fit(work: Work) -> Callable[[], float]:
    model, images, arguments = _model(work)
    labels = np.zeros(len(images), np.int64)

    def call() -> int:
        model.fit(images, labels, **arguments)
        return len(images)

    return lambda: measurement.rate(call)


_MAKERS = {
    "input/keras_layers": _keras_layers,
    "model/keras_predict": _predict,
    "model/keras_fit": _fit,
}
STAGES = tuple(_MAKERS)


@functools.cache
def _make(stage: str, work: Work) -> Callable[[], float]:
    return _MAKERS[stage](work)


def measure(stage: str, work: Work) -> float:
    """Takes a measurement of one of `STAGES`, images/s."""
    # The command line sets it for this program.
    os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
    import tensorflow as tf

    # Otherwise this process would take all of the GPU's memory.
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    return _make(stage, work)()
