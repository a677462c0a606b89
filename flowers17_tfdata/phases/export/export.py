"""`--phase=export`: the trained model for use elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import flowers17_tfdata
from flowers17_tfdata import files, machine, terminal, timings, trained_model
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.errors import ConfigError, UserError, one_line
from flowers17_tfdata.input.examples import load_examples
from flowers17_tfdata.models import saved_models
from flowers17_tfdata.phases.export import (
    folder,
    model_card,
    onnx_file,
    parity,
    representative_images,
    saved_model,
    tflite,
)
from flowers17_tfdata.phases.export.network import Network, to_float32
from flowers17_tfdata.phases.export.parity import Exported, Split
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

LABELS = "labels.txt"
_CALIBRATION_SPLIT = "train"
# Goes along with the SavedModel: it imports nothing of this package.
_SERVE_SCRIPT = pathlib.Path(__file__).with_name("serve.py")


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is exported.

    Attributes:
      model: the trained one, rebuilt in float32.
      network: it, with preprocessing and softmax.
      class_names: in the order of its outputs.
      extras: what was saved beside the trained one.
      session: of this process.
      preprocess: of the model's images.
    """

    model: keras.Model
    network: Network
    class_names: tuple[str, ...]
    extras: Mapping[str, Any]
    session: Session
    preprocess: Callable


def export_model(session: Session) -> None:
    """Writes the formats of `--export_formats`, each checked on `--split`.

    Raises:
      UserError: there is no model, the folder is somebody else's, a format
        can't be made of it or says something else than the model does.
    """
    target = export_dir(session)
    _check(session, target)
    with timings.measure(session.output, "export: trained model"):
        trained = trained_model.load_model_for(session)
        split = _load_split(session)
        predictions = trained_model.predict_examples(
            session, trained, split.examples, f"{split.name} split"
        )
    with (
        files.whole_folder(target, f"--export_dir {target}") as output,
        _full_float32(),
    ):
        rows = _export(session, trained, split, predictions, output)
    parity.show(rows, split.name)
    terminal.say(f"exported to {target}")


def export_dir(session: Session) -> pathlib.Path:
    """Returns the folder that is exported to."""
    path = session.config.export.export_dir
    return (
        pathlib.Path(path).expanduser() if path else session.output / "export"
    )


def _check(session: Session, target: pathlib.Path) -> None:
    """Checks what can be known before minutes of conversion."""
    if session.workers.count > 1:
        raise ConfigError(
            f"--phase=export goes with one worker; got {session.workers.count}"
        )
    formats = config_lib.export_formats(session.config.export)
    if "onnx" in formats:
        onnx_file.check_installed()
    splits = session.source.split_sizes
    if "tflite_int8" in formats and _CALIBRATION_SPLIT not in splits:
        raise UserError(
            "--export_formats: tflite_int8 is calibrated on the split "
            f"{_CALIBRATION_SPLIT}; {session.source.name} has "
            f"{', '.join(splits)}"
        )
    session.source.check_split(session.config.evaluation.split)
    folder.check_target(target)


def _load_split(session: Session) -> Split:
    name = session.config.evaluation.split
    examples = load_examples(session.source, name, session.config.input)
    return Split(session.source, name, examples)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Keeps GPUs from rounding float32 to TensorFloat-32 meanwhile.

    Else the differences between formats would be the hardware's.
    """
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)


def _export(
    session: Session,
    trained: TrainedModel,
    split: Split,
    predictions: Predictions,
    output: pathlib.Path,
) -> list[dict]:
    """Writes everything into `output`; returns the rows of the table."""
    model = to_float32(trained.model)
    subject = _Subject(
        model,
        Network(model, trained.preprocess),
        session.source.class_names,
        {**trained.extras, "class_names": list(session.source.class_names)},
        session,
        trained.preprocess,
    )
    in_memory = Exported(
        "float32", trained.path, _runner(model, trained.preprocess)
    )
    reference = parity.classify_split(split, in_memory)
    of_trained = predictions.probabilities
    rows = [_trained_row(trained, predictions, reference)]
    for name in config_lib.export_formats(session.config.export):
        terminal.say(f"export: {name}")
        with timings.measure(session.output, f"export: {name}"):
            exported = _WRITERS[name](subject, output)
            row = parity.measure(split, exported, reference, of_trained)
        parity.check(row, split.name)
        rows.append(row)
    _write_papers(subject, trained, split, rows, output)
    return rows


def _trained_row(
    trained: TrainedModel, predictions: Predictions, reference: np.ndarray
) -> dict:
    """Returns the table's row of the model as it was trained."""
    of_trained = predictions.probabilities
    return {
        "format": "trained",
        "file": trained.path.name,
        "megabytes": round(folder.size_megabytes(trained.path), 2),
        **parity.compare(of_trained, predictions.labels, reference, of_trained),
        "latency_ms": None,
        "images_per_sec": None,
    }


