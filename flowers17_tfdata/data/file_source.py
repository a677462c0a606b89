"""The user's own photographs, in class folders or a table, as a `Source`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from flowers17_tfdata.config.data import DataConfig, OwnImages
from flowers17_tfdata.data import (
    csv_listing,
    extension,
    folder_listing,
    scan,
    splitting,
)
from flowers17_tfdata.data.listing import Listing
from flowers17_tfdata.data.oxford_flowers17.splits import (
    group_pairs,
    order_key,
)
from flowers17_tfdata.data.scan import OnScanned, Scan, ScannedImages
from flowers17_tfdata.data.source import Source, fingerprint
from flowers17_tfdata.errors import ConfigError, UserError, one_line

# If more images can't be decoded, they are not what the user thinks they are.
_MOST_UNDECODABLE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """Image files, divided into splits here if they don't come divided.

    Images that can't be decoded are in no split; `scan` reports them.
    """

    # The files, in the order of the scan.
    _paths: tuple[pathlib.Path, ...]
    _scan: Scan
    # The bytes of each file, as text.
    _file_sizes: tuple[str, ...]
    # See `Listing.group_pairs`.
    _group_pairs: tuple[tuple[int, int], ...]

    def read(self, split):
        self.check_split(split)
        # Sorted by name they would come class by class, but the first batches,
        # from which batch-norm statistics are measured, must show all classes.
        chosen = self._positions(split)
        chosen.sort(key=lambda k: order_key(0, self._scan.ids[k]))
        ids = [self._scan.ids[k] for k in chosen]
        paths = [os.fsencode(self._paths[k]) for k in chosen]

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
                    found[image_id] = self._paths[k].read_bytes()
        return found

    def _positions(self, split: str) -> list[int]:
        return [k for k, s in enumerate(self._scan.splits) if s == split]

    def fingerprints(self, split):
        """Hashes class, file name and size, which survive a renamed folder."""
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

    def known_groups(self, places):
        return self.groups_at(places, self._scan)

    def _kept_together(self, ids):
        return list(self._group_pairs)


def open_files(
    config: DataConfig,
    own: OwnImages,
    cache_dir: pathlib.Path,
    on_scanned: OnScanned | None,
    known: Mapping[str, str] | None = None,
) -> FileSource:
    """Lists, decodes and divides the user's own photographs.

    Args:
      config: the flags.
      own: the folder of `folder_listing.list_images`, or the table of
        `csv_listing.list_images`.
      cache_dir: the folder that keeps what was found by decoding the images.
      on_scanned: called with the number of images decoded so far.
      known: see `source.open_source`.

    Raises:
      ConfigError: the layout is another one, or a flag would divide images that
        come divided.
      UserError: there are too few images, or most can't be decoded.
    """
    path = own.absolute
    dataset = f"--dataset={own.prefix}{path}"
    listing = _list(own, dataset)
    if config.group_pattern:
        listing = listing.group_by(config.group_pattern)
    present = listing.given_splits or ("train",)
    fractions = splitting.fractions_of_train(config, present)
    states = [_state(file) for file in listing.paths]
    place = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    cache = cache_dir / f"{path.name}-{place}.npz"
    images = _decode(listing, states, cache, on_scanned)
    notes = [*splitting.notes(config, fractions), *listing.notes]
    if images.errors:
        notes.append(_check_errors(listing, images, dataset))
    splits = _split(listing, images, config, fractions, known)
    groups = listing.describe_groups(splits, config.groups)
    if groups:
        notes.append(groups)
    # Sizes stand for the contents: modification times differ between copies.
    sizes = [state.partition("\n")[0] for state in states]
    names = [s for s in (*splitting.SPLITS, "unused") if s in splits]
    labels = np.asarray(listing.labels, np.int64)
    digest = _digest(listing, splits, sizes)
    return FileSource(
        name=f"{own.prefix}{path.name}@{digest}",
        class_names=listing.class_names,
        split_sizes={name: splits.count(name) for name in names},
        notes=tuple(notes),
        _paths=tuple(listing.paths),
        _scan=Scan(listing.ids, splits, labels, images),
        _file_sizes=tuple(sizes),
        _group_pairs=tuple(listing.group_pairs()),
    )


def _list(own: OwnImages, dataset: str) -> Listing:
    """Lists the images; every class must have some to train on.

    Args:
      own: the folder or the table.
      dataset: the start of the error messages.
    """
    lister = folder_listing if own.prefix == "folder:" else csv_listing
    try:
        listing = lister.list_images(own.absolute)
    except OSError as error:
        raise UserError(
            f"{dataset} can't be read: {one_line(error)}"
        ) from error
    # An empty split must not be replaced by a part of train.
    empty = listing.first_empty()
    if empty:
        why = f" ({'; '.join(listing.notes)})" if listing.notes else ""
        raise ConfigError(
            f"{dataset}: every class must hold images to train on, and every "
            f"split images; {empty} holds none{why}"
        )
    return listing


def _decode(
    listing: Listing,
    states: list[str],
    cache: pathlib.Path,
    on_scanned: OnScanned | None,
) -> ScannedImages:
    """Decodes the files whose state is new; errors name the table's line."""
    keys = map("\n".join, zip(listing.ids, states, strict=True))
    keyed = dict(zip(keys, listing.paths, strict=True))
    images = scan.scan_files(cache, keyed, on_scanned)
    if not listing.lines:
        return images
    found = images.errors.items()
    errors = {k: f"line {listing.lines[k]}: {error}" for k, error in found}
    return images._replace(errors=errors)


