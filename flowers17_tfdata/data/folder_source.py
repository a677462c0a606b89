"""Photographs of one's own, a folder for each class, as a `Source`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import DataConfig
from flowers17_tfdata.data import carving, decode, division, image_folder
from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.image_folder import ImageFolder
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line

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
    # Bytes of each file, as text.
    _file_sizes: tuple[str, ...]

    def read(self, split):
        self.check_split(split)
        chosen = [k for k, s in enumerate(self._scan.splits) if s == split]
        # By name they would come class by class; the first batches of them,
        # which batch-norm is calibrated by, must show all classes.
        chosen.sort(key=lambda k: carving.order_key(0, self._scan.ids[k]))
        ids = [self._scan.ids[k] for k in chosen]
        examples = tf.data.Dataset.from_tensor_slices(
            {
                "path": tf.constant(
                    [os.fsencode(self.root / image_id) for image_id in ids],
                    tf.string,
                ),
                "label": self._scan.labels[chosen],
                "id": tf.constant(ids, tf.string),
            }
        )

        def load(example):
            return {
                "image": tf.io.read_file(example["path"]),
                "label": example["label"],
                "id": example["id"],
            }

        return examples.map(load, num_parallel_calls=tf.data.AUTOTUNE)

    def fingerprints(self, split):
        """Hashes of class, file name and size: they outlast a renamed root."""
        scan = self._scan
        return [
            hashlib.blake2b(
                "\n".join(
                    (
                        self.class_names[scan.labels[k]],
                        scan.ids[k].rpartition("/")[2],
                        self._file_sizes[k],
                    )
                ).encode(),
                digest_size=8,
            ).hexdigest()
            for k, own_split in enumerate(scan.splits)
            if own_split == split
        ]

    def scan(self, on_scanned=None):
        del on_scanned
        return self._scan


def open_folder(
    config: DataConfig,
    cache_dir: pathlib.Path,
    on_scanned: scan_lib.OnScanned | None = None,
) -> FolderSource:
    """Lists, looks at and splits the images below a folder.

    Args:
      config: its `dataset` names class folders, or split folders of them; the
        other flags divide what isn't.
      cache_dir: where what was seen in the images is kept.
      on_scanned: progress.

    Raises:
      ConfigError: the layout is not one of class folders, or a flag would
        divide what is divided.
      UserError: the images are too few, or most can't be decoded.
    """
    path = config.dataset.removeprefix(PREFIX)
    root = pathlib.Path(path).expanduser().resolve()
    try:
        found = image_folder.find_images(root)
    except OSError as error:
        raise UserError(
            f"--dataset=folder:{root} can't be read: {one_line(error)}"
        ) from error
    division.check_has_effect(config, found.split_folders or ("train",))
    states = [_state(root / image_id) for image_id in found.ids]
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    cache = cache_dir / f"{root.name}-{place}.npz"
    seen = scan_lib.scan_with_cache(
        cache,
        [f"{i}\n{s}" for i, s in zip(found.ids, states, strict=True)],
        lambda position: (root / found.ids[position]).read_bytes(),
        on_scanned,
    )
    _check_decodable(root, found, seen.errors)
    pairs_cache = cache.with_suffix(".pairs.npz")
    splits = _split(found, seen, config, pairs_cache)
    scan = scan_lib.Scan(
        found.ids,
        splits,
        np.asarray(found.labels, np.int64),
        *seen,
        pairs_cache=pairs_cache,
    )
    names = [s for s in (*carving.SPLITS, "unused") if s in splits]
    # Sizes stand for the contents; times of change differ between copies.
    sizes = [state.partition("\n")[0] for state in states]
    return FolderSource(
        name=f"{PREFIX}{root.name}@{_digest(found, splits, sizes)}",
        class_names=found.class_names,
        split_sizes={name: splits.count(name) for name in names},
        notes=_notes(found, seen.errors, config),
        root=root,
        _scan=scan,
        _file_sizes=tuple(sizes),
    )


def _state(path: pathlib.Path) -> str:
    """Returns a file's size and time of change, a line each."""
    try:
        status = path.stat()
    except OSError:
        # A dangling link: told of with what can't be decoded.
        return ""
    return f"{status.st_size}\n{status.st_mtime_ns}"


def _check_decodable(
    root: pathlib.Path, found: ImageFolder, errors: dict[int, str]
) -> None:
    """Refuses a folder, a class or a split without images that decode."""
    if len(errors) > _MOST_UNDECODABLE * len(found.ids):
        first = min(errors)
        raise UserError(
            f"--dataset=folder:{root}: {len(errors)} of {len(found.ids)} "
            f"images can't be decoded, first {found.ids[first]} "
            f"({errors[first]})"
        )
    good = [k for k in range(len(found.ids)) if k not in errors]
    trained = {found.labels[k] for k in good if found.splits[k] == "train"}
    splits = {found.splits[k] for k in good}
    for k, message in sorted(errors.items()):
        name, split = found.class_names[found.labels[k]], found.splits[k]
        what = f"of class {name} to train on"
        if found.labels[k] in trained:
            if split in splits or split == "unused":
                continue
            what = f"in the split {split}"
        raise UserError(
            f"--dataset=folder:{root}: there must be images {what}; none of "
            f"those there can be decoded, first {found.ids[k]} ({message})"
        )


def _split(
    found: ImageFolder,
    seen: decode.Thumbnails,
    config: DataConfig,
    pairs_cache: pathlib.Path,
) -> list[str]:
    """Returns each image's split; '' for one that can't be decoded."""
    splits = [
        "" if k in seen.errors else split
        for k, split in enumerate(found.splits)
    ]
    present = found.split_folders or ("train",)
    fractions = config_lib.split_fractions(config)
    wanted = carving.fractions_to_carve(present, fractions)
    if not wanted:
        return splits
    # Of all images: the audit finds the same ones in the cache.
    groups = carving.find_groups(seen.thumbnails, pairs_cache)
    train = [k for k, split in enumerate(splits) if split == "train"]
    pool = division.Pool(
        [found.ids[k] for k in train],
        [found.labels[k] for k in train],
        groups[train].tolist(),
        found.class_names,
    )
    split_of = division.by_fractions(pool, config, wanted)
    for k in train:
        splits[k] = split_of[found.ids[k]]
    return splits


def _digest(
    found: ImageFolder, splits: Sequence[str], sizes: Sequence[str]
) -> str:
    """Returns a hash of which image is of which class and split."""
    digest = hashlib.sha256("\n".join(found.class_names).encode())
    for row in zip(found.ids, found.labels, splits, sizes, strict=True):
        # What is in no split may come and go.
        if row[2]:
            digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()[:8]


def _notes(
    found: ImageFolder, errors: dict[int, str], config: DataConfig
) -> tuple[str, ...]:
    notes = [*division.notes(config), *found.notes]
    present = found.split_folders or ("train",)
    fractions = config_lib.split_fractions(config)
    _, *carved = carving.fractions_to_carve(present, fractions) or ("",)
    if carved and not config.folds:
        whole = "train" if found.split_folders else "the class folders"
        notes.insert(
            0,
            f"{' and '.join(carved)} carved out of {whole} "
            "(--split_fractions, --split_seed)",
        )
    if errors:
        first = min(errors)
        notes.append(
            f"{len(errors)} image(s) can't be decoded and are left out, first "
            f"{found.ids[first]} ({errors[first]}); audit.json lists them"
        )
    return tuple(notes)
