"""A stage: resumes exactly, stops at NaN, keeps the best epoch."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.config.config import Config, from_values, to_values
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.config.optimization import STAGES, OptimizationConfig
from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.errors import ConfigError, Preempted, UserError
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.models import classifier
from flowers17_tfdata.training import (
    checkpoints,
    loop,
    metrics,
    optimizers,
    resume,
)
from flowers17_tfdata.training.flat_weights import FlatWeights
from flowers17_tfdata.training.inference import Inference
from flowers17_tfdata.training.preemption import StopRequest
from flowers17_tfdata.training.profiler import Profiler
from flowers17_tfdata.training.stage import StageData, Trainable
from tests import fakes

OPTIMIZATION = OptimizationConfig(
    global_batch_size=16,
    transfer_optimizer="adamw",
    transfer_epochs=4,
    transfer_learning_rate=1e-2,
)
CONFIG = Config(
    input=InputConfig(image_size=fakes.IMAGE_SIZE),
    model=ModelConfig(dropout=0.5),
    optimization=OPTIMIZATION,
    runtime=RuntimeConfig(seed=1),
)


def _preprocess(images):
    return images / 127.5 - 1


def _data(config=CONFIG) -> StageData:
    train = fakes.make_noise_examples(40)
    validation = fakes.make_noise_examples(20, seed=1)
    arguments = {
        "config": config.input,
        "preprocess": _preprocess,
        "global_batch_size": config.optimization.global_batch_size,
        "compute_dtype": keras.config.dtype_policy().compute_dtype,
    }

    return StageData(
        num_examples=40,
        make_train=functools.partial(
            input_pipeline.make_train_dataset,
            train,
            seed=config.runtime.seed,
            **arguments,
        ),
        make_validation=functools.partial(
            input_pipeline.make_eval_dataset, validation, **arguments
        ),
        statistics=input_pipeline.make_eval_dataset(train, **arguments),
        device_stage=input_pipeline.make_device_stage(
            config.input, _preprocess, arguments["compute_dtype"]
        ),
    )


def _stage(
    workdir,
    config=CONFIG,
    strategy=None,
    policy=None,
    make_model=None,
    trained=None,
    name="transfer",
    **kwargs,
) -> loop.Stage:
    workdir.mkdir(exist_ok=True)
    strategy = strategy or tf.distribute.get_strategy()
    if policy:
        keras.config.set_dtype_policy(policy)
    with strategy.scope():
        make_model = make_model or fakes.make_model
        model = make_model(dropout=config.model.dropout)
    kwargs.setdefault("data", _data(config))
    options = config.optimization.stage("transfer")
    trained = {"options": options} | (trained or {})
    trained = Trainable(model, **trained)
    return loop.Stage(name, config, workdir, trained, strategy, **kwargs)


def _weights(stage):
    model = stage.model
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns `undisturbed(config, strategy)`, trained once for each.

    It returns the final weights, the result and the lines of metrics.jsonl.
    """

    @functools.cache
    def train(config, strategy):
        workdir = tmp_path_factory.mktemp("undisturbed")
        stage = _stage(workdir, config, strategy)
        result = stage.run()
        lines = files.read_json_lines(workdir / "metrics.jsonl")
        return _weights(stage), result, lines

    return train


