"""What two runs answered to the same images."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable

import numpy as np

from flowers17_tfdata.errors import UserError
from flowers17_tfdata.scoring import predictions as predictions_lib
from flowers17_tfdata.scoring.predictions import Predictions


def read_pairs(
    folders: Iterable[tuple[pathlib.Path, pathlib.Path]], split: str
) -> list[tuple[Predictions, Predictions]]:
    """Reads the predictions of pairs of workdirs, and aligns them by id.

    Args:
      folders: `(compared, baseline)` of each pair.
      split: whose predictions.

    Returns:
      Those of each pair, the second ones in the order of the first.

    Raises:
      UserError: a file is damaged or older than its model; two runs are not of
        the same images, or two pairs not of one data set.
    """
    pairs = []
    # Of each id, its label and the workdir that told it first.
    known: dict[str, tuple[int, pathlib.Path]] = {}
    for compared, baseline in folders:
        one, other = _read(compared, split), _read(baseline, split)
        other = _align(one, other, compared, baseline, split)
        pairs.append((one, other))
        for example, label in zip(one.ids, one.labels.tolist(), strict=True):
            before, where = known.setdefault(example, (label, compared))
            if label != before:
                raise UserError(
                    "--compare: all pairs must be of one data set; the label "
                    f"of {example} is {before} in {where}, {label} in "
                    f"{compared}"
                )
    return pairs


def _read(workdir: pathlib.Path, split: str) -> Predictions:
    path = predictions_lib.predictions_path(workdir, split)
    predictions = predictions_lib.load(path)
    ids, labels, logits = predictions[:3]
    if (
        not ids
        or labels.shape != (len(ids),)
        or logits.shape[:-1] != (len(ids),)
        or not logits.shape[-1]
    ):
        raise UserError(
            f"{path} holds {len(ids)} ids, labels {list(labels.shape)}, "
            f"logits {list(logits.shape)}: --phase=evaluate writes it anew"
        )
    if len(set(ids)) < len(ids):
        twice, count = collections.Counter(ids).most_common(1)[0]
        raise UserError(
            f"{path}: every id must be there once, to be found in another "
            f"run; {twice} is there {count} times"
        )
    _check_age(path, predictions.model, split)
    return predictions


def _check_age(path: pathlib.Path, model: str, split: str) -> None:
    """Checks that a model hasn't changed since it answered.

    Raises:
      UserError: it has.
    """
    # By its name, where the workdir was moved or is seen from another folder.
    places = pathlib.Path(model), path.parent / pathlib.Path(model).name
    found = next((place for place in places if place.is_file()), None)
    if found and found.stat().st_mtime > path.stat().st_mtime:
        raise UserError(
            f"{path} is older than {found}, which it is of: evaluate it again "
            f"(--phase=evaluate --split={split} --workdir={path.parent})"
        )


def _align(
    one: Predictions,
    other: Predictions,
    compared: pathlib.Path,
    baseline: pathlib.Path,
    split: str,
) -> Predictions:
    """Puts the second run's answers in the order of the first one's.

    Raises:
      UserError: names the folders, and what differs.
    """
    position = {example: k for k, example in enumerate(other.ids)}
    missing = [i for i in one.ids if i not in position]
    extra = len(other.ids) - (len(one.ids) - len(missing))
    if missing or extra:
        first = (missing or sorted(position.keys() - set(one.ids)))[0]
        raise UserError(
            f"{compared} and {baseline} must have the same images in {split} "
            f"(one data set, one --split_seed); {len(missing)} are in the "
            f"first alone, {extra} in the second alone, e.g. {first}"
        )
    order = np.array([position[example] for example in one.ids])
    differ = np.flatnonzero(one.labels != other.labels[order])
    if len(differ):
        k = differ[0]
        raise UserError(
            f"{compared} and {baseline} must have the same labels in {split}; "
            f"{len(differ)} differ, e.g. {one.ids[k]}: {one.labels[k]} and "
            f"{other.labels[order[k]]}"
        )
    return other._replace(
        ids=one.ids, labels=one.labels, logits=other.logits[order]
    )
