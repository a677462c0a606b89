"""Measures what matters on a GPU, most important first, and prints a table.

    python benchmarks/gpu.py --out=/tmp/gpu

Each part runs in a process of its own, under a time limit, so that one that
hangs or fails costs no other. Results are written to OUT/gpu.json as they
come, and the output of each part to OUT/PART.log. Without `--archive` it trains
on drawn images, and without `--weights` it starts from random ones, which it
saves first: right for speed, useless for accuracy. The flags make it small
enough to try on a CPU.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("sanity", "step", "profile", "recipe", "replicas", "benchmark")
_RUNS = 3
_KERNELS = 10
_CHAIN = 50
_RANDOM = "random.weights.h5"
# How a host's profile names an operation: NAME:TYPE.
_OPERATION = re.compile(r"[^: ]+:(\w+)")


def main() -> int:
    """Runs the parts; returns 1 if any failed."""
    args = _parse()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.child:
        print("RESULT " + json.dumps(_CHILDREN[args.child](args)))
        return 0
    results, failed = {}, False
    for name, command in _commands(args):
        start = time.perf_counter()
        outcome, result = _run(args, name, command)
        seconds = round(time.perf_counter() - start, 1)
        results[name] = {"outcome": outcome, "seconds": seconds, **result}
        (args.out / "gpu.json").write_text(json.dumps(results, indent=2))
        values = ", ".join(f"{k} {v}" for k, v in result.items())
        print(f"{name:22} {seconds:6.1f} s  {outcome}  {values}", flush=True)
        failed |= outcome != "done"
    return int(failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=_path, default=_path("runs/gpu"), help="the results")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to run")
    add("--batches", nargs="+", type=int, default=[32, 128, 256], help="images")
    add("--image_size", type=int, default=299, help="pixels")
    add("--backbone", default="inception_v3", help="in keras.applications")
    add("--flagfile", default="configs/gpu_a100.flags", help="the recipe")
    add("--archive", type=_path, help="17flowers.tgz; none: drawn images")
    add("--weights", type=_path, help="of the backbone; none: random ones")
    add("--data_dir", type=_path, help="prepared data sets")
    add("--limit", type=float, default=240, help="seconds for a part")
    # How a part starts this script.
    add("--child", help=argparse.SUPPRESS)
    add("--child_batch", type=int, default=0, help=argparse.SUPPRESS)
    add("--child_xla", default="auto", help=argparse.SUPPRESS)
    return parser.parse_args()


def _path(text: str) -> pathlib.Path:
    # Parts run in another current folder.
    return pathlib.Path(text).expanduser().resolve()


def _commands(args: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the command line of each part."""
    given = [f"--out={args.out}", f"--image_size={args.image_size}"]
    given += [f"--backbone={args.backbone}"]
    given += [f"--archive={args.archive}"] if args.archive else []
    given += [f"--data_dir={args.data_dir}"] if args.data_dir else []

    def child(part: str, batch: int = 0, xla: str = "auto") -> list[str]:
        own = [
            f"--child={part}",
            f"--child_batch={batch}",
            f"--child_xla={xla}",
        ]
        return [sys.executable, __file__, *given, *own]

    def phase(name: str, *flags: str) -> list[str]:
        return [sys.executable, "main.py", f"--phase={name}", *flags]

    def recipe(name: str, *flags: str) -> list[str]:
        weights = args.weights or args.out / _RANDOM
        return phase(
            *("train", f"--flagfile={args.flagfile}", *_data_flags(args)),
            *(f"--weights={weights}", "--assert_accuracy_at_least=0"),
            *(f"--workdir={args.out / name}", *flags),
        )

    middle = args.batches[len(args.batches) // 2]
    if "sanity" in args.parts:
        yield "sanity", child("sanity")
    if "step" in args.parts:
        for xla in ("auto", "on"):
            for batch in args.batches:
                yield f"step_{batch}_xla_{xla}", child("step", batch, xla)
    if "profile" in args.parts:
        yield "profile", child("profile", middle)
    if not args.weights and {"recipe", "replicas"} & set(args.parts):
        yield "weights", child("weights")
    if "recipe" in args.parts:
        yield "recipe", recipe("recipe")
    if "replicas" in args.parts:
        yield (
            "replicas",
            recipe(
                *("replicas", "--num_virtual_devices=2", "--strategy=mirrored"),
                *("--precision=mixed_float16", "--finetune_epochs=2"),
            ),
        )
    if "benchmark" in args.parts:
        flags = [*_step_flags(args, middle), *_data_flags(args)]
        yield "benchmark", phase("benchmark", *flags)


def _data_flags(args: argparse.Namespace) -> list[str]:
    config = "seeded" if args.archive else "synthetic"
    flags = [
        f"--dataset=oxford_flowers17/{config}",
        f"--backbone={args.backbone}",
    ]
    flags += [f"--archive={args.archive}"] if args.archive else []
    return flags + ([f"--data_dir={args.data_dir}"] if args.data_dir else [])


def _step_flags(args: argparse.Namespace, batch: int) -> list[str]:
    return [
        f"--global_batch_size={batch}",
        f"--image_size={args.image_size}",
        "--unfreeze_from=all",
        f"--workdir={args.out / 'benchmark'}",
    ]


def _run(
    args: argparse.Namespace, name: str, command: list[str]
) -> tuple[str, dict[str, Any]]:
    """Runs a part; returns how it ended, and what it measured."""
    path = args.out / f"{name}.log"
    # A finished run would not be trained again.
    shutil.rmtree(args.out / name, ignore_errors=True)
    with open(path, "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code = process.wait(args.limit)
        except subprocess.TimeoutExpired:
            # With the workers of the benchmark, which hold GPU memory.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not done after {args.limit:g} s", {}
    lines = path.read_text(errors="replace").splitlines()
    if code:
        return f"exit {code}: {lines[-1] if lines else ''}", {}
    found = [line[7:] for line in lines if line.startswith("RESULT ")]
    try:
        if found:
            return "done", json.loads(found[-1])
        if name == "benchmark":
            return "done", _read_benchmark(args.out / name)
        return "done", _read_run(args.out / name)
    except (OSError, ValueError, KeyError) as error:
        return f"no results: {error!r}", {}


def _read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the time of each part of a run, and its speeds."""

    from flowers17_tfdata import files, timings

    seconds = timings.read(workdir)
    if not seconds:
        raise ValueError(f"no {timings.FILE_NAME}")
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    epochs = [line for line in lines if line["phase"] != "transfer"]
    result: dict[str, Any] = {k: round(v, 1) for k, v in seconds.items()}
    result["epoch_seconds"] = [round(line["seconds"], 1) for line in epochs]
    result["epoch_images_per_sec"] = [
        round(x["images_per_sec"]) for x in epochs
    ]
    evaluation = workdir / "evaluation.json"
    if evaluation.exists():
        result["accuracy"] = json.loads(evaluation.read_text())["accuracy"]
    return result


def _read_benchmark(workdir: pathlib.Path) -> dict[str, float]:
    rows = json.loads((workdir / "benchmark.json").read_text())["rows"]
    return {row["stage"]: round(row["value"], 1) for row in rows}


def _sanity(args: argparse.Namespace) -> dict[str, Any]:
    """The devices, and the rates of matrix products and convolutions."""
    import tensorflow as tf

    from flowers17_tfdata import machine

    result: dict[str, Any] = {"gpus": machine.hardware()["gpus"]}
    size = 8192 if result["gpus"] else 512
    for dtype in ("bfloat16", "float32"):
        draw = tf.random.Generator.from_seed(0).normal
        matrix = tf.cast(draw([size, size]), dtype) / size**0.5
        images = tf.cast(draw([64, 32, 32, 256]), dtype)
        kernel = tf.cast(draw([3, 3, 256, 256]), dtype) / 48
        for name, start, call, flop in (
            ("matmul", matrix, lambda x, m=matrix: x @ m, 2 * size**3),
            (
                "conv",
                images,
                lambda x, k=kernel: tf.nn.conv2d(x, k, 1, "SAME"),
                2 * 64 * 32 * 32 * 9 * 256 * 256,
            ),
        ):
            seconds = _seconds_of(call, start)
            result[f"{name}_{dtype}_tflops"] = round(flop / seconds / 1e12, 1)
    return result


def _seconds_of(call: Any, start: Any) -> float:
    """Returns the median time of a call, each fed by the one before."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def chain() -> tf.Tensor:
        value = start
        for _ in range(_CHAIN):
            value = call(value)
        return tf.reduce_sum(tf.cast(value, tf.float32))

    times = []
    for _ in range(_RUNS + 1):
        begin = time.perf_counter()
        float(chain())
        times.append((time.perf_counter() - begin) / _CHAIN)
    # The first is traced.
    return statistics.median(times[1:])


def _weights(args: argparse.Namespace) -> dict[str, Any]:
    """Saves random weights: batch-norm is frozen only if a file is given."""
    from flowers17_tfdata.models import backbones

    backbone = backbones.build_backbone(args.backbone, args.image_size, "none")
    backbone.save_weights(args.out / _RANDOM)
    return {"file": str(args.out / _RANDOM)}


@contextlib.contextmanager
def _open_stage(args: argparse.Namespace) -> Iterator[Any]:
    """Opens the fine-tune stage that trains all layers."""
    from flowers17_tfdata import flags, session
    from flowers17_tfdata.input.examples import load_examples
    from flowers17_tfdata.phases.benchmark import model_speed

    arguments = [
        *("main.py", "--phase=benchmark", f"--xla={args.child_xla}"),
        *_step_flags(args, args.child_batch),
        *_data_flags(args),
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        session.open_session(flags.parse(arguments), True, False) as opened,
    ):
        options = opened.config.input
        examples = load_examples(opened.source, "train", options)
        open_stage = model_speed.make_fine_tuning(
            opened, examples, pathlib.Path(folder)
        )
        yield open_stage("all")


def _step(args: argparse.Namespace) -> dict[str, Any]:
    """The speed of a training step that waits for no data."""
    from flowers17_tfdata.phases.benchmark import model_speed

    with _open_stage(args) as stage:
        run = model_speed.make_steps(stage)
        start = time.perf_counter()
        run()
        first = time.perf_counter() - start
        rates = [run() for _ in range(_RUNS)]
    return {
        "images_per_sec": round(statistics.median(rates), 1),
        "first_steps_seconds": round(first, 1),
    }


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    """The heaviest kernels of ten steps, and how long the device was busy."""
    import tensorflow as tf

    from flowers17_tfdata.phases.benchmark import model_speed

    with _open_stage(args) as stage:
        trainer = stage.trainer
        batches = model_speed.train_batches(stage, always_ready=True)
        for _ in range(2):
            float(trainer.train_steps(batches, tf.constant(10)).loss)
        tf.profiler.experimental.start(str(args.out / "profile"))
        float(trainer.train_steps(batches, tf.constant(10)).loss)
        tf.profiler.experimental.stop()
    return top_kernels(args.out / "profile")


def top_kernels(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the newest profile below a folder.

    Returns:
      `busy`: the share of the time in which the device ran anything;
      `kernels`: for the heaviest, the share of the kernels' time and the count.
      Without a GPU, the host's operations by type.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    path = max(folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    planes = xplane_pb2.XSpace.FromString(path.read_bytes()).planes
    gpus = [p for p in planes if p.name.startswith("/device:GPU")]
    totals: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    spans = []
    for plane in gpus or [p for p in planes if p.name == "/host:CPU"]:
        for line in plane.lines:
            if gpus and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if not gpus:
                    operation = _OPERATION.fullmatch(name)
                    if operation is None:
                        continue
                    name = operation[1]
                start = line.timestamp_ns * 1000 + event.offset_ps
                totals[name] += event.duration_ps
                counts[name] += 1
                spans.append((start, start + event.duration_ps))
    if not spans:
        return {"busy": 0, "kernels": []}
    spans.sort()
    busy, end = 0, spans[0][0]
    for first, last in spans:
        busy += max(0, last - max(first, end))
        end = max(end, last)
    whole = max(1, end - spans[0][0])
    heaviest = [
        f"{time / totals.total():.1%} {counts[name]}x {name[:80]}"
        for name, time in totals.most_common(_KERNELS)
    ]
    return {"busy": round(busy / whole, 3), "kernels": heaviest}


_CHILDREN = {
    "sanity": _sanity,
    "step": _step,
    "profile": _profile,
    "weights": _weights,
}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
