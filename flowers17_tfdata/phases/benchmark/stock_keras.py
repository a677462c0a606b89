"""What the same work takes in stock Keras, in a process of its own.

Of its own, because it is to run under TensorFlow's own defaults (threads,
oneDNN, dtype policy), not under ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import psutil

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.phases.benchmark import timing

STAGES = ("image_data_generator", "keras_layers", "predict", "fit")

# As many as the notebook's model.fit(workers=8).
_GENERATOR_WORKERS = 8

# What tf.data's autotuner is given to settle by.
_AUTOTUNE_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
      images: folder of class folders of image files.
      num_classes: number of classes.
      backbone: name in keras.applications.
      batch_size: images a batch.
      batches_per_call: that `predict` and `fit` get at once: as many as our
        own rows take before they return to Python.
      input: image size and augmentation ranges.
    """

    images: pathlib.Path
    num_classes: int
    backbone: str
    batch_size: int
    batches_per_call: int
    input: InputConfig


def _image_data_generator(work: Work) -> Callable[[], float]:
    # The notebook's class; Keras 3 keeps it there.
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    from flowers17_tfdata.models import backbones

    generator = ImageDataGenerator(
        preprocessing_function=backbones.get_preprocess(work.backbone),
        rotation_range=work.input.rotation,
        width_shift_range=work.input.shift,
        height_shift_range=work.input.shift,
        zoom_range=work.input.zoom,
        horizontal_flip=work.input.horizontal_flip,
    )
    flow = generator.flow_from_directory(
        str(work.images),
        target_size=(work.input.image_size,) * 2,
        batch_size=work.batch_size,
    )
    pool = ThreadPoolExecutor(_GENERATOR_WORKERS)

    def call() -> int:
        batches = range(min(len(flow), _GENERATOR_WORKERS))
        return sum(pool.map(lambda k: len(flow[k][0]), batches))

    return lambda: timing.rate(call)


def _keras_layers(work: Work) -> Callable[[], float]:
    import keras
    import tensorflow as tf

    from flowers17_tfdata.models import backbones

    options, layers = work.input, keras.layers
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
    preprocess = backbones.get_preprocess(work.backbone)
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
        # Anew each time: one kept would go on filling its buffer while the
        # next stage is measured.
        batches = iter(dataset)
        for _ in range(_AUTOTUNE_BATCHES):
            next(batches)
        return timing.rate(lambda: len(next(batches)[1]))

    return run


def _model(work: Work):
    import keras
    import numpy as np

    from flowers17_tfdata.models import backbones

    size = work.input.image_size
    backbone = backbones.build_backbone(work.backbone, size, "none")
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    x = keras.layers.Dense(work.num_classes, activation="softmax")(x)
    model = keras.Model(backbone.input, x)
    model.compile("adam", "sparse_categorical_crossentropy")
    count = work.batch_size * work.batches_per_call
    images = np.zeros([count, size, size, 3], np.float32)
    return model, images, np.zeros(count, np.int64)


def _predict(work: Work) -> Callable[[], float]:
    model, images, _ = _model(work)
    arguments = {"batch_size": work.batch_size, "verbose": 0}
    return lambda: timing.rate(lambda: len(model.predict(images, **arguments)))


def _fit(work: Work) -> Callable[[], float]:
    model, images, labels = _model(work)

    def call() -> int:
        model.fit(images, labels, batch_size=work.batch_size, verbose=0)
        return len(labels)

    return lambda: timing.rate(call)


_MAKERS = dict(
    zip(
        STAGES,
        (_image_data_generator, _keras_layers, _predict, _fit),
        strict=True,
    )
)


def _serve(connection: Connection, work: Work) -> None:
    """Answers a stage's name with its images/s, or with what went wrong."""
    # What the class tables and progress bars would say is not the user's.
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        runs = {}
        while True:
            try:
                stage = connection.recv()
            except EOFError:
                return
            try:
                if stage not in runs:
                    runs[stage] = _MAKERS[stage](work)
                connection.send(runs[stage]())
            # Whatever Keras raises: the parent tells the user.
            except Exception as error:
                connection.send(f"{type(error).__name__}: {one_line(error)}")


@contextlib.contextmanager
def open_worker(work: Work) -> Iterator[Callable[[str], float]]:
    """Starts the process.

    Yields:
      Function of a stage in `STAGES`: one measurement, images/s. It raises
      `UserError` if stock Keras fails.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), daemon=True)
    onednn = os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
    try:
        process.start()
    finally:
        if onednn is not None:
            os.environ["TF_ENABLE_ONEDNN_OPTS"] = onednn
    theirs.close()
    child = psutil.Process(process.pid)

    def run(stage: str) -> float:
        try:
            child.resume()
            ours.send(stage)
            answer = ours.recv()
            # Its tf.data would go on filling buffers while others are
            # measured.
            child.suspend()
        except (EOFError, OSError, psutil.NoSuchProcess) as error:
            raise UserError(
                f"benchmark: the stock Keras process died in {stage} "
                f"(exit code {process.exitcode}); out of memory? A lower "
                "--global_batch_size helps"
            ) from error
        if isinstance(answer, str):
            raise UserError(f"benchmark: stock Keras, {stage}: {answer}")
        return answer

    try:
        yield run
    finally:
        process.kill()
        process.join()
