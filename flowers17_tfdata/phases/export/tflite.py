"""TensorFlow Lite (LiteRT): one image of pixels to probabilities."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf
from ai_edge_litert import interpreter as litert

from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.phases.export.network import Network


class _OneImage(tf.Module):
    """A batch of one: phones see one image, and delegates want fixed shapes."""

    def __init__(self, network: Network):
        super().__init__()
        size = network.image_size
        self._network = network
        self.classify = tf.function(
            lambda image: {"probabilities": network.probabilities(image)},
            input_signature=[
                tf.TensorSpec([1, size, size, 3], tf.float32, "image")
            ],
        )


def convert_float16(network: Network, path: pathlib.Path) -> None:
    """Writes weights in float16; arithmetic is the device's choice.

    Args:
      network: the classifier.
      path: of the .tflite file. Its signature `serving_default` maps `image`,
        float32 `[1, image_size, image_size, 3]` in [0, 255], RGB, to
        `probabilities`, float32 `[1, num_classes]`.

    Raises:
      UserError: the converter doesn't take this network.
    """

    def options(converter):
        converter.target_spec.supported_types = [tf.float16]

    _convert(network, path, options)


def convert_int8(
    network: Network,
    path: pathlib.Path,
    calibration: Callable[[], Iterable[np.ndarray]],
) -> None:
    """Writes weights and activations in int8.

    Input and output stay float32 as in `convert_float16`: one file replaces
    the other, and pixels go in as they are.

    Args:
      network: the classifier.
      path: of the .tflite file.
      calibration: returns images as the network will see them, uint8
        `[image_size, image_size, 3]`; the range of every activation is
        measured on them.

    Raises:
      UserError: the converter doesn't take this network.
    """

    def representative():
        for image in calibration():
            yield [image[np.newaxis].astype(np.float32)]

    def options(converter):
        converter.representative_dataset = representative
        # Fails where an operation has no int8 kernel, rather than leave it in
        # float32.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]

    _convert(network, path, options)


def _convert(
    network: Network,
    path: pathlib.Path,
    set_options: Callable[[tf.lite.TFLiteConverter], None],
) -> None:
    module = _OneImage(network)
    with tempfile.TemporaryDirectory() as folder:
        # By way of a SavedModel: only then are the variables frozen.
        tf.saved_model.save(module, folder, signatures=module.classify)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        set_options(converter)
        try:
            with _without_notes():
                content = converter.convert()
        # It raises whatever its parts do; its own error has no public name.
        except Exception as error:
            raise UserError(
                f"--export_formats: {path.stem} can't be made of this network "
                f"({one_line(error, 200)}): leave it out"
            ) from error
    path.write_bytes(content)


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Drops what C++ code writes to standard error; errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load(
    path: pathlib.Path, num_threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from pixels to probabilities.

    It maps uint8 `[n, image_size, image_size, 3]` in [0, 255] to float32
    `[n, num_classes]`, an image at a time.
    """
    with _without_notes():
        interpreter = litert.Interpreter(str(path), num_threads=num_threads)
        # Or it would be at the first image.
        interpreter.allocate_tensors()
    classify = interpreter.get_signature_runner("serving_default")

    def run(images: np.ndarray) -> np.ndarray:
        batches = np.split(images.astype(np.float32), len(images))
        # The interpreter hands out its own memory, and writes over it.
        rows = [classify(image=b)["probabilities"].copy() for b in batches]
        return np.concatenate(rows)

    return run
