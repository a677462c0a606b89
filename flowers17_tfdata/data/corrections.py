"""Applies a table of corrected labels to a data set, whose files stay."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from flowers17_tfdata.data import csv_table
from flowers17_tfdata.data.csv_table import Mistake
from flowers17_tfdata.data.file_source import FileSource
from flowers17_tfdata.data.source import Correction, Place, Source
from flowers17_tfdata.errors import (
    ConfigError,
    counted,
    did_you_mean,
    one_line,
)

# In the column new_class. A class name may be any word, and an empty cell may
# be an accident.
DROP = "(drop)"

_COLUMNS = {
    "file": ("file", "path", "filename", "image", "id"),
    "class": ("class", "label", "category"),
    "new_class": ("newclass", "newlabel", "newcategory"),
    "split": ("split",),
}
_REQUIRED = ("file", "class", "new_class")

# The label of an image that is dropped. TFDS marks missing labels by -1.
_DROPPED = -2


class _Row(NamedTuple):
    """A line of the table; `new_class` may be `DROP`, `split` ''."""

    line: int
    file: str
    label: str
    new_class: str
    split: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrectedSource(Source):
    """A data set with other labels for some images, and without others.

    Dropped images are in no split; `scan` has them with the split ''.
    """

    _base: Source
    # The new label of each image that changes, or `_DROPPED`.
    _labels: Mapping[Place, int]

    def read(self, split):
        self.check_split(split)
        examples = self._base.read(split)
        changed = {i: n for (s, i), n in self._labels.items() if s == split}
        if not changed:
            return examples
        ids = tf.constant(list(changed))
        labels = tf.constant(list(changed.values()), tf.int64)

        def correct(example):
            found = tf.boolean_mask(labels, ids == example["id"])
            label = tf.concat([found, [example["label"]]], axis=0)[0]
            return {**example, "label": label}

        corrected = examples.map(correct, num_parallel_calls=tf.data.AUTOTUNE)
        return corrected.filter(lambda example: example["label"] != _DROPPED)

    def read_images(self, split, ids):
        return self._base.read_images(split, ids)

    def fingerprints(self, split):
        """Those of the same images without corrections.

        So an image that a model was trained on is known by either label.
        """
        return self._base.fingerprints(split)

    def scan(self, on_scanned=None):
        scan = self._base.scan(on_scanned)
        labels, splits = scan.labels.copy(), list(scan.splits)
        for k, place in enumerate(zip(scan.splits, scan.ids, strict=True)):
            new = self._labels.get(place)
            if new == _DROPPED:
                splits[k] = ""
            elif new is not None:
                labels[k] = new
        found = scan.images.damage.items()
        damage = {k: what for k, what in found if splits[k]}
        images = scan.images._replace(damage=damage)
        return scan._replace(labels=labels, splits=splits, images=images)

    def groups(self, scan):
        return self._base.groups(scan)

    def known_groups(self, places):
        return self._base.known_groups(places)


def correct(source: Source, table: pathlib.Path) -> Source:
    """Returns the data set with the labels that a table corrects.

    The first line names the columns `file` (the image's id), `class` (the one
    that the data set gives it) and `new_class` (the right one, the same one to
    keep it, or `DROP`), and `split` where ids repeat.

    Args:
      source: the data set, divided into splits. Images keep their splits.
      table: see `csv_table.read_rows`.

    Raises:
      ConfigError: it is no such table, a line of it doesn't fit the data set,
        or it leaves a class without images to train on.
    """
    flag = f"--corrections={table}"
    try:
        rows = csv_table.read_rows(table, _COLUMNS, _REQUIRED, _make_row)
        if not rows:
            raise Mistake("must hold a line; it holds none")
        images, names = list(_labels(source)), list(source.class_names)
        found = _find(rows, images, names)
        labels = {
            (c.split, c.id): (
                names.index(c.new_label) if c.new_label else _DROPPED
            )
            for c in found
            if c.changes
        }
        _check_left(images, labels, names)
    except Mistake as mistake:
        raise ConfigError(f"{flag}: {one_line(mistake)}") from mistake
    except OSError as error:
        raise ConfigError(f"{flag} can't be read: {one_line(error)}") from error
    dropped = collections.Counter(
        split for (split, _), label in labels.items() if label == _DROPPED
    )
    note = (
        f"corrections of {table.name}: "
        f"{counted(len(labels) - dropped.total(), 'label')} changed, "
        f"{counted(dropped.total(), 'image')} dropped, "
        f"{counted(len(found) - len(labels), 'label')} kept"
    )
    return CorrectedSource(
        name=_name(source.name, labels),
        class_names=source.class_names,
        split_sizes={s: n - dropped[s] for s, n in source.split_sizes.items()},
        known_near_duplicates=source.known_near_duplicates,
        notes=(*source.notes, note),
        corrections=tuple(found),
        _base=source,
        _labels=labels,
    )


def copy_path(workdir: pathlib.Path) -> pathlib.Path:
    """Returns where a run keeps the table that it was trained with."""
    return workdir / "corrections_applied.csv"


def count_undone(earlier: pathlib.Path, source: Source) -> int:
    """Returns how many corrections of an earlier run a data set lacks.

    Args:
      earlier: the workdir of that run.
      source: the data set, with its own corrections.
    """
    path = copy_path(earlier)
    if not path.exists():
        return 0
    rows = csv_table.read_rows(path, _COLUMNS, _REQUIRED, _make_row)
    now = {(c.id, c.new_label or DROP) for c in source.corrections}
    before = {(r.file, r.new_class) for r in rows if r.new_class != r.label}
    return len(before - now)


def _make_row(line: int, **values: str) -> _Row:
    for name in _REQUIRED:
        if not values[name]:
            hint = ""
            if name == "new_class":
                hint = f": write a class, the same to keep it, or {DROP}"
            raise Mistake(f"the {name} is missing{hint}")
    text = {
        name: unicodedata.normalize("NFC", value)
        for name, value in values.items()
    }
    return _Row(
        line,
        text["file"],
        text["class"],
        text["new_class"],
        text.get("split", ""),
    )


def _labels(source: Source) -> Iterator[tuple[Place, int]]:
    """Yields the label of every image in a split."""
    if isinstance(source, FileSource):
        # `FileSource.read` would read the files.
        scan = source.scan()
        labels = scan.labels.tolist()
        for split, image_id, label in zip(
            scan.splits, scan.ids, labels, strict=True
        ):
            if split:
                yield (split, image_id), label
        return
    for split in source.split_sizes:
        rows = source.read(split).map(lambda e: (e["id"], e["label"]))
        for image_id, label in rows.as_numpy_iterator():
            yield (split, image_id.decode()), int(label)


def _find(
    rows: Sequence[_Row],
    images: Sequence[tuple[Place, int]],
    names: Sequence[str],
) -> list[Correction]:
    """Finds the image of each row, and checks its classes."""
    placed = collections.defaultdict[str, list[tuple[str, int]]](list)
    for (split, image_id), label in images:
        placed[image_id].append((split, label))
    known = {unicodedata.normalize("NFC", name): name for name in names}
    found: dict[Place, Correction] = {}
    line_of: dict[Place, int] = {}
    for row in rows:
        where = f"line {row.line}: {row.file}"
        split, label = _place(where, row, placed)
        for name in (row.label, row.new_class):
            if name not in known and name != DROP:
                hint = did_you_mean(name, known)
                if name.strip("()").lower() in ("drop", "delete", "remove"):
                    hint = f" (did you mean {DROP}?)"
                raise Mistake(f"{where}: there is no class {name}{hint}")
        if known.get(row.label) != names[label]:
            hint = ""
            if known.get(row.new_class) == names[label]:
                hint = ", which is the new one: it is corrected already"
            raise Mistake(
                f"{where} must have the class that the data set gives it, "
                f"{names[label]}{hint}; got {row.label}"
            )
        new = "" if row.new_class == DROP else known[row.new_class]
        correction = Correction(split, row.file, names[label], new)
        place = split, row.file
        if found.setdefault(place, correction) != correction:
            raise Mistake(
                f"{where} must have one new class; line {line_of[place]} "
                "gives it another"
            )
        line_of.setdefault(place, row.line)
    return sorted(found.values())


def _place(
    where: str, row: _Row, placed: Mapping[str, Sequence[tuple[str, int]]]
) -> tuple[str, int]:
    """Returns the split and the label of the image that a row names.

    Args:
      where: the start of the error messages.
      row: the row.
      placed: the splits and the labels of all images of an id.
    """
    places = placed.get(row.file, ())
    if not places:
        raise Mistake(
            f"{where} must be an image of the data set, named as in splits.csv"
            f"{did_you_mean(row.file, placed)}"
        )
    fitting = [p for p in places if not row.split or p[0] == row.split]
    if len(fitting) != 1:
        raise Mistake(
            f"{where} must name one image; it is in "
            f"{', '.join(split for split, _ in places)}: write which in a "
            f"column split; got {row.split!r}"
        )
    return fitting[0]


def _check_left(
    images: Sequence[tuple[Place, int]],
    changed: Mapping[Place, int],
    names: Sequence[str],
) -> None:
    """Refuses corrections that leave no image of a class, or of a split."""
    had = {(place[0], label) for place, label in images}
    has = {(place[0], changed.get(place, label)) for place, label in images}
    for split, label in sorted(had - has):
        if split == "train":
            raise Mistake(
                f"every class must keep images to train on; {names[label]} "
                "has none left"
            )
    left = {split for split, label in has if label != _DROPPED}
    for split in sorted({split for split, _ in had} - left):
        raise Mistake(f"no image is left in split {split}")


def _name(name: str, changed: Mapping[Place, int]) -> str:
    """Returns the name of the data set with a digest of what changed."""
    if not changed:
        return name
    digest = hashlib.sha256(name.rpartition("@")[2].encode())
    for (_, image_id), label in sorted(changed.items()):
        digest.update(f"{image_id}\t{label}\n".encode())
    stem = name.rpartition("@")[0] or name
    return f"{stem}@{digest.hexdigest()[:8]}"
