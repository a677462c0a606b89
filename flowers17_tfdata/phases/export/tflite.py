"""Writes and runs TensorFlow Lite (LiteRT) files, which classify one image."""

from __future__ import annotations

import collections
import contextlib
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from flowers17_tfdata import machine, terminal
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.phases.export.network import Answers, Network, refused

REPRESENTATIVE_SPLIT = "train"
# The converter takes most of a second for each, with an InceptionV3.
_NUM_REPRESENTATIVE = 128


def convert(
    network: Network,
    path: pathlib.Path,
    images: Callable[[], Iterable[np.ndarray]] | None = None,
) -> None:
    """Writes a .tflite file that takes one image at a time.

    Phones classify single images, and delegates need fixed shapes. The
    signature `serving_default` maps `image`, float32 `[1, image_size,
    image_size, 3]` in [0, 255], RGB, to what `trust.answer` returns.

    Args:
      network: the classifier.
      path: the file.
      images: returns representative images, uint8 `[image_size, image_size,
        3]`. Weights and activations become int8, in ranges measured on these
        images. None: the weights become float16, and the device chooses the
        precision of the arithmetic.

    Raises:
      UserError: the converter can't convert this network.
    """
    with tempfile.TemporaryDirectory() as folder:
        # From a SavedModel: only then are the variables frozen.
        network.save(folder, batch_size=1)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if images is None:
            converter.target_spec.supported_types = [tf.float16]
        else:
            converter.representative_dataset = lambda: (
                [image[np.newaxis].astype(np.float32)] for image in images()
            )
            # Fail if an operation has no int8 kernel, instead of leaving it in
            # float32.
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            ]
        try:
            with _silent_stderr():
                content = converter.convert()
        # Any part of it may raise; its own error has no public name.
        except Exception as error:
            raise refused(path.stem, error) from error
    path.write_bytes(content)


def representative_images(
    source: Source, image_size: int, num_images: int = _NUM_REPRESENTATIVE
) -> Iterator[np.ndarray]:
    """Yields training images, equally many of every class.

    They are the first of each class in the split's order.

    Args:
      source: the data set.
      image_size: height and width, pixels.
      num_images: the maximum number; fewer if a class has too few.

    Yields:
      uint8 `[image_size, image_size, 3]`, with the pixels that evaluation uses.
    """
    quota = math.ceil(num_images / len(source.class_names))
    taken: collections.Counter[int] = collections.Counter()
    with terminal.EpochProgress("int8 ranges", num_images) as progress:
        for example in source.read(REPRESENTATIVE_SPLIT).as_numpy_iterator():
            if taken[example["label"]] < quota:
                taken[example["label"]] += 1
                pixels = decode.read(example["image"]).pixels
                yield decode.resize_host(pixels, image_size)
                progress.advance()
            if taken.total() == num_images:
                break


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops the notes of C++ code; its errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load(path: pathlib.Path) -> Callable[[np.ndarray], Answers]:
    """Returns a function from pixels to answers.

    It takes uint8 `[n, image_size, image_size, 3]` in [0, 255], and runs one
    image at a time.
    """
    # Imported here: it comes with the extra [export].
    from ai_edge_litert import interpreter as litert

    with _silent_stderr():
        interpreter = litert.Interpreter(
            str(path), num_threads=machine.num_cores()
        )
        # Otherwise the first image would do it, and print notes.
        interpreter.allocate_tensors()
    classify = interpreter.get_signature_runner("serving_default")

    def run(images: np.ndarray) -> Answers:
        rows = []
        for image in np.split(images.astype(np.float32), len(images)):
            # Copies: the interpreter returns its own memory, and reuses it.
            answer = classify(image=image)
            rows.append({name: x.copy() for name, x in answer.items()})
        return {
            name: np.concatenate([r[name] for r in rows]) for name in rows[0]
        }

    return run
