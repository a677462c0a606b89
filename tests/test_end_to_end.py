"""The command line on the builder's dummy archive and a tiny backbone."""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import files
from flowers17_tfdata.models import batch_norm

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def default_flags(default_flags) -> list[str]:
    return [
        *default_flags,
        "--finetune_epochs=2",
        "--finetune_learning_rate=1e-2",
    ]


def _one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.slow
def test_train_leaves_all_its_files(run, tmp_path):
    code, out, err = run("work", "--phase=train")
    assert code == 0, err
    workdir = tmp_path / "work"
    for name in ("transfer", "finetune"):
        assert (workdir / f"model_{name}.keras").stat().st_size > 0
        assert f"saved {workdir / f'model_{name}.keras'}" in out
    assert "finetune: best epoch" in out

    # With random weights, batch-norm statistics are measured before the head is
    # fitted; then batch-norm is trained; then it is folded.
    transfer, finetune = (
        keras.models.load_model(workdir / f"model_{name}.keras")
        for name in ("transfer", "finetune")
    )
    norms = batch_norm.batch_norm_layers(transfer)
    assert len(norms) == 2
    assert all(np.abs(norm.moving_mean).max() > 0 for norm in norms)
    checkpoint = tf.train.latest_checkpoint(workdir / "checkpoints/finetune")
    names = [name for name, _ in tf.train.list_variables(checkpoint)]
    assert any("moving_mean" in name for name in names)
    assert not batch_norm.batch_norm_layers(finetune)

    audit = json.loads((workdir / "audit.json").read_text())
    sizes = {k: v["num_examples"] for k, v in audit["splits"].items()}
    assert sizes == {"train": 800, "validation": 260, "test": 260, "unused": 40}
    assert audit["near_duplicates"]["num_pairs_across_splits"] == 0
    assert audit["near_duplicates"]["num_pairs"] >= 132
    assert audit["undecodable"] == []

    lines = files.read_json_lines(workdir / "metrics.jsonl")
    # The steps of transfer are the solver's iterations.
    assert [(x["phase"], x["epoch"], x["step"]) for x in lines] == [
        ("transfer", 1, lines[0]["step"]),
        ("finetune", 1, 13),
        ("finetune", 2, 26),
    ]
    assert lines[0]["step"] > 1
    assert set(lines[0]) == {
        "phase",
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "images_per_sec",
        "data_wait_fraction",
        "seconds",
    }
    assert lines[2]["train_loss"] < lines[1]["train_loss"]

    config = json.loads((workdir / "config.json").read_text())
    assert config["flags"]["backbone"] == "tiny_net"
    assert config["dataset"] == "oxford_flowers17/seeded/1.0.0"
    assert config["flags"]["precision"] != "auto"
    assert config["flags"]["cache"] == "memory"
    assert config["flags"]["augment_on"] == "host"
    assert config["versions"]["tensorflow"] == tf.__version__
    assert config["hardware"]["cpu_cores"] >= 1

    evaluation = json.loads((workdir / "evaluation.json").read_text())
    low, high = evaluation["accuracy_interval"]
    assert low < evaluation["accuracy"] < high
    assert evaluation["split"] == "test"
    assert evaluation["num_examples"] == 260
    # The dummy images are tinted by class: chance is 1 in 17.
    assert evaluation["accuracy"] > 0.2
    matrix = evaluation["confusion_matrix"]
    assert sum(map(sum, matrix)) == 260
    assert sum(matrix[k][k] for k in range(17)) == pytest.approx(
        260 * evaluation["accuracy"]
    )
    assert sum(s["support"] for s in evaluation["per_class"].values()) == 260

    tags = set()
    for path in (workdir / "tensorboard" / "finetune").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"train_loss", "validation_accuracy", "learning_rate"} <= tags

    # The same command again finds everything done.
    kept = (workdir / "metrics.jsonl").read_text()
    kept_config = (workdir / "config.json").read_text()
    code, out, _ = run("work", "--phase=train")
    assert code == 0
    assert "transfer: already done" in out
    assert "finetune: already done" in out
    assert (workdir / "metrics.jsonl").read_text() == kept

    # A changed flag is refused before anything is lost.
    code, _, err = run("work", "--phase=train", "--dropout=0.1")
    assert code == 2
    assert "--dropout" in _one_line(err)
    assert "started with 0.0, got 0.1" in err
    assert (workdir / "metrics.jsonl").read_text() == kept
    assert (workdir / "config.json").read_text() == kept_config

    # The saved model is evaluated on another split; the gate fails.
    code, out, _ = run("work", "--phase=evaluate", "--split=validation")
    assert code == 0
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    best = max(line["validation_accuracy"] for line in lines)
    assert evaluation["accuracy"] == pytest.approx(best)
    code, _, err = run(
        "work", "--phase=evaluate", "--assert_accuracy_at_least=1"
    )
    assert code == 3
    assert "--assert_accuracy_at_least=1.0" in _one_line(err)

    code, _, err = run("work", "--phase=evaluate", "--split=tset")
    assert code == 1
    assert "--split must be one of train, validation, test" in _one_line(err)
    code, _, err = run("work", "--phase=evaluate", "--image_size=48")
    assert code == 1
    assert "--image_size=32" in _one_line(err)


