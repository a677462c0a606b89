"""Finds and reads flag files: the user's own, and those that are shipped."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

from flowers17_tfdata.errors import ConfigError, did_you_mean

# How a command line or a flag file names a flag file.
OPTIONS = ("--flagfile", "-flagfile")
_SUFFIX = ".flags"


def shipped() -> dict[str, pathlib.Path]:
    """Returns the shipped flag files by name."""
    package = pathlib.Path(__file__).parent
    folder = package / "configs"
    if not folder.is_dir():
        # In the checkout they lie beside the package.
        folder = package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob(f"*{_SUFFIX}"))}


def purpose(path: pathlib.Path) -> str:
    """Returns the first line of a shipped flag file, without its `#`."""
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def read_arguments(
    name: str, including: tuple[pathlib.Path, ...] = ()
) -> Iterator[str]:
    """Yields the arguments in a flag file and in those that it includes.

    Args:
      name: a path, with or without `.flags`, or the name of a shipped file.
        An included file is looked for beside the one that includes it first.
      including: the files that include it, outermost first.

    Raises:
      ConfigError: there is no such file, or it includes itself.
      OSError, UnicodeDecodeError: it can't be read.
    """
    where = f" in {including[-1]}" if including else ""
    path = _find(os.path.expanduser(name), including[-1:])
    if path is None:
        names = shipped()
        near = did_you_mean(pathlib.Path(name).stem, names)
        raise ConfigError(
            f"--flagfile must be a file or one of {', '.join(names)}; got "
            f"{name!r}{where}{near}"
        )
    if any(map(path.samefile, including)):
        raise ConfigError(f"--flagfile={name}{where} includes itself")
    for line in path.read_text(encoding="utf-8-sig").split("\n"):
        argument = line.strip()
        option, _, value = argument.partition("=")
        if option in OPTIONS:
            yield from read_arguments(value, (*including, path))
        elif argument and not argument.startswith(("#", "//")):
            yield argument


def _find(
    name: str, including: tuple[pathlib.Path, ...]
) -> pathlib.Path | None:
    for folder in (*(file.parent for file in including), pathlib.Path()):
        for path in (folder / name, folder / f"{name}{_SUFFIX}"):
            # Not is_file: a shell's <(command) is a pipe.
            if path.exists() and not path.is_dir():
                return path
    return shipped().get(name.removesuffix(_SUFFIX))
