"""A stage: resumes exactly, stops at NaN, keeps the best epoch."""

from __future__ import annotations

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.config import (
    Config,
    InputConfig,
    ModelConfig,
    OptimizationConfig,
    RuntimeConfig,
)
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.results import metrics
from flowers17_tfdata.training import checkpoints, loop, optimizers
from tests import fakes

OPTIMIZATION = OptimizationConfig(
    global_batch_size=16, transfer_epochs=4, transfer_learning_rate=1e-2
)
CONFIG = Config(
    input=InputConfig(image_size=fakes.IMAGE_SIZE),
    model=ModelConfig(dropout=0.5),
    optimization=OPTIMIZATION,
    runtime=RuntimeConfig(seed=1),
)


def _preprocess(images):
    return images / 127.5 - 1


def _data(config=CONFIG) -> loop.StageData:
    train = fakes.make_noise_examples(40)
    validation = fakes.make_noise_examples(20, seed=1)
    arguments = {
        "global_batch_size": config.optimization.global_batch_size,
        "compute_dtype": keras.config.dtype_policy().compute_dtype,
    }

    def make_train(initial_epoch, context):
        return input_pipeline.make_train_dataset(
            train,
            config.input,
            _preprocess,
            seed=config.runtime.seed,
            initial_epoch=initial_epoch,
            input_context=context,
            **arguments,
        )

    def make_eval(examples, context=None):
        return input_pipeline.make_eval_dataset(
            examples,
            config.input,
            _preprocess,
            input_context=context,
            **arguments,
        )

    return loop.StageData(
        num_examples=40,
        make_train=make_train,
        make_validation=functools.partial(make_eval, validation),
        make_calibration=functools.partial(make_eval, train),
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
    return loop.Stage("transfer", config, workdir, model, strategy, **kwargs)


def _weights(stage):
    model = stage._model
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


class _Killed(Exception):
    """Stands in for a kill at a chosen moment."""


@pytest.mark.parametrize("moment", ["in_epoch_3", "before_checkpoint_3"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_interrupted_run_resumes_to_bit_equal_weights(
    tmp_path, monkeypatch, moment, optimizer
):
    config = dataclasses.replace(
        CONFIG,
        optimization=dataclasses.replace(
            OPTIMIZATION, transfer_optimizer=optimizer
        ),
    )
    whole = _stage(tmp_path / "whole", config)
    (tmp_path / "whole").mkdir(exist_ok=True)
    expected = whole.run()

    workdir = tmp_path / "interrupted"
    workdir.mkdir(exist_ok=True)
    stage = _stage(workdir, config)
    owner, name = {
        "in_epoch_3": (stage._trainer, "eval_step"),
        "before_checkpoint_3": (stage._checkpoints, "save"),
    }[moment]
    original, calls = getattr(owner, name), []

    def killed(*args):
        calls.append(args)
        # Validation takes 2 batches, a checkpoint 1.
        if len(calls) > (4 if name == "eval_step" else 2):
            raise _Killed
        return original(*args)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(_Killed):
        stage.run()
    resumed = _stage(workdir, config)
    result = resumed.run()

    for a, b in zip(_weights(whole), _weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert result.best_epoch == expected.best_epoch
    assert result.validation_loss == expected.validation_loss
    lines = [
        metrics.read_metrics(folder / "metrics.jsonl")
        for folder in (tmp_path / "whole", workdir)
    ]
    assert [line["epoch"] for line in lines[1]] == [1, 2, 3, 4]
    for a, b in zip(*lines, strict=True):
        for key in ("step", "train_loss", "validation_loss", "learning_rate"):
            assert a[key] == b[key], key


def test_best_epoch_is_what_the_model_holds_in_the_end(tmp_path):
    stage = _stage(tmp_path)
    result = stage.run()
    lines = metrics.read_metrics(tmp_path / "metrics.jsonl")
    best = max(
        lines, key=lambda x: (x["validation_accuracy"], -x["validation_loss"])
    )
    assert result.best_epoch == best["epoch"]
    assert result.validation_accuracy == best["validation_accuracy"]
    validation = loop.evaluate(
        stage._trainer.eval_step, stage._validation_batches()
    )
    assert validation["loss"] == pytest.approx(best["validation_loss"])


def test_nan_stops_with_the_flag_to_turn_and_keeps_the_checkpoint(tmp_path):
    stage = _stage(tmp_path)
    train_steps, calls = stage._trainer.train_steps, []

    def diverging(batches, num_steps):
        calls.append(num_steps)
        if len(calls) == 5:
            kernel = stage._model.trainable_variables[0]
            kernel.assign(kernel * np.nan)
        return train_steps(batches, num_steps)

    stage._trainer.train_steps = diverging
    with pytest.raises(UserError) as error:
        stage.run()
    message = str(error.value)
    assert "\n" not in message
    assert "became nan in transfer epoch 2, step 1 to 3" in message
    assert "--transfer_learning_rate" in message
    assert "epoch 1's checkpoint is kept" in message
    again = _stage(tmp_path)
    assert again._checkpoints.restore() == 1
    assert all(np.all(np.isfinite(w)) for w in _weights(again))


def test_two_replicas_run_the_same_epochs(tmp_path, mirrored_strategy):
    """Without dropout, whose masks differ; 40 examples leave a padded step."""
    config = dataclasses.replace(CONFIG, model=ModelConfig(dropout=0.0))
    for name, strategy in (("one", None), ("two", mirrored_strategy)):
        (tmp_path / name).mkdir()
        _stage(tmp_path / name, config, strategy).run()
    one, two = (
        metrics.read_metrics(tmp_path / name / "metrics.jsonl")
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["validation_loss"] == pytest.approx(
            b["validation_loss"], rel=1e-4
        )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stage_runs(tmp_path, policy):
    stage = _stage(tmp_path, policy=policy)
    scaled = isinstance(
        stage._trainer.optimizer, keras.optimizers.LossScaleOptimizer
    )
    # Loss scaling for float16 alone.
    assert scaled == (policy == "mixed_float16")
    stage.run()
    lines = metrics.read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_metrics_cut_short_by_a_kill_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"phase": "transfer", "epoch": e, "step": e} for e in (1, 2, 3)]
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(text + '\n{"phase": "transf')
    metrics.MetricsWriter(tmp_path, "transfer", 2).close()
    kept = metrics.read_metrics(path)
    assert [line["epoch"] for line in kept] == [1, 2]


def _schedule(**kwargs):
    config = dataclasses.replace(OPTIMIZATION, **kwargs)
    return optimizers.learning_rate_schedule(
        config, peak=0.1, epochs=4, steps_per_epoch=10
    )


def test_schedule_values():
    cosine = _schedule(warmup_epochs=1.0)
    rates = [float(cosine(step)) for step in (0, 5, 10, 25, 40)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.05, 0], atol=1e-7)
    constant = _schedule(schedule="constant", warmup_epochs=0.5)
    rates = [float(constant(step)) for step in (0, 5, 6, 40)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.1, 0.1], atol=1e-7)
    plain = _schedule(warmup_epochs=0.0)
    np.testing.assert_allclose(float(plain(0)), 0.1)


def test_weight_decay_spares_biases():
    optimizer = optimizers.make_optimizer(
        "adamw",
        1.0,
        dataclasses.replace(OPTIMIZATION, weight_decay=0.5),
        scale_loss=False,
    )
    layer = keras.layers.Dense(2, bias_initializer="ones")
    layer.build([None, 3])
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    zeros = [tf.zeros_like(v.value) for v in layer.trainable_variables]
    optimizer.apply(zeros, layer.trainable_variables)
    np.testing.assert_allclose(layer.kernel, 0.5 * kernel, rtol=1e-6)
    np.testing.assert_array_equal(layer.bias, [1, 1])


def _key(stage, **values):
    optimization = dataclasses.replace(OPTIMIZATION, **values)
    config = dataclasses.replace(CONFIG, optimization=optimization)
    return checkpoints.resume_key(config, stage, "set/1", "float32")


def test_resume_with_a_changed_flag_is_refused(tmp_path):
    folder = tmp_path / "checkpoints" / "transfer"
    folder.mkdir(parents=True)
    checkpoints.write_resume_key(folder, _key("transfer"))
    changed = _key("transfer", momentum=0.5)
    # Nothing saved yet: nothing to lose.
    checkpoints.check_resume_key(folder, changed, tmp_path)
    _stage(tmp_path).run()
    with pytest.raises(
        ConfigError, match=r"--momentum: .* was started with 0\.9, got 0\.5"
    ):
        checkpoints.check_resume_key(folder, changed, tmp_path)
    # The other stage's flags may change.
    key = _key("transfer", finetune_epochs=9)
    checkpoints.check_resume_key(folder, key, tmp_path)
