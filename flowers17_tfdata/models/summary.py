"""A network as text and as a picture, on request."""

from __future__ import annotations

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
    if not config.plot_model:
        return
    try:
        import pydot  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--plot_model needs pydot: pip install 'flowers17_tfdata[plot]'"
        ) from error
    if shutil.which("dot") is None:
        raise UserError(
            "--plot_model needs Graphviz, whose program dot is not on the "
            "PATH: apt install graphviz, brew install graphviz, or "
            "https://graphviz.org/download"
        )


def show(
    model: keras.Model, stage: str, folder: pathlib.Path, config: ModelConfig
) -> None:
    """Prints and draws a stage's network, as the flags ask.

    Args:
      model: with the stage's layers frozen.
      stage: its name.
      folder: that `plot_STAGE.png` is written to.
      config: `model_summary`, `plot_model`.
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
