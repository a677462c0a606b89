"""The splits that a data set lacks, carved out of its train split."""

from __future__ import annotations

import collections
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.oxford_flowers17 import splits as splits_lib
from flowers17_tfdata.errors import UserError

SPLITS = ("train", "validation", "test")


def fractions_to_carve(
    present: Iterable[str], fractions: Sequence[float]
) -> dict[str, float]:
    """Returns what becomes of the train split.

    Args:
      present: the splits that there are.
      fractions: of train, validation and test, summing to 1.

    Returns:
      `{split: fraction of train}` for train and the missing ones, summing to
      1; empty where none is missing.
    """
    missing = [split for split in SPLITS[1:] if split not in set(present)]
    if not missing:
        return {}
    share = dict(zip(SPLITS, fractions, strict=True))
    taken = {split: share[split] for split in ("train", *missing)}
    total = sum(taken.values())
    return {split: value / total for split, value in taken.items()}


def carve(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, str]:
    """Divides images over splits: stratified, groups kept together, seeded.

    Each group goes to the split that lacks most of its class's share, the
    largest groups first, in an order drawn by hashes; a class's first one goes
    to train. So a class's count in a split differs from its share by less than
    its largest group, and a class of one or two images is trained on.

    The result depends on the set of (id, label, group members) and the seed
    alone, not on the order of `ids`.

    Args:
      ids: unique names, `[n]`.
      labels: class of each, `[n]`.
      groups: group of each, `[n]`; see `splits.group_pairs`.
      fractions: `{split: fraction}`, summing to 1, train among them.
      seed: any integer.

    Returns:
      `{id: split}`.

    Raises:
      UserError: a split would be empty.
    """
    label_of = dict(zip(ids, labels, strict=True))
    members = collections.defaultdict(list)
    for image_id, group in zip(ids, groups, strict=True):
        members[group].append(image_id)
    units = [sorted(unit) for unit in members.values()]
    units.sort(key=lambda unit: (-len(unit), order_key(seed, unit[0])))
    counts = collections.Counter(labels)
    lacks = {
        label: {split: count * f for split, f in fractions.items()}
        for label, count in counts.items()
    }
    trained_on: set[int] = set()
    split_of: dict[str, str] = {}
    for unit in units:
        need = collections.Counter(label_of[i] for i in unit)
        split = "train"
        if trained_on.issuperset(need):
            split = _most_lacking(unit, need, lacks, seed)
        if split == "train":
            trained_on.update(need)
        for label, count in need.items():
            lacks[label][split] -= count
        split_of |= dict.fromkeys(unit, split)
    _check_not_empty(split_of, fractions)
    return split_of


def _most_lacking(unit, need, lacks, seed: int) -> str:
    some = next(iter(lacks.values()))
    return max(
        some,
        key=lambda split: (
            sum(lacks[label][split] for label in need),
            order_key(seed, unit[0], split),
        ),
    )


def order_key(seed: int, *parts: str) -> str:
    """Returns what to sort by for an order drawn by a seed."""
    text = ":".join((str(seed), *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _check_not_empty(split_of, fractions) -> None:
    sizes = collections.Counter(split_of.values())
    for split in fractions:
        if not sizes[split]:
            raise UserError(
                f"--split_fractions leaves no image for {split}: "
                f"{len(split_of)} images (near-duplicates kept together) are "
                "too few; add images, or raise its fraction"
            )


def find_groups(
    thumbnails: np.ndarray, pairs_cache: pathlib.Path | None = None
) -> np.ndarray:
    """Returns the near-duplicate group of each image.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      pairs_cache: see `scan.find_pairs`.

    Returns:
      int `[n]`.
    """
    pairs = scan_lib.find_pairs(thumbnails, pairs_cache)
    return splits_lib.group_pairs(pairs, len(thumbnails))
