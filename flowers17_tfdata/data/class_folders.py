"""Splits as class folders, which Keras reads back to the same labels."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

from flowers17_tfdata.data import decode
from flowers17_tfdata.data.scan import Scan
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line

# Tells a folder that this module wrote from one that it must not replace.
_MARK = ".flowers17_tfdata.json"

# What Windows and exFAT forbid in names; / is the separator everywhere.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Returns a folder name for each class, whose sorted order is the labels'.

    Keras numbers classes by their folders' sorted names. Where that would be
    another order, or two names would be one, a number comes before each name.
    """
    safe = [
        _FORBIDDEN.sub("_", name).strip().rstrip(".") or "_"
        for name in class_names
    ]
    if safe == sorted(set(safe)):
        return safe
    width = len(str(len(safe) - 1))
    return [f"{k:0{width}}_{name}" for k, name in enumerate(safe)]


def write(source: Source, path: str | os.PathLike) -> pathlib.Path:
    """Writes PATH/SPLIT/CLASS/FILE, the images' bytes as they are.

    And `labels.txt`: the class names in the order of the labels.

    Args:
      source: the data set.
      path: replaced if it is one of these, new otherwise.

    Returns:
      The folder.

    Raises:
      UserError: the path holds something else, or can't be written.
    """
    path = pathlib.Path(path).expanduser()
    holds = path.is_dir() and any(path.iterdir())
    if (path.exists() and not path.is_dir()) or (
        holds and not (path / _MARK).exists()
    ):
        raise UserError(
            f"--folders_dir {path} must be new, empty, or of an earlier "
            "--phase=folders; it holds something else"
        )
    temporary = path.with_name(f"incomplete_{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_images(source, temporary)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"--folders_dir {path} can't be written: {one_line(error)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _write_images(source: Source, folder: pathlib.Path) -> None:
    names = folder_names(source.class_names)
    for split in source.split_sizes:
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for example in source.read(split).as_numpy_iterator():
            target = folder / split / names[example["label"]]
            data, stem = example["image"], example["id"].decode()
            stem = _FORBIDDEN.sub("_", stem.rpartition("/")[2])
            stem = os.path.splitext(stem)[0] or "_"
            _free_path(target, stem, _suffix(data)).write_bytes(data)
    text = "".join(f"{name}\n" for name in source.class_names)
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    (folder / _MARK).write_text(json.dumps({"dataset": source.name}))


def _free_path(folder: pathlib.Path, stem: str, suffix: str) -> pathlib.Path:
    """Returns a path that no other image of the class has."""
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}{suffix}"
    return path


def _suffix(data: bytes) -> str:
    for magic, suffix in (
        (b"\x89PNG", ".png"),
        (b"GIF8", ".gif"),
        (b"BM", ".bmp"),
    ):
        if data.startswith(magic):
            return suffix
    return decode.SUFFIXES[0]


def write_splits(
    path: pathlib.Path, class_names: Sequence[str], scan: Scan
) -> None:
    """Writes a row an image: its file (or id), class and split.

    Raises:
      UserError: it can't be written.
    """
    temporary = path.with_name(f"incomplete_{path.name}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["file", "class", "split"])
            for image_id, label, split in zip(
                scan.ids, scan.labels, scan.splits, strict=True
            ):
                writer.writerow([image_id, class_names[label], split])
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {one_line(error)}"
        ) from error
