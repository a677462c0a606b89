"""Writes and runs ONNX files, which map batches of pixels to probabilities."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from flowers17_tfdata import machine
from flowers17_tfdata.phases.export.network import Answers, Network, refused

# The newest that tf2onnx writes; runtimes read all older ones.
_OPSET = 18


def convert(network: Network, path: pathlib.Path) -> None:
    """Writes an .onnx file.

    The input `image` is float32 `[batch, image_size, image_size, 3]` in
    [0, 255], RGB; the outputs are what `trust.answer` returns.

    Raises:
      UserError: the converter can't convert this network.
    """
    with tempfile.TemporaryDirectory() as folder:
        network.save(folder, batch_size=None)
        # Not tf2onnx.convert.from_function: it mistakes a layer's constants
        # (Normalization's) for inputs.
        command = [sys.executable, "-m", "tf2onnx.convert"]
        command += ["--saved-model", folder, "--output", str(path)]
        command += ["--opset", str(_OPSET)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not path.exists():
        raise refused("onnx", result.stderr.strip().rpartition("\n")[2])


def load(path: pathlib.Path) -> Callable[[np.ndarray], Answers]:
    """Returns a function from pixels to answers.

    It takes uint8 `[n, image_size, image_size, 3]` in [0, 255].

    Raises:
      UserError: the converter wrote a file that doesn't run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.num_cores()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    # ONNX Runtime's errors have no other common class.
    except Exception as error:
        raise refused("onnx", error) from error

    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> Answers:
        outputs = session.run(names, {"image": images.astype(np.float32)})
        return dict(zip(names, outputs, strict=True))

    return run
