"""Class folders on disk: which files are images of which class and split."""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

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

_LARGEST_NUM_CLASSES = 100_000
_NUMBERED = re.compile(r"(\d+)_(.+)", re.DOTALL)


class ImageFolder(NamedTuple):
    """The images below a folder, sorted by id.

    Attributes:
      class_names: in the order of the labels: folder names, sorted, without
        the numbers that `--phase=folders` puts before them.
      ids: paths relative to the folder, with `/`, `[n]`.
      labels: class of each, `[n]`.
      splits: the split folder that each lies in, `[n]`; all `train` where
        there are no split folders.
      skipped: `{suffix: number of files}` that are no images.
    """

    class_names: tuple[str, ...]
    ids: list[str]
    labels: list[int]
    splits: list[str]
    skipped: dict[str, int]


def find_images(root: pathlib.Path) -> ImageFolder:
    """Lists PATH/CLASS/*.jpg, or PATH/{train,validation,test}/CLASS/*.jpg.

    Classes may have folders inside. Hidden files and folders are passed over.

    Raises:
      ConfigError: there is no such folder, or its layout is neither of the
        two.
    """
    if not root.is_dir():
        raise ConfigError(f"--dataset=folder:{root} must name a folder")
    split_folders = _split_folders(root)
    folders = split_folders or {"train": [root]}
    class_folders = {
        split: [child for path in paths for child in _folders_in(path)]
        for split, paths in folders.items()
    }
    names = _check_classes(root, class_folders)
    label_of = {name: label for label, name in enumerate(names)}
    found, skipped = [], collections.Counter()
    for split, paths in class_folders.items():
        for path in paths:
            for image in _images_below(path, skipped):
                image_id = image.relative_to(root).as_posix()
                found.append((image_id, label_of[path.name], split))
    found.sort()
    _check_enough(root, found, names)
    ids, labels, splits = (list(column) for column in zip(*found, strict=True))
    return ImageFolder(
        _without_numbers(names), ids, labels, splits, dict(skipped)
    )


def _folders_in(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        child
        for child in path.iterdir()
        if child.is_dir() and not child.name.startswith(".")
    )


def _split_folders(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the folders of each split; none if the folders are classes."""
    folders = _folders_in(root)
    splits = {f: _SPLIT_NAMES.get(f.name.lower()) for f in folders}
    if "train" not in splits.values():
        return {}
    others = [f.name for f, split in splits.items() if split is None]
    if others:
        raise ConfigError(
            f"--dataset=folder:{root} must hold class folders alone, or split "
            f"folders (train, validation, test) alone; got train beside "
            f"{others[0]}"
        )
    found = collections.defaultdict(list)
    for folder, split in splits.items():
        found[split].append(folder)
    return dict(found)


def _check_classes(
    root: pathlib.Path, class_folders: dict[str, list[pathlib.Path]]
) -> list[str]:
    """Returns the class folders' names, sorted; those of train decide."""
    names = sorted({path.name for path in class_folders["train"]})
    if not 2 <= len(names) <= _LARGEST_NUM_CLASSES:
        raise ConfigError(
            f"--dataset=folder:{root} must hold a folder for each of at least "
            f"2 classes; got {len(names)}"
        )
    for split, paths in class_folders.items():
        for path in paths:
            if path.name not in names:
                raise ConfigError(
                    f"--dataset=folder:{root}: every class of {split} must be "
                    f"one of train's, too; got {path.name}"
                )
    return names


def _images_below(
    folder: pathlib.Path, skipped: collections.Counter
) -> Iterator[pathlib.Path]:
    seen = set()
    # Links are followed: collections are often made of them.
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in decode.SUFFIXES:
                yield pathlib.Path(path, name)
            else:
                skipped[suffix or "(none)"] += 1


def _check_enough(root, found, names) -> None:
    counts = collections.Counter(label for _, label, _ in found)
    for label, name in enumerate(names):
        if not counts[label]:
            raise ConfigError(
                f"--dataset=folder:{root}: every class must hold images "
                f"({', '.join(decode.SUFFIXES)}); {name} holds none"
            )


def _without_numbers(names: list[str]) -> tuple[str, ...]:
    """Takes off numbers that are there only to sort the names by."""
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if all(m and int(m[1]) == k for k, m in enumerate(matches)):
        return tuple(m[2] for m in matches)
    return tuple(names)
