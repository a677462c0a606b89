"""What the rest of the package knows of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A prepared image classification data set.

    Attributes:
      name: `name/config/version`, or `folder:NAME@DIGEST`.
      class_names: in the order of the labels.
      split_sizes: `{split: number of examples}`.
      known_near_duplicates: pairs of example ids known to show one picture,
        beyond what hashing finds.
      notes: what a user should know of how it was read, a line each.
    """

    name: str
    class_names: tuple[str, ...]
    split_sizes: Mapping[str, int]
    known_near_duplicates: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

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

    def fingerprints(self, split: str) -> list[str]:
        """Returns what tells the split's images in another data set, too.

        Empty where nothing does.
        """
        del split
        return []

    def scan(
        self, on_scanned: scan_lib.OnScanned | None = None
    ) -> scan_lib.Scan:
        """Looks at every image of every split."""
        return scan_splits(self, on_scanned)


def scan_splits(
    source: Source, on_scanned: scan_lib.OnScanned | None = None
) -> scan_lib.Scan:
    """Looks at every image of every split, by reading them."""
    ids: list[str] = []
    splits: list[str] = []
    labels: list[int] = []

    def images():
        for split in source.split_sizes:
            for example in source.read(split).as_numpy_iterator():
                ids.append(example["id"].decode())
                splits.append(split)
                labels.append(int(example["label"]))
                yield example["image"]

    found = scan_lib.scan_images(images(), on_scanned)
    return scan_lib.Scan(ids, splits, np.asarray(labels, np.int64), *found)
