"""Finds and pairs the workdirs that `--compare` and `--baseline` name."""

from __future__ import annotations

import glob
import os
import pathlib

from flowers17_tfdata import terminal
from flowers17_tfdata.config.phases import CompareConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.scoring.predictions import predictions_path

_Pair = tuple[pathlib.Path, pathlib.Path]


def find_pairs(options: CompareConfig, split: str) -> list[_Pair]:
    """Finds the workdirs of both lists, and pairs them in order.

    Args:
      options: the two lists.
      split: the split whose predictions the workdirs must hold.

    Returns:
      `(compared, baseline)` pairs, at least one.

    Raises:
      ConfigError: a pattern matches nothing, the lists differ in length, or a
        pair occurs twice.
      UserError: a folder doesn't exist or holds no predictions.
    """
    compared = _find_all("compare", options.compare, split)
    baseline = _find_all("baseline", options.baseline, split)
    if len(compared) != len(baseline):
        raise ConfigError(
            "--compare and --baseline must name as many workdirs; got "
            f"{len(compared)} ({options.compare}) and {len(baseline)} "
            f"({options.baseline})"
        )
    pairs = list(zip(compared, baseline, strict=True))
    seen = set()
    for one, other in pairs:
        resolved = one.resolve(), other.resolve()
        if resolved[0] == resolved[1]:
            raise ConfigError(
                "--compare and --baseline must name different workdirs at the "
                f"same position; got {one} in both"
            )
        if resolved in seen:
            raise ConfigError(
                "--compare and --baseline must name each pair once; got "
                f"{one} with {other} again"
            )
        seen.add(resolved)
    return pairs


def _find_all(flag: str, value: str, split: str) -> list[pathlib.Path]:
    # A path that exists may contain commas.
    is_path = os.path.exists(os.path.expanduser(value))
    names = [value] if is_path else [name.strip() for name in value.split(",")]
    found = []
    for name in filter(None, names):
        found += _find(flag, os.path.expanduser(name), split)
    return found


def _find(flag: str, name: str, split: str) -> list[pathlib.Path]:
    """Returns the evaluated workdirs that a path or pattern names, sorted."""
    is_pattern = glob.has_magic(name) and not os.path.exists(name)
    names = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
    folders = [path for path in map(pathlib.Path, names) if path.is_dir()]
    if not folders and is_pattern:
        raise ConfigError(
            f"--{flag}: a pattern must match workdirs; got {name!r}"
        )
    if not folders:
        raise UserError(f"--{flag}: there is no folder {name}")
    file = f"predictions_{split}.npz"
    kept = []
    for folder in folders:
        if predictions_path(folder, split).exists():
            kept.append(folder)
        elif is_pattern:
            # The run that is missing may be the one that failed.
            terminal.say(
                f"compare: {folder} holds no {file}: left out",
                left_out=str(folder),
            )
    if not kept:
        raise UserError(
            f"--{flag}: {name} holds no {file}: evaluate it first "
            f"(--phase=evaluate --split={split} --workdir={folders[0]})"
        )
    return kept
