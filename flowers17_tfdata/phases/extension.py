"""Compares a run with the earlier one that it extends."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from flowers17_tfdata import files, terminal
from flowers17_tfdata.data import extension
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.phases.compare import answers
from flowers17_tfdata.scoring import comparison
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import Session


def compare_with_earlier(session: Session) -> None:
    """Tests both models on the old images of `--split`.

    It needs the predictions of both runs, prints one line and writes
    `extension.json`: what `extension.find_changes` finds, and
      `extends`, `split`;
      `comparison`: see `comparison.summarize_pair`, where `baseline` is the
        earlier run, with the two models; None if the earlier run holds no
        predictions that can be used;
      `new_classes`: `{name: {"correct", "num_examples"}}`.
    """
    if not session.workers.is_chief:
        return
    config, split = session.config, session.config.evaluation.split
    earlier = pathlib.Path(config.data.extends).expanduser()
    old_images = extension.read_old_splits(
        earlier, session.workdir, is_trained=True
    )
    names = session.source.class_names
    changes = extension.find_changes(old_images, names, session.source.scan())
    now = answers.read(session.workdir, split)
    figures = None
    try:
        before = answers.read(earlier, split)
    except UserError as error:
        line = f"not compared with {earlier}: {error}"
    else:
        figures = _compare(
            now,
            _unchanged(before, session, earlier, old_images),
            config.runtime.seed,
        )
        line = _line(figures, earlier, split, len(before.ids))
    new = {
        name: _count(now, names.index(name)) for name in changes["new_classes"]
    }
    for name, count in new.items():
        total = count["num_examples"]
        line += f"; new class {name}: {count['correct']} of {total} right"
    result = changes | {
        "extends": str(earlier.resolve()),
        "split": split,
        "comparison": figures,
        "new_classes": new,
    }
    files.write_json(session.output / "extension.json", result)
    terminal.say(line, **result)


def _unchanged(
    before: Predictions,
    session: Session,
    earlier: pathlib.Path,
    old_images: Iterable[extension.Row],
) -> Predictions:
    """Returns the earlier predictions without those of corrected images."""
    split = session.config.evaluation.split
    scan, names = session.source.scan(), session.source.class_names
    labels = (names[label] for label in scan.labels)
    now = dict(zip(scan.ids, labels, strict=True))
    was = {image_id: name for image_id, name, _ in old_images}
    corrected = {
        image_id
        for workdir in (session.workdir, earlier)
        for image_id in answers.corrected(workdir, split)
        if was.get(image_id) != now.get(image_id)
    }
    kept = [k for k, i in enumerate(before.ids) if i not in corrected]
    return answers.select(before, np.array(kept, np.int64))


def _compare(
    now: Predictions, before: Predictions, seed: int
) -> dict[str, Any] | None:
    """Compares the answers to the images that both runs have; None without."""
    place = {image_id: k for k, image_id in enumerate(now.ids)}
    shared = [k for k, image_id in enumerate(before.ids) if image_id in place]
    if not shared:
        return None
    ids = tuple(before.ids[k] for k in shared)
    # Labels are compared within a run: new classes shift the others' numbers.
    right = now.predicted == now.labels
    pair = comparison.PairedAnswers(
        ids,
        right[[place[image_id] for image_id in ids]],
        (before.predicted == before.labels)[shared],
    )
    return comparison.summarize_pair(pair, seed) | {
        "compare_model": now.model,
        "baseline_model": before.model,
    }


def _line(
    figures: dict[str, Any] | None,
    earlier: pathlib.Path,
    split: str,
    num_before: int,
) -> str:
    if figures is None:
        return f"none of the {num_before} {split} images of {earlier} is left"
    count = figures["num_examples"]
    images = str(count) if count == num_before else f"{count} of {num_before}"
    low, high = (100 * x + 0.0 for x in figures["difference_interval"])
    return (
        f"on the {images} {split} images of {earlier}: "
        f"{figures['baseline_accuracy']:.1%} -> "
        f"{figures['compare_accuracy']:.1%} (p = {figures['p_value']:.2g}, "
        f"95 % interval of the difference {low:.1f} to {high:.1f} points)"
    )


def _count(now: Predictions, label: int) -> dict[str, int]:
    of_class = now.labels == label
    correct = np.count_nonzero(of_class & (now.predicted == label))
    return {
        "correct": int(correct),
        "num_examples": int(np.count_nonzero(of_class)),
    }
