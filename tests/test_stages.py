"""Stages on cached features, on folded models, and under a profiler."""

from __future__ import annotations

import csv
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import cli, stage_data
from flowers17_tfdata.config import RuntimeConfig
from flowers17_tfdata.input import examples, input_pipeline
from flowers17_tfdata.models import batch_norm, classifier
from flowers17_tfdata.models.backbones import build_backbone
from flowers17_tfdata.results import metrics
from flowers17_tfdata.training import loop, strategy


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
def run(tmp_path, data_dir, dummy_archive, tiny_backbone, weights, capsys):
    """Returns `run(workdir, *flags) -> stdout`."""

    def run(workdir, *flags):
        code = cli.main(
            [
                "main.py",
                f"--workdir={tmp_path / workdir}",
                f"--data_dir={data_dir}",
                f"--archive={dummy_archive}",
                f"--backbone={tiny_backbone}",
                f"--weights={weights}",
                "--image_size=32",
                "--head_units=16",
                "--global_batch_size=64",
                "--transfer_epochs=3",
                "--finetune_epochs=1",
                "--strategy=default",
                *flags,
            ]
        )
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def _weights(path) -> list[np.ndarray]:
    return keras.models.load_model(path, compile=False).get_weights()


def _assert_equal(path_a, path_b, **tolerance) -> None:
    for a, b in zip(_weights(path_a), _weights(path_b), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_features_are_computed_once_and_kept(run, tmp_path):
    out = run("a", "--phase=transfer", "--feature_views=2")
    (file,) = (tmp_path / "a" / "features").iterdir()
    assert f"features of 2 view(s) saved to {file}" in out
    with np.load(file) as arrays:
        assert arrays["train"].shape == (2, 800, 16)
        assert arrays["validation"].shape == (1, 260, 16)
        # The second view is augmented.
        assert not np.allclose(arrays["train"][0], arrays["train"][1])

    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "features").rename(tmp_path / "b" / "features")
    out = run("b", "--phase=transfer", "--feature_views=2")
    kept = tmp_path / "b" / "features" / file.name
    assert f"features of 2 view(s) from {kept}" in out
    _assert_equal(
        tmp_path / "a" / "model_transfer.keras",
        tmp_path / "b" / "model_transfer.keras",
        rtol=0,
    )

    out = run("c", "--phase=transfer", "--feature_views=2", "--rotation=5")
    (other,) = (tmp_path / "c" / "features").iterdir()
    assert other.name != file.name


@pytest.mark.parametrize("head_units", [0, 16])
def test_the_saved_model_takes_images_as_its_head_took_features(
    run, tmp_path, head_units
):
    flags = ["--feature_views=1", "--batch_norm_statistics=train"]
    flags += ["--transfer_learning_rate=1e-2"]
    run("a", "--phase=transfer", f"--head_units={head_units}", *flags)
    epochs = metrics.read_metrics(tmp_path / "a" / "metrics.jsonl")
    best = max(
        epochs,
        key=lambda e: (e["validation_accuracy"], -e["validation_loss"]),
    )
    assert best["validation_accuracy"] > 0.3
    run("a", "--phase=evaluate", "--split=validation")
    evaluation = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert evaluation["accuracy"] == best["validation_accuracy"]
    assert evaluation["loss"] == pytest.approx(best["validation_loss"], 1e-4)


def test_batch_norm_is_measured_on_train_before_it_is_folded(
    run, tmp_path, tiny_backbone, weights
):
    flags = ["--phase=transfer", "--transfer_epochs=1"]
    run("own", *flags)
    run("train", *flags, "--batch_norm_statistics=train")
    run("bare", *flags, "--batch_norm_statistics=train", "--nofold_batch_norm")
    features = {}
    for name in ("own", "train", "bare"):
        (file,) = (tmp_path / name / "features").iterdir()
        features[name] = np.load(file)["train"]
    assert not np.allclose(features["own"], features["train"], rtol=0.1)
    np.testing.assert_allclose(
        features["train"], features["bare"], rtol=1e-3, atol=1e-5
    )
    bare = keras.models.load_model(tmp_path / "bare" / "model_transfer.keras")
    pretrained = build_backbone(tiny_backbone, 32, str(weights))
    for own in batch_norm.batch_norm_layers(pretrained):
        layer = classifier.get_backbone(bare).get_layer(own.name)
        np.testing.assert_array_equal(layer.gamma, own.gamma)
        np.testing.assert_array_equal(layer.beta, own.beta)
        assert not np.allclose(layer.moving_mean, own.moving_mean, rtol=0.1)


