"""Which files `--images` means."""

from __future__ import annotations

import glob
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import TextIO

from flowers17_tfdata.data import decode
from flowers17_tfdata.errors import ConfigError


def find_images(spec: str, stdin: TextIO) -> tuple[Iterator[str], int | None]:
    """Finds the files that `--images` names.

    A file that is named itself is taken whatever its suffix, and whether or
    not it is there: what can't be read is told of with the others.

    Args:
      spec: files, folders, globs, or `-`, separated by commas (or, if there
        is one in it, by line breaks). One existing path may hold commas.
      stdin: the list that `-` stands for, a path a line; read as it comes.

    Returns:
      The paths, and how many there are; None: not known before they are read.

    Raises:
      ConfigError: a folder or a glob holds no images.
    """
    if os.path.exists(os.path.expanduser(spec)):
        names = [spec]
    else:
        separator = "\n" if "\n" in spec else ","
        names = [part.strip() for part in spec.split(separator)]
    found: list[Iterator[str]] = []
    count: int | None = 0
    for name in filter(None, names):
        if name == "-":
            lines = (line.rstrip("\r\n") for line in stdin)
            found.append(line for line in lines if line)
            count = None
            continue
        paths = _expand(os.path.expanduser(name))
        found.append(iter(paths))
        if count is not None:
            count += len(paths)
    return itertools.chain(*found), count


def _expand(name: str) -> list[str]:
    if os.path.isdir(name):
        paths = _images_below(pathlib.Path(name))
        if not paths:
            raise ConfigError(
                "--images: a folder must hold images "
                f"({', '.join(decode.SUFFIXES)}); {name} holds none"
            )
        return paths
    if os.path.exists(name) or not glob.has_magic(name):
        return [name]
    matches = glob.glob(name, recursive=True)
    paths = sorted(path for path in matches if os.path.isfile(path))
    if not paths:
        raise ConfigError(f"--images: a pattern must match files; got {name!r}")
    return paths


def _images_below(folder: pathlib.Path) -> list[str]:
    """Returns the images in a folder and its folders, hidden ones left out."""
    return sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in decode.SUFFIXES
        and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        )
        and path.is_file()
    )
