"""A data set as the rest of the package sees it, and how to open one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data.oxford_flowers17.splits import group_pairs
from flowers17_tfdata.data.scan import (
    OnScanned,
    Scan,
    find_groups,
    scan_images,
)
from flowers17_tfdata.errors import ConfigError, UserError, did_you_mean


class Correction(NamedTuple):
    """What the user says about the label of an image.

    Attributes:
      split: the split that holds the image, or held it.
      id: the image.
      label: the name of the class that the data set gives it.
      new_label: the name of its right class; '' if the image is dropped.
    """

    split: str
    id: str
    label: str
    new_label: str

    @property
    def changes(self) -> bool:
        """Whether the label isn't kept as it is."""
        return self.new_label != self.label


# The split and the id of an image; ids repeat across splits in some data sets.
Place = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A prepared image classification data set.

    Attributes:
      name: `name/config/version`, `folder:NAME@DIGEST` or `csv:NAME@DIGEST`.
      class_names: in the order of the labels.
      split_sizes: `{split: number of examples}`.
      known_near_duplicates: pairs of ids of examples that are known to show the
        same picture, in addition to those that hashing finds.
      notes: what to show the user about how it was read, one line each.
      corrections: what `--corrections` says, sorted.
    """

    name: str
    class_names: tuple[str, ...]
    split_sizes: Mapping[str, int]
    known_near_duplicates: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    corrections: tuple[Correction, ...] = ()

    def check_split(self, split: str) -> None:
        """Raises a `UserError` if there is no such split."""
        if split not in self.split_sizes:
            raise UserError(
                f"--split must be one of {', '.join(self.split_sizes)} for "
                f"{self.name}; got {split!r}"
                f"{did_you_mean(split, self.split_sizes)}"
            )

    def read(self, split: str) -> tf.data.Dataset:
        """Reads a split in its stored order, images still encoded.

        Returns:
          `{"image": string, "label": int64, "id": string}`, scalars.

        Raises:
          UserError: there is no such split.
        """
        raise NotImplementedError

    def read_images(self, split: str, ids: Collection[str]) -> dict[str, bytes]:
        """Returns the encoded images of some ids, those that can be read."""
        found: dict[str, bytes] = {}
        for example in self.read(split).as_numpy_iterator():
            image_id = example["id"].decode()
            if image_id in ids:
                # Ids repeat in some data sets.
                found.setdefault(image_id, example["image"])
            if len(found) == len(ids):
                break
        return found

    def fingerprints(self, split: str) -> list[str]:
        """Returns hashes that identify the split's images in other data sets.

        Empty if the images can't be identified.
        """
        return []

    def scan(self, on_scanned: OnScanned | None = None) -> Scan:
        """Decodes every image of every split."""
        ids: list[str] = []
        splits: list[str] = []
        labels: list[int] = []

        def images() -> Iterator[bytes]:
            for split in self.split_sizes:
                for example in self.read(split).as_numpy_iterator():
                    ids.append(example["id"].decode())
                    splits.append(split)
                    labels.append(int(example["label"]))
                    yield example["image"]

        found = scan_images(images(), on_scanned)
        return Scan(ids, splits, np.asarray(labels, np.int64), found)

    def groups(self, scan: Scan) -> np.ndarray:
        """Returns the group of each image of a scan, int64 `[n]`.

        Near-duplicates share a group, and so do images that the user keeps
        together.
        """
        return find_groups(scan.images, self._kept_together(scan.ids))

    def groups_at(self, places: Sequence[Place], scan: Scan) -> np.ndarray:
        """Returns the groups of some images of a scan, int64 `[n]`."""
        found = zip(scan.splits, scan.ids, strict=True)
        group_of = dict(zip(found, self.groups(scan), strict=True))
        return np.array([group_of[place] for place in places], np.int64)

    def known_groups(self, places: Sequence[Place]) -> np.ndarray:
        """Returns the groups of some images, int64 `[n]`, without decoding.

        So near-duplicates that only hashing finds are not grouped, unless the
        images have been decoded already.
        """
        pairs = self._kept_together([image_id for _, image_id in places])
        return np.asarray(group_pairs(pairs, len(places)), np.int64)

    def _kept_together(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        """Returns the positions of pairs that share a group in any case."""
        position = {image_id: k for k, image_id in enumerate(ids)}
        return [
            (position[first], position[second])
            for first, second in self.known_near_duplicates
            if first in position and second in position
        ]


def fingerprint(*parts: str) -> str:
    """Returns a hash of what identifies an image."""
    text = "\n".join(parts)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_source(
    config: DataConfig,
    on_scanned: OnScanned | None = None,
    known: Mapping[str, str] | None = None,
) -> Source:
    """Opens the data set of `--dataset`: prepares, checks and divides it.

    Splits that the data set lacks are taken out of train. Data sets that can be
    divided anew are, if the flags ask for it. Then the labels are corrected, so
    that corrections move no image to another split.

    Args:
      config: the flags.
      on_scanned: called with the number of images decoded so far, if all
        images have to be decoded to divide them.
      known: `{id: split}` of the images of an earlier run, which stay in their
        splits where a folder is divided here.

    Raises:
      ConfigError: there is no such data set, it has no labelled images, a flag
        would divide a data set that comes with its splits, a correction doesn't
        fit, or there is no home folder for the default of `--data_dir`.
      UserError: the data set can't be read, downloaded or divided.
    """
    # Imported here because they build on this module.
    from flowers17_tfdata.data import corrections, file_source, tfds_source

    default = tfds.core.constants.DATA_DIR
    data_dir = os.path.expanduser(config.data_dir or default)
    if data_dir.startswith("~"):
        raise ConfigError(
            f"--data_dir must be given: its default {default} needs a home "
            "folder, and this user has none"
        )
    cache_dir = pathlib.Path(data_dir, "folders")
    own = config.own_images
    source: Source
    if own is not None:
        source = file_source.open_files(
            config, own, cache_dir, on_scanned, known
        )
    else:
        source = tfds_source.open_tfds(config, cache_dir, on_scanned)
    if config.corrections:
        path = pathlib.Path(config.corrections).expanduser()
        return corrections.correct(source, path)
    return source