@pytest.mark.slow
def test_phases_one_by_one_and_from_another_model(run, tmp_path):
    code, out, err = run("work", "--phase=prepare")
    assert code == 0, err
    assert "0 pairs across splits" in out
    code, _, err = run("work", "--phase=finetune")
    assert code == 1
    assert "run --phase=transfer in this --workdir first" in _one_line(err)
    assert run("work", "--phase=transfer")[0] == 0
    code, _, err = run(
        "work",
        "--phase=finetune",
        "--finetune_epochs=1",
        "--unfreeze_from=block9",
    )
    assert code == 2
    assert "--unfreeze_from" in _one_line(err)
    code, _, err = run(
        "other",
        "--phase=finetune",
        "--finetune_epochs=1",
        "--unfreeze_from=block2",
        f"--init_from={tmp_path / 'work' / 'model_transfer.keras'}",
    )
    assert code == 0, err
    assert (tmp_path / "other" / "model_finetune.keras").exists()


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (["--weights=no/such.h5"], 1, "--weights must be imagenet"),
        (["--backbone=tiny_nte"], 2, "--backbone must name"),
        (["--dataset=oxford_flowers71", "--archive="], 2, "--dataset"),
        (["--dataset=oxford_flowers17/none"], 2, "--dataset"),
        (["--workdir=/dev/null/x"], 1, "--workdir /dev/null/x can't be"),
        (["--phase=evaluate"], 1, "does not exist: train one first"),
        (["--phase=evaluate", "--model=no.keras"], 1, "--model must be an"),
        (["--phase=finetune", "--init_from=no.keras"], 1, "--init_from"),
    ],
)
def test_mistakes_get_one_line(run, tmp_path, flags, code, expected):
    got, _, err = run("work", "--phase=transfer", *flags)
    assert got == code, err
    assert expected in _one_line(err)
    # A start that failed leaves no folder behind, or one with a result.
    left = tmp_path / "work"
    assert not left.exists() or (left / "config.json").exists()


def test_wrong_archive_gets_one_line(run, tmp_path):
    path = tmp_path / "wrong.tgz"
    path.write_bytes(b"not a tgz")
    code, _, err = run(
        "work", "--phase=prepare", f"--archive={path}", f"--data_dir={tmp_path}"
    )
    assert code == 1
    assert f"--archive {path}" in _one_line(err)


@pytest.mark.slow
def test_corrupt_jpeg_is_named_and_nothing_is_prepared(
    run, tmp_path, dummy_archive
):
    folder = tmp_path / "extracted"
    shutil.unpack_archive(dummy_archive, folder, filter="data")
    (folder / "jpg" / "image_0100.jpg").write_bytes(b"\xff\xd8 broken")
    flags = [
        "--phase=prepare",
        f"--archive={folder}",
        f"--data_dir={tmp_path / 'data'}",
    ]
    code, _, err = run("work", *flags)
    assert code == 1
    assert "image_0100.jpg" in _one_line(err)
    shutil.unpack_archive(dummy_archive, folder, filter="data")
    assert run("work", *flags)[0] == 0


