"""Training batches made by other machines: the tf.data service.

A worker of the service runs TensorFlow's graph of the pipeline and none of our
Python. So the OpenCV resampling and the memory cache, which are Python, stay
in the training process; the service reads one file an image, decodes, resizes
and augments by the layer's Keras ops, which agree with OpenCV to within
rounding.
"""

from __future__ import annotations

import pathlib
import socket
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input import augmentation, input_pipeline
from flowers17_tfdata.input import examples as examples_lib
from flowers17_tfdata.input.input_pipeline import Batch

_CONNECT_SECS = 10.0


class ImageFiles(NamedTuple):
    """A split as files that every data worker can read.

    Attributes:
      paths: `[n]`, absolute; encoded images.
      labels: int64 `[n]`.
    """

    paths: list[str]
    labels: np.ndarray


def check_reachable(address: str) -> None:
    """Raises a `UserError` if nobody listens at `grpc://HOST:PORT`."""
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECS).close()
    except OSError as error:
        raise UserError(
            f"--data_service {address} can't be reached ({one_line(error)}): "
            "start flowers17-data-server dispatcher there"
        ) from error


def write_images(source: Source, split: str, folder: pathlib.Path) -> None:
    """Writes a split's encoded images, one a file, unless they are there.

    The folder is whole or absent, whenever the process is killed.

    Raises:
      UserError: it can't be written, or an image is none.
    """
    if folder.exists():
        return
    with files.whole_folder(
        folder, f"the images for --data_service, {folder},"
    ) as temporary:
        for position, example in source.read(split).enumerate():
            try:
                data = decode.upright(example["image"].numpy())
            except ValueError as error:
                raise examples_lib.undecodable(
                    source, split, example
                ) from error
            _path(temporary, int(position)).write_bytes(data)


def find_images(folder: pathlib.Path, labels: np.ndarray) -> ImageFiles:
    """Returns what `write_images` wrote.

    Raises:
      UserError: it is not there: another worker's folder.
    """
    if not folder.exists():
        raise UserError(
            f"{folder} is missing: --workdir must be a folder that all workers "
            "share"
        )
    folder = folder.resolve()
    paths = [str(_path(folder, k)) for k in range(len(labels))]
    return ImageFiles(paths, labels)


def _path(folder: pathlib.Path, position: int) -> pathlib.Path:
    return folder / f"{position:07d}"


def make_train_dataset(
    files: ImageFiles,
    config: InputConfig,
    preprocess: Callable[[tf.Tensor], tf.Tensor],
    *,
    global_batch_size: int,
    seed: int,
    compute_dtype: str = "float32",
    initial_epoch: int = 0,
    initial_step: int = 0,
    input_context: tf.distribute.InputContext | None = None,
    class_weights: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Makes the endless training pipeline, its pixels on `--data_service`.

    A data worker asks for one batch's number at a time and makes it. So the
    run gets the batches of `input_pipeline.make_train_dataset`, each once: in
    their order from one data worker, as they get ready from several, at most
    some batches early or late. What a data worker had in the making when it
    was lost is left out, and the others go on.

    Args and result as `input_pipeline.make_train_dataset`.
    """
    plan = input_pipeline.make_epoch_plan(
        len(files.labels),
        config,
        global_batch_size=global_batch_size,
        seed=seed,
        input_context=input_context,
    )
    per_epoch = input_pipeline.local_replicas(
        input_context
    ) * input_pipeline.steps_per_epoch(len(files.labels), global_batch_size)
    first = initial_epoch * per_epoch
    first += initial_step * input_pipeline.local_replicas(input_context)
    make_batch = _batch_maker(files, config, preprocess, compute_dtype)

    def make(number: tf.Tensor) -> Batch:
        # The whole epoch's order, for one batch of it: a data worker may be
        # given any batch, and this takes microseconds a thousand images.
        share = plan(number // per_epoch)
        batch = make_batch(*(part[number % per_epoch] for part in share))
        return input_pipeline.weigh_classes(batch, class_weights)

    # Of an endless job nobody waits for the end, which a lost worker's share
    # would never reach.
    numbers = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    batches = numbers.map(make, num_parallel_calls=tf.data.AUTOTUNE)
    service = tf.data.experimental.service
    with warnings.catch_warnings():
        # It looks options up that none are set of.
        warnings.filterwarnings("ignore", "To make it possible to preserve")
        batches = batches.apply(
            service.distribute(
                service.ShardingPolicy.DYNAMIC, config.data_service
            )
        )
    return input_pipeline.prefetch(input_pipeline.endless(batches))


def _batch_maker(files, config, preprocess, compute_dtype):
    """Returns `make_batch(indices, weights, transforms) -> Batch`."""
    size, reduced = config.image_size, config.train_image_size
    paths, labels = tf.constant(files.paths), tf.constant(files.labels)
    affine = augmentation.make_affine(config)
    on_device = input_pipeline.resolve_augment_on(config) == "device"

    def read(path):
        return decode.decode_and_resize(tf.io.read_file(path), size)

    def make_batch(indices, weights, transforms) -> Batch:
        images = tf.map_fn(
            read, tf.gather(paths, indices), fn_output_signature=tf.uint8
        )
        images = tf.ensure_shape(images, [indices.shape[0], size, size, 3])
        if not on_device:
            images = tf.cast(images, tf.float32)
            if transforms.shape[1]:
                images = affine(images, transforms)[:, :reduced, :reduced]
            images = tf.cast(preprocess(images), compute_dtype)
            transforms = tf.zeros([indices.shape[0], 0])
        return Batch(images, tf.gather(labels, indices), weights, transforms)

    return make_batch