def _write_papers(
    subject: _Subject,
    trained: TrainedModel,
    split: Split,
    rows: list[dict],
    output: pathlib.Path,
) -> None:
    """Writes the class names, the report and the model card."""
    session = subject.session
    (output / LABELS).write_text(
        "".join(f"{one_line(name)}\n" for name in subject.class_names),
        encoding="utf-8",
    )
    report = {
        folder.WRITTEN_BY: f"flowers17_tfdata {flowers17_tfdata.__version__}",
        "model": trained.path.name,
        "trained_precision": session.precision,
        "dataset": session.source.name,
        "split": split.name,
        "num_examples": split.examples.num_examples,
        "image_size": subject.network.image_size,
        "threads": machine.num_cores(),
        "formats": rows,
        "versions": machine.versions(),
    }
    files.write_json(output / folder.REPORT, report)
    card = model_card.make_card(model_card.Facts.read(session, trained, report))
    (output / model_card.FILE_NAME).write_text(card, encoding="utf-8")


def _runner(
    model: keras.Model, preprocess: Callable
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from uint8 images to a Keras model's probabilities."""
    network = Network(model, preprocess)
    size = network.image_size
    # Dynamic batch: the split's last one must not be traced anew.
    function = tf.function(
        lambda images: network.probabilities(tf.cast(images, tf.float32)),
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
    )
    return lambda images: function(images).numpy()


def _write_saved_model(subject: _Subject, output: pathlib.Path) -> Exported:
    path = output / "saved_model"
    saved_model.save(subject.network, subject.class_names, path)
    shutil.copy(_SERVE_SCRIPT, output)
    return Exported(
        "saved_model", path, saved_model.load(path), takes_files=True
    )


def _write_keras(subject: _Subject, output: pathlib.Path) -> Exported:
    path = output / "model.keras"
    saved_models.save_classifier(subject.model, path, subject.extras)
    loaded = saved_models.load_classifier(path, "--export_dir")
    return Exported("keras", path, _runner(loaded, subject.preprocess))


def _write_tflite_float16(subject: _Subject, output: pathlib.Path) -> Exported:
    path = output / "model_float16.tflite"
    tflite.convert_float16(subject.network, path)
    return _tflite_file("tflite_float16", path)


def _write_tflite_int8(subject: _Subject, output: pathlib.Path) -> Exported:
    path = output / "model_int8.tflite"
    tflite.convert_int8(
        subject.network,
        path,
        lambda: representative_images.calibration_images(
            subject.session.source,
            _CALIBRATION_SPLIT,
            subject.network.image_size,
        ),
    )
    return _tflite_file("tflite_int8", path)


def _tflite_file(name: str, path: pathlib.Path) -> Exported:
    classify = tflite.load(path, machine.num_cores())
    return Exported(name, path, classify, takes_batches=False)


def _write_onnx(subject: _Subject, output: pathlib.Path) -> Exported:
    path = output / "model.onnx"
    onnx_file.convert(subject.network, path)
    classify = onnx_file.load(path, machine.num_cores())
    return Exported("onnx", path, classify)


_WRITERS = {
    "saved_model": _write_saved_model,
    "keras": _write_keras,
    "tflite_float16": _write_tflite_float16,
    "tflite_int8": _write_tflite_int8,
    "onnx": _write_onnx,
}
