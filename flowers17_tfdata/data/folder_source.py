"""Photographs of one's own, a folder for each class, as a `Source`."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from flowers17_tfdata.data import carving, image_folder
from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.image_folder import ImageFolder
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError

PREFIX = "folder:"

# More of them, and the folder is not what the user thinks it is.
_MOST_UNDECODABLE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """Class folders, split here where they aren't.

    Images that can't be decoded are in no split; `scan` tells of them.
    """

    root: pathlib.Path
    _scan: scan_lib.Scan

    def read(self, split):
        self.check_split(split)
        chosen = [k for k, s in enumerate(self._scan.splits) if s == split]
        ids = [self._scan.ids[k] for k in chosen]
        examples = tf.data.Dataset.from_tensor_slices(
            {
                "path": [str(self.root / image_id) for image_id in ids],
                "label": self._scan.labels[chosen],
                "id": ids,
            }
        )

        def load(example):
            return {
                "image": tf.io.read_file(example["path"]),
                "label": example["label"],
                "id": example["id"],
            }

        return examples.map(load, num_parallel_calls=tf.data.AUTOTUNE)

    def scan(self, on_scanned=None):
        del on_scanned
        return self._scan


def open_folder(
    path: str,
    *,
    cache_dir: pathlib.Path,
    fractions: Sequence[float],
    seed: int,
    on_scanned: scan_lib.OnScanned | None = None,
) -> FolderSource:
    """Lists, looks at and splits the images below a folder.

    Args:
      path: of the class folders, or of split folders of class folders.
      cache_dir: where what was seen in the images is kept.
      fractions: of train, validation and test, for the splits that are not
        there.
      seed: of the split.
      on_scanned: progress.

    Raises:
      ConfigError: the layout is not one of class folders.
      UserError: the images are too few, or most can't be decoded.
    """
    root = pathlib.Path(path).expanduser().resolve()
    found = image_folder.find_images(root)
    seen = _look(root, found, cache_dir, on_scanned)
    decodable = [k for k in range(len(found.ids)) if k not in seen.errors]
    undecodable = len(found.ids) - len(decodable)
    if undecodable > _MOST_UNDECODABLE * len(found.ids):
        first = min(seen.errors)
        raise UserError(
            f"--dataset=folder:{root}: {undecodable} of {len(found.ids)} "
            f"images can't be decoded, first {found.ids[first]} "
            f"({seen.errors[first]})"
        )
    splits = _split(found, seen, decodable, fractions, seed)
    scan = scan_lib.Scan(
        found.ids, splits, np.asarray(found.labels, np.int64), *seen
    )
    order = {name: k for k, name in enumerate((*carving.SPLITS, "unused"))}
    names = sorted({s for s in splits if s}, key=order.__getitem__)
    return FolderSource(
        name=f"{PREFIX}{root.name}@{_digest(found, splits)}",
        class_names=found.class_names,
        split_sizes={name: splits.count(name) for name in names},
        notes=_notes(found, seen.errors),
        root=root,
        _scan=scan,
    )


def _look(root, found: ImageFolder, cache_dir, on_scanned):
    keys = []
    for image_id in found.ids:
        try:
            status = (root / image_id).stat()
            state = f"{status.st_size}\n{status.st_mtime_ns}"
        except OSError:
            # A dangling link: told of with what can't be decoded.
            state = ""
        keys.append(f"{image_id}\n{state}")
    place = hashlib.sha256(str(root).encode("utf-8", "surrogateescape"))
    return scan_lib.scan_with_cache(
        cache_dir / f"{root.name}-{place.hexdigest()[:12]}.npz",
        keys,
        lambda position: (root / found.ids[position]).read_bytes(),
        on_scanned,
    )


def _split(
    found: ImageFolder, seen, decodable, fractions, seed: int
) -> list[str]:
    """Returns each image's split; '' for one that can't be decoded."""
    splits = [
        "" if k in seen.errors else split
        for k, split in enumerate(found.splits)
    ]
    wanted = carving.fractions_to_carve(found.splits, fractions)
    if not wanted:
        return splits
    train = [k for k in decodable if found.splits[k] == "train"]
    split_of = carving.carve(
        [found.ids[k] for k in train],
        [found.labels[k] for k in train],
        carving.find_groups(seen.thumbnails[train]),
        wanted,
        seed,
    )
    for k in train:
        splits[k] = split_of[found.ids[k]]
    return splits


def _digest(found: ImageFolder, splits: list[str]) -> str:
    """Returns a hash of which image is of which class and split."""
    digest = hashlib.sha256("\n".join(found.class_names).encode())
    for row in zip(found.ids, found.labels, splits, strict=True):
        text = "\t".join(map(str, row)) + "\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:8]


def _notes(found: ImageFolder, errors: dict[int, str]) -> tuple[str, ...]:
    notes = []
    if found.skipped:
        kinds = ", ".join(
            f"{count} {suffix}"
            for suffix, count in collections.Counter(
                found.skipped
            ).most_common()
        )
        notes.append(
            f"{sum(found.skipped.values())} files that are no JPEG, PNG, GIF "
            f"or BMP are passed over: {kinds}"
        )
    if errors:
        first = min(errors)
        notes.append(
            f"{len(errors)} images can't be decoded and are left out, first "
            f"{found.ids[first]} ({errors[first]}); audit.json lists them"
        )
    return tuple(notes)
