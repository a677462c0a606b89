"""Own images through the command line, from folders to evaluation."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from flowers17_tfdata import files
from flowers17_tfdata.scoring import predictions
from tests.test_folder_source import write_classes, write_picture


@pytest.fixture
def photos(tmp_path):
    """An imbalanced folder, with a file that can't be decoded."""
    root = write_classes(tmp_path / "photos", {"rose": 24, "lily": 40, "x": 6})
    (root / "rose" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return root


@pytest.fixture
def default_flags(tmp_path, default_flags, photos) -> list[str]:
    return [
        *default_flags,
        f"--data_dir={tmp_path / 'data'}",
        f"--dataset=folder:{photos}",
        "--archive=",
        "--global_batch_size=16",
        "--finetune_epochs=1",
    ]


def _splits(path) -> dict[str, tuple[str, str]]:
    with open(path, newline="") as stream:
        return {
            row["file"]: (row["class"], row["split"])
            for row in csv.DictReader(stream)
        }


@pytest.mark.slow
def test_own_images_from_folders_to_evaluation(run, tmp_path, photos):
    code, out, err = run("work", "--phase=train", "--class_weights=balanced")
    assert code == 0, err
    assert "1 of 71 files can't be decoded" in out
    assert "consider --class_weights=balanced" in out
    work = tmp_path / "work"
    splits = _splits(work / "splits.csv")
    assert len(splits) == 71
    assert splits["rose/broken.jpg"] == ("rose", "")
    assert {split for _, split in splits.values()} == {
        "",
        "train",
        "validation",
        "test",
    }
    audit = json.loads((work / "audit.json").read_text())
    assert audit["imbalance"] >= 3
    # A file that can't be decoded is no image.
    assert audit["num_examples"] == 70
    evaluation = json.loads((work / "evaluation.json").read_text())
    assert evaluation["class_names"] == ["lily", "rose", "x"]
    assert evaluation["num_examples"] == sum(
        split == "test" for _, split in splits.values()
    )

    # An image moves to another class.
    kept = {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()}
    (photos / "rose" / "000.jpg").rename(photos / "lily" / "rose.jpg")
    for phase in ("train", "transfer", "evaluate", "prepare"):
        code, _, err = run(
            "work", f"--phase={phase}", "--class_weights=balanced"
        )
        assert code == 1
        assert "is not what --workdir" in err
        assert "1 added" in err
        assert "1 removed" in err
        assert err.count("error: ") == 1
    after = {p.name: p.read_bytes() for p in work.iterdir() if p.is_file()}
    same = {"splits.csv", "audit.json", "metrics.jsonl", "evaluation.json"}
    assert {k: kept[k] for k in same} == {k: after[k] for k in same}

    # Moved back, everything is as before.
    (photos / "lily" / "rose.jpg").rename(photos / "rose" / "000.jpg")
    code, out, err = run("work", "--phase=train", "--class_weights=balanced")
    assert code == 0, err
    assert "finetune: already done" in out


def test_what_is_left_out_is_told_once_a_run(run, tmp_path, photos):
    def notes(*flags) -> list[str]:
        code, out, err = run("work", *flags)
        assert code == 0, err
        return [
            x for x in out.splitlines() if "of 71 files" in x or "skip" in x
        ]

    assert len(notes("--phase=prepare")) == 1
    assert notes("--phase=folders", f"--folders_dir={tmp_path / 'a'}") == []
    # What has changed since then is told.
    (photos / "rose" / "notes.txt").touch()
    changed = notes("--phase=folders", f"--folders_dir={tmp_path / 'b'}")
    assert [line[:20] for line in changed] == ["skipped: 1 .txt file"]
    # To audit again is to ask again.
    assert len(notes("--phase=prepare")) == 2
    # The folds share their images; the first has told of them.
    (tmp_path / "work").rename(tmp_path / "fold_0")
    one = ["--folds=3", "--fold=1", "--phase=transfer"]
    code, out, err = run("fold_1", *one)
    assert code == 0, err
    assert "skipped" not in out and "fold 1 is test" in out


@pytest.mark.slow
def test_a_jpeg_that_is_cut_short_is_told_in_our_words_alone(tmp_path, photos):
    path = photos / "rose" / "000.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    command = [sys.executable, "main.py", "--phase=prepare"]
    command += [f"--dataset=folder:{photos}", f"--data_dir={tmp_path}"]
    environment = dict(os.environ)
    del environment["TF_CPP_MIN_LOG_LEVEL"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'work'}"],
        cwd=pathlib.Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "000.jpg" in done.stdout


def test_class_weights_are_part_of_what_is_resumed(run):
    assert run("work", "--phase=transfer", "--class_weights=balanced")[0] == 0
    code, _, err = run("work", "--phase=transfer")
    assert code == 2
    assert "--class_weights" in err


@pytest.fixture
def transfer(run, tmp_path):
    """Returns `transfer(class_weights, *flags) -> workdir`."""

    def transfer(weights, *flags):
        work = tmp_path / weights
        code, _, err = run(
            "work",
            "--phase=transfer",
            f"--workdir={work}",
            f"--class_weights={weights}",
            *flags,
        )
        assert code == 0, err
        return work

    return transfer


@pytest.mark.slow
@pytest.mark.parametrize("feature_views", [0, 1])
def test_class_weights_change_the_loss_alone(transfer, feature_views):
    lines = {}
    for weights in ("none", "balanced"):
        work = transfer(
            weights,
            f"--feature_views={feature_views}",
            *("--transfer_optimizer=adamw", "--transfer_epochs=1"),
            "--head_units=16",
            # The same model throughout, so that accuracy shows the counting.
            "--transfer_learning_rate=1e-12",
        )
        (lines[weights],) = files.read_json_lines(work / "metrics.jsonl")
    none, balanced = lines["none"], lines["balanced"]
    assert none["train_loss"] != pytest.approx(balanced["train_loss"], rel=1e-4)
    for name in ("train_accuracy", "validation_accuracy", "validation_loss"):
        assert none[name] == pytest.approx(balanced[name], rel=1e-4)


@pytest.mark.slow
def test_class_weights_reach_a_solved_head(run, transfer):
    """Mistakes on the largest class cost less, those on the smallest more."""
    losses = {}
    for weights in ("none", "balanced"):
        work = transfer(weights)
        code, _, err = run(
            "work", "--phase=evaluate", "--split=train", f"--workdir={work}"
        )
        assert code == 0, err
        found = predictions.load(work / "predictions_train.npz")
        chances = found.probabilities[range(len(found.ids)), found.labels]
        losses[weights] = [
            -np.log(chances[found.labels == k]).mean() for k in range(3)
        ]
    # The classes have 40, 24 and 6 images.
    assert losses["balanced"][0] > losses["none"][0]
    assert losses["balanced"][2] < losses["none"][2]


def test_folders_phase(run, tmp_path):
    out_dir = tmp_path / "out"
    code, out, err = run("work", "--phase=folders", f"--folders_dir={out_dir}")
    assert code == 0, err
    assert f"class folders written to {out_dir}" in out
    assert sorted(os.listdir(out_dir / "train")) == ["lily", "rose", "x"]
    code, out, _ = run("work", "--phase=folders", f"--folders_dir={out_dir}")
    assert code == 0
    assert "already" in out
    (out_dir / "mine.txt").touch()
    code, _, err = run("work", "--phase=folders", f"--folders_dir={out_dir}")
    assert code == 1
    assert f"--folders_dir {out_dir} must be new or empty" in err


def test_a_file_that_vanishes_gets_one_line(run, photos, monkeypatch):
    from flowers17_tfdata.data import file_source

    opened = file_source.open_files

    def open_then_lose(*args, **kwargs):
        source = opened(*args, **kwargs)
        for file in (photos / "rose").iterdir():
            file.unlink()
        return source

    monkeypatch.setattr(file_source, "open_files", open_then_lose)
    code, _, err = run("work", "--phase=transfer")
    assert code == 1
    assert "can't be read any more (/" in err
    assert "/rose/" in err
    assert "No such file" in err
    assert err.count("error: ") == 1


def test_a_renamed_folder_with_the_training_s_images_is_refused(
    run, tmp_path, photos
):
    assert run("work", "--phase=transfer")[0] == 0
    renamed = tmp_path / "renamed"
    shutil.copytree(photos, renamed)
    for k in range(8):
        # Additional images change the split of the old ones.
        write_picture(renamed / "rose" / f"new{k}.jpg", 900 + k)
    model = tmp_path / "work" / "model_transfer.keras"
    for flags in ([], [f"--model={model}"]):
        code, _, err = run(
            "work", "--phase=evaluate", f"--dataset=folder:{renamed}", *flags
        )
        assert code == 1
        assert "were trained on by" in err
    # Images that it was not trained on are evaluated, in any folder.
    other = tmp_path / "elsewhere" / "photos"
    for k in range(27):
        name = ("rose", "lily", "x")[k % 3]
        (other / name).mkdir(parents=True, exist_ok=True)
        write_picture(other / name / f"other{k}.jpg", 500 + k)
    code, out, err = run(
        "work", "--phase=evaluate", f"--dataset=folder:{other}"
    )
    assert code == 0, err
    assert "test: accuracy" in out
