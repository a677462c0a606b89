"""Writes splits as class folders that Keras reads with the same labels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from flowers17_tfdata import files
from flowers17_tfdata.data import decode, folder_listing, image_formats
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line

# Windows and exFAT forbid these in names; / is the separator everywhere.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

# File systems accept 255 bytes, or 143 if they encrypt names.
_LONGEST_NAME = 120

_SUFFIX_OF = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp"}


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Returns a folder name for each class; they sort in the labels' order.

    Keras numbers classes by the sorted names of their folders. A number is put
    before each name if that order would differ, or if a file system might take
    two names for one or store a name in another form.
    """
    safe = [_safe_name(name) for name in class_names]
    if (
        safe == sorted(safe)
        and len({name.lower() for name in safe}) == len(safe)
        # macOS decomposes other letters, which then sort differently.
        and all(name.isascii() for name in safe)
    ):
        return safe
    width = len(str(len(safe) - 1))
    return [f"{k:0{width}}_{name}" for k, name in enumerate(safe)]


def _safe_name(name: str) -> str:
    """Returns a name that every file system accepts and none hides."""
    name = unicodedata.normalize("NFC", name)
    name = _FORBIDDEN.sub("_", name).strip().rstrip(".")
    encoded = name.encode("utf-8", "replace")[:_LONGEST_NAME]
    name = encoded.decode("utf-8", "ignore").rstrip(" .")
    if not name or name.startswith(".") or _RESERVED.fullmatch(name):
        name = f"_{name}"
    return name


def write(source: Source, path: str | os.PathLike) -> bool:
    """Writes the images, byte for byte, to PATH/SPLIT/CLASS/FILE.

    Also writes `labels.txt`: the class names in the order of the labels. The
    folder is whole or absent, even if the process is killed.

    Args:
      source: the data set.
      path: a new or empty folder, or one written earlier for this data set.

    Returns:
      True if the folder was written, False if it was there already, unchanged.

    Raises:
      UserError: the folder holds something else, or can't be written.
    """
    path = pathlib.Path(path).expanduser()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        _check_same(path, source)
        return False
    with files.whole_folder(path, f"--folders_dir {path}") as temporary:
        _write_images(source, temporary)
    return True


def _check_same(path: pathlib.Path, source: Source) -> None:
    """Raises a `UserError` unless the folder holds the data set, unchanged."""
    mark = folder_listing.read_mark(path)
    what = f"{mark.get('dataset', 'something else')}; this is {source.name}"
    if mark.get("dataset") == source.name:
        if mark.get("listing") == _listing(path):
            return
        what = f"{source.name}, but files were added, removed or changed"
    raise UserError(
        f"--folders_dir {path} must be new or empty; it holds {what}"
    )


def _listing(folder: pathlib.Path) -> str:
    """Returns a hash of the names and sizes of all files except the mark."""
    lines = sorted(
        f"{file.relative_to(folder).as_posix()}\t{file.stat().st_size}\n"
        for file in folder.rglob("*")
        if file.is_file() and file.name != folder_listing.MARK
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_images(source: Source, root: pathlib.Path) -> None:
    names = folder_names(source.class_names)
    for split in source.split_sizes:
        # A class without images keeps its place among the labels.
        folders = [root / split / name for name in names]
        for folder in folders:
            folder.mkdir(parents=True)
        taken = set()
        for example in source.read(split).as_numpy_iterator():
            data, label = example["image"], example["label"]
            image_id = example["id"].decode()
            where = f"{source.name}, split {split}: {image_id}"
            if not 0 <= label < len(names):
                raise UserError(f"{where} must have a label; got {label}")
            if image_formats.recognize(data) not in _SUFFIX_OF:
                # Keras reads no other formats.
                try:
                    data = decode.upright(data)
                except ValueError as error:
                    raise UserError(f"{where}: {one_line(error)}") from error
            suffix = _SUFFIX_OF[image_formats.recognize(data)]
            stem = _safe_name(pathlib.PurePosixPath(image_id).stem)
            number, file = 1, folders[label] / f"{stem}{suffix}"
            # Some file systems ignore case.
            while str(file).lower() in taken:
                number += 1
                file = folders[label] / f"{stem}_{number}{suffix}"
            taken.add(str(file).lower())
            file.write_bytes(data)
    text = labels_text(source.class_names)
    (root / "labels.txt").write_text(text, encoding="utf-8")
    mark = {
        "dataset": source.name,
        "class_folders": dict(zip(names, source.class_names, strict=True)),
        "listing": _listing(root),
    }
    (root / folder_listing.MARK).write_text(json.dumps(mark))


def labels_text(class_names: Sequence[str]) -> str:
    """Returns the contents of a `labels.txt`: one name a line, as it is."""
    # A TFDS data set's name may hold a line break.
    return "".join(f"{' '.join(n.splitlines())}\n" for n in class_names)


def write_splits(
    path: pathlib.Path, class_names: Sequence[str], scan: Scan
) -> None:
    """Writes a CSV file with the file (or id), class and split of each image.

    Raises:
      UserError: it can't be written.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file", "class", "split"])
    writer.writerows(_rows(class_names, scan))
    files.write_text(path, stream.getvalue())


def read_splits(path: pathlib.Path) -> list[tuple[str, str, str]]:
    """Returns the file, class and split of each image in a CSV file.

    Raises:
      UserError: `write_splits` didn't write the file, or it can't be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            _, *rows = csv.reader(stream)
        return [(file, name, split) for file, name, split in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} can't be read: {one_line(error)}") from error


def _rows(class_names: Sequence[str], scan: Scan) -> list[tuple[str, ...]]:
    names = [class_names[label] for label in scan.labels]
    return list(zip(scan.ids, names, scan.splits, strict=True))


def _places(rows: Iterable[Sequence[str]]) -> dict[str, str]:
    """Returns `{file: "CLASS in SPLIT"}` for the images in a split."""
    return {file: f"{name} in {split}" for file, name, split in rows if split}


def describe_changes(
    path: pathlib.Path, class_names: Sequence[str], scan: Scan
) -> str:
    """Describes how a data set differs from what `write_splits` wrote.

    Args:
      path: the CSV file.
      class_names: the data set's class names, as it is now.
      scan: the scan of the data set, as it is now.

    Returns:
      One line; '' if the file can't be read.
    """
    try:
        before = _places(read_splits(path))
    except UserError:
        return ""
    now = _places(_rows(class_names, scan))
    changes = {
        "moved": [f for f in now if before.get(f, now[f]) != now[f]],
        "added": [f for f in now if f not in before],
        "removed": [f for f in before if f not in now],
    }
    changed = [f for listed in changes.values() for f in sorted(listed)]
    if not changed:
        return "the contents of images"
    counts = ", ".join(f"{len(f)} {what}" for what, f in changes.items() if f)
    first = changed[0]
    return (
        f"images: {counts}, first {first} ({before.get(first, 'nowhere')} to "
        f"{now.get(first, 'nowhere')})"
    )
