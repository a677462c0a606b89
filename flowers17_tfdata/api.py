"""The Python interface: train, load, and classify photographs.

    from flowers17_tfdata import api

    predictor = api.train({"flagfile": "fast", "dataset": "folder:photos"})
    predictor = api.load("runs/fast")
    for prediction in predictor.predict(["a.jpg", "b.heic"]):
        print(prediction.file, prediction.label, prediction.probability)
    vectors = predictor.embed(["a.jpg", "b.heic"])

Mistakes, such as a missing file, raise `UserError`, whose message is one line.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flowers17_tfdata import flags, predictor
from flowers17_tfdata.config import rules
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.phases import runner
from flowers17_tfdata.phases.registry import PHASES
from flowers17_tfdata.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "UserError", "load", "train"]


def load(path: str | os.PathLike[str], **options: Any) -> Predictor:
    """Loads a trained model.

    Args:
      path: a run's workdir, a folder that `--phase=export` wrote `model.keras`
        to, or a `.keras` file.
      **options: flags of `--phase=predict`, without their dashes: `tta=4`,
        `precision="float32"`.

    Raises:
      UserError: there is no such model, or a flag is wrong.
    """
    folder = pathlib.Path(path).expanduser()
    model = ""
    if folder.is_file():
        folder, model = folder.parent, str(folder)
    elif (folder / "model.keras").is_file():
        model = str(folder / "model.keras")
    elif not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    given = {"phase": "predict", "workdir": folder, "model": model}
    # The pictures come later.
    config = flags.parse(_arguments(given | options | {"images": "-"}))
    rules.check_files(config)
    with predictor.same_policy_afterwards():
        return predictor.open_predictor(config)


def train(options: Mapping[str, Any]) -> Predictor:
    """Trains a model as the command line does, in this process.

    Progress is printed unless `console` is `quiet`. The files of the run are in
    its workdir, as always.

    Args:
      options: flags by name, without their dashes: `{"flagfile": "fast",
        "dataset": "folder:photos", "workdir": "runs/photos"}`. `phase` is one
        that trains; it defaults to `train`.

    Returns:
      The trained model.

    Raises:
      UserError: a flag is wrong, or the run failed.
    """
    config = flags.parse(_arguments(options))
    if not PHASES[config.phase].writes_run or config.phase == "prepare":
        raise ConfigError(f"phase must be one that trains; got {config.phase}")
    if config.runtime.launch_local or config.data.runs_all_folds:
        raise ConfigError(
            "launch_local and folds without fold start other processes: use "
            "the command line"
        )
    rules.check_files(config)
    with predictor.same_policy_afterwards():
        runner.run(config)
    return load(config.workdir)


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Returns a command line, program name first."""
    return [__package__, *(f"--{k}={v}" for k, v in options.items())]
