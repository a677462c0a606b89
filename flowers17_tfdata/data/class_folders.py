"""Splits as class folders, which Keras reads back to the same labels."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from flowers17_tfdata import files
from flowers17_tfdata.data import image_folder
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line

# What Windows and exFAT forbid in names; / is the separator everywhere.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

# File systems take 255 bytes, or 143 where they encrypt names.
_LONGEST_NAME = 120

_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
}


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Returns a folder name for each class, whose sorted order is the labels'.

    Keras numbers classes by their folders' sorted names. Where that would be
    another order, or a file system might take two names for one or store one
    in another form, a number comes before each name.
    """
    safe = [_safe_name(name) for name in class_names]
    if (
        safe == sorted(safe)
        and len({name.lower() for name in safe}) == len(safe)
        # macOS decomposes other letters, which sort differently then.
        and all(name.isascii() for name in safe)
    ):
        return safe
    width = len(str(len(safe) - 1))
    return [f"{k:0{width}}_{name}" for k, name in enumerate(safe)]


def _safe_name(name: str) -> str:
    """Returns a name that any file system takes, and none hides."""
    name = unicodedata.normalize("NFC", name)
    name = _FORBIDDEN.sub("_", name).strip().rstrip(".")
    encoded = name.encode("utf-8", "replace")[:_LONGEST_NAME]
    name = encoded.decode("utf-8", "ignore").rstrip(" .")
    if not name or name.startswith(".") or _RESERVED.fullmatch(name):
        name = f"_{name}"
    return name


def write(source: Source, path: str | os.PathLike) -> bool:
    """Writes PATH/SPLIT/CLASS/FILE, the images' bytes as they are.

    And `labels.txt`: the class names in the order of the labels. The folder is
    whole or absent, whenever the process is killed.

    Args:
      source: the data set.
      path: new, an empty folder, or what this wrote of the same data set.

    Returns:
      Whether it was written; False: it was there, and unchanged.

    Raises:
      UserError: the path holds something else, or can't be written.
    """
    path = pathlib.Path(path).expanduser()
    if _is_whole(path, source):
        return False
    with files.whole_folder(path, f"--folders_dir {path}") as temporary:
        _write_images(source, temporary)
    return True


def _is_whole(path: pathlib.Path, source: Source) -> bool:
    """Whether the folder holds the data set already; False: it is empty.

    Raises:
      UserError: it holds something else.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    mark = image_folder.read_mark(path)
    if mark.get("dataset") == source.name:
        if mark.get("listing") == _listing(path):
            return True
        what = f"{source.name}, but files were added, removed or changed"
    elif mark:
        what = f"{mark.get('dataset')}; this is {source.name}"
    else:
        what = "something else"
    raise UserError(
        f"--folders_dir {path} must be new or empty; it holds {what}"
    )


def _listing(folder: pathlib.Path) -> str:
    """Returns a hash of the names and sizes of all files but the mark."""
    files = sorted(
        f"{file.relative_to(folder).as_posix()}\t{file.stat().st_size}\n"
        for file in folder.rglob("*")
        if file.is_file() and file.name != image_folder.MARK
    )
    return hashlib.sha256("".join(files).encode()).hexdigest()


def _write_images(source: Source, folder: pathlib.Path) -> None:
    names = folder_names(source.class_names)
    for split in source.split_sizes:
        taken = set()
        for name in names:
            # A class without images keeps its place among the labels.
            (folder / split / name).mkdir(parents=True)
        for example in source.read(split).as_numpy_iterator():
            data, image_id = example["image"], example["id"].decode()
            if not 0 <= example["label"] < len(names):
                raise UserError(
                    f"{source.name}, split {split}: {image_id} has no label "
                    f"({example['label']})"
                )
            suffix = _suffix(data)
            if suffix is None:
                raise UserError(
                    f"{source.name}, split {split}: {image_id} is no JPEG, "
                    "PNG, GIF or BMP; --phase=prepare lists all such files"
                )
            stem = os.path.splitext(image_id.rpartition("/")[2])[0]
            stem = _safe_name(stem)
            folder_name = names[example["label"]]
            number, name = 1, stem
            # Without regard to case, as some file systems compare.
            while (folder_name, f"{name}{suffix}".lower()) in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add((folder_name, f"{name}{suffix}".lower()))
            (folder / split / folder_name / f"{name}{suffix}").write_bytes(data)
    text = "".join(f"{one_line(name)}\n" for name in source.class_names)
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    mark = {
        "dataset": source.name,
        "class_folders": dict(zip(names, source.class_names, strict=True)),
        "listing": _listing(folder),
    }
    # Last: without it the folder is not one of ours.
    (folder / image_folder.MARK).write_text(json.dumps(mark))


def _suffix(data: bytes) -> str | None:
    return next((s for m, s in _MAGIC.items() if data.startswith(m)), None)


def write_splits(
    path: pathlib.Path, class_names: Sequence[str], scan: Scan
) -> None:
    """Writes a row an image: its file (or id), class and split.

    Raises:
      UserError: it can't be written.
    """
    with (
        files.whole_file(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "class", "split"])
        for image_id, label, split in zip(
            scan.ids, scan.labels, scan.splits, strict=True
        ):
            writer.writerow([image_id, class_names[label], split])


def describe_changes(
    path: pathlib.Path, class_names: Sequence[str], scan: Scan
) -> str:
    """Says what is different from what `write_splits` wrote; '' if unknown.

    Args:
      path: of the file.
      class_names: of the data set as it is now.
      scan: likewise.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            before = {
                row["file"]: (row["class"], row["split"])
                for row in csv.DictReader(stream)
                if row["split"]
            }
    except (OSError, ValueError, KeyError, csv.Error):
        return ""
    names = [class_names[label] for label in scan.labels]
    now = {
        image_id: (name, split)
        for image_id, name, split in zip(
            scan.ids, names, scan.splits, strict=True
        )
        if split
    }
    differing = sorted(
        i for i in before.keys() | now.keys() if before.get(i) != now.get(i)
    )
    if not differing:
        return "the contents of images"
    counts = collections.Counter(
        "added" if i not in before else "removed" if i not in now else "moved"
        for i in differing
    )
    moved = [i for i in differing if i in before and i in now]
    first = (moved or differing)[0]
    change = " to ".join(
        " of class ".join(side[first][::-1]) if first in side else "nowhere"
        for side in (before, now)
    )
    numbers = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    return f"images: {numbers}, first {first} ({change})"
