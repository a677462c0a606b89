"""The numbers and tables of the page, section by section."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowers17_tfdata.phases.report import calibration as calibration_lib
from flowers17_tfdata.phases.report import (
    mistakes,
    reproduce,
    result_charts,
    training_charts,
)
from flowers17_tfdata.phases.report.record import RunRecord, StageRecord
from flowers17_tfdata.scoring.predictions import Predictions
from flowers17_tfdata.scoring.scores import wilson_interval

# Rows that a table shows before it is asked for all of them.
MOST_ROWS = 100
FIRST_ROWS = 50
_MOST_PAIRS = 20
# As many classes as one would miss a top-5 of.
_TOP_5_OF = 5

STAGE_TITLES = training_charts.STAGE_TITLES


def headline(
    evaluation: Mapping[str, Any],
    record: RunRecord,
    model: str,
    backbone: str,
) -> dict[str, Any]:
    """Returns the accuracy, and what to hold it against."""
    n = evaluation["num_examples"]
    supports = {k: v["support"] for k, v in evaluation["per_class"].items()}
    largest = max(supports, key=supports.__getitem__)
    num_classes = len(supports)
    low, high = evaluation["accuracy_interval"]
    return {
        "accuracy": evaluation["accuracy"],
        "low": low,
        "high": high,
        "num_examples": n,
        "num_correct": round(evaluation["accuracy"] * n),
        "num_classes": num_classes,
        "split": evaluation["split"],
        "views": evaluation.get("views", 1),
        "model": model,
        "backbone": backbone,
        "loss": evaluation["loss"],
        "top_5": evaluation["top_5_accuracy"]
        if num_classes > _TOP_5_OF
        else None,
        "baseline": supports[largest] / n,
        "largest": largest,
        "one_mistake": 1 / n,
        "stages": [_stage_row(stage) for stage in record.stages],
    }


def _stage_row(stage: StageRecord) -> dict[str, Any]:
    best = stage.best_line()
    rates = [line["images_per_sec"] for line in stage.epochs]
    waits = [line["data_wait_fraction"] for line in stage.epochs]
    return {
        "title": STAGE_TITLES[stage.name],
        "num_epochs": len(stage.epochs),
        "best_epoch": stage.best_epoch,
        "validated": any(
            line["validation_accuracy"] is not None for line in stage.epochs
        ),
        "best_accuracy": best["validation_accuracy"] if best else None,
        "best_loss": best["validation_loss"] if best else None,
        "seconds": stage.seconds,
        "images_per_sec": statistics.median(rates),
        "data_wait": statistics.mean(waits),
    }


def learning(record: RunRecord, label_smoothing: float) -> dict[str, Any]:
    """Returns the curves of all stages, and their numbers."""
    return {
        "charts": training_charts.learning_charts(record.stages)
        if record.stages
        else [],
        "stages": record.stages,
        "titles": STAGE_TITLES,
        "label_smoothing": label_smoothing,
    }


def confusions(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the confusion matrix, in full or in blocks, and its top pairs."""
    names = evaluation["class_names"]
    matrix = np.asarray(evaluation["confusion_matrix"])
    in_full = len(names) <= result_charts.MOST_CLASSES_IN_FULL
    return {
        "chart": result_charts.confusion_chart(matrix, names)
        if in_full
        else result_charts.block_confusion_chart(matrix),
        "in_full": in_full,
        "num_mistakes": int(matrix.sum() - np.trace(matrix)),
        "pairs": [
            {
                "label": names[pair.label],
                "taken_for": names[pair.taken_for],
                "count": pair.count,
                "share": pair.share,
            }
            for pair in mistakes.most_confused(
                matrix, _MOST_PAIRS if not in_full else _MOST_PAIRS // 2
            )
        ],
    }


def per_class(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row a class, the worst F1 first."""
    names = evaluation["class_names"]
    matrix = np.asarray(evaluation["confusion_matrix"])
    top = {}
    for pair in mistakes.most_confused(matrix, matrix.size):
        top.setdefault(pair.label, (names[pair.taken_for], pair.count))
    rows = []
    for k, name in enumerate(names):
        scores = evaluation["per_class"][name]
        support, hits = scores["support"], int(matrix[k, k])
        rows.append(
            {
                "name": name,
                **scores,
                "interval": wilson_interval(hits, support) if support else None,
                "taken_for": top.get(k),
            }
        )
    rows.sort(key=lambda row: row["f1"])
    return {
        "rows": rows,
        "num_first": FIRST_ROWS if len(rows) > MOST_ROWS else len(rows),
    }


def calibration(predictions: Predictions) -> dict[str, Any]:
    """Returns the reliability diagram and its numbers."""
    result = calibration_lib.calibrate(
        predictions.probabilities.max(axis=1),
        predictions.predicted == predictions.labels,
        calibration_lib.choose_num_bins(len(predictions.labels)),
    )
    edges = np.arange(result.num_bins + 1) / result.num_bins
    return {
        "chart": result_charts.calibration_chart(result),
        "ece": result.ece,
        "num_bins": result.num_bins,
        "confidence": result.mean_confidence,
        "accuracy": result.mean_accuracy,
        "bins": [
            {
                "low": edges[k],
                "high": edges[k + 1],
                "count": int(result.counts[k]),
                "confidence": float(result.confidence[k]),
                "accuracy": float(result.accuracy[k]),
            }
            for k in range(result.num_bins)
            if result.counts[k]
        ],
    }


def audit(
    record: RunRecord, class_names: Sequence[str], dataset: str
) -> dict[str, Any] | None:
    """Returns what is known of the data; None: it was not audited."""
    found = record.audit
    if found is None:
        return None
    pairs = found["near_duplicates"]["pairs"]
    across = [pair for pair in pairs if len(set(pair["splits"])) > 1]
    few = len(class_names) <= result_charts.MOST_CLASSES_IN_FULL
    return {
        **found,
        "is_of": found["dataset"] == dataset,
        "across": across[:_MOST_PAIRS],
        "first_undecodable": found["undecodable"][:_MOST_PAIRS],
        "chart": result_charts.split_chart(found["splits"], class_names)
        if few
        else None,
        "class_names": class_names,
        "in_full": few,
        "ranges": [
            {
                "split": split,
                "num_examples": counts["num_examples"],
                "fewest": min(counts["per_class"].values()),
                "most": max(counts["per_class"].values()),
            }
            for split, counts in found["splits"].items()
        ],
    }


def time_spent(record: RunRecord) -> dict[str, Any]:
    """Returns where the run's wall time went."""
    return {
        "chart": training_charts.time_chart(record.parts)
        if record.parts
        else None,
        "total": sum(record.parts.values()),
        "stages": [_stage_row(stage) for stage in record.stages],
    }


def reproduction(record: RunRecord, workdir: str, split: str) -> dict[str, Any]:
    """Returns the commands, the flags, the versions and the hardware."""
    config = record.config
    again = reproduce.on_lines(reproduce.report_command(workdir, split))
    if config is None:
        return {"report_command": again, "config": None}
    return {
        "report_command": again,
        "training_command": reproduce.on_lines(
            reproduce.training_command(config["flags"])
        ),
        "config": config,
        "flags": reproduce.flag_rows(config["flags"]),
    }
