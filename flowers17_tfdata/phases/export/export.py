"""Runs the phase: writes the trained model in formats for use elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import shutil
from typing import Any

import keras
import tensorflow as tf

import flowers17_tfdata
from flowers17_tfdata import files, machine, terminal, timings, trained_model
from flowers17_tfdata.data import class_folders, image_formats, pillow_reader
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import load_examples
from flowers17_tfdata.models import saved_models
from flowers17_tfdata.phases.export import (
    model_card,
    onnx_file,
    parity,
    saved_model,
    tflite,
)
from flowers17_tfdata.phases.export.network import Network, to_float32
from flowers17_tfdata.phases.export.parity import Exported, Split
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session
from flowers17_tfdata.trained_model import TrainedModel

# In every exported folder; its first key identifies the folder as ours.
_REPORT = "parity.json"
_WRITTEN_BY = "written_by"
# The extra of setup.cfg that a format needs, and the packages in it.
_EXTRAS = {"tflite_float16": "export", "tflite_int8": "export", "onnx": "onnx"}
_PACKAGES = {"export": ("ai_edge_litert",), "onnx": ("tf2onnx", "onnxruntime")}
# Copied beside the SavedModel; what it needs of this package is in `pictures`.
SERVE_SCRIPT = pathlib.Path(__file__).with_name("serve.py")
_READER = (image_formats.__file__, pillow_reader.__file__)


def export_model(session: Session) -> None:
    """Writes `--export_formats`, and compares each with the trained model.

    Raises:
      UserError: there is no model, the folder contains other files, a
        converter can't convert the model, or a format's predictions differ.
    """
    _check(session)
    target = session.output / "export"
    if session.config.export.export_dir:
        target = pathlib.Path(session.config.export.export_dir).expanduser()
    check_target(target)
    with timings.measure(session.output, "export: trained model"):
        trained = trained_model.load_model_for(session)
        name = session.config.evaluation.split
        examples = load_examples(session.source, name, session.config.input)
        split = Split(session.source, name, examples)
        predictions = trained_model.predict_examples(
            session, trained, examples, f"{name} split"
        )
    # GPUs would round float32 to TensorFloat-32: differences between formats
    # could be the hardware's.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with files.whole_folder(target, f"--export_dir {target}") as output:
        copy_reader(output)
        rows = _export(session, trained, split, predictions, output)
        _describe(session, trained, predictions, rows, output)
        # Somebody may have put files there in the meantime.
        check_target(target)
    parity.show(rows, name)
    terminal.say(f"exported to {target}")


def _check(session: Session) -> None:
    """Checks what would otherwise fail after minutes of conversion."""
    formats = session.config.export.formats
    for name in formats:
        _check_installed(name)
    splits = session.source.split_sizes
    if "tflite_int8" in formats and tflite.REPRESENTATIVE_SPLIT not in splits:
        raise UserError(
            "--export_formats: tflite_int8 needs images of the split "
            f"{tflite.REPRESENTATIVE_SPLIT}; {session.source.name} has "
            f"{', '.join(splits)}"
        )
    session.source.check_split(session.config.evaluation.split)


def _check_installed(name: str) -> None:
    """Checks that the packages of an optional format are installed.

    Raises:
      UserError: a package is missing.
    """
    extra = _EXTRAS.get(name, "")
    for package in _PACKAGES.get(extra, ()):
        if not importlib.util.find_spec(package):
            raise UserError(
                f"--export_formats={name} needs {package}: pip install "
                f"'flowers17_tfdata[{extra}]'"
            )


def check_target(target: pathlib.Path) -> None:
    """Checks that an export may replace `target`.

    Raises:
      UserError: it is a file, or a folder with other files.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--export_dir {target} must be a folder; it is a file")
    try:
        writer = str(files.read_json(target / _REPORT)[_WRITTEN_BY])
    except (UserError, KeyError, TypeError):
        writer = ""
    if not writer.startswith("flowers17_tfdata ") and any(target.iterdir()):
        raise UserError(
            f"--export_dir {target} must be new, empty, or an earlier export, "
            f"which is replaced; it holds other files but no {_REPORT}"
        )


