"""The benchmark: its arithmetic, its rows, and the stock Keras process."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import tempfile
import time
import types

import keras
import psutil
import pytest
import tensorflow as tf

from flowers17_tfdata import cli
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.data.oxford_flowers17 import synthetic
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.phases.benchmark import (
    benchmark,
    ceilings,
    measurement,
    model_speed,
    step_overhead,
    stock_keras,
    timm_peer,
    worker,
)
from flowers17_tfdata.phases.benchmark.measurement import Row


def test_rate_runs_for_the_least_time_and_divides_by_the_whole(monkeypatch):
    now = iter([0.0, 0.4, 0.8, 1.6])
    monkeypatch.setattr(measurement, "MIN_SECS", 1.0)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: next(now))
    assert measurement.rate(lambda: 8) == 24 / 1.6


def test_rounds_take_turns_and_the_first_is_not_recorded():
    calls = []

    def make(name, values):
        values = iter(values)

        def measure():
            calls.append(name)
            return next(values)

        return measure

    rows = [Row("a", make("a", [9, 1, 2])), Row("b", make("b", [9, 3, 4]))]
    measurement.measure_in_turns(rows, 2)
    assert calls == ["a", "b"] * 3
    assert [row.runs for row in rows] == [[1, 2], [3, 4]]


def test_ratio_is_the_median_of_the_rounds_ratios():
    # A machine that slowed down for a round: both rows did.
    slow = Row("slow", lambda: 0, runs=[10.0, 1.0, 10.0])
    fast = Row("fast", lambda: 0, "slow", "slow", runs=[20.0, 3.0, 20.0])
    nodes = Row("nodes", lambda: 0, unit="nodes", runs=[7, 7, 7])
    rows = measurement.to_json([slow, fast, nodes])
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["nodes"]["value"] == 7
    assert by_stage["nodes"]["images_per_sec"] is None
    assert by_stage["fast"]["ratio"] == 2.0
    assert by_stage["fast"]["share_of_ceiling"] == 2.0
    assert by_stage["slow"]["images_per_sec"] == 10.0
    assert by_stage["slow"]["relative_to"] is None
    assert by_stage["slow"]["ratio"] is None


@pytest.mark.parametrize("built_for", [8, None])
def test_flop_of_known_layers(built_for):
    inputs = keras.Input([built_for, built_for, 3])
    x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.SeparableConv2D(5, 1)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(7)(x))
    conv = 2 * 3 * 3 * 3 * 6 * 64
    depthwise = 2 * 3 * 3 * 6 * 64
    separable = 2 * (6 + 6 * 5) * 64
    dense = 2 * 5 * 7
    forward = conv + depthwise + separable + dense
    assert ceilings.count_flop(model, 8) == forward
    assert ceilings.count_flop(model, 8, training=True) == 3 * forward
    model.get_layer("conv").trainable = False
    step = ceilings.count_flop(model, 8, training=True)
    assert step == 3 * forward - 2 * conv


def test_inception_v3_takes_its_published_flop():
    # 5.7 billion multiply-adds at 299 pixels.
    model = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(299, 299, 3)
    )
    assert 11.2e9 < ceilings.count_flop(model, 299) < 11.6e9


@pytest.mark.parametrize("slower", ["model/step", "input/cached"])
def test_bottleneck_is_the_slower_one(slower):
    rows = {
        name: {
            "stage": name,
            "images_per_sec": 5.0 if name == slower else 10.0,
            "moved_by": f"--flag_of_{name}",
        }
        for name in ("train/finetune", "model/step", "input/cached")
    }
    rows["input/uncached"] = {"images_per_sec": 1.0}
    line = benchmark.bottleneck(rows, "input/cached")
    assert f"limited by {slower}" in line
    assert f"--flag_of_{slower}" in line


@contextlib.contextmanager
def _fake_worker(title, measure, work):
    if title == "timm":
        raise AssertionError("timm is not installed")
    assert len(list(work.images.glob("*/*.*"))) == 800
    assert len(list(work.images.iterdir())) == 17 == work.num_classes
    yield lambda stage: float(stock_keras.STAGES.index(stage) + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--train_scale=0.5", "--augment_on=device", "--weights=none"],
        ["--cache=none"],
    ],
)
def test_phase_measures_every_row(
    tmp_path, data_dir, tiny_backbone, monkeypatch, capsys, flags
):
    monkeypatch.setattr(measurement, "MIN_SECS", 0.01)
    monkeypatch.setattr(benchmark, "NUM_RUNS", 2)
    monkeypatch.setattr(worker, "open_worker", _fake_worker)
    monkeypatch.setattr(timm_peer, "is_installed", lambda: False)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    code = cli.main(
        [
            "main.py",
            "--phase=benchmark",
            "--dataset=oxford_flowers17/synthetic",
            f"--data_dir={data_dir}",
            f"--workdir={tmp_path / 'work'}",
            f"--backbone={tiny_backbone}",
            "--image_size=32",
            "--global_batch_size=8",
            "--strategy=default",
            *flags,
        ]
    )
    output = capsys.readouterr()
    assert code == 0, output.err
    result = json.loads((tmp_path / "work" / "benchmark.json").read_text())
    rows = {row["stage"]: row for row in result["rows"]}
    assert rows["input/keras_layers"]["runs"] == [1.0] * 2
    assert rows["model/keras_fit"]["images_per_sec"] == 3.0
    for row in rows.values():
        assert len(row["runs"]) == 2
        assert min(row["runs"]) > 0
        for key in ("relative_to", "ceiling"):
            assert row[key] is None or row[key] in rows
    forward = rows["model/forward"]
    assert forward["relative_to"] == "model/keras_predict"
    assert forward["ratio"] == pytest.approx(forward["images_per_sec"] / 2)
    assert rows["step/nodes"]["value"] > 50
    assert rows["step/overhead"]["unit"] == "x"
    assert 0 < rows["train/finetune"]["data_wait_fraction"] < 1
    assert {"processor", "cpu_cores"} <= set(result["hardware"])
    assert "limited by" in output.out
    assert not list(folder.glob("flowers17_tfdata_*"))
    written = {path.name for path in (tmp_path / "work").iterdir()}
    assert written == {"benchmark.json", "timings.jsonl"}


@pytest.fixture
def class_folders(tmp_path):
    images = itertools.islice(synthetic.iter_synthetic_images(), 8)
    for position, (_, encoded) in enumerate(images):
        folder = tmp_path / f"{position % 2:04d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{position}.jpg").write_bytes(encoded)
    return tmp_path


def test_nodes_are_counted_once_with_those_of_called_functions():
    @tf.function
    def called(x):
        return tf.sin(tf.sin(x + 1))

    @tf.function
    def caller(x):
        return called(called(x)) * 2

    function = caller.get_concrete_function(tf.TensorSpec([], tf.float32))
    # x, two calls, mul and a result; add, two sines and a result.
    assert step_overhead.count_nodes(function) == 5 + 4


def test_overhead_is_the_time_of_a_step_over_that_of_its_gradients(
    monkeypatch,
):
    calls = collections.Counter()
    images_per_sec = {"steps": 2.0, "gradients": 5.0}

    class FakeTrainer:
        def train_steps(self, batches, count):
            calls["steps"] += int(count)
            return types.SimpleNamespace(loss=0.0)

        def sum_gradients(self, batch, count):
            calls["gradients"] += int(count)
            return 0.0

    def fake_rate(call):
        before = calls.copy()
        assert call() == 10
        (kind,) = calls - before
        return images_per_sec[kind]

    monkeypatch.setattr(measurement, "rate", fake_rate)
    run = step_overhead._make_overhead(FakeTrainer(), iter(["batch"]))
    assert run() == 2.5
    assert calls == {"steps": 10, "gradients": 10}


def test_waiting_for_data_is_a_share_of_the_time(monkeypatch):
    monkeypatch.setattr(measurement, "MIN_SECS", 0.01)
    totals = types.SimpleNamespace(wait_secs=0.02)

    def train_steps(batches, count):
        time.sleep(0.04)
        return totals

    stage = types.SimpleNamespace(
        trainer=types.SimpleNamespace(
            strategy=tf.distribute.get_strategy(),
            train_steps=train_steps,
            global_batch_size=4,
        ),
        data=types.SimpleNamespace(
            make_train=lambda input_context: tf.data.Dataset.range(2).repeat()
        ),
        steps_per_call=1,
    )
    found: dict[str, float] = {}
    model_speed.make_steps(stage, found)()
    assert 0.2 < found["data_wait_fraction"] <= 0.5


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("InceptionV3", "inception_v3"), ("resnet50", "resnet50")],
)
def test_timm_names(backbone, expected):
    names = ["resnet50", "inception_v3", "inception_v4"]
    assert timm_peer._timm_name(backbone, names) == expected
    with pytest.raises(ValueError, match="no network named other"):
        timm_peer._timm_name("other", names)


def test_timm_is_measured_if_it_is_installed(monkeypatch):
    """A fake stands for it: tests don't install PyTorch."""
    calls = []

    @contextlib.contextmanager
    def fake_worker(title, measure, work):
        def run(stage):
            calls.append((title, stage, dict(work.image_sizes)[stage]))
            if broken:
                raise UserError("no such network")
            return 7.0

        yield run

    monkeypatch.setattr(worker, "open_worker", fake_worker)
    monkeypatch.setattr(timm_peer, "is_installed", lambda: True)
    session = types.SimpleNamespace(
        strategy=tf.distribute.get_strategy(),
        config=Config(input=InputConfig(image_size=64, train_scale=0.5)),
        source=types.SimpleNamespace(class_names=("a", "b")),
        compute_dtype="float32",
    )
    for broken in (False, True):
        calls.clear()
        with contextlib.ExitStack() as stack:
            rows = benchmark._timm_rows(session, stack)
        assert calls[0] == ("timm", "model/timm_forward", 64)
        assert len(rows) == (0 if broken else 2)
    broken = False
    with contextlib.ExitStack() as stack:
        forward, step = benchmark._timm_rows(session, stack)
    assert calls[-1] == ("timm", "model/timm_step", 32)
    assert (forward.relative_to, step.run()) == ("model/forward", 7.0)


@pytest.mark.slow
def test_stock_keras_answers_from_its_own_process(class_folders, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    work = stock_keras.Work(
        images=class_folders,
        num_classes=2,
        batches_per_call=2,
        config=Config(
            input=InputConfig(image_size=32),
            model=ModelConfig(backbone="mobilenet"),
            optimization=OptimizationConfig(global_batch_size=4),
        ),
    )
    with worker.open_worker(
        "stock Keras", stock_keras.measure, work
    ) as measure:
        for stage in stock_keras.STAGES:
            assert measure(stage) > 0
        with pytest.raises(UserError, match="stock Keras, nonsense"):
            measure("nonsense")
        for child in psutil.Process().children():
            if "--multiprocessing-fork" in child.cmdline():
                child.kill()
        with pytest.raises(
            UserError, match="stock Keras died in model/keras_fit"
        ):
            measure("model/keras_fit")
