"""Divides images into splits or folds, stratified, with groups kept whole."""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.errors import ConfigError, UserError

SPLITS = ("train", "validation", "test")


class Pool(NamedTuple):
    """The images to divide.

    Attributes:
      ids: unique names, `[n]`.
      labels: the class of each image, `[n]`.
      groups: the group of each image, `[n]`: near-duplicates, and what the
        user keeps together; see `splits.group_pairs`.
      class_names: in the order of the labels.
      given_groups: what the user keeps together alone, `[n]`; none: nothing.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    groups: Sequence[int]
    class_names: Sequence[str]
    given_groups: Sequence[int] = ()


def fractions_of_train(
    config: DataConfig, present: Collection[str]
) -> dict[str, float]:
    """Returns how to divide the train split, if other splits are missing.

    Args:
      config: the flags; `split_fractions` are fractions of the whole data
        set.
      present: the splits that the data set comes with.

    Returns:
      `{split: fraction of train}` for train and the missing splits, summing to
      1; empty if no split is missing.

    Raises:
      ConfigError: there is no train split, or a flag would divide a data set
        that comes with its splits.
    """
    others = sorted(set(present) - {"train"})
    if config.folds and others:
        raise ConfigError(
            "--folds goes with data sets that are divided here; "
            f"{config.dataset} comes with a split {others[0]}, not to be mixed "
            f"with train; got {config.folds}"
        )
    shares = dict(zip(SPLITS, config.fractions, strict=True))
    for split in set(others) & set(SPLITS):
        del shares[split]
    if len(shares) > 1:
        if "train" not in present:
            raise ConfigError(
                f"--dataset must have a split train; {config.dataset} has "
                f"{', '.join(present)}"
            )
        total = sum(shares.values())
        return {split: share / total for split, share in shares.items()}
    for flag, default in (("split_seed", 0), ("near_duplicates", "together")):
        value = getattr(config, flag)
        if value != default:
            raise ConfigError(
                f"--{flag} must be {default} for {config.dataset}, which comes "
                f"with its splits; got {value}"
            )
    return {}


def assign_splits(
    pool: Pool,
    config: DataConfig,
    shares: Mapping[str, float],
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assigns every image to a split, as the flags ask.

    With `--folds`, fold `--fold` is test and the next one is validation, which
    chooses the epoch; the rest is train.

    Args:
      pool: the images.
      config: the flags.
      shares: `{split: share}` without `--folds`. As in scikit-learn, floats are
        fractions (see `assign_fractions`), and integers are numbers of images,
        met exactly (see `splits.make_splits`).
      known: `{id: split}` of images that keep the split of an earlier run;
        see `assign_fractions`.

    Returns:
      `{id: split}`.
    """
    if config.near_duplicates == "anywhere":
        groups = pool.given_groups or range(len(pool.ids))
        pool = pool._replace(groups=groups)
    if config.folds:
        validation = (config.fold + 1) % config.folds
        split_of = {config.fold: "test", validation: "validation"}
        fold_of = assign_folds(pool, config.folds, config.split_seed)
        return {i: split_of.get(fold, "train") for i, fold in fold_of.items()}
    if isinstance(shares["train"], int):
        sizes = {split: int(size) for split, size in shares.items()}
        return splits.make_splits(*pool[:3], sizes, config.split_seed)
    return assign_fractions(
        pool, shares, config.split_seed, _with_twins(pool, known or {})
    )


def _with_twins(pool: Pool, known: Mapping[str, str]) -> dict[str, str]:
    """Adds the near-duplicates of images whose split is known.

    They join that split; those of images in several splits are left unused.
    """
    splits_of = collections.defaultdict[int, set[str]](set)
    for image_id, group in zip(pool.ids, pool.groups, strict=True):
        if image_id in known:
            splits_of[group].add(known[image_id])
    all_known = {}
    for image_id, group in zip(pool.ids, pool.groups, strict=True):
        found = splits_of[group]
        if image_id in known:
            all_known[image_id] = known[image_id]
        elif found:
            all_known[image_id] = (
                next(iter(found)) if len(found) == 1 else "unused"
            )
    return all_known


