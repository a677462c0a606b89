"""The folder that is exported to: whole, or as it was."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator

from flowers17_tfdata.errors import UserError, one_line

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


@contextlib.contextmanager
def replaced(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `target` if the block ends well.

    Raises:
      UserError: `check_target` refuses, or the place can't be written.
    """
    # The folder that a link leads to is replaced, not the link.
    target = target.resolve()
    check_target(target)
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Beside it, so that the renaming stays within a file system.
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(
                    dir=target.parent, prefix=f".{target.name}-incomplete-"
                )
            )
        except OSError as error:
            raise UserError(
                f"--export_dir {target} can't be written: {one_line(error)}"
            ) from error
        new, old = pathlib.Path(scratch) / "new", pathlib.Path(scratch) / "old"
        # Not the scratch folder itself: nobody else may read that.
        new.mkdir()
        yield new
        check_target(target)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            # Or it would go with the scratch folder.
            if old.exists():
                old.rename(target)
            raise


def size_megabytes(path: pathlib.Path) -> float:
    """Returns the size of a file, or of all files in a folder, 10^6 bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file()) / 1e6
