"""Reads the predictions of pairs of runs for the same images."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable

import numpy as np

from flowers17_tfdata.errors import UserError
from flowers17_tfdata.scoring.predictions import (
    Predictions,
    load,
    predictions_path,
)


def read_pairs(
    folders: Iterable[tuple[pathlib.Path, pathlib.Path]], split: str
) -> list[tuple[Predictions, Predictions]]:
    """Reads the predictions of pairs of workdirs and aligns them by id.

    Args:
      folders: `(compared, baseline)` of each pair.
      split: the name of the split.

    Returns:
      The predictions of each pair. Those of the baseline are in the order of
      the compared run.

    Raises:
      UserError: a file is damaged or older than its model; the runs of a pair
        have different images, or the pairs different data sets.
    """
    pairs = []
    # The label of each id, and the first workdir that holds it.
    known: dict[str, tuple[int, pathlib.Path]] = {}
    for compared, baseline in folders:
        one, other = read(compared, split), read(baseline, split)
        names = f"{compared} and {baseline}"
        pairs.append((one, _align(one, other, names, split)))
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


def _align(
    one: Predictions, other: Predictions, names: str, split: str
) -> Predictions:
    """Puts the second run's predictions in the order of the first.

    Args:
      one: predictions of the first run.
      other: predictions of the second run.
      names: the two workdirs, for the error message.
      split: the name of the split.

    Raises:
      UserError: the images or their labels differ.
    """
    position = {example: k for k, example in enumerate(other.ids)}
    missing = [example for example in one.ids if example not in position]
    extra = sorted(position.keys() - set(one.ids))
    if missing or extra:
        raise UserError(
            f"{names} must have the same images in {split} (one data set, one "
            f"--split_seed); {len(missing)} are only in the first, "
            f"{len(extra)} only in the second, e.g. {(missing + extra)[0]}"
        )
    order = [position[example] for example in one.ids]
    labels = other.labels[order]
    differ = np.flatnonzero(one.labels != labels)
    if len(differ):
        k = differ[0]
        raise UserError(
            f"{names} must have the same labels in {split}; {len(differ)} "
            f"differ, e.g. {one.ids[k]}: {one.labels[k]} and {labels[k]}"
        )
    return other._replace(
        ids=one.ids, labels=labels, logits=other.logits[order]
    )
