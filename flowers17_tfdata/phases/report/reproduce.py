"""The command lines that repeat a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from flowers17_tfdata.config.config import Config, to_values


def changed_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flags whose value is not the default.

    Args:
      flags: `{flag name: value}` of `config.json`. Flags that this version
        doesn't have are left out.
    """
    return {
        name: flags[name]
        for name, default in to_values(Config()).items()
        if flags.get(name, default) != default
    }


def command(flags: Mapping[str, Any]) -> str:
    """Returns a shell command with one flag per line."""
    arguments = [
        f"--{name}={shlex.quote(str(value))}" for name, value in flags.items()
    ]
    return " \\\n    ".join(["flowers17-tfdata", *arguments])
