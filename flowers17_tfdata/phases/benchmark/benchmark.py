"""Runs the phase: measures all rows and writes `benchmark.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from flowers17_tfdata import files, machine, terminal
from flowers17_tfdata.data import decode
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input.examples import load_examples
from flowers17_tfdata.phases.benchmark import (
    input_speed,
    measurement,
    model_speed,
    step_overhead,
    stock_keras,
    timm_peer,
    worker,
)
from flowers17_tfdata.phases.benchmark.measurement import Row
from flowers17_tfdata.session import Session

# The number of measurements of each row; their median is reported.
NUM_RUNS = 3


def benchmark(session: Session) -> None:
    """Measures all rows, writes `benchmark.json` and prints a table.

    Raises:
      UserError: the data set has no train split, or stock Keras fails.
    """
    session.source.check_split("train")
    with tempfile.TemporaryDirectory(prefix="flowers17_tfdata_") as folder:
        rows = measurement.to_json(_measure(session, pathlib.Path(folder)))
    path = session.workdir / "benchmark.json"
    files.write_json(path, {"rows": rows, **session.record()})
    _show(session, rows)


def _measure(session: Session, folder: pathlib.Path) -> list[Row]:
    config = session.config
    train = {}
    for cache in ("memory", "none"):
        options = dataclasses.replace(config.input, cache=cache)
        train[cache] = load_examples(session.source, "train", options)
    open_stage = model_speed.make_fine_tuning(
        session, train[config.input.cache], folder
    )
    whole = partly = open_stage("all")
    if config.model.unfreeze_from != "all":
        partly = open_stage(config.model.unfreeze_from)
    work = stock_keras.Work(
        images=_write_images(session, folder / "images"),
        num_classes=len(session.source.class_names),
        batches_per_call=whole.steps_per_call,
        config=config,
    )
    with contextlib.ExitStack() as stack:
        stock = stack.enter_context(
            worker.open_worker("stock Keras", stock_keras.measure, work)
        )
        rows = [
            *(Row(s, functools.partial(stock, s)) for s in stock_keras.STAGES),
            *input_speed.input_rows(session, train),
            *model_speed.model_rows(session, whole, partly),
            *step_overhead.overhead_rows(session, whole),
            *_timm_rows(session, stack),
        ]
        measurement.measure_in_turns(rows, NUM_RUNS)
    return rows


def _timm_rows(session: Session, stack: contextlib.ExitStack) -> list[Row]:
    """Returns the rows of timm, if it is installed and can do the work."""
    one_device = session.strategy.num_replicas_in_sync == 1
    if not one_device or not timm_peer.is_installed():
        return []
    config = session.config
    work = timm_peer.Work(
        config.model.backbone,
        (
            (timm_peer.FORWARD, config.input.image_size),
            (timm_peer.STEP, config.input.train_image_size),
        ),
        config.optimization.global_batch_size,
        len(session.source.class_names),
        session.compute_dtype,
        needs_gpu=bool(machine.hardware()["gpus"]),
    )
    with contextlib.ExitStack() as trial:
        peer = trial.enter_context(
            worker.open_worker("timm", timm_peer.measure, work)
        )
        try:
            for stage in timm_peer.STAGES:
                peer(stage)
        except UserError as error:
            terminal.say(f"without timm: {error}")
            return []
        # It worked: the worker goes on.
        stack.enter_context(trial.pop_all())
    return [
        Row(stage, functools.partial(peer, stage), relative_to=own)
        for stage, own in timm_peer.STAGES.items()
    ]


def _write_images(session: Session, folder: pathlib.Path) -> pathlib.Path:
    """Writes the train split as class folders, which stock Keras reads."""
    examples = session.source.read("train").as_numpy_iterator()
    for position, example in enumerate(examples):
        # Keras recognizes the format by the contents, not by the name.
        path = folder / f"{example['label']:04d}" / f"{position:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(decode.upright(example["image"]))
    return folder


def _show(session: Session, rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in rows:
        value, compared, ceiling = row["value"], "", ""
        if other := row["relative_to"]:
            compared = f"{row['ratio']:.2f} x {other.split('/')[1]}"
        if other := row["ceiling"]:
            ceiling = f"{row['share_of_ceiling']:.0%} of {other.split('/')[1]}"
        digits = 0 if value >= 1000 else 1 if value >= 10 else 2
        value = f"{value:,.{digits}f}"
        shown.append([row["stage"], value, row["unit"], compared, ceiling])
    terminal.show_table(
        "benchmark (medians; ratios round by round)",
        ["stage", "median", "unit", "compared", "of its ceiling"],
        shown,
    )
    cached = session.config.input.cache == "memory"
    pipeline = "input/cached" if cached else "input/uncached"
    terminal.say(bottleneck({row["stage"]: row for row in rows}, pipeline))


def bottleneck(rows: Mapping[str, Mapping[str, Any]], pipeline: str) -> str:
    """Returns a sentence about what limits fine-tuning, and the flags for it.

    Args:
      rows: the rows of `benchmark.json` by stage.
      pipeline: the row of the input pipeline as configured.
    """
    whole = rows["train/finetune"]["images_per_sec"]
    model, batches = rows["model/step"], rows[pipeline]
    slower = min(model, batches, key=lambda row: row["images_per_sec"])
    return (
        f"fine-tuning runs at {whole:.1f} images/s, limited by "
        f"{slower['stage']} (the model's step alone: "
        f"{model['images_per_sec']:.1f}; the input alone: "
        f"{batches['images_per_sec']:.1f}); moved by {slower['moved_by']}"
    )