def _assert_ends_as(stage, workdir, result, undisturbed):
    """The resumed stage has the weights, result and metrics of another."""
    weights, expected, lines = undisturbed
    for a, b in zip(_weights(stage), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.best_epoch == expected.best_epoch
    assert result.validation_loss == expected.validation_loss
    resumed = files.read_json_lines(workdir / "metrics.jsonl")
    for a, b in zip(resumed, lines, strict=True):
        for key in (
            *("epoch", "step", "train_loss"),
            *("validation_loss", "learning_rate"),
        ):
            assert a[key] == b[key], key


class _Killed(Exception):
    """Stands in for a kill at a chosen moment."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (Inference, "loss_and_accuracy"),
        (checkpoints.StageCheckpoints, "save"),
    ],
    ids=["in_validation_3", "before_checkpoint_3"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_interrupted_run_resumes_to_bit_equal_weights(
    tmp_path, monkeypatch, undisturbed, owner, method, optimizer
):
    config = dataclasses.replace(
        CONFIG,
        optimization=dataclasses.replace(
            OPTIMIZATION, transfer_optimizer=optimizer
        ),
    )
    original, calls = getattr(owner, method), []

    def killed(*args):
        calls.append(args)
        # Both are called once an epoch.
        if len(calls) == 3:
            raise _Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, killed)
        with pytest.raises(_Killed):
            _stage(tmp_path, config).run()
    resumed = _stage(tmp_path, config)
    result = resumed.run()
    expected = undisturbed(config, None)
    assert [line["epoch"] for line in expected[2]] == [1, 2, 3, 4]
    _assert_ends_as(resumed, tmp_path, result, expected)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_stopped_within_an_epoch_goes_on_from_that_step(
    request, tmp_path, undisturbed, replicas, step
):
    """It stops in the first epoch, at its end, or in the second one."""
    strategy = None
    if replicas == 2:
        strategy = request.getfixturevalue("mirrored_strategy")
    stop = StopRequest()
    stage = _stage(tmp_path, strategy=strategy, stop=stop)
    train_steps, calls = stage.trainer.train_steps, []

    def stopping(batches, num_steps):
        calls.append(num_steps)
        if len(calls) == step:
            stop.requested = True
        return train_steps(batches, num_steps)

    stage.trainer.train_steps = stopping
    with pytest.raises(Preempted, match=f"step {(step - 1) % 3 + 1}"):
        stage.run()
    assert len(calls) == step
    resumed = _stage(tmp_path, strategy=strategy)
    again, count = resumed.trainer.train_steps, []

    def counting(batches, num_steps):
        count.append(num_steps)
        return again(batches, num_steps)

    resumed.trainer.train_steps = counting
    result = resumed.run()
    assert len(count) == 4 * 3 - step
    expected = undisturbed(CONFIG, strategy)
    _assert_ends_as(resumed, tmp_path, result, expected)


@pytest.mark.slow
def test_checkpoints_by_the_clock_lose_no_finished_step(tmp_path, capsys):
    runtime = dataclasses.replace(CONFIG.runtime, checkpoint_every_secs=1e-9)
    config = dataclasses.replace(CONFIG, runtime=runtime)
    stage = _stage(tmp_path, config)
    train_steps, calls = stage.trainer.train_steps, []

    def killed(batches, num_steps):
        calls.append(num_steps)
        if len(calls) == 6:
            raise _Killed
        return train_steps(batches, num_steps)

    stage.trainer.train_steps = killed
    with pytest.raises(_Killed):
        stage.run()
    _stage(tmp_path, config).run()
    assert "resuming after epoch 1 and 2 steps" in capsys.readouterr().out


def _with_epochs(count):
    options = dataclasses.replace(OPTIMIZATION, transfer_epochs=count)
    return dataclasses.replace(CONFIG, optimization=options)


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip])
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path, capsys, damage, suffix
):
    workdir = tmp_path / "damaged"
    _stage(workdir, _with_epochs(3)).run()
    folder = workdir / "checkpoints" / "transfer"
    damage(folder / f"ckpt-3{suffix}")
    capsys.readouterr()
    stage = _stage(workdir)
    stage.run()
    out = capsys.readouterr().out
    assert f"{folder / 'ckpt-3'} is damaged and skipped" in out
    assert "resuming after epoch 2" in out

    for path in folder.glob("ckpt-*.data*"):
        damage(path)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        _stage(workdir).run()


def test_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "transfer"

    def full(manager, **_):
        (pathlib.Path(manager.directory) / "ckpt-1_temp").mkdir(parents=True)
        raise tf.errors.ResourceExhaustedError(
            None, None, f"{{{{x}}}} {folder}/a; No space left on device [Op:S]"
        )

    monkeypatch.setattr(tf.train.CheckpointManager, "save", full)
    with pytest.raises(UserError) as caught:
        _stage(tmp_path).run()
    expected = f"a checkpoint can't be written to {folder}: No space left"
    assert str(caught.value).startswith(expected)
    assert not list(tmp_path.rglob("*_temp"))


def test_lost_list_of_checkpoints_loses_nothing(tmp_path, capsys):
    _stage(tmp_path, _with_epochs(3)).run()
    (tmp_path / "checkpoints" / "transfer" / "checkpoint").write_text("?")
    _stage(tmp_path).run()
    assert "resuming after epoch 3" in capsys.readouterr().out


def test_best_epoch_is_what_the_model_holds_in_the_end(tmp_path):
    stage = _stage(tmp_path)
    result = stage.run()
    lines = files.read_json_lines(tmp_path / "metrics.jsonl")
    assert all(0 < line["data_wait_fraction"] < 1 for line in lines)
    best = max(
        lines, key=lambda x: (x["validation_accuracy"], -x["validation_loss"])
    )
    assert result.best_epoch == best["epoch"]
    assert result.validation_accuracy == best["validation_accuracy"]
    loss, _ = stage.inference.loss_and_accuracy(stage.data.make_validation())
    assert loss == pytest.approx(best["validation_loss"])


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    data = dataclasses.replace(_data(), make_validation=None)
    stage = _stage(tmp_path / "refit", data=data)
    result = stage.run()
    assert result.best_epoch == 4
    assert result.validation_accuracy is result.validation_loss is None
    lines = files.read_json_lines(tmp_path / "refit" / "metrics.jsonl")
    assert [x["validation_loss"] for x in lines] == [None] * 4
    # Training is that of a validated stage, whose last checkpoint is read.
    validated = _stage(tmp_path / "validated")
    validated.run()
    last = tf.train.latest_checkpoint(
        tmp_path / "validated" / "checkpoints" / "transfer"
    )
    checkpoint = tf.train.Checkpoint(model=validated.model)
    checkpoint.restore(last).expect_partial()
    for a, b in zip(_weights(stage), _weights(validated), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", ["transfer", "finetune"])
def test_a_stage_trains_by_the_options_of_its_method(tmp_path, method):
    optimization = dataclasses.replace(
        OPTIMIZATION,
        finetune_epochs=2,
        finetune_learning_rate=1e-5,
        schedule="constant",
    )
    config = dataclasses.replace(CONFIG, optimization=optimization)
    trained = {"options": optimization.stage(method)}
    _stage(tmp_path, config, trained=trained, name="refit").run()
    lines = files.read_json_lines(tmp_path / "metrics.jsonl")
    epochs, rate = {"transfer": (4, 1e-2), "finetune": (2, 1e-5)}[method]
    assert [line["phase"] for line in lines] == ["refit"] * epochs
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([rate] * epochs)


def test_nan_stops_with_the_flag_to_turn_and_keeps_the_checkpoint(
    tmp_path, capsys
):
    stage = _stage(tmp_path)
    train_steps, calls = stage.trainer.train_steps, []

    def diverging(batches, num_steps):
        calls.append(num_steps)
        if len(calls) == 5:
            for flat in stage.trainer.weights.variables:
                flat.assign(flat * np.nan)
        return train_steps(batches, num_steps)

    stage.trainer.train_steps = diverging
    with pytest.raises(UserError) as error:
        stage.run()
    message = str(error.value)
    assert "\n" not in message
    assert "became nan in transfer epoch 2, step 1 to 3" in message
    assert "--transfer_learning_rate" in message
    assert "epoch 1's checkpoint is kept" in message
    again = _stage(tmp_path)
    again.run()
    assert "resuming after epoch 1" in capsys.readouterr().out
    assert all(np.all(np.isfinite(w)) for w in _weights(again))


@pytest.mark.slow
@pytest.mark.parametrize(
    # The host rounds augmented pixels to whole gray levels.
    ("augment_on", "tolerance"),
    [("host", 1e-4), ("device", 2e-3)],
)
def test_two_replicas_run_the_same_epochs(
    tmp_path, mirrored_strategy, augment_on, tolerance
):
    """No dropout: its masks differ. 40 examples make the last step padded."""
    config = dataclasses.replace(CONFIG, model=ModelConfig(dropout=0.0))
    _stage(tmp_path / "one", config).run()
    config = dataclasses.replace(
        config, input=dataclasses.replace(CONFIG.input, augment_on=augment_on)
    )
    _stage(tmp_path / "two", config, mirrored_strategy).run()
    one, two = (
        files.read_json_lines(tmp_path / name / "metrics.jsonl")
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "validation_loss"):
            assert a[name] == pytest.approx(b[name], rel=tolerance)


def test_waiting_is_a_share_of_the_epoch(tmp_path):
    stage = _stage(tmp_path)
    train_steps = stage.trainer.train_steps

    def waiting(batches, num_steps):
        totals = train_steps(batches, num_steps)
        return totals._replace(wait_secs=tf.constant(2.0))

    stage.trainer.train_steps = waiting
    stage.run()
    for line in files.read_json_lines(tmp_path / "metrics.jsonl"):
        train_secs = 40 / line["images_per_sec"]
        assert train_secs < line["seconds"]
        # 3 steps an epoch.
        assert line["data_wait_fraction"] == pytest.approx(6 / train_secs)


@pytest.mark.parametrize("steps", [2, 7])
def test_steps_per_call_changes_nothing(tmp_path, steps):
    """An epoch has 3 steps: the last call of an epoch is shorter."""
    stages = []
    for count in (1, steps):
        trained = {"steps_per_call": count}
        stages.append(_stage(tmp_path / str(count), trained=trained))
        stages[-1].run()
    for a, b in zip(*map(_weights, stages), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    one, many = (
        files.read_json_lines(tmp_path / str(count) / "metrics.jsonl")
        for count in (1, steps)
    )
    assert [line["step"] for line in many] == [3, 6, 9, 12]
    for a, b in zip(one, many, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["train_accuracy"] == b["train_accuracy"]


def _make_batch_norm_model(backbone):
    def make_model(dropout):
        return classifier.build_classifier(
            ModelConfig(
                backbone=backbone, weights="none", head_units=8, dropout=dropout
            ),
            image_size=fakes.IMAGE_SIZE,
            num_classes=fakes.NUM_CLASSES,
            seed=0,
        )

    return make_model


@pytest.mark.parametrize("augment_on", ["host", "device"])
def test_trained_batch_norm_is_saved_with_the_datas_statistics(
    tmp_path, tiny_backbone, augment_on
):
    """They fit the best epoch's weights and images without augmentation."""
    config = dataclasses.replace(
        CONFIG, input=dataclasses.replace(CONFIG.input, augment_on=augment_on)
    )
    stage = _stage(
        tmp_path, config, make_model=_make_batch_norm_model(tiny_backbone)
    )
    stage.run()
    backbone = classifier.get_backbone(stage.model)
    convolution = backbone.get_layer("block1_conv")
    pixels = fakes.make_noise_examples(40).images.pixels
    # The first 8 images pad the last of three batches of 16.
    images = _preprocess(np.concatenate([pixels, pixels[:8]], dtype="float32"))
    values = keras.ops.convert_to_numpy(convolution(images))
    norm = backbone.get_layer("block1_bn")
    np.testing.assert_allclose(
        norm.moving_mean, values.mean((0, 1, 2)), atol=1e-4
    )
    np.testing.assert_allclose(
        norm.moving_variance, values.var((0, 1, 2)), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("steps", "counts", "expected"),
    [
        ((2, 3), [1] * 5, "-+--.--"),
        ((1, 1), [1] * 3, "+-.--"),
        # Whole calls are profiled.
        ((2, 3), [10, 10], "+-.-"),
        ((12, 25), [10, 10, 10, 10], "-+--.-"),
        # The stage ends within the range, or before it.
        ((2, 9), [1] * 3, "-+--."),
        ((9, 9), [1] * 3, "---"),
        (None, [1] * 3, "---"),
    ],
)
def test_profiled_steps(tmp_path, monkeypatch, capsys, steps, counts, expected):
    """`+`: the profile starts; `-`: steps run; `.`: it is written."""
    log = []
    monkeypatch.setattr(
        tf.profiler.experimental, "start", lambda folder: log.append("+")
    )
    monkeypatch.setattr(
        tf.profiler.experimental, "stop", lambda: log.append(".")
    )
    profiler = Profiler(steps, tmp_path)
    for count in counts:
        profiler.before(count)
        log.append("-")
        profiler.after(count)
    profiler.stop()
    assert "".join(log) == expected
    said = capsys.readouterr().out
    assert ("profile written to" in said) == ("." in expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stage_runs(tmp_path, policy):
    stage = _stage(tmp_path, policy=policy)
    scaled = isinstance(
        stage.trainer.optimizer, keras.optimizers.LossScaleOptimizer
    )
    # Only float16 needs loss scaling.
    assert scaled == (policy == "mixed_float16")
    stage.run()
    lines = files.read_json_lines(tmp_path / "metrics.jsonl")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_metrics_cut_short_by_a_kill_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"phase": "transfer", "epoch": e, "step": e} for e in (1, 2, 3)]
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(text + '\n{"phase": "transf')
    metrics.MetricsWriter(tmp_path, "transfer", 2).close()
    kept = files.read_json_lines(path)
    assert [line["epoch"] for line in kept] == [1, 2]


