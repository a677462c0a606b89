"""The folder that a model is exported to."""

from __future__ import annotations

import json
import pathlib

from flowers17_tfdata.errors import UserError

# In every folder that we wrote, and by its first key nobody else did.
REPORT = "parity.json"
WRITTEN_BY = "written_by"


def check_target(target: pathlib.Path) -> None:
    """Checks that an export may go to `target`.

    Raises:
      UserError: it is a file, or a folder of somebody else's files.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"--export_dir {target} must be a folder; it is a file")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise UserError(
            f"--export_dir {target} must be new, empty, or an earlier export, "
            f"which is replaced; it holds other files and no {REPORT} of ours"
        )


def _is_ours(target: pathlib.Path) -> bool:
    try:
        report = json.loads((target / REPORT).read_text(encoding="utf-8"))
        return str(report[WRITTEN_BY]).startswith("flowers17_tfdata ")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def size_megabytes(path: pathlib.Path) -> float:
    """Returns the size of a file, or of all files in a folder, 10^6 bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6