class _Killed(Exception):
    """Stands in for a kill at a chosen moment."""


@pytest.fixture
def check_resumes(run, tmp_path, monkeypatch):
    """Returns `check_resumes(stage, *flags)`: exactly, after two epochs."""
    original = loop.Stage._run_epoch

    def killed(self, epoch, *args):
        if epoch == 2 and self.name == killed.stage:
            raise _Killed
        original(self, epoch, *args)

    def check_resumes(stage, *flags):
        killed.stage, flags = stage, [f"--phase={stage}", *flags]
        run("whole", *flags)
        with monkeypatch.context() as patch:
            patch.setattr(loop.Stage, "_run_epoch", killed)
            with pytest.raises(_Killed):
                run("killed", *flags)
        assert "resuming after epoch 2" in run("killed", *flags)
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
    flags = ["--train_batch_norm", "--color_jitter=0.3", "--ema_decay=0.9"]
    run("from", *flags, "--phase=transfer")
    flags += [f"--init_from={tmp_path / 'from' / 'model_transfer.keras'}"]
    check_resumes("finetune", *flags, "--finetune_epochs=3")


@pytest.mark.parametrize(("epochs", "runs"), [(3, 1), (2, 2)])
def test_killed_refit_resumes_exactly(
    run, tmp_path, check_resumes, epochs, runs
):
    flags = ["--train_batch_norm", "--ema_decay=0.9"]
    flags += [f"--refit_epochs={epochs}", f"--refit_runs={runs}"]
    run("from", *flags, "--phase=transfer")
    flags += [f"--init_from={tmp_path / 'from' / 'model_transfer.keras'}"]
    check_resumes("refit", *flags)


def test_refit_trains_on_validation_too(run, tmp_path, monkeypatch, capsys):
    seen = {}
    make = input_pipeline.make_train_dataset

    def watched(examples, *args, **kwargs):
        seen[examples.num_examples] = examples
        return make(examples, *args, **kwargs)

    monkeypatch.setattr(input_pipeline, "make_train_dataset", watched)
    out = run("a", "--refit_epochs=2", "--validate_every=2", "--phase=train")
    assert "refit: 2 epochs on train and validation; " in out
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
    # Each image with its own label and pixels, whichever split it is of.
    tuned, refitted = seen[800], seen[1060]
    for index in (0, 799):
        np.testing.assert_array_equal(
            refitted.images.read(np.array([index])),
            tuned.images.read(np.array([index])),
        )
        assert refitted.labels[index] == tuned.labels[index]
    lines = metrics.read_metrics(workdir / "metrics.jsonl")
    steps = [x["step"] for x in lines if x["phase"] == "refit"]
    assert steps == [17, 34]

    # Test is what it is evaluated on, not what it was trained on.
    evaluation = metrics.read_json(workdir / "evaluation.json")
    assert evaluation["split"] == "test"
    assert evaluation["model"].endswith("model_refit.keras")
    flags = ["--phase=evaluate", "--split=validation"]
    with pytest.raises(AssertionError, match=r"--split=validation: .*memory"):
        run("a", *flags)
    run("a", *flags, f"--model={workdir / 'model_finetune.keras'}")
    evaluation = metrics.read_json(workdir / "evaluation.json")
    (validated,) = (x for x in lines if x["phase"] == "finetune")
    assert evaluation["accuracy"] == validated["validation_accuracy"]


