"""Stages on cached features, on folded models, and under a profiler."""

from __future__ import annotations

import csv
import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import files, machine
from flowers17_tfdata.config.model import ModelConfig
from flowers17_tfdata.config.optimization import OptimizationConfig
from flowers17_tfdata.config.runtime import RuntimeConfig
from flowers17_tfdata.input import input_pipeline
from flowers17_tfdata.models import (
    batch_norm,
    classifier,
    folding,
    freezing,
    saved_models,
)
from flowers17_tfdata.models.backbones import build_backbone
from flowers17_tfdata.phases import train_data
from flowers17_tfdata.scoring import predictions, scores
from flowers17_tfdata.training import checkpoints, optimizers, strategy
from flowers17_tfdata.training.inference import Inference

pytestmark = pytest.mark.slow


@pytest.fixture
def weights(tmp_path, tiny_backbone) -> pathlib.Path:
    """Pretrained weights whose batch-norm is not the identity."""
    keras.utils.set_random_seed(3)
    backbone = build_backbone(tiny_backbone, 32, "none")
    rng = np.random.default_rng(3)
    for layer in batch_norm.batch_norm_layers(backbone):
        layer.set_weights(
            [rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()]
        )
    path = tmp_path / "tiny.weights.h5"
    backbone.save_weights(path)
    return path


@pytest.fixture
def default_flags(default_flags, weights) -> list[str]:
    return [
        *default_flags,
        f"--weights={weights}",
        "--head_units=16",
        "--feature_views=1",
        "--transfer_optimizer=adamw",
        "--label_smoothing=0.1",
        "--transfer_epochs=3",
        "--finetune_epochs=1",
    ]


@pytest.fixture
def run(run):
    """Returns `run(workdir, *flags) -> stdout`."""

    def succeed(*arguments):
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return succeed


def _weights(path) -> list[np.ndarray]:
    return keras.models.load_model(path, compile=False).get_weights()


def _assert_equal(path_a, path_b, **tolerance) -> None:
    for a, b in zip(_weights(path_a), _weights(path_b), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_features_are_computed_once_and_kept(run, tmp_path):
    out = run("a", "--phase=transfer", "--feature_views=3")
    files = {}
    for file in (tmp_path / "a" / "features").iterdir():
        with np.load(file) as arrays:
            files[arrays["values"].shape] = file, arrays["values"]
    assert set(files) == {(3, 800, 16), (1, 260, 16)}
    file, train = files[3, 800, 16]
    assert f"features of train, 3 views, saved to {file.parent}" in out
    # The second view is mirrored, the third one random.
    assert not np.allclose(train[0], train[1])
    assert not np.allclose(train[1], train[2])

    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "features").rename(tmp_path / "b" / "features")
    out = run("b", "--phase=transfer", "--feature_views=3")
    kept = tmp_path / "b" / "features"
    assert f"features of train, 3 views, from {kept}" in out
    _assert_equal(
        tmp_path / "a" / "model_transfer.keras",
        tmp_path / "b" / "model_transfer.keras",
        rtol=0,
    )

    run("c", "--phase=transfer", "--feature_views=3", "--rotation=5")
    names = [path.name for path in (tmp_path / "c" / "features").iterdir()]
    assert len(names) == 2
    assert file.name not in names


@pytest.mark.parametrize(
    ("head_units", "optimizer"), [(0, "lbfgs"), (0, "adamw"), (16, "adamw")]
)
def test_the_saved_model_takes_images_as_its_head_took_features(
    run, tmp_path, head_units, optimizer
):
    flags = [f"--transfer_optimizer={optimizer}"]
    flags += ["--transfer_learning_rate=1e-2", "--transfer_epochs=9"]
    run("a", "--phase=transfer", f"--head_units={head_units}", *flags)
    epochs = files.read_json_lines(tmp_path / "a" / "metrics.jsonl")
    best = max(
        epochs,
        key=lambda e: (e["validation_accuracy"], -e["validation_loss"]),
    )
    assert best["validation_accuracy"] > 0.3
    run("a", "--phase=evaluate", "--split=validation")
    evaluation = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert evaluation["accuracy"] == best["validation_accuracy"]
    path = tmp_path / "a" / "model_transfer.keras"
    trust = saved_models.read_trust(path)
    assert evaluation["loss"] == pytest.approx(trust.loss, 1e-4)
    assert saved_models.validation_of(path).loss == trust.loss
    # Without the temperature it is the model that was trained.
    found = predictions.load(tmp_path / "a" / "predictions_validation.npz")
    plain = found._replace(logits=found.logits * trust.temperature)
    loss = scores.summarize(plain, "validation", [""] * 17)["loss"]
    assert loss == pytest.approx(best["validation_loss"], 1e-4)


