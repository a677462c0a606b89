"""What was added to a data set since an earlier run, whose splits it keeps."""

from __future__ import annotations

import collections
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.data import class_folders
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.errors import UserError

# A file, its class and its split.
Row = tuple[str, str, str]


def read_old_splits(
    earlier: pathlib.Path, workdir: pathlib.Path, *, is_trained: bool
) -> list[Row]:
    """Returns the images of an earlier run that were in a split.

    Args:
      earlier: the workdir of the earlier run.
      workdir: the workdir of this run. A run that is trained reads the copy
        that it keeps there: the earlier run may be gone.
      is_trained: whether this run has saved anything of its training.

    Raises:
      UserError: the list can't be read.
    """
    path = earlier / "splits.csv"
    if is_trained:
        path = copy_path(workdir)
    elif not path.exists():
        raise UserError(
            f"--extends: {earlier} holds no splits.csv: run --phase=prepare or "
            "--phase=train there before images are added"
        )
    return [row for row in class_folders.read_splits(path) if row[2]]


def copy_path(workdir: pathlib.Path) -> pathlib.Path:
    """Returns where a run keeps the splits of the run that it extends."""
    return workdir / "splits_before.csv"


def copy_splits(earlier: pathlib.Path, workdir: pathlib.Path) -> None:
    """Copies the splits of the run that is extended into a workdir.

    Raises:
      UserError: the copy can't be written.
    """
    with files.whole_file(copy_path(workdir)) as temporary:
        shutil.copyfile(earlier / "splits.csv", temporary)


def follow_moves(
    known: Mapping[str, str], ids: Iterable[str]
) -> dict[str, str]:
    """Adds the images that were moved to another folder, or whose class was.

    A file that is gone and one that is new are taken for the same image if
    they have the same name, and no other such file has it.

    Args:
      known: `{id: split}` of the earlier run.
      ids: the ids of all images, as they are now.

    Returns:
      `{id: split}` of the images that keep their split.
    """
    ids = set(ids)
    gone, new = (
        _by_unique_name(some)
        for some in (known.keys() - ids, ids - known.keys())
    )
    moved = {new[name]: known[gone[name]] for name in new.keys() & gone.keys()}
    return {i: known[i] for i in known.keys() & ids} | moved


def _by_unique_name(ids: Iterable[str]) -> dict[str, str]:
    """Returns `{file name: id}` for the names that occur once."""
    names = collections.defaultdict[str, list[str]](list)
    for image_id in ids:
        names[image_id.rpartition("/")[2]].append(image_id)
    return {name: found[0] for name, found in names.items() if len(found) == 1}


def find_changes(
    before: Iterable[Row], class_names: Sequence[str], scan: Scan
) -> dict[str, Any]:
    """Compares a data set with what it was in the earlier run.

    Args:
      before: from `read_old_splits`.
      class_names: the data set's class names, as it is now.
      scan: the scan of the data set, as it is now.

    Returns:
      A JSON-serializable summary:
        `kept`: the number of images that have kept their split;
        `added`: `{split: number of images}`;
        `removed`: the files that are gone, or can't be decoded any more;
        `new_classes`, `gone_classes`: names.
    """
    old = {file: name for file, name, _ in before}
    now = dict(zip(scan.ids, scan.splits, strict=True))
    added = [split for file, split in now.items() if split and file not in old]
    return {
        "kept": sum(bool(now.get(file)) for file in old),
        "added": dict(collections.Counter(added)),
        "removed": sorted(file for file in old if not now.get(file)),
        "new_classes": sorted(set(class_names) - set(old.values())),
        "gone_classes": sorted(set(old.values()) - set(class_names)),
    }


def describe(earlier: str, changes: Mapping[str, Any]) -> str:
    """Returns what `find_changes` found, in one line."""
    added, removed = changes["added"], changes["removed"]
    where = ", ".join(f"{n} {split}" for split, n in added.items())
    parts = [
        f"{changes['kept']} images keep their splits",
        f"{sum(added.values())} added" + (f" ({where})" if where else ""),
    ]
    if removed:
        parts.append(f"{len(removed)} removed, first {removed[0]}")
    if changes["new_classes"]:
        parts.append(f"new classes: {', '.join(changes['new_classes'])}")
    if changes["gone_classes"]:
        names = ", ".join(changes["gone_classes"])
        parts.append(
            f"no longer there: {names} (if a class was renamed, its images "
            "count as removed and added, and keep their splits)"
        )
    return f"extends {earlier}: {'; '.join(parts)}"