def test_refit_trains_as_fine_tuning_does(run, tmp_path, monkeypatch):
    """On the same images it comes to the same."""
    monkeypatch.setattr(stage_data, "_trained_splits", lambda stage: ("train",))
    run(
        "a",
        "--phase=train",
        *("--refit_epochs=2", "--finetune_epochs=2", "--train_batch_norm"),
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
        run(
            "a",
            *("--phase=refit", "--refit_epochs=1"),
            "--finetune_learning_rate=0.1",
        )
    with pytest.raises(AssertionError, match="--refit_epochs must be at least"):
        run("a", "--phase=refit")
    # Of fine-tuning nothing changes by how long it is refitted.
    assert "already done" in run("a", "--phase=finetune", "--refit_epochs=3")
    run("a", "--phase=refit", "--refit_epochs=1")
    assert (tmp_path / "a" / "model_refit.keras").exists()


def test_folded_training_is_equal_before_and_plain_after(run, tmp_path):
    run("folded", "--phase=transfer")
    run("unfolded", "--phase=transfer", "--nofold_batch_norm")
    images = np.random.default_rng(0).uniform(-1, 1, [4, 32, 32, 3])
    folded, unfolded = (
        keras.models.load_model(tmp_path / name / "model_transfer.keras")
        for name in ("folded", "unfolded")
    )
    assert batch_norm.batch_norm_layers(unfolded)
    np.testing.assert_allclose(
        folded(images), unfolded(images), rtol=1e-3, atol=1e-4
    )

    run("folded", "--phase=finetune", "--unfreeze_from=block2")
    tuned = keras.models.load_model(tmp_path / "folded/model_finetune.keras")
    for model in (folded, tuned):
        assert not batch_norm.batch_norm_layers(model)
    before, after = (
        classifier.get_backbone(m).get_layer("block2_conv").get_weights()
        for m in (folded, tuned)
    )
    for a, b in zip(before, after, strict=True):
        assert not np.array_equal(a, b)
    frozen = [
        classifier.get_backbone(m).get_layer("block1_conv").get_weights()
        for m in (folded, tuned)
    ]
    for a, b in zip(*frozen, strict=True):
        np.testing.assert_array_equal(a, b)

    # An unfolded model is folded where it is loaded.
    run(
        "unfolded_first",
        "--phase=finetune",
        f"--init_from={tmp_path / 'unfolded' / 'model_transfer.keras'}",
    )
    model = keras.models.load_model(
        tmp_path / "unfolded_first" / "model_finetune.keras"
    )
    assert not batch_norm.batch_norm_layers(model)
    out = run("unfolded", "--phase=evaluate")
    same = run("unfolded", "--phase=evaluate", "--nofold_batch_norm")
    assert out.splitlines()[-1] == same.splitlines()[-1]


def test_trained_batch_norm_is_folded_in_the_end(run, tmp_path):
    run("random", "--weights=none", "--phase=transfer")
    run("random", "--weights=none", "--phase=finetune")
    transfer, finetune = (
        keras.models.load_model(tmp_path / "random" / f"model_{name}.keras")
        for name in ("transfer", "finetune")
    )
    assert batch_norm.batch_norm_layers(transfer)
    assert not batch_norm.batch_norm_layers(finetune)
    run("random", "--weights=none", "--phase=evaluate", "--split=validation")
    evaluation = metrics.read_json(tmp_path / "random" / "evaluation.json")
    lines = metrics.read_metrics(tmp_path / "random" / "metrics.jsonl")
    assert evaluation["accuracy"] == pytest.approx(
        lines[-1]["validation_accuracy"]
    )


def test_train_batch_norm_trains_what_is_unfrozen(run, tmp_path, weights):
    """And is saved with statistics of train, folded; transfer keeps it."""
    flags = ["--train_batch_norm", "--unfreeze_from=block2"]
    flags += ["--nofold_batch_norm", "--finetune_learning_rate=0.01"]
    flags += ["--feature_views=1"]
    run("kept", "--feature_views=1", "--phase=transfer")
    run("trained", *flags, "--phase=transfer")
    images = np.random.default_rng(0).uniform(-1, 1, [4, 32, 32, 3])
    kept, transfer = (
        keras.models.load_model(tmp_path / name / "model_transfer.keras")
        for name in ("kept", "trained")
    )
    assert len(batch_norm.batch_norm_layers(transfer)) == 2
    np.testing.assert_allclose(
        kept(images), transfer(images), rtol=1e-3, atol=1e-4
    )

    run("trained", *flags, "--phase=finetune")
    tuned = keras.models.load_model(tmp_path / "trained/model_finetune.keras")
    for layer, changes in (("block1_bn", False), ("block2_bn", True)):
        before, after = (
            classifier.get_backbone(m).get_layer(layer).get_weights()
            for m in (transfer, tuned)
        )
        for a, b in zip(before, after, strict=True):
            assert changes != np.array_equal(a, b)


@pytest.mark.parametrize(("size", "warns"), [(8, True), (16, False)])
def test_train_batch_norm_warns_of_small_batches(run, size, warns):
    flags = ["--train_batch_norm", "--feature_views=1", "--head_units=0"]
    flags += [f"--global_batch_size={size}", "--transfer_epochs=1"]
    run("a", *flags, "--phase=transfer")
    out = run("a", *flags, "--phase=finetune")
    assert (f"normalizes each replica's {size} images" in out) is warns


def test_train_batch_norm_validates_what_it_saves(run, tmp_path):
    flags = ["--train_batch_norm", "--finetune_epochs=2", "--ema_decay=0.9"]
    for stage in ("transfer", "finetune"):
        run("a", *flags, "--feature_views=1", f"--phase={stage}")
        run("a", "--phase=evaluate", "--split=validation")
        evaluation = metrics.read_json(tmp_path / "a" / "evaluation.json")
        lines = metrics.read_metrics(tmp_path / "a" / "metrics.jsonl")
        losses = [x["validation_loss"] for x in lines if x["phase"] == stage]
        assert pytest.approx(evaluation["loss"], 1e-3) in losses
    tuned = keras.models.load_model(tmp_path / "a" / "model_finetune.keras")
    assert not batch_norm.batch_norm_layers(tuned)


@pytest.mark.parametrize(
    ("transfer_flags", "flags", "reason"),
    [
        ([], [], "where its training folded it"),
        (
            ["--nofold_batch_norm"],
            ["--unfreeze_from=block2_relu"],
            "all of it is below --unfreeze_from",
        ),
    ],
)
def test_train_batch_norm_without_any_is_refused(
    run, tmp_path, capsys, transfer_flags, flags, reason
):
    run("from", *transfer_flags, "--phase=transfer")
    model = tmp_path / "from" / "model_transfer.keras"
    flags = [*flags, "--train_batch_norm", f"--init_from={model}"]
    with pytest.raises(AssertionError) as error:
        run("to", *flags, "--phase=finetune")
    assert "--train_batch_norm finds none to train: " in str(error.value)
    assert reason in str(error.value)


def test_steps_per_call_changes_nothing(run, tmp_path):
    for steps in (1, 5):
        run(
            f"steps{steps}",
            "--phase=transfer",
            "--feature_views=0",
            "--transfer_epochs=1",
            f"--steps_per_call={steps}",
        )
    _assert_equal(
        tmp_path / "steps1" / "model_transfer.keras",
        tmp_path / "steps5" / "model_transfer.keras",
        rtol=1e-5,
        atol=1e-6,
    )


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


def test_a_clean_view_does_not_depend_on_the_augmentation(run, tmp_path):
    run("a", "--phase=transfer")
    (file,) = (tmp_path / "a" / "features").iterdir()
    run("b", "--phase=transfer", "--rotation=5", "--seed=1")
    assert (tmp_path / "b" / "features" / file.name).exists()


def test_resumption_keeps_what_auto_chose(run, monkeypatch):
    run("a", "--phase=transfer", "--cache=auto")
    monkeypatch.setattr(examples, "free_memory", lambda: 0)
    out = run("a", "--phase=transfer", "--cache=auto")
    assert "transfer: already done" in out
    run("b", "--phase=transfer", "--cache=auto")


def test_one_device_is_not_mirrored(monkeypatch):
    """Mirroring would forbid to compile the head's update."""
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
