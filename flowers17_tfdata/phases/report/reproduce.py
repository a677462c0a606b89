"""The command lines that make a run again."""

from __future__ import annotations

import shlex
from typing import Any

from flowers17_tfdata.config import config as config_lib


def training_command(flags: dict[str, Any]) -> list[str]:
    """Returns the arguments that a run's flags stand for.

    Args:
      flags: `{flag name: value}` of `config.json`.

    Returns:
      The program, then a shell-quoted flag for each value that isn't the
      default; flags that this version doesn't know are left out.
    """
    arguments = ["python main.py"]
    for field in _all_options():
        value = flags.get(field.name, field.default)
        if value == field.default:
            continue
        if isinstance(field.default, bool):
            arguments.append(f"--{'' if value else 'no'}{field.name}")
        else:
            arguments.append(f"--{field.name}={shlex.quote(str(value))}")
    return arguments


def report_command(workdir: str, split: str) -> list[str]:
    """Returns the arguments that write this report again."""
    return [
        "python main.py",
        "--phase=report",
        f"--workdir={shlex.quote(workdir)}",
        f"--split={shlex.quote(split)}",
    ]


def on_lines(arguments: list[str]) -> str:
    """Returns a command with an argument a line, to be pasted in a shell."""
    return " \\\n    ".join(arguments)


def _all_options():
    for config_class in (
        config_lib.Config,
        *(cls for _, cls in config_lib.groups()),
    ):
        yield from config_lib.options(config_class)


def flag_rows(flags: dict[str, Any]) -> list[tuple[str, Any, bool]]:
    """Returns `(flag, value, whether it is the default)` of recorded flags."""
    defaults = {field.name: field.default for field in _all_options()}
    return [
        (name, value, name in defaults and value == defaults[name])
        for name, value in flags.items()
    ]