def test_a_solved_head_leaves_one_line_and_is_not_solved_again(run, tmp_path):
    flags = ["--transfer_optimizer=lbfgs", "--head_units=0"]
    out = run("a", "--phase=transfer", *flags)
    assert "transfer: solved the head in " in out
    (line,) = files.read_json_lines(tmp_path / "a" / "metrics.jsonl")
    assert (line["phase"], line["epoch"]) == ("transfer", 1)
    assert line["validation_accuracy"] > 0.3
    assert "transfer: already done" in run("a", "--phase=transfer", *flags)
    # There is no checkpoint, but changed flags are refused.
    with pytest.raises(AssertionError, match=r"--feature_views: .* got 2"):
        run("a", "--phase=transfer", *flags, "--feature_views=2")


class _Killed(Exception):
    """Stands in for a kill at a chosen moment."""


@pytest.fixture
def check_resumes(run, tmp_path, monkeypatch):
    """Returns `check_resumes(stage, *flags)`.

    It kills a run after two epochs of the stage, resumes it, and compares the
    model with that of an undisturbed run.
    """
    save = checkpoints.StageCheckpoints.save
    saved = []

    def save_and_die(self, seconds):
        save(self, seconds)
        saved.append(seconds)
        if len(saved) == 2:
            raise _Killed

    def check_resumes(stage, *flags):
        flags = [f"--phase={stage}", *flags]
        run("whole", *flags)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.StageCheckpoints, "save", save_and_die)
            with pytest.raises(_Killed):
                run("killed", *flags)
        out = run("killed", *flags)
        assert f"{stage}: resuming after epoch 2" in out
        _assert_equal(
            tmp_path / "whole" / f"model_{stage}.keras",
            tmp_path / "killed" / f"model_{stage}.keras",
            rtol=0,
        )

    return check_resumes


def test_killed_transfer_resumes_exactly(check_resumes):
    check_resumes("transfer", "--feature_views=2")


def test_killed_training_of_batch_norm_resumes_exactly(
    run, tmp_path, check_resumes
):
    run("from", "--weights=none", "--phase=transfer")
    flags = [f"--init_from={tmp_path / 'from' / 'model_transfer.keras'}"]
    check_resumes("finetune", *flags, "--weights=none", "--finetune_epochs=3")


@pytest.fixture
def finetune_is_kept(monkeypatch):
    """Makes refit repeat the fine-tuning, even if the head was better."""
    kept_stage = saved_models.kept_stage

    def kept(workdir, *, before_refit=False):
        return "finetune" if before_refit else kept_stage(workdir)

    monkeypatch.setattr(saved_models, "kept_stage", kept)


@pytest.mark.usefixtures("finetune_is_kept")
def test_killed_refit_resumes_exactly(run, tmp_path, check_resumes):
    run("from", "--phase=transfer")
    flags = [f"--init_from={tmp_path / 'from' / 'model_transfer.keras'}"]
    check_resumes("refit", *flags, "--refit", "--finetune_epochs=3")


@pytest.mark.usefixtures("finetune_is_kept")
def test_refit_trains_on_validation_too(run, tmp_path, monkeypatch, capsys):
    seen = {}
    make = input_pipeline.make_train_dataset

    def watched(examples, *args, **kwargs):
        seen[examples.num_examples] = examples
        return make(examples, *args, **kwargs)

    monkeypatch.setattr(input_pipeline, "make_train_dataset", watched)
    out = run("a", "--refit", "--finetune_epochs=2", "--phase=train")
    assert "refit: trained on train and validation; " in out
    workdir = tmp_path / "a"
    with open(workdir / "splits.csv", encoding="utf-8") as file:
        splits = {row["file"]: row["split"] for row in csv.DictReader(file)}
    for count, wanted in (
        (800, ("train",)),
        (1060, ("train", "validation")),
    ):
        names = {name for name, split in splits.items() if split in wanted}
        assert set(seen[count].ids) == names
        assert len(seen[count].ids) == count
    # Each image keeps its label and pixels.
    tuned, refitted = seen[800], seen[1060]
    for index in (0, 799):
        np.testing.assert_array_equal(
            refitted.images.read(np.array([index])),
            tuned.images.read(np.array([index])),
        )
        assert refitted.labels[index] == tuned.labels[index]
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    steps = [x["step"] for x in lines if x["phase"] == "refit"]
    assert steps == [17, 34]

    # It is evaluated on test; evaluation on a trained split is refused.
    evaluation = files.read_json(workdir / "evaluation.json")
    assert evaluation["split"] == "test"
    assert evaluation["model"].endswith("model_refit.keras")
    flags = ["--phase=evaluate", "--split=validation"]
    with pytest.raises(AssertionError, match=r"--split=validation: .*memory"):
        run("a", *flags)
    run("a", *flags, f"--model={workdir / 'model_finetune.keras'}")
    # The run's own result stays what it was.
    assert files.read_json(workdir / "evaluation.json") == evaluation
    evaluation = files.read_json(workdir / "evaluation_model_finetune.json")
    accuracies = (
        x["validation_accuracy"] for x in lines if x["phase"] == "finetune"
    )
    assert evaluation["accuracy"] == max(accuracies)


