"""The phases of the command line, each declared once.

A new phase is one entry here and one function. The function is imported when
it runs: the list itself must not wait for TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

_TRAINING = ("data", "input", "model", "optimization")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One value of `--phase`.

    Attributes:
      name: the value.
      target: the function that runs it, `module:function` within this
        package. It takes the `Session`, or without a data set the `Config`.
      help: what it does, for `--help`.
      groups: the groups of flags that it reads, besides `run` and `runtime`.
      opens_data: whether it opens the data set.
      trains: whether it reads the training splits.
      writes_run: whether it writes files that another run of such a phase in
        the same workdir would write at the same time.
      reads_run: whether it takes flags that are not given from the workdir's
        config.json.
      reads_model: whether it needs a trained model.
      recalls_training: whether these include the flags of the training.
      one_worker: whether it refuses to run with several workers.
    """

    name: str
    target: str
    help: str
    groups: tuple[str, ...]
    opens_data: bool = True
    trains: bool = False
    writes_run: bool = False
    reads_run: bool = False
    reads_model: bool = False
    recalls_training: bool = False
    one_worker: bool = False

    @property
    def run(self) -> Callable[[Any], None]:
        """The function that runs the phase."""
        module, _, function = self.target.partition(":")
        loaded = importlib.import_module(f"{__package__}.{module}")
        return getattr(loaded, function)


def _stage(name: str, text: str) -> Phase:
    """Returns the phase that runs one training stage."""
    return Phase(
        name, f"train:{name}", text, _TRAINING, trains=True, writes_run=True
    )


def _on_solved_heads(name: str, target: str, text: str) -> Phase:
    """Returns a phase that fits heads of its own to the training's features."""
    return Phase(
        name,
        target,
        text,
        _TRAINING,
        trains=True,
        writes_run=True,
        reads_run=True,
        recalls_training=True,
        one_worker=True,
    )


_PHASES = (
    Phase(
        "prepare",
        "prepare:prepare",
        "build the data set and audit it",
        ("data",),
        writes_run=True,
    ),
    _stage("transfer", "fit the head to the frozen backbone's features"),
    _stage("finetune", "unfreeze the upper backbone and train on"),
    _stage("refit", "train the better of the two on validation, too"),
    Phase(
        "train",
        "train:train",
        "all of these, then evaluate and report (the default)",
        (*_TRAINING, "evaluation"),
        trains=True,
        writes_run=True,
    ),
    Phase(
        "evaluate",
        "evaluate:evaluate",
        "evaluate any saved model on any split",
        ("data", "evaluation"),
        reads_run=True,
        reads_model=True,
    ),
    Phase(
        "predict",
        "predict.predict:predict",
        "classify photographs",
        ("evaluation", "predict"),
        opens_data=False,
        reads_run=True,
    ),
    Phase(
        "export",
        "export.export:export_model",
        "write a SavedModel (which takes JPEGs), TFLite, Keras, ONNX",
        ("data", "evaluation", "export"),
        reads_run=True,
        reads_model=True,
        one_worker=True,
    ),
    Phase(
        "report",
        "report.report:write_report",
        "write one HTML page about a run",
        ("data", "evaluation"),
        reads_run=True,
        reads_model=True,
    ),
    _on_solved_heads(
        "review",
        "review.review:review",
        "rank the labels that are probably wrong, on a page to correct them",
    ),
    Phase(
        "folders",
        "folders:folders",
        "write the splits as class folders, for other programs",
        ("data", "folders"),
        reads_run=True,
    ),
    Phase(
        "compare",
        "compare.compare:compare",
        "compare two recipes, image by image, over all their runs",
        ("evaluation", "compare"),
        opens_data=False,
    ),
    Phase(
        "find_lr",
        "find_lr.range_test:run_range_test",
        "find a learning rate for a stage by a range test",
        (*_TRAINING, "find_lr"),
        trains=True,
        writes_run=True,
        reads_run=True,
        recalls_training=True,
    ),
    _on_solved_heads(
        "learning_curve",
        "learning_curve.learning_curve:predict_gains",
        "predict what more photographs would buy",
    ),
    Phase(
        "benchmark",
        "benchmark.benchmark:benchmark",
        "measure how fast each part is, beside stock Keras and timm",
        _TRAINING,
        trains=True,
        one_worker=True,
    ),
)

PHASES = {phase.name: phase for phase in _PHASES}