def _schedule(**kwargs):
    config = dataclasses.replace(OPTIMIZATION, **kwargs)
    return optimizers.learning_rate_schedule(
        config, peak=0.1, epochs=4, steps_per_epoch=10
    )


def test_schedule_values():
    cosine = _schedule()
    rates = [float(cosine(step)) for step in (0, 5, 10, 25, 40)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0], atol=1e-7)
    constant = _schedule(schedule="constant")
    rates = [float(constant(step)) for step in (0, 5, 6, 40)]
    np.testing.assert_allclose(rates, [0.1] * 4, rtol=1e-6)
    # The warm-up takes half of a single epoch.
    short = optimizers.learning_rate_schedule(OPTIMIZATION, 0.1, 1, 10)
    rates = [float(short(step)) for step in (0, 5, 10)]
    np.testing.assert_allclose(rates, [0, 0.1, 0], atol=1e-7)


def test_weight_decay_spares_biases():
    optimizer = optimizers.make_optimizer(
        "adamw",
        1.0,
        dataclasses.replace(OPTIMIZATION, weight_decay=0.5),
        scale_loss=False,
    )
    layer = keras.layers.Dense(2, bias_initializer="ones")
    weights = FlatWeights(keras.Sequential([keras.Input([3]), layer]))
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    zeros = [tf.zeros_like(v.value) for v in weights.variables]
    optimizer.apply(zeros, weights.variables)
    weights.store()
    np.testing.assert_allclose(layer.kernel, 0.5 * kernel, rtol=1e-6)
    np.testing.assert_array_equal(layer.bias, [1, 1])


