"""The user's own photographs, one folder for each class, as a `Source`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.data import FOLDER_PREFIX, DataConfig
from flowers17_tfdata.data import scan, splitting
from flowers17_tfdata.data.folder_listing import FolderListing, list_images
from flowers17_tfdata.data.oxford_flowers17.splits import order_key
from flowers17_tfdata.data.scan import OnScanned, Scan, ScannedImages
from flowers17_tfdata.data.source import Source, fingerprint
from flowers17_tfdata.errors import UserError, one_line

# If more images can't be decoded, the folder is not what the user thinks it is.
_MOST_UNDECODABLE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """Class folders, divided into splits here if they aren't on disk.

    Images that can't be decoded are in no split; `scan` reports them.
    """

    _root: pathlib.Path
    _scan: Scan
    # The bytes of each file, as text.
    _file_sizes: tuple[str, ...]

    def read(self, split):
        self.check_split(split)
        # Sorted by name they would come class by class, but the first batches,
        # from which batch-norm statistics are measured, must show all classes.
        chosen = self._positions(split)
        chosen.sort(key=lambda k: order_key(0, self._scan.ids[k]))
        ids = [self._scan.ids[k] for k in chosen]
        paths = [os.fsencode(self._root / image_id) for image_id in ids]

        def load(path, label, image_id):
            image = tf.io.read_file(path)
            return {"image": image, "label": label, "id": image_id}

        labels = self._scan.labels[chosen]
        columns = tf.constant(paths, tf.string), labels, tf.constant(ids)
        examples = tf.data.Dataset.from_tensor_slices(columns)
        return examples.map(load, num_parallel_calls=tf.data.AUTOTUNE)

    def read_images(self, split, ids):
        """Reads these files alone, not the split up to them."""
        found = {}
        for k in self._positions(split):
            image_id = self._scan.ids[k]
            if image_id in ids:
                with contextlib.suppress(OSError):
                    found[image_id] = (self._root / image_id).read_bytes()
        return found

    def _positions(self, split: str) -> list[int]:
        return [k for k, s in enumerate(self._scan.splits) if s == split]

    def fingerprints(self, split):
        """Hashes class, file name and size, which survive a renamed root."""
        return [
            fingerprint(
                self.class_names[self._scan.labels[k]],
                self._scan.ids[k].rpartition("/")[2],
                self._file_sizes[k],
            )
            for k in self._positions(split)
        ]

    def scan(self, on_scanned=None):
        return self._scan


def open_folder(
    config: DataConfig, cache_dir: pathlib.Path, on_scanned: OnScanned | None
) -> FolderSource:
    """Lists, decodes and divides the images below a folder.

    Args:
      config: `dataset` names a folder with a layout of `list_images`.
      cache_dir: the folder that keeps what was found by decoding the images.
      on_scanned: called with the number of images decoded so far.

    Raises:
      ConfigError: the layout is another one, or a flag would divide images that
        are divided on disk.
      UserError: there are too few images, or most can't be decoded.
    """
    root = pathlib.Path(config.dataset.removeprefix(FOLDER_PREFIX))
    root = root.expanduser().resolve()
    try:
        listing = list_images(root)
    except OSError as error:
        raise UserError(
            f"--dataset=folder:{root} can't be read: {one_line(error)}"
        ) from error
    present = listing.split_folders or ("train",)
    fractions = splitting.fractions_of_train(config, present)
    paths = {image_id: root / image_id for image_id in listing.ids}
    states = {image_id: _state(path) for image_id, path in paths.items()}
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    cache = cache_dir / f"{root.name}-{place}.npz"
    keyed = {f"{i}\n{states[i]}": path for i, path in paths.items()}
    images = scan.scan_files(cache, keyed, on_scanned)
    notes = splitting.notes(config, fractions)
    if listing.skipped:
        notes.append(listing.skipped)
    if images.errors:
        first, message = min(images.errors.items())
        problem = (
            f"{len(images.errors)} of {len(paths)} files can't be decoded, "
            f"first {listing.ids[first]} ({message})"
        )
        empty = listing.first_empty(images.errors)
        if empty:
            problem += f", which leaves none for {empty}"
        if empty or len(images.errors) > _MOST_UNDECODABLE * len(paths):
            raise UserError(f"--dataset=folder:{root}: {problem}")
        notes.append(f"{problem}: left out; audit.json lists them")
    splits = _split(listing, images, config, fractions)
    # Sizes stand for the contents: modification times differ between copies.
    sizes = [state.partition("\n")[0] for state in states.values()]
    names = [s for s in (*splitting.SPLITS, "unused") if s in splits]
    labels = np.asarray(listing.labels, np.int64)
    return FolderSource(
        name=f"{FOLDER_PREFIX}{root.name}@{_digest(listing, splits, sizes)}",
        class_names=listing.class_names,
        split_sizes={name: splits.count(name) for name in names},
        notes=tuple(notes),
        _root=root,
        _scan=Scan(listing.ids, splits, labels, images),
        _file_sizes=tuple(sizes),
    )


def _state(path: pathlib.Path) -> str:
    """Returns a file's size and modification time, on two lines."""
    try:
        status = path.stat()
    except OSError:
        # A dangling link, which is reported as an image that can't be decoded.
        return ""
    return f"{status.st_size}\n{status.st_mtime_ns}"


def _split(
    listing: FolderListing,
    images: ScannedImages,
    config: DataConfig,
    fractions: Mapping[str, float],
) -> list[str]:
    """Returns each image's split; '' for an image that can't be decoded."""
    good = [k for k in range(len(listing.ids)) if k not in images.errors]
    split_of = {listing.ids[k]: listing.splits[k] for k in good}
    if fractions:
        # For all images, so that the audit finds their pairs in the cache.
        groups = scan.find_groups(images)
        train = [k for k in good if listing.splits[k] == "train"]
        pool = splitting.Pool(
            [listing.ids[k] for k in train],
            [listing.labels[k] for k in train],
            groups[train].tolist(),
            listing.class_names,
        )
        split_of |= splitting.assign_splits(pool, config, fractions)
    return [split_of.get(image_id, "") for image_id in listing.ids]


def _digest(listing: FolderListing, splits: list[str], sizes: list[str]) -> str:
    """Returns a hash of the images' classes, splits and sizes."""
    digest = hashlib.sha256("\n".join(listing.class_names).encode())
    for row in zip(listing.ids, listing.labels, splits, sizes, strict=True):
        # Files that are in no split may come and go.
        if row[2]:
            digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()[:8]
