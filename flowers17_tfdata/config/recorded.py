"""The flags that a run recorded in its config.json."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from flowers17_tfdata.config.config import all_flags
from flowers17_tfdata.config.option import Kind
from flowers17_tfdata.errors import ConfigError, one_line


def recorded_values(workdir: str, with_training: bool) -> dict[str, Any]:
    """Returns `{flag name: value}` of the run in a workdir; {} without one.

    Args:
      workdir: the value of `--workdir`.
      with_training: whether to return the flags of the training too, besides
        those of the data, the input and the network.

    Raises:
      ConfigError: the workdir's config.json is damaged.
    """
    # Unlike pathlib's, it leaves ~ as it is where there is no home folder.
    path = pathlib.Path(os.path.expanduser(workdir)) / "config.json"
    if not path.exists():
        return {}
    try:
        recorded = dict(json.loads(path.read_text(encoding="utf-8"))["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--workdir: {path} can't be read ({one_line(error, 120)}): "
            "delete it, and pass the run's flags"
        ) from error
    kinds = {Kind.RUN, Kind.RECALLED}
    if with_training:
        kinds.add(Kind.TRAINING)
    flags = [f for f in all_flags() if f.kind in kinds]
    values = {f.name: recorded[f.name] for f in flags if f.name in recorded}
    for flag in flags:
        value = values.get(flag.name, flag.default)
        if type(value) is not type(flag.default):
            raise ConfigError(
                f"--workdir: {path} holds {value!r} for {flag.name}: delete "
                "it, and pass the run's flags"
            )
    return values
