"""Class folders on disk: which files are images of which class and split."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowers17_tfdata.data import decode
from flowers17_tfdata.errors import ConfigError

# Names of split folders, as other tools write them, too.
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "unused": "unused",
}

# Images to a viewer, not to TensorFlow's decoder.
_FOREIGN = {
    *(".heic", ".heif", ".webp", ".avif", ".jxl", ".jp2", ".tif", ".tiff"),
    *(".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
}

# Lies in class folders that this package wrote, and says what they are.
MARK = ".flowers17_tfdata.json"

_LARGEST_NUM_CLASSES = 100_000
_NUMBERED = re.compile(r"(\d+)_(.+)", re.DOTALL)


class ImageFolder(NamedTuple):
    """The images below a folder, sorted by id.

    Attributes:
      class_names: in the order of the labels: folder names, sorted by code
        points, without the numbers that `--phase=folders` puts before them.
      ids: paths relative to the folder, with `/`, `[n]`.
      labels: class of each, `[n]`.
      splits: the split folder that each lies in, `[n]`; all `train` where
        there are no split folders.
      split_folders: the splits that have folders.
      notes: what was passed over, one line each.
    """

    class_names: tuple[str, ...]
    ids: list[str]
    labels: list[int]
    splits: list[str]
    split_folders: tuple[str, ...]
    notes: tuple[str, ...]


def find_images(root: pathlib.Path) -> ImageFolder:
    """Lists PATH/CLASS/*.jpg, or PATH/{train,validation,test}/CLASS/*.jpg.

    Classes may have folders inside. Hidden files and folders are passed over.

    Raises:
      ConfigError: there is no such folder, or its layout is neither of the
        two.
      OSError: a folder can't be listed.
    """
    if not root.is_dir():
        raise ConfigError(f"--dataset=folder:{root} must name a folder")
    split_folders = _split_folders(root)
    folder_of = split_folders or {"train": root}
    names = _class_names(root, folder_of)
    skipped = _Skipped()
    found = []
    for split, folder in folder_of.items():
        skipped.count_strays(folder)
        for label, name in enumerate(names):
            # Not there: one of the unused split's.
            if (folder / name).is_dir():
                for image in _images_below(folder / name, skipped):
                    image_id = image.relative_to(root).as_posix()
                    found.append((image_id, label, split))
    if split_folders:
        skipped.count_strays(root)
    found.sort()
    _check_enough(root, found, folder_of, names, skipped.notes())
    ids, labels, splits = (list(column) for column in zip(*found, strict=True))
    return ImageFolder(
        _names_of(root, names),
        ids,
        labels,
        splits,
        tuple(split_folders),
        skipped.notes(),
    )


def _is_hidden(name: str) -> bool:
    # macOS leaves the second in archives.
    return name.startswith(".") or name == "__MACOSX"


def _folders_in(path: pathlib.Path) -> list[pathlib.Path]:
    folders = sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and not _is_hidden(child.name)
    )
    for folder in folders:
        if not (_is_unicode(folder.name) and folder.name.isprintable()):
            raise ConfigError(
                f"--dataset=folder:{path}: a class folder's name must be UTF-8 "
                f"without control characters; got {os.fsencode(folder.name)!r}"
            )
    return folders


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each split; none if the folders are classes."""
    folders = _folders_in(root)
    splits = {f: _SPLIT_NAMES.get(f.name.lower()) for f in folders}
    if not any(splits.values()):
        return {}
    rule = (
        f"--dataset=folder:{root} must hold class folders alone, or split "
        "folders (train, validation, test) alone"
    )
    found: dict[str, pathlib.Path] = {}
    for folder, split in splits.items():
        if split is None:
            named = next(f.name for f, s in splits.items() if s)
            raise ConfigError(f"{rule}; got {named} beside {folder.name}")
        if split in found:
            raise ConfigError(
                f"{rule}, each once; got {found[split].name} and {folder.name}"
            )
        found[split] = folder
    if "train" not in found:
        raise ConfigError(f"{rule}; got {folders[0].name} but no train")
    return found


def _class_names(
    root: pathlib.Path, folder_of: dict[str, pathlib.Path]
) -> list[str]:
    """Returns the class folders' names, sorted: the same in every split."""
    names = [path.name for path in _folders_in(folder_of["train"])]
    if not 2 <= len(names) <= _LARGEST_NUM_CLASSES:
        hint = ""
        if len(names) == 1 and len(_folders_in(root / names[0])) > 1:
            hint = f" (did you mean folder:{root / names[0]}?)"
        raise ConfigError(
            f"--dataset=folder:{root} must hold a folder for each of at least "
            f"2 classes; got {len(names)}{hint}"
        )
    for split, folder in folder_of.items():
        own = {path.name for path in _folders_in(folder)}
        lacking = set() if split == "unused" else set(names) - own
        for differing, has, lacks in (
            (own - set(names), split, "train"),
            (lacking, "train", split),
        ):
            if differing:
                raise ConfigError(
                    f"--dataset=folder:{root} must hold the same class folders "
                    f"in each split (they may be empty); {min(differing)} is "
                    f"in {has} but not in {lacks}"
                )
    return names


def _images_below(
    folder: pathlib.Path, skipped: _Skipped
) -> Iterator[pathlib.Path]:
    def stop(error: OSError):
        # os.walk would pass over a folder that it can't list.
        raise error

    seen = set()
    # Links are followed: collections are often made of them.
    for path, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not _is_hidden(f))
        for name in files:
            if skipped.takes(path, name):
                yield pathlib.Path(path, name)


class _Skipped:
    """Decides which files are images, and counts the others."""

    def __init__(self):
        self._foreign = collections.Counter()
        self._others = collections.Counter()
        self._hidden = self._strays = self._unnamed = 0

    def takes(self, folder: str, name: str) -> bool:
        """Whether a file is an image."""
        path = os.path.join(folder, name)
        suffix = os.path.splitext(name)[1].lower()
        if _is_hidden(name):
            self._hidden += 1
        elif suffix in _FOREIGN:
            self._foreign[suffix] += 1
        elif suffix not in decode.SUFFIXES:
            self._others[suffix or "(none)"] += 1
        elif os.path.exists(path) and not os.path.isfile(path):
            # A pipe, say: reading it would wait for ever. A dangling link is
            # told of with what can't be decoded.
            self._others["(no regular file)"] += 1
        elif not (_is_unicode(name) and _is_unicode(os.path.basename(folder))):
            self._unnamed += 1
        else:
            return True
        return False

    def count_strays(self, folder: pathlib.Path) -> None:
        """Counts images that lie beside class folders."""
        self._strays += sum(
            path.suffix.lower() in decode.SUFFIXES and not _is_hidden(path.name)
            for path in folder.iterdir()
            if path.is_file()
        )

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self._foreign:
            notes.append(
                f"passed over: {_count(self._foreign)}, which the decoder "
                "can't read: convert them to JPEG or PNG to use them"
            )
        if self._others:
            notes.append(
                f"passed over: {_count(self._others)}, which are no images"
            )
        for number, what in (
            (self._hidden, "hidden file(s)"),
            (self._strays, "image(s) in no class folder"),
            (self._unnamed, "image(s) whose names are not UTF-8: rename them"),
        ):
            if number:
                notes.append(f"passed over: {number} {what}")
        return tuple(notes)


def _count(counter: collections.Counter) -> str:
    return ", ".join(f"{n} {suffix}" for suffix, n in counter.most_common())


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_enough(root, found, folder_of, names, notes) -> None:
    """Refuses a class without images to train on, and an empty split.

    Carving a split in place of a folder that is there, but empty, would
    surprise.
    """
    why = f" ({'; '.join(notes)})" if notes else ""
    kinds = ", ".join(decode.SUFFIXES)
    trained = {label for _, label, split in found if split == "train"}
    for label, name in enumerate(names):
        if label not in trained:
            raise ConfigError(
                f"--dataset=folder:{root}: every class must hold images to "
                f"train on ({kinds}); {name} holds none{why}"
            )
    for split, folder in folder_of.items():
        if split not in ("unused", *(s for _, _, s in found)):
            raise ConfigError(
                f"--dataset=folder:{root}: a split folder must hold images "
                f"({kinds}), or be left out; {folder.name} holds none{why}"
            )


def read_mark(root: pathlib.Path) -> dict[str, Any]:
    """Returns what the `MARK` in a folder says; nothing if there is none."""
    try:
        mark = json.loads((root / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _names_of(root: pathlib.Path, folders: list[str]) -> tuple[str, ...]:
    """Returns the names of the classes that folders were written for."""
    name_of = read_mark(root).get("class_folders")
    if isinstance(name_of, dict) and set(name_of) == set(folders):
        return tuple(str(name_of[folder]) for folder in folders)
    return _without_numbers(folders)


def _without_numbers(names: list[str]) -> tuple[str, ...]:
    """Takes off numbers that are there only to sort the names by."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if all(m and int(m[1]) == k for k, m in enumerate(matches)):
        bare = tuple(m[2] for m in matches)
        if len(set(bare)) == len(bare):
            return bare
    return tuple(names)