@pytest.mark.usefixtures("finetune_is_kept")
def test_refit_trains_as_fine_tuning_does(run, tmp_path, monkeypatch):
    """On the same images, both give the same model."""
    select_splits = train_data.select_splits

    def train_alone(session, stage, examples):
        return select_splits(session, "finetune", examples)

    monkeypatch.setattr(train_data, "select_splits", train_alone)
    # The last epoch is the best one.
    accuracies = itertools.count(1)
    monkeypatch.setattr(
        Inference,
        "loss_and_accuracy",
        lambda *_: (1.0, next(accuracies) / 1000),
    )
    run(
        "a",
        "--phase=train",
        *("--refit", "--finetune_epochs=2"),
        *("--finetune_lowest_rate=0.1", "--finetune_learning_rate=2e-3"),
    )
    _assert_equal(
        tmp_path / "a" / "model_finetune.keras",
        tmp_path / "a" / "model_refit.keras",
        rtol=0,
    )


def test_refit_goes_with_the_flags_of_the_fine_tuning(run, tmp_path):
    for phase in ("transfer", "finetune"):
        run("a", f"--phase={phase}")
    with pytest.raises(AssertionError, match="--finetune_learning_rate"):
        run("a", "--phase=refit", "--finetune_learning_rate=0.1")
    # --refit does not change fine-tuning.
    assert "already done" in run("a", "--phase=finetune", "--refit")
    run("a", "--phase=refit")
    assert (tmp_path / "a" / "model_refit.keras").exists()


def test_frozen_batch_norm_is_folded_by_fine_tuning(run, tmp_path):
    run("a", "--phase=transfer")
    run("a", "--phase=finetune", "--unfreeze_from=block2")
    transfer, tuned = (
        keras.models.load_model(tmp_path / "a" / f"model_{name}.keras")
        for name in ("transfer", "finetune")
    )
    assert len(batch_norm.batch_norm_layers(transfer)) == 2
    assert not batch_norm.batch_norm_layers(tuned)
    folded = folding.fold_batch_norm(transfer)
    images = np.random.default_rng(0).uniform(-1, 1, [4, 32, 32, 3])
    np.testing.assert_allclose(
        folded(images), transfer(images), rtol=1e-3, atol=1e-4
    )
    for name, changes in (("block1_conv", False), ("block2_conv", True)):
        before, after = (
            classifier.get_backbone(m).get_layer(name).get_weights()
            for m in (folded, tuned)
        )
        for a, b in zip(before, after, strict=True):
            assert changes != np.array_equal(a, b)


@pytest.mark.parametrize(
    ("optimizer_name", "rate"), [("adam", 1e-2), ("sgd", 3e-2)]
)
def test_folded_kernels_take_the_steps_of_unfolded_ones(
    tiny_backbone, weights, optimizer_name, rate
):
    """Adam's steps ignore the kernel's scale, so the rates must follow it."""
    config = ModelConfig(backbone=tiny_backbone, weights=str(weights))
    images = np.random.default_rng(0).uniform(-1, 1, [8, 32, 32, 3])
    images = images.astype(np.float32)
    targets = np.random.default_rng(1).normal(size=[8, 16])

    def features_after_training(folds, scales_rates):
        model = classifier.build_classifier(
            config, image_size=32, num_classes=17, seed=0
        )
        backbone = classifier.get_backbone(model)
        freezing.unfreeze_from(backbone, "all", 32, keep_batch_norm=True)
        scales = folding.merged_scales(backbone) if scales_rates else {}
        if folds:
            model = folding.fold_batch_norm(model)
            backbone = classifier.get_backbone(model)
        rates = freezing.learning_rate_scales(
            model, 0.5, scales, optimizer_name
        )
        kernels = [
            (variable, rate)
            for variable, rate in zip(
                model.trainable_variables, rates, strict=True
            )
            if variable.path.endswith("conv/kernel")
        ]
        assert len(kernels) == 2
        variables, rates = zip(*kernels, strict=True)
        optimizer = optimizers.make_optimizer(
            optimizer_name,
            optimizers.learning_rate_schedule(
                OptimizationConfig(schedule="constant"), rate, 1, 10
            ),
            OptimizationConfig(),
            scale_loss=False,
            rate_scales=rates,
        )
        extractor = classifier.get_feature_extractor(model)
        for _ in range(5):
            with tf.GradientTape() as tape:
                error = extractor([images], training=True) - targets
                loss = tf.reduce_mean(tf.square(error))
            gradients = tape.gradient(loss, [v.value for v in variables])
            optimizer.apply(gradients, list(variables))
        return extractor([images]).numpy()

    unfolded = features_after_training(folds=False, scales_rates=False)
    folded = features_after_training(folds=True, scales_rates=True)
    as_they_come = features_after_training(folds=True, scales_rates=False)
    np.testing.assert_allclose(folded, unfolded, rtol=1e-2, atol=1e-3)
    assert np.abs(as_they_come - unfolded).max() > 0.02