def _key(stage, **values):
    values = to_values(CONFIG) | values
    config = from_values(values)
    return resume.resume_key(config, stage, "set/1", "float32")


@pytest.mark.parametrize(
    ("flag", "value", "stages"),
    [
        ("xla", "on", []),
        ("profile_steps", "1,2", []),
        ("num_virtual_devices", 2, []),
        ("split", "validation", []),
        ("find_lr_stage", "transfer", []),
        ("refit", True, []),
        # A refit repeats either stage.
        ("feature_views", 3, ["transfer", "refit"]),
        ("transfer_epochs", 3, ["transfer", "refit"]),
        ("unfreeze_from", "all", ["finetune", "refit"]),
        ("finetune_epochs", 3, ["finetune", "refit"]),
        ("augment_on", "device", ["transfer", "finetune", "refit"]),
        ("cache", "none", ["transfer", "finetune", "refit"]),
        ("global_batch_size", 32, ["transfer", "finetune", "refit"]),
    ],
)
def test_flags_that_a_stage_is_held_to(flag, value, stages):
    for stage in STAGES:
        same = _key(stage) == _key(stage, **{flag: value})
        assert same is (stage not in stages), stage


def test_resume_with_a_changed_flag_is_refused(tmp_path):
    folder = tmp_path / "checkpoints" / "transfer"
    folder.mkdir(parents=True)
    resume.write_key(folder, _key("transfer"))
    changed = _key("transfer", weight_decay=0.5)
    # Nothing is saved yet, so nothing can be lost.
    resume.check_key(folder, changed, tmp_path)
    _stage(tmp_path).run()
    with pytest.raises(
        ConfigError, match=r"--weight_decay: .* with 0\.0001, got 0\.5"
    ):
        resume.check_key(folder, changed, tmp_path)
    # The other stage's flags may change.
    key = _key("transfer", finetune_epochs=9)
    resume.check_key(folder, key, tmp_path)


