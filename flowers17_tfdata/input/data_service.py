"""Training batches made by other machines: the tf.data service.

Data workers run TensorFlow's graph of the pipeline and no Python, so they have
neither the OpenCV resampler nor the memory cache. They read one file per image,
decode, resize and augment it with TensorFlow and Keras ops, which agree with
OpenCV to within rounding.
"""

from __future__ import annotations

import pathlib
import socket
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
from flowers17_tfdata.input.examples import undecodable
from flowers17_tfdata.input.input_pipeline import Batch

_CONNECT_SECS = 10.0


class ImageFiles(NamedTuple):
    """A split as files that every data worker can read.

    Attributes:
      paths: `[n]`, the absolute paths of the encoded images.
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
    """Writes a split's encoded images, one per file, unless the folder exists.

    The folder is whole or absent, whenever the process is killed.

    Raises:
      UserError: the folder can't be written, or an image can't be decoded.
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
                raise undecodable(source, split, example) from error
            _path(temporary, int(position)).write_bytes(data)


def find_images(folder: pathlib.Path, num_images: int) -> list[str]:
    """Returns the absolute paths of the files of `write_images`, in order.

    Raises:
      UserError: this worker does not see the folder.
    """
    if not folder.exists():
        raise UserError(
            f"{folder} is missing: --workdir must be a folder that all workers "
            "share"
        )
    folder = folder.resolve()
    return [str(_path(folder, k)) for k in range(num_images)]


def _path(folder: pathlib.Path, position: int) -> pathlib.Path:
    return folder / f"{position:07d}"


def make_train_dataset(
    images: ImageFiles,
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
    """Makes the endless training pipeline with `--data_service`.

    Each data worker takes the number of the next batch and makes that batch. So
    the run gets the batches of `input_pipeline.make_train_dataset`, each once:
    from one data worker in the same order, from several in the order in which
    they are ready, a few places early or late. If a data worker is lost, the
    batches it was making are skipped and the others go on.

    The arguments and the result are those of
    `input_pipeline.make_train_dataset`, but for `images`, the train split.
    """
    plan = input_pipeline.make_epoch_plan(
        len(images.labels),
        config,
        global_batch_size=global_batch_size,
        seed=seed,
        input_context=input_context,
    )
    steps = input_pipeline.steps_per_epoch(
        len(images.labels), global_batch_size
    )
    replicas = input_pipeline.local_replicas(input_context)
    per_epoch = steps * replicas
    first = initial_epoch * per_epoch + initial_step * replicas
    make_batch = _batch_maker(images, config, preprocess, compute_dtype)

    def make(number: tf.Tensor) -> Batch:
        # Each call plans the whole epoch for one batch of it, since a data
        # worker may be given any batch. This takes microseconds per thousand
        # images.
        share = plan(number // per_epoch)
        batch = make_batch(*(part[number % per_epoch] for part in share))
        return input_pipeline.weigh_classes(batch, class_weights)

    # Endless: at an end, the run would wait for a lost worker's share.
    numbers = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
    batches = numbers.map(make, num_parallel_calls=tf.data.AUTOTUNE)
    service = tf.data.experimental.service
    batches = batches.apply(
        service.distribute(service.ShardingPolicy.DYNAMIC, config.data_service)
    )
    return input_pipeline.prefetch(input_pipeline.endless(batches))


def _batch_maker(images, config, preprocess, compute_dtype):
    """Returns `make_batch(indices, weights, transforms) -> Batch`."""
    size, reduced = config.image_size, config.train_image_size
    paths, labels = tf.constant(images.paths), tf.constant(images.labels)
    affine = augmentation.make_affine(config)
    on_device = input_pipeline.resolve_augment_on(config) == "device"
    spec = tf.TensorSpec([size, size, 3], tf.uint8)

    def read(path):
        return decode.decode_and_resize(tf.io.read_file(path), size)

    def make_batch(indices, weights, transforms) -> Batch:
        pixels = tf.map_fn(
            read, tf.gather(paths, indices), fn_output_signature=spec
        )
        if not on_device:
            pixels = tf.cast(pixels, tf.float32)
            if transforms.shape[1]:
                pixels = affine(pixels, transforms)[:, :reduced, :reduced]
            pixels = tf.cast(preprocess(pixels), compute_dtype)
            transforms = tf.zeros([indices.shape[0], 0])
        return Batch(pixels, tf.gather(labels, indices), weights, transforms)

    return make_batch
