"""Runs the phase: is one recipe better than another?"""

from __future__ import annotations

from typing import Any

from flowers17_tfdata import files, terminal
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.phases.compare import answers, verdict, workdirs
from flowers17_tfdata.scoring import comparison
from flowers17_tfdata.session import make_workdir


def compare(config: Config) -> None:
    """Compares two recipes on a split, and writes `comparison.json`.

    It needs the files that `--phase=evaluate` wrote, but neither the data set
    nor a model.

    Raises:
      UserError: the runs can't be found, read or paired.
    """
    split, seed = config.evaluation.split, config.runtime.seed
    folders = workdirs.find_pairs(config.compare, split)
    predictions = answers.read_pairs(folders, split)
    rows, pairs = [], []
    for paths, (*sides, left_out) in zip(folders, predictions, strict=True):
        correct = (side.predicted == side.labels for side in sides)
        pair = comparison.PairedAnswers(sides[0].ids, *correct)
        row: dict[str, Any] = {"left_out": left_out}
        for name, path, side in zip(verdict.SIDES, paths, sides, strict=True):
            row[name] = str(path)
            row[f"{name}_model"] = side.model
        pairs.append(pair)
        rows.append(row | comparison.summarize_pair(pair, seed))
    result = {
        "split": split,
        "compare": config.compare.compare,
        "baseline": config.compare.baseline,
        "seed": seed,
        "num_resamples": comparison.NUM_RESAMPLES,
        "pairs": rows,
        "pooled": comparison.summarize_all(pairs, seed),
    }
    path = make_workdir(config.workdir) / "comparison.json"
    files.write_json(path, result)
    verdict.show(result)
    terminal.say(f"comparison written to {path}")
