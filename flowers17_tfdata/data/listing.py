"""What a folder or a table says about its images, before they are read."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from flowers17_tfdata.errors import ConfigError, counted

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
        an image of no group, `[n]`; none: there are no groups.
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

    def group_by(self, pattern: re.Pattern[str]) -> Listing:
        """Returns the listing with the groups that `--groups` finds in the ids.

        Raises:
          ConfigError: there are groups already, or they would say nothing.
        """
        flag = f"--groups={pattern.pattern}"
        if any(self.groups):
            raise ConfigError(
                f"{flag} goes with a table without a column group: leave one "
                "of them out"
            )
        names = [_group_name(pattern.search(image_id)) for image_id in self.ids]
        if not any(names):
            raise ConfigError(
                f"{flag} must match the paths of images, such as "
                f"{self.ids[0]}; it matches none of {len(names)}"
            )
        if len({*names}) == 1:
            raise ConfigError(
                f"{flag} must tell groups apart; it puts all {len(names)} "
                f"images in one group, {names[0]!r}: match, in parentheses, "
                "what differs between groups"
            )
        return self._replace(groups=names)

    def describe_groups(self, splits: Sequence[str], flag: str) -> str:
        """Says in one line how many groups there are; '' for none.

        Args:
          splits: the split of each image, `[n]`; '' if it is left out.
          flag: the pattern of `--groups`, if it is given.
        """
        splits_of: dict[str, set[str]] = {}
        for name, split in zip(self.groups, splits, strict=False):
            if name:
                found = splits_of.setdefault(name, set())
                found |= {split} - {"", "unused"}
        if not splits_of:
            return ""
        num_images = sum(map(bool, self.groups))
        line = f"{num_images} images in {counted(len(splits_of), 'group')}, "
        divided = [
            f"{name} ({', '.join(sorted(found))})"
            for name, found in splits_of.items()
            if len(found) > 1
        ]
        if divided:
            line += f"{len(divided)} of them divided between splits, first "
            line += divided[0]
        else:
            line += "each kept in one split"
        classes: dict[str, set[int]] = {}
        for name, label in zip(self.groups, self.labels, strict=False):
            classes.setdefault(name, set()).add(label)
        mixed = sum(len(classes[name]) > 1 for name in splits_of)
        if mixed:
            line += f" ({mixed} of them with images of several classes)"
        if flag:
            alone = counted(len(self.ids) - num_images, "image")
            line = f"--groups={flag}: {line}; {alone} in no group"
        return line

    def group_pairs(self) -> list[tuple[int, int]]:
        """Returns pairs of positions that join the images of each group."""
        first: dict[str, int] = {}
        return [
            (first.setdefault(name, k), k)
            for k, name in enumerate(self.groups)
            if name
        ]


def _group_name(match: re.Match[str] | None) -> str:
    """Returns what the parentheses match, or else the whole match."""
    if match is None:
        return ""
    if match.re.groups:
        return " + ".join(filter(None, match.groups()))
    return match[0]