def _check_errors(listing: Listing, images: ScannedImages, dataset: str) -> str:
    """Says which images can't be decoded; refuses if too many can't."""
    total = len(listing.ids)
    first, message = min(images.errors.items())
    problem = (
        f"{len(images.errors)} of {total} files can't be decoded, first "
        f"{listing.ids[first]} ({message})"
    )
    empty = listing.first_empty(images.errors)
    if empty:
        problem += f", which leaves none for {empty}"
    if empty or len(images.errors) > _MOST_UNDECODABLE * total:
        raise UserError(f"{dataset}: {problem}")
    return f"{problem}: left out; audit.json lists them"


def _state(path: pathlib.Path) -> str:
    """Returns a file's size and modification time, on two lines."""
    try:
        status = path.stat()
    except OSError:
        # A dangling link, which is reported as an image that can't be decoded.
        return ""
    return f"{status.st_size}\n{status.st_mtime_ns}"


def _split(
    listing: Listing,
    images: ScannedImages,
    config: DataConfig,
    fractions: Mapping[str, float],
    known: Mapping[str, str] | None,
) -> list[str]:
    """Returns each image's split; '' for an image that can't be decoded."""
    good = [k for k in range(len(listing.ids)) if k not in images.errors]
    split_of = {listing.ids[k]: listing.splits[k] for k in good}
    if fractions:
        # For all images, so that the audit finds their pairs in the cache.
        given = listing.group_pairs()
        groups = scan.find_groups(images, given)
        given_groups = group_pairs(given, len(listing.ids))
        train = [k for k in good if listing.splits[k] == "train"]
        pool = splitting.Pool(
            [listing.ids[k] for k in train],
            [listing.labels[k] for k in train],
            groups[train].tolist(),
            listing.class_names,
            given_groups[train].tolist(),
        )
        known = extension.follow_moves(known or {}, listing.ids)
        # What the folder or the table says now wins over an earlier run.
        fixed = {*listing.given_splits} - {"train"}
        known = {i: split for i, split in known.items() if split not in fixed}
        with _naming_groups(config, listing):
            divided = splitting.assign_splits(pool, config, fractions, known)
        _check_groups(listing, divided)
        split_of |= divided
    return [split_of.get(image_id, "") for image_id in listing.ids]


@contextlib.contextmanager
def _naming_groups(config: DataConfig, listing: Listing) -> Iterator[None]:
    """Adds to an error about the splits what `--groups` has to do with it."""
    try:
        yield
    except UserError as error:
        if not config.groups:
            raise
        sizes = collections.Counter(filter(None, listing.groups))
        (name, most), *_ = sizes.most_common()
        raise type(error)(
            f"{error}; --groups={config.groups} makes {len(sizes)} groups, the "
            f"largest {name!r} of {most} images: match more of the path, so "
            "that groups are smaller, or leave it out"
        ) from error


def _check_groups(listing: Listing, split_of: Mapping[str, str]) -> None:
    """Refuses the splits of an earlier run that divide a group."""
    first: dict[str, str] = {}
    for image_id, group in zip(listing.ids, listing.groups, strict=False):
        split = split_of.get(image_id, "")
        if not group or split in ("", "unused"):
            continue
        other = first.setdefault(group, split)
        if other != split:
            raise UserError(
                f"--extends: the earlier run has group {group} in {other} and "
                f"in {split}: train anew, without --extends"
            )


def _digest(listing: Listing, splits: list[str], sizes: list[str]) -> str:
    """Returns a hash of the images' classes, splits and sizes."""
    digest = hashlib.sha256("\n".join(listing.class_names).encode())
    for row in zip(listing.ids, listing.labels, splits, sizes, strict=True):
        # Files that are in no split may come and go.
        if row[2]:
            digest.update(("\t".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()[:8]