def test_a_weights_file_is_the_same_from_another_current_folder(
    tmp_path, monkeypatch
):
    for name in ("checkpoints/transfer", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    folder = tmp_path / "checkpoints" / "transfer"
    (folder / "done.json").touch()
    for name in ("a.h5", "b.h5"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    resume.write_key(folder, _key("transfer", weights="a.h5"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    key = _key("transfer", weights="../a.h5")
    resume.check_key(folder, key, tmp_path)
    with pytest.raises(ConfigError, match=r"--weights: .* got .*b\.h5"):
        changed = _key("transfer", weights="../b.h5")
        resume.check_key(folder, changed, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_renamed_folder_of_photographs_goes_on(tmp_path, kind):
    folder = tmp_path / "checkpoints" / "transfer"
    folder.mkdir(parents=True)

    def key(dataset):
        return resume.resume_key(CONFIG, "transfer", dataset, "float32")

    resume.write_key(folder, key(f"{kind}:photos@0123abcd"))
    _stage(tmp_path).run()
    resume.check_key(folder, key(f"{kind}:pictures@0123abcd"), tmp_path)
    for other in (f"{kind}:photos@ffffffff", "set/1"):
        with pytest.raises(ConfigError, match="--dataset: "):
            resume.check_key(folder, key(other), tmp_path)


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "back\\slash"])
def test_no_folder_name_is_a_pattern(tmp_path, name, undisturbed):
    """TensorFlow finds checkpoints by patterns."""
    workdir = tmp_path / name
    stage = _stage(workdir)
    train_steps, calls = stage.trainer.train_steps, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return train_steps(*arguments)

    stage.trainer.train_steps = killed
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert resume.started_with(workdir) == {}
    resume.write_key(workdir / "checkpoints" / "transfer", _key("transfer"))
    assert resume.started_with(workdir) != {}
    resumed = _stage(workdir)
    result = resumed.run()
    expected = undisturbed(CONFIG, tf.distribute.get_strategy())
    _assert_ends_as(resumed, workdir, result, expected)


def test_a_solved_head_is_held_to_its_flags_too(tmp_path):
    """A solver writes no checkpoint, only its result."""
    folder = tmp_path / "checkpoints" / "transfer"
    folder.mkdir(parents=True)
    resume.write_key(folder, _key("transfer"))
    assert resume.started_with(tmp_path) == {}
    files.write_json(folder / "done.json", {"best_epoch": 1})
    assert resume.started_with(tmp_path)["dataset"] == "set/1"
    resume.check_key(folder, _key("transfer"), tmp_path)
    with pytest.raises(ConfigError, match=r"--feature_views: .* got 5"):
        changed = _key("transfer", feature_views=5)
        resume.check_key(folder, changed, tmp_path)
