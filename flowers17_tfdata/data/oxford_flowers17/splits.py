"""Seeded, stratified splits that keep every near-duplicate group together."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from .errors import DatasetError

# Sums to the 1360 images; `unused` is what the three named splits leave over.
FLOWERS17_SIZES = {"train": 800, "validation": 260, "test": 260, "unused": 40}


def _order(seed: int, *parts: object) -> str:
    # A hash instead of a random generator: the same order on every machine and
    # NumPy version, and independent of the order in which images are listed.
    text = ":".join(str(p) for p in (seed, *parts))
    return hashlib.sha256(text.encode()).hexdigest()


def _fraction(seed: int, *parts: object) -> float:
    """Returns a seeded uniform number in [0, 1)."""
    return int(_order(seed, *parts)[:13], 16) / 16**13


def class_quotas(
    class_counts: Mapping[int, int], sizes: Mapping[str, int], seed: int
) -> dict[int, dict[str, int]]:
    """Divides every class over the splits, in proportion and exactly.

    Returns:
      `{label: {split: count}}`; sums over splits are `class_counts`, sums over
      classes are `sizes`; each count is the proportional share rounded down,
      or at most a few more.
    """
    total = sum(class_counts.values())
    if sum(sizes.values()) != total:
        raise ValueError(f"sizes must sum to {total}; got {dict(sizes)}")
    quotas = {
        label: {split: count * size // total for split, size in sizes.items()}
        for label, count in class_counts.items()
    }
    left = {
        split: size - sum(q[split] for q in quotas.values())
        for split, size in sizes.items()
    }
    labels = sorted(
        class_counts, key=lambda label: _order(seed, "class", label)
    )
    for label in labels:
        for _ in range(class_counts[label] - sum(quotas[label].values())):
            split = max(sizes, key=lambda s: (left[s], _order(seed, label, s)))
            quotas[label][split] += 1
            left[split] -= 1
    return quotas


def group_pairs(pairs: Iterable[Sequence[int]], num_images: int) -> np.ndarray:
    """Joins pairs that share an image into groups.

    Args:
      pairs: positions in [0, num_images); only the first two entries count.
      num_images: n.

    Returns:
      int `[n]`: the group of each image; an image without a pair is a group
      of its own.
    """
    edges = np.array([(p[0], p[1]) for p in pairs], np.int64).reshape(-1, 2)
    ones = np.ones(len(edges), np.int8)
    graph = sparse.coo_matrix(
        (ones, (edges[:, 0], edges[:, 1])), shape=(num_images, num_images)
    )
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def make_splits(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    sizes: Mapping[str, int],
    seed: int,
) -> dict[str, str]:
    """Assigns every image to a split.

    Sizes are met exactly, classes are spread in proportion, and images of one
    group land in one split. The result depends on the set of
    (id, label, group members) and the seed alone, not on the order of `ids`.

    Args:
      ids: unique names, `[n]`.
      labels: class of each, `[n]`.
      groups: group of each, `[n]`; see `group_pairs`.
      sizes: `{split: count}`, summing to n.
      seed: any integer.

    Returns:
      `{id: split}`.

    Raises:
      DatasetError: a group fits into no split.
    """
    members = collections.defaultdict(list)
    label_of = dict(zip(ids, labels, strict=True))
    if len(label_of) != len(ids):
        raise ValueError("ids must be unique")
    for image_id, group in zip(ids, groups, strict=True):
        members[group].append(image_id)
    quotas = class_quotas(collections.Counter(labels), sizes, seed)
    units = [sorted(unit) for unit in members.values()]
    # Large groups first, while there is room for them; single images last:
    # they fill what is left exactly.
    units.sort(key=lambda unit: (-len(unit), _order(seed, unit[0])))
    split_of = {}
    for unit in units:
        need = collections.Counter(label_of[i] for i in unit)
        split = _choose_split(unit, need, quotas, seed)
        for label, count in need.items():
            quotas[label][split] -= count
        split_of |= dict.fromkeys(unit, split)
    return split_of


def _choose_split(
    unit: list[str],
    need: Mapping[int, int],
    quotas: Mapping[int, Mapping[str, int]],
    seed: int,
) -> str:
    """Draws a split among those with room, in proportion to their room."""
    some_quota = next(iter(quotas.values()))
    room = {
        split: sum(quotas[label][split] for label in need)
        for split in some_quota
        if all(quotas[label][split] >= n for label, n in need.items())
    }
    if not room:
        raise DatasetError(
            f"a group of {len(unit)} near-identical images ({unit[0]}, ...) "
            "fits into no split: every split has fewer places left in its "
            "class"
        )
    mark = _fraction(seed, "split", unit[0]) * sum(room.values())
    for split, places in room.items():
        mark -= places
        if mark < 0:
            return split
    raise AssertionError("the mark is below the sum of the places")
