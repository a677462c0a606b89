"""Seeded, stratified splits that keep every near-duplicate group together."""

from __future__ import annotations

import bisect
import collections
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from .errors import DatasetError

# Sums to the 1360 images; `unused` is what the three named splits leave over.
FLOWERS17_SIZES = {"train": 800, "validation": 260, "test": 260, "unused": 40}


def order_key(seed: int, *parts: object) -> str:
    """Returns a sort key for an order drawn by a seed."""
    # A hash instead of a random generator: the same order on every machine and
    # NumPy version, and independent of the order in which images are listed.
    text = ":".join(str(p) for p in (seed, *parts))
    return hashlib.sha256(text.encode()).hexdigest()


def class_quotas(
    class_counts: Mapping[int, int], sizes: Mapping[str, int], seed: int
) -> dict[str, collections.Counter[int]]:
    """Divides every class over the splits, in proportion and exactly.

    Args:
      class_counts: `{label: number of images}`.
      sizes: `{split: number of images}`, with the same sum.
      seed: any integer. It decides which split gets the images that are left
        over after rounding down.

    Returns:
      `{split: {label: count}}`. The counts of a class sum to its
      `class_counts`, those of a split to its `sizes`; each is the proportional
      share rounded down, or at most a few more.
    """
    total = sum(class_counts.values())
    if sum(sizes.values()) != total:
        raise ValueError(f"sizes must sum to {total}; got {dict(sizes)}")
    quotas = {
        split: collections.Counter(
            {label: n * size // total for label, n in class_counts.items()}
        )
        for split, size in sizes.items()
    }
    labels = sorted(
        class_counts, key=lambda label: order_key(seed, "class", label)
    )
    for label in labels:
        assigned = sum(quota[label] for quota in quotas.values())
        for _ in range(class_counts[label] - assigned):
            left = {s: size - quotas[s].total() for s, size in sizes.items()}
            split = max(
                sizes, key=lambda s: (left[s], order_key(seed, label, s))
            )
            quotas[split][label] += 1
    return quotas


def group_pairs(pairs: Iterable[Sequence[int]], num_images: int) -> np.ndarray:
    """Joins pairs that share an image into groups.

    Args:
      pairs: positions in [0, num_images); only the first two entries count.
      num_images: number of images, n.

    Returns:
      int `[n]`, the group of each image. An image without a pair is a group
      of its own.
    """
    edges = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    graph = sparse.coo_matrix(
        (np.ones(len(edges)), edges.T), shape=(num_images, num_images)
    )
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def make_splits(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    sizes: Mapping[str, int],
    seed: int,
) -> dict[str, str]:
    """Assigns every image to a split; see `assign_groups`.

    Sizes are met exactly, and classes are spread in proportion.

    Args:
      ids: unique names, `[n]`.
      labels: the class of each image, `[n]`.
      groups: the group of each image, `[n]`; see `group_pairs`.
      sizes: `{split: number of images}`, summing to n.
      seed: any integer.

    Returns:
      `{id: split}`.

    Raises:
      DatasetError: a group fits into no split.
    """
    quotas = class_quotas(collections.Counter(labels), sizes, seed)

    def choose(first: str, need: collections.Counter[int]) -> str:
        """Draws a split among those with room, in proportion to their room."""
        room = {
            split: sum(places[label] for label in need)
            for split, places in quotas.items()
            if need <= places
        }
        if not room:
            raise DatasetError(
                f"a group of {need.total()} near-identical images ({first}, "
                "...) fits into no split: every split has fewer places left "
                "in its class"
            )
        ends = list(itertools.accumulate(room.values()))
        # Uniform in [0, 1): 13 hexadecimal digits fill a float's 52 bits.
        fraction = int(order_key(seed, "split", first)[:13], 16) / 16**13
        split = list(room)[bisect.bisect_right(ends, fraction * ends[-1])]
        quotas[split] -= need
        return split

    return assign_groups(ids, labels, groups, seed, choose)


def assign_groups(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    seed: int,
    choose: Callable[[str, collections.Counter[int]], Any],
) -> dict[str, Any]:
    """Assigns whole groups, the largest first, in an order drawn by a seed.

    The result depends on the set of (id, label, group members) and the seed
    alone, not on the order of `ids`.

    Args:
      ids: unique names, `[n]`.
      labels: the class of each image, `[n]`.
      groups: the group of each image, `[n]`; see `group_pairs`.
      seed: any integer.
      choose: called with a group's first id and its `{label: count}`; returns
        where the group goes.

    Returns:
      `{id: what choose returned for its group}`.
    """
    label_of = dict(zip(ids, labels, strict=True))
    if len(label_of) != len(ids):
        raise ValueError("ids must be unique")
    members = collections.defaultdict(list)
    for image_id, group in zip(ids, groups, strict=True):
        members[group].append(image_id)
    units = [sorted(unit) for unit in members.values()]
    # Large groups first, while there is room for them; single images last:
    # they fill what is left exactly.
    units.sort(key=lambda unit: (-len(unit), order_key(seed, unit[0])))
    assigned: dict[str, Any] = {}
    for unit in units:
        need = collections.Counter(label_of[i] for i in unit)
        assigned |= dict.fromkeys(unit, choose(unit[0], need))
    return assigned
