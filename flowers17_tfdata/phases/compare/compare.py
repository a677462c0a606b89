"""The phase `compare`."""

from __future__ import annotations

import pathlib
from typing import Any

from flowers17_tfdata import files, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.phases.compare import answers, workdirs
from flowers17_tfdata.scoring import comparison as comparison_lib
from flowers17_tfdata.scoring.comparison import PairedAnswers
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.session import make_workdir
from flowers17_tfdata.training import cluster


def compare(config: Config) -> None:
    """Compares two recipes on a split; writes `comparison.json`.

    Of what `--phase=evaluate` has written: no data set is needed, and no
    model.

    Raises:
      UserError: the runs can't be found, read or paired.
    """
    resolver = cluster.find_cluster()
    if resolver is not None and cluster.place(resolver)[1]:
        terminal.say("compare: worker 0 does it alone")
        return
    split, seed = config.evaluation.split, config.runtime.seed
    folders = workdirs.find_pairs(config.compare, split)
    predictions = answers.read_pairs(folders, split)
    pairs = [
        PairedAnswers(
            one.ids, one.predicted == one.labels, other.predicted == one.labels
        )
        for one, other in predictions
    ]
    comparison = {
        "split": split,
        "compare": config.compare.compare,
        "baseline": config.compare.baseline,
        "seed": seed,
        "num_resamples": comparison_lib.NUM_RESAMPLES,
        "pairs": [
            _origin("compare", compared, one)
            | _origin("baseline", baseline, other)
            | comparison_lib.summarize_pair(pair, seed)
            for (compared, baseline), (one, other), pair in zip(
                folders, predictions, pairs, strict=True
            )
        ],
        "pooled": comparison_lib.summarize_all(pairs, seed),
    }
    path = make_workdir(config.workdir) / "comparison.json"
    files.write_json(path, comparison)
    terminal.show_comparison(comparison)
    terminal.say(f"comparison written to {path}")


def _origin(
    side: str, workdir: pathlib.Path, predictions: Predictions
) -> dict[str, Any]:
    """Returns whose answers one side of a pair is of."""
    return {
        side: str(workdir),
        f"{side}_model": predictions.model,
        f"{side}_views": predictions.num_views,
    }
