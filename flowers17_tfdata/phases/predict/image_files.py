"""Finds the files that `--images` names."""

from __future__ import annotations

import glob
import os
import pathlib
from typing import TextIO

from flowers17_tfdata import terminal
from flowers17_tfdata.data import folder_listing
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.phases import path_lists


def find_images(spec: str, stdin: TextIO) -> list[str]:
    """Returns the paths that `--images` names, in the order given.

    A file that is named itself is included whatever its suffix, even if it
    does not exist: unreadable files are reported together at the end.

    Args:
      spec: files, folders, globs, or `-`, separated by commas (or by line
        breaks, if there are any). The path of one existing file may contain
        commas.
      stdin: the list that `-` stands for, one path per line.

    Raises:
      ConfigError: a folder or a glob contains no images.
    """
    paths: list[str] = []
    for name in path_lists.split(spec):
        if name == "-":
            paths += filter(None, (line.rstrip("\r\n") for line in stdin))
        else:
            paths += _expand(name)
    if not paths:
        terminal.say("--images: standard input names no images")
    return paths


def _expand(name: str) -> list[str]:
    """Returns the files that a path or a pattern stands for."""
    if os.path.isdir(name):
        folder = pathlib.Path(name)
        images, skipped = folder_listing.images_below(folder, folder)
        note = folder_listing.skipped_note(skipped)
        if not images:
            raise ConfigError(
                f"--images: a folder must hold images; {name} holds none"
                + (f" ({note})" if note else "")
            )
        if note:
            terminal.say(f"{name}: {note}")
        return sorted(map(str, images))
    if not path_lists.is_pattern(name):
        return [name]
    matches = glob.glob(name, recursive=True)
    paths = sorted(filter(os.path.isfile, matches))
    if not paths:
        raise ConfigError(f"--images: a pattern must match files; got {name!r}")
    return paths
