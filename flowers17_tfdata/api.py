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
from typing import TYPE_CHECKING, Any

from flowers17_tfdata import flags, tensorflow_start
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.config.optimization import STAGES
from flowers17_tfdata.errors import ConfigError, UserError

if TYPE_CHECKING:
    from flowers17_tfdata.predictor import Predictor

__all__ = ["UserError", "load", "train"]


def load(path: str | os.PathLike[str], **options: Any) -> Predictor:
    """Loads a trained model.

    Args:
      path: a run's workdir, a folder that `--phase=export` wrote `model.keras`
        to, or a `.keras` file.
      **options: flags of `--phase=predict`, without their dashes, such as
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
    config = _parse(given | options | {"images": "-"})
    tensorflow_start.import_tensorflow()
    # Imported here, as below: TensorFlow must start quietly before.
    from flowers17_tfdata import predictor

    with predictor.same_keras_afterwards():
        return predictor.open_predictor(config)


def train(options: Mapping[str, Any]) -> Predictor:
    """Trains a model as the command line does, in this process.

    Progress is printed unless `console` is `quiet`. The run writes its files to
    the workdir, as always.

    Args:
      options: flags by name, without their dashes: `{"flagfile": "fast",
        "dataset": "folder:photos", "workdir": "runs/photos"}`. `phase` is one
        that trains; it defaults to `train`.

    Returns:
      The trained model.

    Raises:
      UserError: a flag is wrong, or the run failed.
    """
    config = _parse(options)
    if config.phase not in ("train", *STAGES):
        raise ConfigError(f"phase must be one that trains; got {config.phase}")
    if config.runtime.launch_local or config.data.runs_all_folds:
        raise ConfigError(
            "launch_local and folds without fold start other processes: use "
            "the command line"
        )
    tensorflow_start.import_tensorflow(config.runtime.console == "verbose")
    from flowers17_tfdata import predictor
    from flowers17_tfdata.phases import runner

    with predictor.same_keras_afterwards():
        runner.run(config)
    return load(config.workdir)


def _parse(options: Mapping[str, Any]) -> Config:
    """Parses options as a command line is parsed."""
    arguments = [f"--{name}={value}" for name, value in options.items()]
    try:
        config = flags.parse([__package__, *arguments])
    except (flags.HelpRequested, flags.VersionRequested) as error:
        raise ConfigError(
            "help, helpfull and version are for the command line"
        ) from error
    rules.check_files(config)
    return config
