"""Reads the predictions of pairs of runs for the same images."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.scoring.predictions import (
    Predictions,
    load,
    predictions_path,
)


class Pair(NamedTuple):
    """The predictions of two runs for the same images, in the same order.

    Attributes:
      compared: those of the compared run.
      baseline: those of the baseline.
      left_out: the number of images that only one run has, or that have
        another label there, because of `--corrections`.
    """

    compared: Predictions
    baseline: Predictions
    left_out: int


def read_pairs(
    folders: Iterable[tuple[pathlib.Path, pathlib.Path]], split: str
) -> list[Pair]:
    """Reads the predictions of pairs of workdirs and aligns them by id.

    Args:
      folders: `(compared, baseline)` of each pair.
      split: the name of the split.

    Returns:
      The predictions of each pair, in the order of the compared run.

    Raises:
      UserError: a file is damaged or older than its model; the runs of a pair
        have different images that were not corrected, or the pairs different
        data sets.
    """
    pairs = []
    # The label of each id, and the first workdir that holds it.
    known: dict[str, tuple[int, pathlib.Path]] = {}
    for compared, baseline in folders:
        sides = read(compared, split), read(baseline, split)
        names = f"{compared} and {baseline}"
        changed = corrected(compared, split) | corrected(baseline, split)
        pairs.append(_align(*sides, names, split, changed))
        one = pairs[-1].compared
        for example, label in zip(one.ids, one.labels.tolist(), strict=True):
            before, where = known.setdefault(example, (label, compared))
            if label != before:
                raise UserError(
                    "--compare: all pairs must be of one data set; the label "
                    f"of {example} is {before} in {where}, {label} in "
                    f"{compared}"
                )
    return pairs


def read(workdir: pathlib.Path, split: str) -> Predictions:
    """Reads the predictions of a workdir.

    Raises:
      UserError: they are missing, damaged or older than their model, or an id
        occurs twice.
    """
    path = predictions_path(workdir, split)
    predictions = load(path)
    ((example, count),) = collections.Counter(predictions.ids).most_common(1)
    if count > 1:
        raise UserError(
            f"{path}: ids must be unique, because runs are compared by id; "
            f"{example} occurs {count} times"
        )
    # The workdir may have moved, or the path be relative to another folder.
    model = pathlib.Path(predictions.model)
    places = filter(pathlib.Path.is_file, (model, workdir / model.name))
    found = next(places, None)
    if found and found.stat().st_mtime > path.stat().st_mtime:
        raise UserError(
            f"{path} is older than its model {found}: evaluate it again "
            f"(--phase=evaluate --split={split} --workdir={workdir})"
        )
    return predictions


def corrected(workdir: pathlib.Path, split: str) -> set[str]:
    """Returns the ids that `--corrections` changed, by the run's audit."""
    path = workdir / "audit.json"
    if not path.exists():
        return set()
    # Audits of earlier versions hold no corrections.
    rows = files.read_json(path).get("corrections", {}).get("rows", [])
    return {
        row["id"]
        for row in rows
        if row["split"] == split and row["new_class"] != row["class"]
    }


def _align(
    one: Predictions,
    other: Predictions,
    names: str,
    split: str,
    changed: Collection[str],
) -> Pair:
    """Puts the predictions of both runs for the same images in one order.

    Args:
      one: predictions of the first run.
      other: predictions of the second run.
      names: the two workdirs, for the error message.
      split: the name of the split.
      changed: the ids that may differ, and are left out if they do.

    Raises:
      UserError: other images or their labels differ, or none is left.
    """
    position = {example: k for k, example in enumerate(other.ids)}
    missing = [example for example in one.ids if example not in position]
    extra = sorted(position.keys() - set(one.ids))
    differ = [e for e in (*missing, *extra) if e not in changed]
    if differ:
        only_first = len({*differ} - position.keys())
        raise UserError(
            f"{names} must have the same images in {split} (one data set, one "
            f"--split_seed); {only_first} are only in the first, "
            f"{len(differ) - only_first} only in the second, e.g. {differ[0]}"
        )
    kept = [k for k, example in enumerate(one.ids) if example in position]
    order = [position[one.ids[k]] for k in kept]
    same = one.labels[kept] == other.labels[order]
    wrong = [
        k for k in np.flatnonzero(~same) if one.ids[kept[k]] not in changed
    ]
    if wrong:
        first, second = kept[wrong[0]], order[wrong[0]]
        raise UserError(
            f"{names} must have the same labels in {split}; {len(wrong)} "
            f"differ, e.g. {one.ids[first]}: {one.labels[first]} and "
            f"{other.labels[second]}"
        )
    if not same.any():
        raise UserError(
            f"{names}: --corrections changed every image that both have in "
            f"{split}, so none is left to compare"
        )
    left_out = len(missing) + len(extra) + int((~same).sum())
    return Pair(
        select(one, np.array(kept)[same]),
        select(other, np.array(order)[same]),
        left_out,
    )


def select(predictions: Predictions, chosen: np.ndarray) -> Predictions:
    """Returns the predictions at some positions, int64 `[n]`."""
    return predictions._replace(
        ids=tuple(predictions.ids[k] for k in chosen),
        labels=predictions.labels[chosen],
        logits=predictions.logits[chosen],
    )
