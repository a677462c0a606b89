"""How the flags divide images over splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from flowers17_tfdata.config import DataConfig
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
    """Returns `{id: split}` by shares of each class; see `carving.carve`."""
    pool = _grouped(pool, config)
    return carving.carve(
        pool.ids, pool.labels, pool.groups, fractions, config.split_seed
    )


def by_sizes(
    pool: Pool, config: DataConfig, sizes: Mapping[str, int]
) -> dict[str, str]:
    """Returns `{id: split}` of exact sizes; see `splits.make_splits`."""
    pool = _grouped(pool, config)
    return splits_lib.make_splits(
        pool.ids, pool.labels, pool.groups, sizes, config.split_seed
    )


def _grouped(pool: Pool, config: DataConfig) -> Pool:
    """Returns the pool with each image a group of its own, if so asked."""
    if config.near_duplicates == "together":
        return pool
    return pool._replace(groups=range(len(pool.ids)))


def notes(config: DataConfig) -> tuple[str, ...]:
    """Returns what a user should know of the division, a line each."""
    if config.near_duplicates == "together":
        return ()
    return (
        "near-duplicates lie in any split (--near_duplicates=anywhere): a "
        "test measures memory, too",
    )
