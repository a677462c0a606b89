"""Lists the images in class folders, with their classes and splits."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from flowers17_tfdata import files
from flowers17_tfdata.data import image_formats
from flowers17_tfdata.data.listing import SPLIT_NAMES, Listing
from flowers17_tfdata.errors import ConfigError, UserError, one_line

# The file that marks class folders written by this package and describes them.
MARK = ".flowers17_tfdata.json"

# Unicode's categories of characters that no name may hold: control characters,
# line breaks, and Python's stand-ins for bytes that aren't UTF-8.
_FORBIDDEN = {"Cc", "Zl", "Zp", "Cs"}

# Python's stand-ins for the bytes of a file name that isn't UTF-8.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")


def list_images(root: pathlib.Path) -> Listing:
    """Lists PATH/CLASS/*.jpg, or PATH/{train,validation,test}/CLASS/*.jpg.

    Classes may have folders inside. Hidden files and folders are skipped. The
    class names are folder names in Unicode's form NFC, sorted by code points,
    and in folders that `--phase=folders` wrote the names of their classes.

    Raises:
      ConfigError: there is no such folder, or its layout is neither of these.
      OSError: a folder can't be listed.
    """
    if not root.is_dir():
        what = "it is a file" if root.exists() else "there is none"
        raise ConfigError(f"--dataset=folder:{root} must name a folder; {what}")
    split_folders = _split_folders(root)
    folder_of = split_folders or {"train": root}
    classes_of = {s: _folders_in(folder) for s, folder in folder_of.items()}
    _check_classes(root, classes_of)
    label_of = {name: label for label, name in enumerate(classes_of["train"])}
    skipped: collections.Counter[str] = collections.Counter()
    found: list[tuple[pathlib.Path, int, str]] = []
    for split, classes in classes_of.items():
        for name, folder in classes.items():
            paths, others = images_below(folder, root)
            skipped += others
            found += [(path, label_of[name], split) for path in paths]
    for folder in {root, *folder_of.values()}:
        for path in folder.iterdir():
            if path.is_file() and not _kind_if_no_image(path, root):
                skipped["image{s} in no class folder"] += 1
    names = [path.relative_to(root).as_posix() for path, _, _ in found]
    ids = make_ids(names)
    rows = sorted(zip(ids, found, strict=True))
    note = skipped_note(skipped)
    return Listing(
        _names_of(root, list(label_of)),
        [image_id for image_id, _ in rows],
        [path for _, (path, _, _) in rows],
        [label for _, (_, label, _) in rows],
        [split for _, (_, _, split) in rows],
        tuple(split_folders),
        [text for text in (note, lookalikes(label_of)) if text],
    )


def make_ids(names: list[str]) -> list[str]:
    """Returns names for files that are the same on every system.

    macOS may write letters and their accents apart, as two characters.
    """
    ids = [unicodedata.normalize("NFC", name) for name in names]
    count = collections.Counter(ids)
    # Two files may differ by just that.
    return [i if count[i] == 1 else n for i, n in zip(ids, names, strict=True)]


def may_be_a_name(text: str) -> bool:
    """Whether a class may be called so."""
    return not _FORBIDDEN & {unicodedata.category(c) for c in text}


def images_below(
    folder: pathlib.Path, root: pathlib.Path
) -> tuple[list[pathlib.Path], collections.Counter[str]]:
    """Finds the images in a folder and in its folders, links followed.

    Args:
      folder: the folder.
      root: a folder above it, from which names are taken.

    Returns:
      The images, and the number of other files of each kind, in which `{s}`
      is the ending of the plural.
    """
    images, skipped = [], collections.Counter[str]()
    for path in _files_below(folder):
        kind = _kind_if_no_image(path, root)
        if kind:
            skipped[kind] += 1
        else:
            images.append(path)
    return images, skipped


def skipped_note(skipped: collections.Counter[str]) -> str:
    """Says in one line which kinds of files are skipped; '' for none."""
    if not skipped:
        return ""
    kinds = ", ".join(
        f"{n} {kind.replace('{s}', '' if n == 1 else 's')}"
        for kind, n in skipped.most_common()
    )
    return (
        f"skipped: {kinds}; only {', '.join(image_formats.FORMATS)} are read: "
        "convert other images to use them"
    )


def _is_hidden(name: str) -> bool:
    # macOS puts folders of the second name into archives.
    return name.startswith(".") or name == "__MACOSX"


def _folders_in(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders in a folder by name in NFC, sorted."""
    folders: dict[str, pathlib.Path] = {}
    for child in path.iterdir():
        if _is_hidden(child.name) or not child.is_dir():
            continue
        if not may_be_a_name(child.name):
            raise ConfigError(
                f"--dataset=folder:{path}: a class folder's name must be UTF-8 "
                f"without control characters; got {os.fsencode(child.name)!r}"
            )
        name = unicodedata.normalize("NFC", child.name)
        other = folders.setdefault(name, child)
        if other != child:
            raise ConfigError(
                f"--dataset=folder:{path}: {other.name!a} and "
                f"{child.name!a} are two folders of one name, {name} "
                "(Unicode writes it in two ways): merge them"
            )
    return dict(sorted(folders.items()))


def lookalikes(names: Iterable[str]) -> str:
    """Names two classes that differ by case or blanks alone; '' if none do."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.strip().casefold(), name)
        if other != name:
            return (
                f"two classes differ only by case or blanks: {other!r} and "
                f"{name!r}; merge them if they are one"
            )
    return ""


def _split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folder of each split; empty if the folders are classes."""
    folders = _folders_in(root)
    splits = {SPLIT_NAMES.get(n.lower(), ""): f for n, f in folders.items()}
    if not any(splits):
        return {}
    is_once = len(splits) == len(folders)
    if "" in splits or "train" not in splits or not is_once:
        # Split folders first, because the list may be cut.
        names = sorted(folders, key=lambda n: n.lower() not in SPLIT_NAMES)
        raise ConfigError(
            f"--dataset=folder:{root} must hold class folders alone, or split "
            "folders (train, validation, test) alone, each once, with train; "
            f"got {one_line(', '.join(names), 100)}"
        )
    return splits


def _check_classes(
    root: pathlib.Path, classes_of: dict[str, dict[str, pathlib.Path]]
) -> None:
    """Refuses fewer than 2 classes, and classes that differ between splits.

    Args:
      root: the data set's folder.
      classes_of: `{split: {name: class folder}}`.
    """
    train = classes_of["train"]
    if len(train) < 2:
        below = [f for f in train.values() if len(_folders_in(f)) > 1]
        hint = f" (did you mean folder:{below[0]}?)" if below else ""
        raise ConfigError(
            f"--dataset=folder:{root} must hold a folder for each of at least "
            f"2 classes; got {len(train)}{hint}"
        )
    for split, classes in classes_of.items():
        differing = classes.keys() ^ train.keys()
        if split == "unused":
            # A class may have no image left over.
            differing -= train.keys()
        if differing:
            raise ConfigError(
                f"--dataset=folder:{root} must hold the same class folders in "
                f"each split (they may be empty); train and {split} differ in "
                f"{one_line(', '.join(sorted(differing)), 100)}"
            )


def _files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the files in a folder and in its folders, links followed."""

    def stop(error: OSError):
        # os.walk would pass over a folder that it can't list.
        raise error

    seen = set()
    # Collections are often made of links, which may form a circle.
    for path, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not _is_hidden(f))
        yield from (pathlib.Path(path, name) for name in names)


def _kind_if_no_image(path: pathlib.Path, root: pathlib.Path) -> str:
    """Returns what kind of file is skipped, see `images_below`, or ''."""
    if _is_hidden(path.name):
        return "hidden file{s}"
    # A pipe, for example: reading it would wait for ever. A dangling link is
    # reported with the images that can't be decoded.
    if path.exists() and not path.is_file():
        return "pipe{s} or device{s}"
    suffix = path.suffix.lower()
    is_raw = suffix in image_formats.RAW_SUFFIXES
    is_named = suffix in image_formats.SUFFIXES
    if is_raw or not (is_named or _begins_as_image(path)):
        return f"{suffix} file{{s}}" if suffix else "file{s} without a suffix"
    if _NOT_UTF8.search(str(path.relative_to(root))):
        return "image{s} with a name that is not UTF-8"
    return ""


def _begins_as_image(path: pathlib.Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(image_formats.HEADER_BYTES)
    except OSError:
        return False
    return bool(image_formats.recognize(start))


def read_mark(root: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of `MARK` in a folder; empty if there is none."""
    mark = None
    with contextlib.suppress(UserError):
        mark = files.read_json(root / MARK)
    return mark if isinstance(mark, dict) else {}


def _names_of(root: pathlib.Path, folders: list[str]) -> tuple[str, ...]:
    """Returns the class names for which the folders were written."""
    name_of = read_mark(root).get("class_folders", {})
    if not isinstance(name_of, dict):
        return tuple(folders)
    # Folders of other classes may have been added.
    names = [str(name_of.get(folder, folder)) for folder in folders]
    return tuple(names if len(set(names)) == len(names) else folders)
