"""Pools the folds of a cross-validation, and writes a page about them."""

from __future__ import annotations

import pathlib
from typing import Any

from flowers17_tfdata import files, terminal
from flowers17_tfdata.config.config import Config, to_values
from flowers17_tfdata.phases.report import (
    page,
    reproduce,
    result_charts,
    tables,
)
from flowers17_tfdata.scoring import pooling


def pool_folds(config: Config) -> dict[str, Any]:
    """Pools the results of all folds, and shows them.

    Writes `cross_validation.json` and `cross_validation.html`.

    Returns:
      The contents of the first.
    """
    workdir = pathlib.Path(config.workdir).expanduser()
    result = pooling.pool(workdir, config.data.folds)
    path = workdir / "cross_validation.json"
    files.write_json(path, result)
    terminal.show_cross_validation(result)
    command = reproduce.command(_flags_of_one_model(config))
    context = {
        "dataset": config.data.dataset,
        "workdir": str(workdir),
        **tables.result(result),
        "confusion_chart": result_charts.confusion_chart(result),
        "command": command,
    }
    html = path.with_suffix(".html")
    files.write_text(html, page.render(context, "cross_validation.html"))
    terminal.say(f"cross-validation: {html}", report=str(html))
    terminal.say(
        "the folds have measured the recipe; to train one model for use, run: "
        + " ".join(command.split(" \\\n    "))
    )
    return result


def _flags_of_one_model(config: Config) -> dict[str, Any]:
    """Returns the flags that train one model by the recipe of the folds."""
    flags = reproduce.changed_flags(to_values(config))
    for name in ("folds", "assert_accuracy_at_least"):
        flags.pop(name, None)
    workdir = pathlib.Path(config.workdir) / "final"
    return flags | {"workdir": workdir, "refit": True}