def assign_fractions(
    pool: Pool,
    fractions: Mapping[str, float],
    seed: int,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Divides images into splits of given fractions, groups kept whole.

    Each group goes to the split that lacks most of its class's share; the
    first group of a class goes to train. So the number of a class's images in
    a split differs from its share by less than the class's largest group, and
    a class of one or two images is trained on.

    Args:
      pool: the images.
      fractions: `{split: fraction}`, summing to 1; train must be a key.
      seed: any integer.
      known: `{id: split}` of images that have a split already, in whole
        groups. They count towards the fractions.

    Returns:
      `{id: split}`.

    Raises:
      UserError: a split would be empty, or a class without a train image.
    """
    known = known or {}
    lacks = {
        label: {split: count * f for split, f in fractions.items()}
        for label, count in collections.Counter(pool.labels).items()
    }
    trained_on: set[int] = set()
    for image_id, label in zip(pool.ids, pool.labels, strict=True):
        split = known.get(image_id, "")
        if split in fractions:
            lacks[label][split] -= 1
        if split == "train":
            trained_on.add(label)

    def choose(first: str, need: Mapping[int, int]) -> str:
        def lack(split: str) -> tuple[float, str]:
            missing = sum(lacks[label][split] for label in need)
            return missing, splits.order_key(seed, first, split)

        all_trained_on = trained_on.issuperset(need)
        split = max(fractions, key=lack) if all_trained_on else "train"
        if split == "train":
            trained_on.update(need)
        for label, count in need.items():
            lacks[label][split] -= count
        return split

    new = [k for k, image_id in enumerate(pool.ids) if image_id not in known]
    split_of = {
        **known,
        **splits.assign_groups(
            [pool.ids[k] for k in new],
            [pool.labels[k] for k in new],
            [pool.groups[k] for k in new],
            seed,
            choose,
        ),
    }
    for label in sorted(set(pool.labels) - trained_on):
        raise UserError(
            f"class {pool.class_names[label]} has no image to train on: each "
            "has a split already, or is nearly identical to one that has; add "
            "others"
        )
    for split in fractions:
        if split not in split_of.values():
            raise UserError(
                f"--split_fractions leaves no image for {split}: "
                f"{len(split_of)} images (near-duplicates and groups kept "
                "together) are too few; add images, or raise its fraction"
            )
    return split_of


def assign_folds(pool: Pool, num_folds: int, seed: int) -> dict[str, int]:
    """Divides images into folds of equal size, groups kept whole.

    Each group goes to the fold with the fewest images of its class, and among
    those to the smallest fold. So the numbers of a class's images in two folds
    differ by at most the class's largest group.

    Args:
      pool: the images.
      num_folds: the number of folds.
      seed: any integer.

    Returns:
      `{id: fold}`, folds counted from 0.

    Raises:
      ConfigError: a class would be missing from a fold.
    """
    fold_of, counts = _balanced_folds(*pool[:3], num_folds, seed)
    most, label = min(
        (sum(label in count for count in counts), label)
        for label in set(pool.labels)
    )
    if most < num_folds:
        raise ConfigError(
            f"--folds must be at most {most} for this data set: class "
            f"{pool.class_names[label]} has no more images (near-duplicates "
            f"and groups count as one); got {num_folds}"
        )
    return fold_of


def out_of_fold_parts(
    labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int
) -> np.ndarray:
    """Returns the fold of each example, int64 `[n]`, groups kept whole.

    As in `assign_folds`, but a class may be missing from a fold.

    Args:
      labels: int64 `[n]`.
      groups: int64 `[n]`.
      num_folds: the number of folds.
      seed: any integer.
    """
    names = [str(k) for k in range(len(labels))]
    fold_of, _ = _balanced_folds(
        names, labels.tolist(), groups.tolist(), num_folds, seed
    )
    return np.array([fold_of[name] for name in names], np.int64)


def known_elsewhere(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Returns which examples have their class in another fold, too, bool `[n]`.

    A model of the other folds knows the class of these alone: a class that is
    a single group lies wholly in one fold.

    Args:
      labels: int64 `[n]`.
      folds: int64 `[n]`.
    """
    pairs = np.stack([labels, folds], axis=1)
    _, inverse, in_fold = np.unique(
        pairs, axis=0, return_inverse=True, return_counts=True
    )
    return in_fold[inverse.ravel()] < np.bincount(labels)[labels]


def _balanced_folds(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[int],
    num_folds: int,
    seed: int,
) -> tuple[dict[str, int], list[collections.Counter[int]]]:
    """Returns the fold of each id, and the number of each class in each."""
    counts = [collections.Counter[int]() for _ in range(num_folds)]

    def choose(_: str, need: Mapping[int, int]) -> int:
        def size(fold: int) -> tuple[int, int]:
            of_class = sum(counts[fold][label] for label in need)
            return of_class, counts[fold].total()

        fold = min(range(num_folds), key=size)
        counts[fold].update(need)
        return fold

    return splits.assign_groups(ids, labels, groups, seed, choose), counts


def notes(config: DataConfig, new_splits: Iterable[str]) -> list[str]:
    """Returns what to show the user about the division, one line each.

    Args:
      config: the flags.
      new_splits: the names of the splits made here, if any.
    """
    lines = []
    if config.folds:
        lines.append(
            f"all images divided into {config.folds} folds (--split_seed="
            f"{config.split_seed}): fold {config.fold} is test, fold "
            f"{(config.fold + 1) % config.folds} validation, the rest train"
        )
    elif new_splits:
        lines.append(
            f"divided here into {', '.join(new_splits)} (--split_seed="
            f"{config.split_seed})"
        )
    if config.near_duplicates == "anywhere":
        lines.append(
            "near-duplicates may be in different splits "
            "(--near_duplicates=anywhere): the test also measures memory"
        )
    return lines