@pytest.mark.slow
def test_terminated_run_exits_with_42_and_goes_on(tmp_path, tiny_command):
    command = tiny_command(
        tmp_path,
        "--phase=transfer",
        "--transfer_optimizer=adamw",
        "--feature_views=0",
        # So many that the run cannot end before the signal.
        "--transfer_epochs=500",
    )
    arguments = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, **arguments
    ) as process:
        for line in process.stdout:
            if "transfer epoch 2/500" in line:
                break
        second = subprocess.run(
            command, stdout=subprocess.PIPE, timeout=300, **arguments
        )
        assert second.returncode == 1
        assert f"--workdir {tmp_path} is in use by another run" in second.stderr
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 42, err
    last = err.splitlines()[-1]
    assert last.startswith("stopped: transfer"), err
    assert last.endswith("run the same command to continue")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, **arguments
    ) as process:
        for line in process.stdout:
            if "resuming after epoch" in line:
                process.send_signal(signal.SIGUSR1)
                break
        process.communicate(timeout=120)
    assert process.returncode == 42
    epochs = [
        m["epoch"] for m in files.read_json_lines(tmp_path / "metrics.jsonl")
    ]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) >= 2


def _train_in_process(command: list[str]) -> None:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_virtual_devices_in_a_fresh_process(tmp_path, tiny_command):
    _train_in_process(
        tiny_command(
            tmp_path,
            "--phase=train",
            "--finetune_epochs=1",
            "--num_virtual_devices=2",
            "--augment_on=device",
        )
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_replicas"] == 2
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["num_examples"] == 260


def _variables(workdir):
    return [
        keras.ops.convert_to_numpy(variable)
        for name in ("model_transfer.keras", "model_finetune.keras")
        for variable in keras.models.load_model(workdir / name).variables
    ]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_deterministic_runs_are_bit_equal(tmp_path, tiny_command, optimizer):
    for name in ("a", "b"):
        _train_in_process(
            tiny_command(
                tmp_path / name,
                "--phase=train",
                "--deterministic",
                "--num_virtual_devices=2",
                f"--transfer_optimizer={optimizer}",
                f"--feature_views={0 if optimizer == 'adamw' else 3}",
                "--transfer_epochs=1",
                "--finetune_epochs=1",
            )
        )
    for a, b in zip(
        _variables(tmp_path / "a"), _variables(tmp_path / "b"), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["flags"]["deterministic"] is True


@pytest.mark.slow
def test_all_options_of_the_recipe_go_together(run, tmp_path):
    """Training on smaller images gives a model of evaluation's size."""
    recipe = [
        *("--train_scale=0.75", "--crop=0.3", "--rotation=15", "--shift=0"),
        *("--feature_views=3", "--finetune_lowest_rate=0.1", "--refit"),
        *("--label_smoothing=0.1", "--unfreeze_from=block2"),
    ]
    for phase in ("transfer", "finetune", "refit", "evaluate"):
        code, _, err = run("work", f"--phase={phase}", *recipe)
        assert code == 0, err
    workdir = tmp_path / "work"
    for stage in ("finetune", "refit"):
        model = keras.models.load_model(workdir / f"model_{stage}.keras")
        assert model.input_shape == (None, 32, 32, 3)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["model"].endswith("model_refit.keras")
    # The flag of another stage may change.
    code, out, err = run(
        "work", "--phase=transfer", *recipe, "--finetune_epochs=3"
    )
    assert code == 0 and "already done" in out, err
    # A flag that this stage depends on may not.
    code, _, err = run("work", "--phase=finetune", *recipe, "--crop=0.5")
    assert code == 2
    assert "--crop" in _one_line(err)