def _export(
    session: Session,
    trained: TrainedModel,
    split: Split,
    predictions: Predictions,
    output: pathlib.Path,
) -> list[dict[str, Any]]:
    """Writes all formats into `output`; returns the rows of the table."""
    model = to_float32(trained.model)
    network = Network(model, trained.preprocess, trained.trust)
    float32 = Exported("float32", trained.path, network.runner())
    answers = trained.answers_in(predictions)
    compare = functools.partial(
        parity.compare,
        labels=predictions.labels,
        reference=parity.classify_split(split, float32),
        trained=answers,
    )
    row = compare("trained", trained.path, answers)
    rows = [row | {"latency_ms": None, "images_per_sec": None}]
    for name in session.config.export.formats:
        terminal.say(f"export: {name}")
        with timings.measure(session.output, f"export: {name}"):
            exported = _write(name, session, trained, model, network, output)
            answers = parity.classify_split(split, exported)
            row = compare(name, exported.path, answers)
            row |= parity.measure_speed(split, exported)
        parity.check(row, split.name)
        rows.append(row)
    return rows


def _write(
    name: str,
    session: Session,
    trained: TrainedModel,
    model: keras.Model,
    network: Network,
    output: pathlib.Path,
) -> Exported:
    """Writes one format into `output`, and loads it again."""
    source = session.source
    if name == "saved_model":
        path = output / "saved_model"
        saved_model.save(network, source.class_names, path)
        shutil.copy(SERVE_SCRIPT, output)
        return Exported(name, path, saved_model.load(path), takes_files=True)
    if name == "keras":
        path = output / "model.keras"
        extras = {**trained.extras, "class_names": list(source.class_names)}
        saved_models.save_classifier(model, path, extras, trained.trust)
        loaded = saved_models.load_classifier(path, "--export_dir")
        trust = saved_models.read_trust(path)
        runner = Network(loaded, trained.preprocess, trust).runner()
        return Exported(name, path, runner)
    if name == "onnx":
        path = output / "model.onnx"
        onnx_file.convert(network, path)
        return Exported(name, path, onnx_file.load(path))
    images = functools.partial(
        tflite.representative_images, source, network.image_size
    )
    path = output / f"{name.replace('tflite', 'model')}.tflite"
    tflite.convert(network, path, images if name == "tflite_int8" else None)
    return Exported(name, path, tflite.load(path), takes_batches=False)


def copy_reader(folder: pathlib.Path) -> None:
    """Copies the reader of pictures into a folder, as the package `pictures`.

    `serve.py` and the users of files that take pixels need it.
    """
    (folder / "pictures").mkdir()
    for path in _READER:
        shutil.copy(path, folder / "pictures")


def _describe(
    session: Session,
    trained: TrainedModel,
    predictions: Predictions,
    rows: list[dict[str, Any]],
    output: pathlib.Path,
) -> None:
    """Writes the class names, `parity.json` and the model card."""
    names = session.source.class_names
    split = session.config.evaluation.split
    report = {
        _WRITTEN_BY: f"flowers17_tfdata {flowers17_tfdata.__version__}",
        "model": trained.path.name,
        "trained_precision": session.precision,
        "dataset": session.source.name,
        "split": split,
        "num_examples": len(predictions.labels),
        "image_size": trained.image_size,
        "threads": machine.num_cores(),
        "formats": rows,
        "versions": machine.versions(),
    }
    files.write_json(output / _REPORT, report)
    evaluation = trained_model.summarize(trained, predictions, split, names)
    card = model_card.make_card(session, trained, evaluation, report)
    files.write_text(output / "README.md", card)
    labels = class_folders.labels_text(names)
    files.write_text(output / "labels.txt", labels)
