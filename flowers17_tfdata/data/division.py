"""How the flags divide images over splits."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from flowers17_tfdata.config.config import DataConfig
from flowers17_tfdata.data import carving
from flowers17_tfdata.data.oxford_flowers17 import splits as splits_lib
from flowers17_tfdata.errors import ConfigError


class Pool(NamedTuple):
    """Images to be divided.

    Attributes:
      ids: unique names, `[n]`.
      labels: class of each, `[n]`.
      groups: near-duplicate group of each, `[n]`; see `splits.group_pairs`.
      class_names: in the order of the labels.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    groups: Sequence[int]
    class_names: Sequence[str]


def check_has_effect(config: DataConfig, present: Collection[str]) -> None:
    """Refuses flags that say how to divide what comes divided.

    Args:
      config: the flags.
      present: the splits that the data set comes with.

    Raises:
      ConfigError: such a flag isn't at its default.
    """
    others = sorted(set(present) - {"train"})
    if config.folds and others:
        raise ConfigError(
            f"--folds goes with data sets that are divided here; "
            f"{config.dataset} comes with a split {others[0]}, not to be mixed "
            f"with train; got {config.folds}"
        )
    if not {"validation", "test"}.issubset(present):
        return
    given = f"{config.dataset}, which comes with its splits"
    if config.split_seed:
        raise ConfigError(
            f"--split_seed must be 0 for {given}; got {config.split_seed}"
        )
    if config.near_duplicates != "together":
        raise ConfigError(
            f"--near_duplicates must be together for {given}; got "
            f"{config.near_duplicates}"
        )


def by_fractions(
    pool: Pool, config: DataConfig, fractions: Mapping[str, float]
) -> dict[str, str]:
    """Returns `{id: split}`: by shares (see `carving.carve`), or by fold."""
    if config.folds:
        return by_fold(pool, config)
    pool = _grouped(pool, config)
    return carving.carve(
        pool.ids, pool.labels, pool.groups, fractions, config.split_seed
    )


def by_sizes(
    pool: Pool, config: DataConfig, sizes: Mapping[str, int]
) -> dict[str, str]:
    """Returns `{id: split}`: exact (see `splits.make_splits`), or by fold."""
    if config.folds:
        return by_fold(pool, config)
    pool = _grouped(pool, config)
    return splits_lib.make_splits(
        pool.ids, pool.labels, pool.groups, sizes, config.split_seed
    )


def by_fold(pool: Pool, config: DataConfig) -> dict[str, str]:
    """Returns the `{id: split}` of run `--fold` of a cross-validation.

    The fold is its test split, the one behind it validation, where the epoch is
    chosen; the rest is train.

    Raises:
      ConfigError: a class has too few images for so many folds.
    """
    pool = _grouped(pool, config)
    validation = (config.fold + 1) % config.folds
    split_of = {config.fold: "test", validation: "validation"}
    return {
        image_id: split_of.get(fold, "train")
        for image_id, fold in assign_folds(
            pool, config.folds, config.split_seed
        ).items()
    }


def assign_folds(pool: Pool, num_folds: int, seed: int) -> dict[str, int]:
    """Divides images into folds: stratified, groups kept together, seeded.

    Each group goes to the fold that has least of its class, of those to the
    smallest, the largest groups first, in an order drawn by hashes. So the
    folds' counts of a class differ by at most its largest group.

    The result depends on the set of (id, label, group members) and the seed
    alone, not on the order of `ids`.

    Args:
      pool: n images.
      num_folds: how many.
      seed: any integer.

    Returns:
      `{id: fold}`, folds counted from 0.

    Raises:
      ConfigError: a class would be in fewer folds than there are.
    """
    label_of = dict(zip(pool.ids, pool.labels, strict=True))
    members = collections.defaultdict(list)
    for image_id, group in zip(pool.ids, pool.groups, strict=True):
        members[group].append(image_id)
    units = [sorted(unit) for unit in members.values()]
    units.sort(key=lambda u: (-len(u), carving.order_key(seed, u[0])))
    counts = [collections.Counter() for _ in range(num_folds)]
    fold_of: dict[str, int] = {}
    for unit in units:
        need = collections.Counter(label_of[i] for i in unit)
        fold = _emptiest(need, counts)
        counts[fold].update(need)
        fold_of |= dict.fromkeys(unit, fold)
    _check_every_fold_has_all(pool, fold_of, num_folds)
    return fold_of


def _emptiest(
    need: Iterable[int], counts: Sequence[collections.Counter]
) -> int:
    return min(
        range(len(counts)),
        key=lambda fold: (
            sum(counts[fold][label] for label in need),
            counts[fold].total(),
        ),
    )


def _check_every_fold_has_all(
    pool: Pool, fold_of: Mapping[str, int], num_folds: int
) -> None:
    folds_of = collections.defaultdict(set)
    for image_id, label in zip(pool.ids, pool.labels, strict=True):
        folds_of[label].add(fold_of[image_id])
    label = min(folds_of, key=lambda k: (len(folds_of[k]), k))
    most = len(folds_of[label])
    if most < num_folds:
        raise ConfigError(
            f"--folds must be at most {most} for this data set: class "
            f"{pool.class_names[label]} has no more images (near-duplicates "
            f"count as one); got {num_folds}"
        )


def _grouped(pool: Pool, config: DataConfig) -> Pool:
    """Returns the pool with each image a group of its own, if so asked."""
    if config.near_duplicates == "together":
        return pool
    return pool._replace(groups=range(len(pool.ids)))


def notes(config: DataConfig, without_folds: str = "") -> tuple[str, ...]:
    """Returns what a user should know of the division, a line each.

    Args:
      config: the flags.
      without_folds: how the images are divided where not into folds.
    """
    lines = [without_folds] if without_folds else []
    if config.folds:
        validation = (config.fold + 1) % config.folds
        lines = [
            f"all images divided into {config.folds} folds (--split_seed="
            f"{config.split_seed}): fold {config.fold} is test, fold "
            f"{validation} validation, the rest train"
        ]
    if config.near_duplicates == "anywhere":
        lines.append(
            "near-duplicates lie in any split (--near_duplicates=anywhere): a "
            "test measures memory, too"
        )
    return tuple(lines)
