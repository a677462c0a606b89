"""Lists of paths and patterns, as flags hold them."""

from __future__ import annotations

import glob
import os


def split(value: str) -> list[str]:
    """Splits a list at its line breaks, or if it has none, at its commas.

    `~` is expanded. The path of one existing file or folder may contain commas.
    """
    if os.path.exists(os.path.expanduser(value)):
        return [os.path.expanduser(value)]
    names = value.split("\n" if "\n" in value else ",")
    return [os.path.expanduser(name.strip()) for name in names if name.strip()]


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern, and not a path that exists."""
    return glob.has_magic(name) and not os.path.exists(name)
