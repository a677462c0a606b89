"""What a folder or a table says about its images, before they are read."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

# Names of splits, including those that other tools write.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "unused": "unused",
}


class Listing(NamedTuple):
    """The images of a folder or of a table, sorted by id.

    Attributes:
      class_names: in the order of the labels.
      ids: paths relative to the folder, or to that of the table, with `/`;
        absolute for images elsewhere, `[n]`.
      paths: the files, `[n]`.
      labels: the class of each image, `[n]`.
      splits: the split of each image, `[n]`; all `train` if none are given.
      given_splits: the splits that are given, even if no image is left.
      notes: what is not used, or easily mistaken, one line each.
      lines: the line of each image in the table, `[n]`; none for a folder.
      groups: the name of each image's group, which no division may part; '' for
        an image of no group, `[n]`; none for a folder.
    """

    class_names: tuple[str, ...]
    ids: list[str]
    paths: list[pathlib.Path]
    labels: list[int]
    splits: list[str]
    given_splits: tuple[str, ...]
    notes: list[str]
    lines: Sequence[int] = ()
    groups: Sequence[str] = ()

    def first_empty(self, left_out: Collection[int] = ()) -> str:
        """Returns a class without images to train on, or a split without any.

        Args:
          left_out: the positions of images that don't count.

        Returns:
          The name of the first one; '' if there is none.
        """
        pairs = zip(self.labels, self.splits, strict=True)
        used = {pair for k, pair in enumerate(pairs) if k not in left_out}
        for label, name in enumerate(self.class_names):
            if (label, "train") not in used:
                return name
        left = {*self.given_splits} - {"unused", *(split for _, split in used)}
        return min(left, default="")

    def group_pairs(self) -> list[tuple[int, int]]:
        """Returns pairs of positions that join the images of each group."""
        first: dict[str, int] = {}
        return [
            (first.setdefault(name, k), k)
            for k, name in enumerate(self.groups)
            if name
        ]
