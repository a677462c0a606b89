"""Finds and pairs the workdirs that `--compare` and `--baseline` name."""

from __future__ import annotations

import glob
import pathlib

from flowers17_tfdata import terminal
from flowers17_tfdata.config.after_training import CompareConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.phases import path_lists
from flowers17_tfdata.scoring.predictions import predictions_path

_Pair = tuple[pathlib.Path, pathlib.Path]


def find_pairs(options: CompareConfig, split: str) -> list[_Pair]:
    """Finds the workdirs of both lists, and pairs them in order.

    Args:
      options: holds the two lists.
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
            "--compare and --baseline must name equally many workdirs; got "
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
    names = path_lists.split(value)
    return [path for name in names for path in _find(flag, name, split)]


def _find(flag: str, name: str, split: str) -> list[pathlib.Path]:
    """Returns the evaluated workdirs that a path or pattern names, sorted."""
    is_pattern = path_lists.is_pattern(name)
    names = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]
    folders = [path for path in map(pathlib.Path, names) if path.is_dir()]
    if not folders and is_pattern:
        raise ConfigError(
            f"--{flag}: a pattern must match workdirs; got {name!r}"
        )
    if not folders:
        raise UserError(f"--{flag}: there is no folder {name}")
    file = f"predictions_{split}.npz"
    kept = [path for path in folders if predictions_path(path, split).exists()]
    if not kept:
        raise UserError(
            f"--{flag}: {name} holds no {file}: evaluate it first "
            f"(--phase=evaluate --split={split} --workdir={folders[0]})"
        )
    for folder in (path for path in folders if path not in kept):
        # The missing run may be one that failed.
        text = f"compare: {folder} holds no {file}: left out"
        terminal.say(text, left_out=str(folder))
    return kept
