"""Lists the images that a table names, with labels, splits and groups."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from flowers17_tfdata.data import csv_table, folder_listing, image_formats
from flowers17_tfdata.data.csv_table import Mistake
from flowers17_tfdata.data.listing import SPLIT_NAMES, Listing
from flowers17_tfdata.errors import ConfigError, one_line

# The columns that are read, and the names that each may have.
_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class", "category"),
    "split": ("split",),
    "group": ("group",),
}

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class _Row(NamedTuple):
    """A line of the table; `split` and `group` are '' if it has none."""

    line: int
    path: str
    label: str
    split: str
    group: str


def list_images(table: pathlib.Path) -> Listing:
    """Lists the images that a table of comma-separated values names.

    The first line names the columns, see `_COLUMNS`. Semicolons and tabs may
    separate them, too. Paths start in the table's folder. The class names are
    the labels, sorted by code points.

    Args:
      table: the absolute path of the table, UTF-8.

    Raises:
      ConfigError: there is no such table, or a line of it is wrong.
      OSError: it can't be read.
    """
    if not table.is_file():
        what = "it is a folder" if table.is_dir() else "there is none"
        raise ConfigError(f"--dataset=csv:{table} must name a file; {what}")
    try:
        make_row = functools.partial(_make_row, table.parent)
        rows = csv_table.read_rows(table, _COLUMNS, ("path", "label"), make_row)
        if not rows:
            raise Mistake("must hold a line for each image; it holds none")
        unique = _unique(rows)
        _check(unique)
        listing = _to_listing(unique, table.parent)
    except Mistake as mistake:
        what = one_line(mistake)
        raise ConfigError(f"--dataset=csv:{table}: {what}") from mistake
    repeated = len(rows) - len(unique)
    if not repeated:
        return listing
    note = f"lines that repeat an image and its label: {repeated}, used once"
    return listing._replace(notes=[*listing.notes, note])


def _make_row(
    root: pathlib.Path,
    line: int,
    path: str,
    label: str,
    split: str = "",
    group: str = "",
) -> _Row:
    for name, value in (("path", path), ("label", label)):
        if not value:
            raise Mistake(f"the {name} is missing")
    if _URL.match(path):
        raise Mistake(
            f"the path must name a file (download the images); got {path}"
        )
    if not folder_listing.may_be_a_name(label):
        raise Mistake(f"a label must have no control characters; got {label!r}")
    if split and split.lower() not in SPLIT_NAMES:
        raise Mistake(
            f"a split must be train, validation, test or unused; got {split!r}"
        )
    # Relative if it can be: then the table may move with its images.
    file = pathlib.Path(os.path.normpath(root / path))
    if file.is_relative_to(root):
        path = file.relative_to(root).as_posix()
    split = SPLIT_NAMES.get(split.lower(), "")
    return _Row(line, path, unicodedata.normalize("NFC", label), split, group)


def _unique(rows: Sequence[_Row]) -> list[_Row]:
    """Returns the rows sorted by path, each path once."""
    first: dict[str, _Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        for name in ("label", "split", "group"):
            one, two = getattr(other, name), getattr(row, name)
            if one != two:
                raise Mistake(
                    f"{row.path} must have one {name}; it has {one!r} in line "
                    f"{other.line} and {two!r} in line {row.line}"
                )
    return [first[path] for path in sorted(first)]


def _check(rows: Sequence[_Row]) -> None:
    """Refuses a single class, missing splits, and a group in two splits."""
    names = {row.label for row in rows}
    if len(names) < 2:
        raise Mistake(f"must hold at least 2 labels; got only {min(names)}")
    without = [row.line for row in rows if not row.split]
    if 0 < len(without) < len(rows):
        raise Mistake(
            f"line {min(without)}: the split is missing, and other lines have "
            "one: write train, validation, test or unused"
        )
    first: dict[str, _Row] = {}
    for row in rows:
        if not row.group or row.split == "unused":
            continue
        other = first.setdefault(row.group, row)
        if other.split != row.split:
            raise Mistake(
                f"a group must lie in one split; {row.group!r} is in "
                f"{other.split} (line {other.line}) and in {row.split} (line "
                f"{row.line})"
            )


def _to_listing(rows: Sequence[_Row], root: pathlib.Path) -> Listing:
    skipped: collections.Counter[str] = collections.Counter()
    kept = []
    for row in rows:
        path = root / row.path
        # Reading a pipe would wait for ever.
        if os.path.exists(path) and not os.path.isfile(path):
            raise Mistake(
                f"line {row.line}: the path must name a regular file; got "
                f"{row.path}"
            )
        suffix = path.suffix.lower()
        if suffix in image_formats.RAW_SUFFIXES:
            skipped[suffix] += 1
        else:
            kept.append((row, path))
    _check_found(kept, root)
    ids = folder_listing.make_ids([row.path for row, _ in kept])
    order = sorted(range(len(ids)), key=ids.__getitem__)
    kept = [kept[k] for k in order]
    class_names = sorted({row.label for row in rows})
    label_of = {name: label for label, name in enumerate(class_names)}
    notes = [folder_listing.skipped_note(skipped)] if skipped else []
    lookalikes = folder_listing.lookalikes(class_names)
    if lookalikes:
        notes.append(lookalikes)
    return Listing(
        tuple(class_names),
        sorted(ids),
        [path for _, path in kept],
        [label_of[row.label] for row, _ in kept],
        [row.split or "train" for row, _ in kept],
        tuple(sorted({row.split for row in rows if row.split})),
        notes,
        [row.line for row, _ in kept],
        [row.group for row, _ in kept],
    )


def _check_found(
    rows: Sequence[tuple[_Row, pathlib.Path]], root: pathlib.Path
) -> None:
    """Refuses a table of which no file exists: its paths are written wrong."""
    if not rows or any(os.path.exists(path) for _, path in rows):
        return
    row, _ = min(rows)
    hints = [
        row.path.replace("\\", "/"),
        *(row.path + suffix for suffix in image_formats.SUFFIXES),
        *(unicodedata.normalize(form, row.path) for form in ("NFC", "NFD")),
    ]
    hint = next((h for h in hints if os.path.isfile(root / h)), "")
    raise Mistake(
        "none of the files exists; paths start in the table's folder; first "
        f"line {row.line}: {row.path}"
        + (f" (did you mean {hint}?)" if hint else "")
    )
