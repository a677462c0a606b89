"""The run keeps the better of the head and the fine-tuned model."""

from __future__ import annotations

import json
import pathlib

import keras
import numpy as np
import pytest

from flowers17_tfdata import cli, files
from flowers17_tfdata.input.feature_cache import Features
from flowers17_tfdata.models import saved_models
from flowers17_tfdata.scoring import predictions
from flowers17_tfdata.training import linear_head
from flowers17_tfdata.training.inference import Inference
from tests import fakes

pytestmark = pytest.mark.slow


@pytest.fixture
def default_flags(default_flags, weights) -> list[str]:
    return [*default_flags, f"--weights={weights}", "--finetune_epochs=1"]


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
    return tmp_path / "work"


@pytest.fixture
def photo(tmp_path) -> str:
    path = tmp_path / "photo.png"
    image = fakes.make_smooth_image(40, 40)
    keras.utils.save_img(path, image, scale=False)
    return str(path)


@pytest.fixture
def predict(tmp_path, tiny_backbone, workdir, photo, capsys):
    """Returns `predict(*flags)`: the probabilities of a photograph."""

    def predict(*flags):
        command = ["main.py", "--phase=predict", f"--workdir={workdir}"]
        assert cli.main([*command, "--format=json", photo, *flags]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        return [c["probability"] for c in json.loads(line)["top"]]

    return predict


def _evaluation(workdir) -> dict:
    return files.read_json(workdir / "evaluation.json")


def _lines(workdir, phase) -> list[dict]:
    lines = files.read_json_lines(workdir / "metrics.jsonl")
    return [line for line in lines if line["phase"] == phase]


def test_a_ruined_fine_tuning_is_not_kept(run, predict, workdir):
    ruined = ["--finetune_learning_rate=10", "--schedule=constant"]
    code, out, err = run("work", "--phase=train", *ruined)
    assert code == 0, err
    head, tuned = (
        _lines(workdir, phase)[-1]["validation_accuracy"]
        for phase in ("transfer", "finetune")
    )
    assert head > tuned
    transfer = workdir / "model_transfer.keras"
    assert (
        f"fine-tuning did not help on validation ({head:.1%} -> {tuned:.1%}): "
        f"kept the head, {transfer}"
    ) in " ".join(out.split())
    assert _evaluation(workdir)["model"] == str(transfer)
    assert "model_transfer.keras" in (workdir / "report.html").read_text()
    # Later phases use the same model.
    assert run("work", "--phase=evaluate", *ruined)[0] == 0
    assert _evaluation(workdir)["model"] == str(transfer)
    found = predict()
    assert found == predict(f"--model={transfer}")
    assert found != predict(f"--model={workdir / 'model_finetune.keras'}")
    # So does refit: it fits a head and fine-tunes nothing.
    code, out, err = run("work", "--phase=refit", *ruined)
    assert code == 0, err
    (line,) = _lines(workdir, "refit")
    assert line["validation_accuracy"] is None
    assert line["learning_rate"] == 0
    assert predict() == predict(f"--model={workdir / 'model_refit.keras'}")


def test_a_fine_tuning_that_helps_is_kept(run, predict, workdir, monkeypatch):
    bad = (9.0, 0.0)
    monkeypatch.setattr(linear_head.LinearHead, "evaluate", lambda *_: bad)
    code, out, err = run("work", "--phase=train")
    assert code == 0, err
    (line,) = _lines(workdir, "finetune")
    accuracy = line["validation_accuracy"]
    assert f"fine-tuning helped on validation: 0.0% -> {accuracy:.1%}" in out
    finetune = workdir / "model_finetune.keras"
    assert _evaluation(workdir)["model"] == str(finetune)
    assert predict() == predict(f"--model={finetune}")
    code, _, err = run("work", "--phase=refit")
    assert code == 0, err
    (line,) = _lines(workdir, "refit")
    # Fine-tuning's batches: 1060 images, 64 at a time.
    assert line["step"] == 17


def test_validation_of_the_best_epoch_is_what_counts(run, workdir, monkeypatch):
    """The last epoch is worse than the head, but the best one counts."""
    accuracies = iter([0.9, 0.1])
    monkeypatch.setattr(linear_head.LinearHead, "evaluate", lambda *_: (1, 0.5))
    monkeypatch.setattr(
        Inference, "loss_and_accuracy", lambda *_: (1.0, next(accuracies))
    )
    code, out, err = run("work", "--phase=train", "--finetune_epochs=2")
    assert code == 0, err
    assert "fine-tuning helped on validation: 50.0% -> 90.0%" in out
    assert _evaluation(workdir)["model"].endswith("model_finetune.keras")


def test_without_fine_tuning_the_head_is_refitted(run, workdir):
    flags = ["--finetune_epochs=0", "--refit", "--feature_views=3"]
    code, out, err = run("work", "--phase=train", *flags)
    assert code == 0, err
    assert "refit: trained on train and validation; " in out
    assert "fine-tuning" not in out
    saved = {path.name for path in workdir.glob("*.keras")}
    assert saved == {"model_transfer.keras", "model_refit.keras"}
    assert not (workdir / "checkpoints" / "finetune").exists()
    phases = [
        x["phase"] for x in files.read_json_lines(workdir / "metrics.jsonl")
    ]
    assert phases == ["transfer", "refit"]
    assert _evaluation(workdir)["model"].endswith("model_refit.keras")

    extras = saved_models.read_extras(workdir / "model_refit.keras")
    assert extras["trained_splits"] == ["train", "validation"]
    assert len(extras["trained_on"]) == 800 + 260
    assert "validation" not in extras
    extras = saved_models.read_extras(workdir / "model_transfer.keras")
    assert len(extras["trained_on"]) == 800
    assert extras["validation"]["accuracy"] == pytest.approx(
        _lines(workdir, "transfer")[0]["validation_accuracy"]
    )

    # The head is the optimum on the views of both splits.
    (file, more) = sorted(
        (np.load(path)["values"] for path in workdir.glob("features/*.npz")),
        key=lambda values: -values.shape[1],
    )
    assert (file.shape[:2], more.shape[:2]) == ((3, 800), (3, 260))
    labels = []
    for split in ("train", "validation"):
        model = f"--model={workdir / 'model_transfer.keras'}"
        code, _, err = run(
            "work", "--phase=evaluate", f"--split={split}", model
        )
        assert code == 0, err
        path = workdir / f"predictions_{split}_model_transfer.npz"
        labels.append(predictions.load(path).labels)
    both = Features(
        np.concatenate([file, more], axis=1), np.concatenate(labels)
    )
    head = linear_head.fit(both, 17, seed=0)
    refitted = keras.models.load_model(workdir / "model_refit.keras")
    trust = saved_models.read_trust(workdir / "model_refit.keras")
    np.testing.assert_allclose(
        refitted.get_layer("predictions").kernel,
        # The calibration divides it.
        head.kernel / trust.temperature,
        atol=1e-5,
    )
    # It was calibrated on the out-of-fold answers to all of them.
    assert trust.num_examples == 800 + 260

    # Nothing is done again.
    code, out, err = run("work", "--phase=train", *flags)
    assert code == 0, err
    assert out.count("already done") == 2


def test_a_trained_head_is_refitted_as_it_was_trained(run, workdir):
    """With the same optimizer, hidden layer and number of epochs."""
    flags = ["--finetune_epochs=0", "--transfer_optimizer=adamw"]
    flags += ["--head_units=8", "--transfer_epochs=2"]
    code, _, err = run("work", "--phase=train", "--refit", *flags)
    assert code == 0, err
    steps = {
        phase: [x["step"] for x in _lines(workdir, phase)]
        for phase in ("transfer", "refit")
    }
    assert steps == {"transfer": [13, 26], "refit": [17, 34]}
    refitted = keras.models.load_model(workdir / "model_refit.keras")
    assert refitted.get_layer("head_dense").units == 8


def test_there_is_nothing_to_refit(run, workdir):
    code, _, err = run("work", "--phase=refit")
    assert code == 1
    needed = workdir / "model_transfer.keras"
    assert f"error: --phase=refit needs {needed}: run --phase=train" in err