def test_profile_is_written(run, tmp_path):
    out = run(
        "profiled",
        "--phase=transfer",
        "--feature_views=0",
        "--transfer_epochs=1",
        "--profile_steps=2,3",
    )
    folder = tmp_path / "profiled" / "tensorboard" / "transfer"
    assert f"profile written to {folder}" in out
    (profile,) = folder.rglob("*.xplane.pb")
    assert profile.stat().st_size > 0


def test_augmenting_on_the_device_trains_the_same(run, tmp_path):
    def train(name, *flags):
        run(
            name,
            "--phase=transfer",
            "--feature_views=0",
            "--transfer_epochs=1",
            "--transfer_optimizer=sgd",
            "--transfer_learning_rate=0.1",
            *flags,
        )
        return _weights(tmp_path / name / "model_transfer.keras")

    host = train("host", "--augment_on=host")
    device = train("device", "--augment_on=device")
    other = train("other", "--augment_on=host", "--augmentation=none")

    def distance(values):
        pairs = zip(host, values, strict=True)
        return max(np.abs(a - b).max() for a, b in pairs)

    # OpenCV rounds to uint8 and to 1/32 pixel.
    assert distance(device) < distance(other) / 4


def test_fixed_views_do_not_depend_on_the_augmentation(run, tmp_path):
    run("a", "--phase=transfer", "--feature_views=2")
    names = {path.name for path in (tmp_path / "a" / "features").iterdir()}
    flags = ["--feature_views=2", "--rotation=5", "--seed=1"]
    run("b", "--phase=transfer", *flags)
    again = {path.name for path in (tmp_path / "b" / "features").iterdir()}
    assert again == names


def test_fine_tuning_alone_takes_smaller_images(run, tmp_path, monkeypatch):
    sizes, make = [], input_pipeline.make_train_dataset

    def watched(examples, config, **kwargs):
        sizes.append(config.train_image_size)
        return make(examples, config, **kwargs)

    monkeypatch.setattr(input_pipeline, "make_train_dataset", watched)
    flags = ["--feature_views=0", "--transfer_epochs=1", "--train_scale=0.75"]
    for phase in ("transfer", "finetune"):
        run("a", f"--phase={phase}", *flags)
    assert sizes == [32, 24]
    # Cached views do not depend on --train_scale either.
    views = ["--phase=transfer", "--feature_views=3", "--transfer_epochs=1"]
    run("b", *views)
    run("c", *views, "--train_scale=0.75")
    names, again = (
        {path.name for path in (tmp_path / name / "features").iterdir()}
        for name in ("b", "c")
    )
    assert names == again
    _assert_equal(
        tmp_path / "b" / "model_transfer.keras",
        tmp_path / "c" / "model_transfer.keras",
        rtol=0,
    )


def test_resumption_keeps_what_auto_chose(run, monkeypatch):
    run("a", "--phase=transfer", "--cache=auto")
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    out = run("a", "--phase=transfer", "--cache=auto")
    assert "transfer: already done" in out
    run("b", "--phase=transfer", "--cache=auto")


def test_one_device_is_not_mirrored(monkeypatch):
    """In a MirroredStrategy, XLA cannot compile the head's update."""
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: [f"{kind}:0"]
    )
    chosen = strategy.get_strategy(RuntimeConfig(strategy="mirrored"))
    assert not isinstance(chosen, tf.distribute.MirroredStrategy)


def test_a_sequential_model_is_evaluated(run, tmp_path, tiny_backbone):
    model = keras.Sequential(
        [
            build_backbone(tiny_backbone, 32, "none"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(17),
        ]
    )
    path = tmp_path / "sequential.keras"
    model.save(path)
    out = run("a", "--phase=evaluate", f"--model={path}")
    assert "test: accuracy" in out
