"""ONNX: a batch of pixels to probabilities."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import UserError
from flowers17_tfdata.export.network import Network

# The newest that tf2onnx writes; runtimes read all older ones.
_OPSET = 18


def check_installed() -> None:
    """Checks that ONNX can be written and run.

    Raises:
      UserError: a package is missing.
    """
    for package in ("tf2onnx", "onnxruntime"):
        if not importlib.util.find_spec(package):
            raise UserError(
                f"--export_formats=onnx needs {package}: "
                "pip install 'flowers17_tfdata[onnx]'"
            )


def convert(network: Network, path: pathlib.Path) -> None:
    """Writes an .onnx file.

    Its input `image` is float32 `[batch, image_size, image_size, 3]` in
    [0, 255], RGB; its output `probabilities` float32 `[batch, num_classes]`.
    """
    import tf2onnx

    size = network.image_size
    tf2onnx.convert.from_function(
        tf.function(
            lambda image: {"probabilities": network.probabilities(image)}
        ),
        [tf.TensorSpec([None, size, size, 3], tf.float32, "image")],
        opset=_OPSET,
        output_path=str(path),
    )


def load(
    path: pathlib.Path, num_threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from pixels to probabilities.

    It maps uint8 `[n, image_size, image_size, 3]` in [0, 255] to float32
    `[n, num_classes]`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> np.ndarray:
        inputs = {"image": images.astype(np.float32)}
        return session.run(["probabilities"], inputs)[0]

    return run
