"""ONNX: a batch of pixels to probabilities."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.phases.export.network import Network

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

    Raises:
      UserError: the converter doesn't take this network.
    """
    size = network.image_size
    module = tf.Module()
    module.network = network
    module.classify = tf.function(
        lambda image: {"probabilities": network.probabilities(image)},
        input_signature=[
            tf.TensorSpec([None, size, size, 3], tf.float32, "image")
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.classify)
        # Not tf2onnx.convert.from_function: it takes constants that a layer
        # holds (Normalization's) for inputs.
        command = [sys.executable, "-m", "tf2onnx.convert"]
        command += ["--saved-model", folder, "--output", str(path)]
        result = subprocess.run(
            [*command, "--opset", str(_OPSET)], capture_output=True, text=True
        )
    if result.returncode or not path.exists():
        last = result.stderr.strip().rpartition("\n")[2]
        raise _refused(last)


def _refused(reason: BaseException | str) -> UserError:
    return UserError(
        "--export_formats: onnx can't be made of this network "
        f"({one_line(reason, 200)}): leave it out"
    )


def load(
    path: pathlib.Path, num_threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from pixels to probabilities.

    It maps uint8 `[n, image_size, image_size, 3]` in [0, 255] to float32
    `[n, num_classes]`.

    Raises:
      UserError: the converter made a file that doesn't run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    # Its errors have no common class but this.
    except Exception as error:
        raise _refused(error) from error

    def run(images: np.ndarray) -> np.ndarray:
        inputs = {"image": images.astype(np.float32)}
        return session.run(["probabilities"], inputs)[0]

    return run
