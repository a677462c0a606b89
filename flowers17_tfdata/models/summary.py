"""Shows a network as text and as a picture, if the flags ask for it."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil

import keras

from flowers17_tfdata import terminal
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.errors import UserError, one_line


def check_can_plot(config: ModelConfig) -> None:
    """Checks, before anything is trained, that `--plot_model` can work.

    Raises:
      UserError: pydot or Graphviz is missing.
    """
    can_plot = importlib.util.find_spec("pydot") and shutil.which("dot")
    if config.plot_model and not can_plot:
        raise UserError(
            "--plot_model needs pydot (pip install 'flowers17_tfdata[plot]') "
            "and Graphviz, whose program dot must be on the PATH (apt install "
            "graphviz, brew install graphviz, or "
            "https://graphviz.org/download)"
        )


def show(
    model: keras.Model, stage: str, folder: pathlib.Path, config: ModelConfig
) -> None:
    """Prints and draws a stage's network, as the flags ask.

    Args:
      model: the network, with the layers frozen that the stage doesn't train.
      stage: the stage's name.
      folder: where `plot_STAGE.png` is written.
      config: `model_summary`, `plot_model`.

    Raises:
      UserError: the network can't be drawn.
    """
    if config.model_summary:
        model.summary(
            line_length=88,
            print_fn=terminal.say,
            expand_nested=True,
            show_trainable=True,
        )
    if config.plot_model:
        path = folder / f"plot_{stage}.png"
        try:
            keras.utils.plot_model(
                model,
                path,
                show_shapes=True,
                show_trainable=True,
                expand_nested=True,
                dpi=64,
            )
        # pydot raises whatever Graphviz ends with.
        except Exception as error:
            raise UserError(
                f"--plot_model: {path} can't be drawn: {one_line(error)}"
            ) from error
        terminal.say(f"{stage}: network drawn to {path}")
