"""The phase: which rows there are, the table, `benchmark.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

import tensorflow as tf

from flowers17_tfdata import files, machine, terminal
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.input.examples import Examples, load_examples
from flowers17_tfdata.phases.benchmark import (
    ceilings,
    stages,
    stock_keras,
    timing,
)
from flowers17_tfdata.phases.benchmark.timing import Row
from flowers17_tfdata.session import Session

# Measurements of each stage, whose median counts.
NUM_RUNS = 5

_FASTER_MODEL = "--precision, --image_size, --backbone"
_FEWER_LAYERS = "--unfreeze_from, " + _FASTER_MODEL


def benchmark(session: Session) -> None:
    """Measures every stage; prints the table, writes `benchmark.json`.

    Raises:
      UserError: the data set has no train split, or stock Keras fails.
    """
    session.source.check_split("train")
    with contextlib.ExitStack() as stack:
        work = _write_class_folders(session, stack)
        stock = stack.enter_context(stock_keras.open_worker(work))
        decoded, encoded = (
            load_examples(
                session.source,
                "train",
                dataclasses.replace(session.config.input, cache=cache),
            )
            for cache in ("memory", "none")
        )
        rows = _input_rows(session, stock, decoded, encoded)
        cached = session.config.input.cache == "memory"
        rows += _model_rows(session, stock, decoded if cached else encoded)
        total = len(rows) * (NUM_RUNS + 1)
        progress = stack.enter_context(
            terminal.EpochProgress("benchmark", total)
        )
        timing.measure_in_turns(
            rows, NUM_RUNS, lambda row: progress.advance(1, row.stage)
        )
    values = timing.to_json(rows)
    sizes = session.source.split_sizes
    cost = transfer_cost(
        {row["stage"]: row for row in values},
        sizes["train"],
        sizes.get("validation", 0),
    )
    files.write_json(
        session.workdir / "benchmark.json",
        {
            "rows": values,
            "transfer_over_forward": cost,
            "flags": config_lib.to_values(session.config)
            | {"precision": session.precision},
            "num_replicas": session.strategy.num_replicas_in_sync,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        },
    )
    _show(session, values, cost)


def _write_class_folders(
    session: Session, stack: contextlib.ExitStack
) -> stock_keras.Work:
    """Writes the train split as stock Keras wants to read it."""
    root = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="flowers17_tfdata_")
    )
    examples = session.source.read("train").as_numpy_iterator()
    for position, example in enumerate(examples):
        folder = pathlib.Path(root, f"{example['label']:04d}")
        folder.mkdir(exist_ok=True)
        # Both readers decide by the contents what kind of image it is.
        (folder / f"{position:07d}.jpg").write_bytes(example["image"])
    config = session.config
    return stock_keras.Work(
        images=pathlib.Path(root),
        num_classes=len(session.source.class_names),
        backbone=config.model.backbone,
        batch_size=config.optimization.global_batch_size,
        batches_per_call=stages.steps_per_call(),
        input=config.input,
    )


def _input_rows(
    session: Session,
    stock: Callable[[str], float],
    decoded: Examples,
    encoded: Examples,
) -> list[Row]:
    config = session.config.input
    sample = stages.encoded_sample(session)
    copy = ceilings.make_copy()
    # Normalization reads uint8 and writes the compute dtype; a copy reads and
    # writes each byte.
    width = 1 + tf.as_dtype(session.compute_dtype).size
    traffic = 3 * config.image_size**2 * width
    rows = [
        Row("input/read", stages.make_read(session)),
        Row("input/decode", stages.make_decode(sample)),
        Row("input/resize", stages.make_resize(sample, config.image_size)),
        Row("input/augment", stages.make_augment(decoded, config)),
        Row("ceiling/memory", lambda: copy() * 2 / traffic),
        Row(
            "input/normalize",
            stages.make_normalize(session, decoded),
            ceiling="ceiling/memory",
        ),
        Row(
            "input/keras_layers",
            lambda: stock("keras_layers"),
        ),
    ]
    return [
        *rows,
        Row(
            "input/keras_generator",
            lambda: stock("image_data_generator"),
        ),
        Row(
            "input/cached",
            stages.make_pipeline(session, decoded),
            relative_to="input/keras_generator",
            ceiling="input/augment",
            moved_by="--augment_on=device, --train_scale",
        ),
        Row(
            "input/uncached",
            stages.make_pipeline(session, encoded),
            relative_to="input/keras_generator",
            ceiling="input/decode",
            moved_by="--cache=memory",
        ),
    ]


def _model_rows(
    session: Session, stock: Callable[[str], float], examples: Examples
) -> list[Row]:
    config = session.config
    whole = stages.build_model(session, "all")
    partly = stages.build_model(session, config.model.unfreeze_from)
    trainer = stages.make_image_trainer(session, whole)
    fine_tuner = stages.make_image_trainer(session, partly)
    matmul = ceilings.make_matmul(session.compute_dtype)
    replicas = session.strategy.num_replicas_in_sync
    # Logical devices share one processor.
    devices = 1 if config.runtime.num_virtual_devices else replicas

    def floor(flop: int) -> Callable[[], float]:
        return lambda: matmul() * devices / flop

    return [
        Row("ceiling/matmul_forward", floor(ceilings.forward_flop(whole))),
        Row("ceiling/matmul_step_all", floor(ceilings.step_flop(whole))),
        Row("ceiling/matmul_step", floor(ceilings.step_flop(partly))),
        Row("model/keras_predict", lambda: stock("predict")),
        Row(
            "model/forward",
            stages.make_forward(session, trainer),
            "model/keras_predict",
            "ceiling/matmul_forward",
            _FASTER_MODEL,
        ),
        Row("model/keras_fit", lambda: stock("fit")),
        Row(
            "model/step_all",
            stages.make_step(session, trainer),
            "model/keras_fit",
            "ceiling/matmul_step_all",
            _FEWER_LAYERS,
        ),
        Row(
            "model/step",
            stages.make_step(session, fine_tuner),
            "model/keras_fit",
            "ceiling/matmul_step",
            _FEWER_LAYERS,
        ),
        Row(
            "train/finetune",
            stages.make_training(session, partly, examples),
            "model/step",
            "model/step",
        ),
        Row(
            "train/head",
            stages.make_head(session, whole, examples.num_examples),
            "model/forward",
            moved_by="--transfer_optimizer",
        ),
    ]


def _show(session: Session, rows: list[dict], cost: float) -> None:
    shown = []
    for row in rows:
        compared = ceiling = ""
        if row["relative_to"]:
            compared = f"{row['ratio']:.2f} x {_name(row['relative_to'])}"
        if row["ceiling"]:
            share = row["share_of_ceiling"]
            ceiling = f"{share:.0%} of {_name(row['ceiling'])}"
        rate = row["images_per_sec"]
        digits = 1 if rate < 1000 else 0
        shown.append([row["stage"], f"{rate:,.{digits}f}", compared, ceiling])
    terminal.show_table(
        "benchmark (medians; ratios round by round)",
        ["stage", "images/s", "compared", "of its ceiling"],
        shown,
    )
    by_stage = {row["stage"]: row for row in rows}
    cached = session.config.input.cache == "memory"
    pipeline = "input/cached" if cached else "input/uncached"
    terminal.say(bottleneck(by_stage, pipeline))
    terminal.say(
        "the transfer stage on the features of one view costs "
        f"{cost:.2f} x one forward pass over train + validation"
    )


def _name(stage: str) -> str:
    return stage.partition("/")[2]


def transfer_cost(rows: dict[str, dict], train: int, validation: int) -> float:
    """Returns the transfer stage's time over that of its forward pass.

    Args:
      rows: of `benchmark.json`, by stage.
      train: number of examples.
      validation: number of examples.
    """
    forward = (train + validation) / rows["model/forward"]["images_per_sec"]
    head = train / rows["train/head"]["images_per_sec"]
    return (forward + head) / forward


def bottleneck(rows: dict[str, dict], pipeline: str) -> str:
    """Says what limits fine-tuning, and which flags move it.

    Args:
      rows: of `benchmark.json`, by stage.
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
