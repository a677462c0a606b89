"""Which workdirs `--compare` and `--baseline` mean, and which go together."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Sequence

from flowers17_tfdata import terminal
from flowers17_tfdata.config.config import CompareConfig
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.scoring import predictions

_Pair = tuple[pathlib.Path, pathlib.Path]


def find_pairs(options: CompareConfig, split: str) -> list[_Pair]:
    """Finds the workdirs of both lists, and pairs them in order.

    Args:
      options: the two lists.
      split: whose predictions they have to hold.

    Returns:
      `(compared, baseline)`, at least one.

    Raises:
      ConfigError: a pattern matches nothing, the lists are not of one length,
        a pair comes twice.
      UserError: there is no such folder, or it holds no predictions.
    """
    compared = _find("compare", options.compare, split)
    baseline = _find("baseline", options.baseline, split)
    if len(compared) != len(baseline):
        raise ConfigError(
            "--compare and --baseline must name as many workdirs; got "
            f"{len(compared)} ({_listed(compared)}) and {len(baseline)} "
            f"({_listed(baseline)})"
        )
    pairs = list(zip(compared, baseline, strict=True))
    resolved = [(a.resolve(), b.resolve()) for a, b in pairs]
    for k, pair in enumerate(resolved):
        if pair[0] == pair[1]:
            raise ConfigError(
                "--compare must name other workdirs than --baseline in the "
                f"same place; got {pairs[k][0]} in both"
            )
        if pair in resolved[:k]:
            raise ConfigError(
                "--compare and --baseline must name each pair once; got "
                f"{pairs[k][0]} with {pairs[k][1]} again"
            )
    return pairs


def _listed(paths: Sequence[pathlib.Path]) -> str:
    shown = [str(path) for path in paths[:10]]
    return ", ".join(shown + ["..."] * (len(paths) > 10))


def _find(flag: str, spec: str, split: str) -> list[pathlib.Path]:
    """Returns the workdirs that a flag names, globs in sorted order."""
    # One existing path may hold commas.
    whole = os.path.exists(os.path.expanduser(spec))
    names = [spec] if whole else [part.strip() for part in spec.split(",")]
    found = []
    for name in filter(None, names):
        name = os.path.expanduser(name)
        if os.path.exists(name) or not glob.has_magic(name):
            found.append(_evaluated(flag, pathlib.Path(name), split))
        else:
            found += _matches(flag, name, split)
    return found


def _evaluated(flag: str, path: pathlib.Path, split: str) -> pathlib.Path:
    if not path.is_dir():
        raise UserError(f"--{flag}: there is no folder {path}")
    if not predictions.predictions_path(path, split).exists():
        raise UserError(
            f"--{flag}: {path} holds no predictions_{split}.npz: evaluate it "
            f"first (--phase=evaluate --split={split} --workdir={path})"
        )
    return path


def _matches(flag: str, pattern: str, split: str) -> list[pathlib.Path]:
    matches = sorted(glob.glob(pattern, recursive=True))
    folders = [path for path in map(pathlib.Path, matches) if path.is_dir()]
    if not folders:
        raise ConfigError(
            f"--{flag}: a pattern must match workdirs; got {pattern!r}"
        )
    kept = [
        path
        for path in folders
        if predictions.predictions_path(path, split).exists()
    ]
    if not kept:
        raise UserError(
            f"--{flag}: none of the {len(folders)} folders that {pattern!r} "
            f"matches holds predictions_{split}.npz: evaluate them first "
            f"(--phase=evaluate --split={split} --workdir={folders[0]})"
        )
    for path in folders:
        if path not in kept:
            # Told of: a run that is missing may be the one that went wrong.
            terminal.say(
                f"compare: {path} holds no predictions_{split}.npz: left out",
                left_out=str(path),
            )
    return kept
