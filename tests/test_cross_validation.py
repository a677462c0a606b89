"""Tests of --folds: the division, the runs, their pooled result."""

from __future__ import annotations

import collections
import json
import pathlib
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from flowers17_tfdata import cli, files, flags, launcher
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import splitting
from flowers17_tfdata.data.oxford_flowers17 import archive, splits
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.phases.report import folds
from flowers17_tfdata.scoring import pooling, predictions, scores
from flowers17_tfdata.scoring.predictions import Predictions
from tests.test_folder_source import write_classes
from tests.test_splitting import TwoToned, TwoTonedTested  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]


def _pool(labels, groups=None) -> splitting.Pool:
    ids = [f"{k:04d}" for k in range(len(labels))]
    groups = list(range(len(labels))) if groups is None else groups
    names = [f"class {k}" for k in range(max(labels) + 1)]
    return splitting.Pool(ids, labels, groups, names)


@pytest.fixture(scope="module")
def flowers() -> splitting.Pool:
    """The archive's names, labels and published duplicate groups."""
    numbers = range(1, 1361)
    pairs = [(a - 1, b - 1) for a, b in flowers17.known_near_duplicates()]
    return splitting.Pool(
        [archive.image_name(n) for n in numbers],
        [flowers17.CLASS_NAMES.index(flowers17.class_name(n)) for n in numbers],
        splits.group_pairs(pairs, 1360).tolist(),
        flowers17.CLASS_NAMES,
    )


@pytest.mark.parametrize("num_folds", [3, 5, 10, 20])
def test_folds_of_flowers_are_stratified_and_keep_groups(flowers, num_folds):
    fold_of = splitting.assign_folds(flowers, num_folds, 0)
    assert sorted(fold_of) == list(flowers.ids)
    counts = collections.Counter(
        (fold_of[i], label)
        for i, label in zip(flowers.ids, flowers.labels, strict=True)
    )
    for label in range(17):
        own = [counts[fold, label] for fold in range(num_folds)]
        assert sum(own) == 80
        assert max(own) - min(own) <= 1
    sizes = collections.Counter(fold_of.values())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    folds_of_group = collections.defaultdict(set)
    for image_id, group in zip(flowers.ids, flowers.groups, strict=True):
        folds_of_group[group].add(fold_of[image_id])
    assert all(len(folds) == 1 for folds in folds_of_group.values())


def test_folds_depend_on_the_seed_alone(flowers):
    fold_of = splitting.assign_folds(flowers, 5, 0)
    order = np.random.default_rng(0).permutation(1360)
    shuffled = splitting.Pool(
        [flowers.ids[k] for k in order],
        [flowers.labels[k] for k in order],
        [5000 - flowers.groups[k] for k in order],
        flowers.class_names,
    )
    assert splitting.assign_folds(shuffled, 5, 0) == fold_of
    other = splitting.assign_folds(flowers, 5, 1)
    assert sum(other[i] != fold_of[i] for i in flowers.ids) > 800


def test_each_image_is_test_once_and_validation_once(flowers):
    seen = collections.Counter()
    for fold in range(5):
        split_of = splitting.assign_splits(
            flowers, DataConfig(folds=5, fold=fold), {}
        )
        seen.update(split_of.items())
    for image_id in flowers.ids:
        assert seen[image_id, "test"] == seen[image_id, "validation"] == 1
        assert seen[image_id, "train"] == 3


def test_validation_is_the_next_fold(flowers):
    splits_of = [
        splitting.assign_splits(flowers, DataConfig(folds=3, fold=fold), {})
        for fold in range(3)
    ]
    for fold, split_of in enumerate(splits_of):
        after = splits_of[(fold + 1) % 3]
        for image_id, split in split_of.items():
            assert (split == "validation") == (after[image_id] == "test")


def test_plain_folds_part_near_duplicates(flowers):
    config = DataConfig(folds=5, fold=0, near_duplicates="anywhere")
    split_of = splitting.assign_splits(flowers, config, {})
    parted = [
        (a, b)
        for a, b in flowers17.known_near_duplicates()
        if split_of[archive.image_name(a)] != split_of[archive.image_name(b)]
    ]
    assert len(parted) > 40


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0] * 20 + [1] * 4, None),
        # Seven images, of which four are one picture.
        ([0] * 20 + [1] * 7, [*range(20), 20, 20, 20, 20, 21, 22, 23]),
    ],
)
def test_a_class_too_small_gets_one_line(labels, groups):
    splitting.assign_folds(_pool(labels, groups), 4, 0)
    with pytest.raises(ConfigError) as caught:
        splitting.assign_folds(_pool(labels, groups), 5, 0)
    message = str(caught.value)
    assert message.startswith("--folds must be at most 4")
    assert "class 1" in message
    assert message.endswith("got 5")


def _tested(open_fold, num_folds: int) -> collections.Counter:
    """Counts how often the runs of all folds test each image."""
    tested = collections.Counter()
    names = set()
    for fold in range(num_folds):
        source = open_fold(folds=num_folds, fold=fold)
        names.add(source.name)
        assert set(source.split_sizes) == {"train", "validation", "test"}
        rows = {
            split: {
                (row["id"].decode(), row["image"], int(row["label"]))
                for row in source.read(split).as_numpy_iterator()
            }
            for split in source.split_sizes
        }
        assert {s: len(r) for s, r in rows.items()} == source.split_sizes
        assert len(set().union(*rows.values())) == sum(map(len, rows.values()))
        assert any(f"fold {fold} is test" in note for note in source.notes)
        tested.update(name for name, *_ in rows["test"])
    assert len(names) == num_folds
    return tested


@pytest.mark.slow
def test_folds_of_the_prepared_flowers(data_dir, dummy_archive, flowers):
    def open_fold(**options):
        return open_source(
            DataConfig(
                archive=str(dummy_archive), data_dir=str(data_dir), **options
            )
        )

    assert _tested(open_fold, 3) == dict.fromkeys(flowers.ids, 1)
    # What the archive's file names alone lead to.
    config = {"folds": 3, "fold": 1, "split_seed": 4}
    expected = splitting.assign_splits(flowers, DataConfig(**config), {})
    source = open_fold(**config)
    for split in source.split_sizes:
        for row in source.read(split).as_numpy_iterator():
            assert expected[row["id"].decode()] == split


def test_folds_of_class_folders_and_of_a_carved_set(tmp_path):
    root = write_classes(tmp_path / "photos", {"a": 9, "b": 12})
    (root / "a" / "broken.jpg").write_bytes(b"x")
    for name, count in ((f"folder:{root}", 21), ("two_toned", 40)):

        def open_fold(name=name, **options):
            return open_source(
                DataConfig(
                    dataset=name, data_dir=str(tmp_path / "data"), **options
                )
            )

        tested = _tested(open_fold, 3)
        assert len(tested) == count
        assert set(tested.values()) == {1}


@pytest.mark.parametrize("name", ["official_1", "tested", "folder"])
def test_a_given_test_split_is_not_mixed_in(
    name, tmp_path, data_dir, dummy_archive
):
    root = write_classes(tmp_path / "photos" / "train", {"a": 9, "b": 9}).parent
    write_classes(root / "test", {"a": 9, "b": 9})
    config = {
        "official_1": DataConfig(
            dataset="oxford_flowers17/official_1",
            archive=str(dummy_archive),
            data_dir=str(data_dir),
        ),
        "tested": DataConfig(
            dataset="two_toned_tested", data_dir=str(tmp_path / "data")
        ),
        "folder": DataConfig(
            dataset=f"folder:{root}", data_dir=str(tmp_path / "data")
        ),
    }[name]
    values = vars(config) | {"folds": 3, "fold": 0}
    with pytest.raises(ConfigError, match="--folds goes with data sets that"):
        open_source(DataConfig(**values))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--folds=2"], "--folds must be 0, or at least 3"),
        (["--folds=21"], "--folds must be at most 20; got 21"),
        (["--fold=1"], "--fold goes with --folds=K; got --fold=1"),
        (["--folds=5", "--fold=5"], "--fold must be below --folds=5; got 5"),
        (["--folds=5", "--phase=prepare"], "goes with --phase=train alone"),
        (["--folds=5", "--split=train"], "goes with --split=test alone"),
        (["--folds=5", "--launch_local=2"], "goes with --launch_local=0"),
        (["--folds=5", "--strategy=multi_worker"], "--strategy=multi_worker"),
    ],
)
def test_flags_that_contradict_get_one_line(arguments, expected, capsys):
    assert cli.main(["main.py", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize(
    "variable", [("TF_CONFIG", "{}"), ("SLURM_STEP_NUM_TASKS", "2")]
)
def test_one_worker_among_others_runs_no_cross_validation(
    variable, monkeypatch, capsys
):
    monkeypatch.setenv(*variable)
    assert cli.main(["main.py", "--folds=5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "goes with one worker" in line


def test_a_workdir_remembers_its_fold(tmp_path):
    recorded = {"dataset": "x", "folds": 5, "fold": 2, "split_seed": 3}
    (tmp_path / "config.json").write_text(json.dumps({"flags": recorded}))
    command = ["main.py", "--phase=evaluate", f"--workdir={tmp_path}"]
    data = flags.parse(command).data
    assert (data.folds, data.fold, data.split_seed) == (5, 2, 3)
    data = flags.parse([*command, "--folds=0"]).data
    assert (data.folds, data.fold, data.split_seed) == (0, -1, 3)
    data = flags.parse([*command, "--dataset=y"]).data
    assert (data.folds, data.fold, data.split_seed) == (0, -1, 0)


def _python(script: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time; {script}"]


def test_commands_run_in_turn_until_one_fails(tmp_path, capsys):
    def command(name: str, then: str) -> list[str]:
        return _python(f"open({str(tmp_path / name)!r}, 'x'); {then}")

    def ran() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    good = [command("1", "pass"), command("2", "pass")]
    assert launcher.run_in_turn(good) == 0
    assert ran() == {"1", "2"}
    stopped = [command("3", "sys.exit(42)"), command("4", "pass")]
    assert launcher.run_in_turn(stopped) == 42
    killed = "os.kill(os.getpid(), signal.SIGKILL)"
    assert launcher.run_in_turn([command("5", killed), good[0]]) == 1
    assert "killed by SIGKILL" in capsys.readouterr().err
    assert ran() == {"1", "2", "3", "5"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("handles", "code"),
    [
        # As training: saves, and says so.
        ("signal.signal({n}, lambda *_: sys.exit(42)); ", 42),
        # As before and after training.
        ("", 42),
        # Done before it looks: what follows is not begun.
        ("signal.signal({n}, lambda *_: sys.exit(0)); ", 42),
        ("signal.signal({n}, lambda *_: sys.exit(1)); ", 1),
    ],
)
def test_a_signal_stops_the_turns(tmp_path, number, handles, code, capsys):
    first = _python(
        handles.format(n=int(number))
        + f"os.kill({'os.getppid()'}, {int(number)}); time.sleep(60)"
    )
    second = _python(f"open({str(tmp_path / 'second')!r}, 'x')")
    assert launcher.run_in_turn([first, second]) == code
    assert not (tmp_path / "second").exists()
    said = capsys.readouterr().err
    assert ("between two runs" in said) == ("exit(0)" in handles)
    # Ours again.
    assert signal.getsignal(number) == signal.SIG_DFL


def _write_fold(folder: pathlib.Path, labels, logits, total: int) -> None:
    folder.mkdir()
    part = Predictions(
        tuple(f"{folder.name}/{k}" for k in range(len(labels))),
        np.asarray(labels),
        np.asarray(logits, np.float32),
    )
    predictions.save(predictions.predictions_path(folder, "test"), part)
    evaluation = scores.summarize(part, "test", ["a", "b"])
    files.write_json(
        folder / "evaluation.json", evaluation | {"dataset": "x@1"}
    )
    files.write_json(
        folder / "audit.json",
        {"splits": {"train": {"num_examples": total}}},
    )


def test_pooled_result_is_that_of_all_images(tmp_path):
    right, wrong = [2.0, 0.0], [0.0, 2.0]
    _write_fold(tmp_path / "fold_0", [0, 0], [right, right], 6)
    _write_fold(tmp_path / "fold_1", [0, 0, 1], [right, wrong, right], 6)
    _write_fold(tmp_path / "fold_2", [1], [wrong], 6)
    result = pooling.pool(tmp_path, 3)
    assert result["confusion_matrix"] == [[3, 1], [1, 1]]
    assert result["num_examples"] == 6
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["accuracy_interval"] == pytest.approx(
        scores.wilson_interval(4, 6)
    )
    assert result["per_class"]["a"]["recall"] == pytest.approx(3 / 4)
    assert [f["accuracy"] for f in result["folds"]] == pytest.approx(
        [1, 1 / 3, 1]
    )
    assert result["folds"][1]["workdir"] == "fold_1"
    assert result["over_folds"] == pytest.approx(
        {
            "mean": 7 / 9,
            "standard_deviation": np.std([1, 1 / 3, 1], ddof=1),
            "minimum": 1 / 3,
            "maximum": 1,
        }
    )


def test_folds_of_different_images_are_not_pooled(tmp_path):
    for k, total in enumerate((3, 3, 4)):
        _write_fold(tmp_path / f"fold_{k}", [0], [[1.0, 0.0]], total)
    with pytest.raises(UserError, match="fold_2 divides 4 images") as caught:
        pooling.pool(tmp_path, 3)
    assert "\n" not in str(caught.value)


def test_pooled_result_becomes_a_page_and_a_command(tmp_path, capsys):
    for k, logits in enumerate(([2.0, 0.0], [0.0, 2.0], [2.0, 0.0])):
        _write_fold(tmp_path / f"fold_{k}", [0, 1], [logits, logits], 6)
    given = ["--folds=3", "--dropout=0.1", f"--workdir={tmp_path}"]
    config = flags.parse(["main.py", *given, "--dataset=folder:my photos"])
    result = folds.pool_folds(config)
    assert files.read_json(tmp_path / "cross_validation.json") == result
    page = (tmp_path / "cross_validation.html").read_text(encoding="utf-8")
    assert "3 of 6 images are correct" in page
    assert 'href="fold_2/report.html"' in page
    out = capsys.readouterr().out
    assert str(tmp_path / "cross_validation.html") in out
    # The command trains one model by the same recipe, elsewhere.
    words = shlex.split(out.splitlines()[-1].partition("flowers17-tfdata ")[2])
    final = flags.parse(["main.py", *words])
    assert final.workdir == str(tmp_path / "final")
    assert final.model.dropout == 0.1
    assert final.data.dataset == "folder:my photos"
    assert (final.data.folds, final.optimization.refit) == (0, True)


@pytest.fixture
def cross_validate(tmp_path, tiny_command):
    """Returns `cross_validate(*flags) -> CompletedProcess`."""
    root = write_classes(tmp_path / "photos", {"rose": 24, "lily": 15})

    def cross_validate(*flags):
        command = tiny_command(
            tmp_path / "work",
            f"--data_dir={tmp_path / 'data'}",
            *(f"--dataset=folder:{root}", "--archive="),
            *("--global_batch_size=16", "--finetune_epochs=1"),
            f"--count_steps={tmp_path / 'steps'}",
            *flags,
        )
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600
        )

    return cross_validate


@pytest.mark.slow
def test_cross_validation_from_end_to_end(tmp_path, cross_validate):
    work = tmp_path / "work"
    # One fold first, as if the rest had been stopped.
    result = cross_validate("--folds=3", "--fold=0", f"--workdir={work}/fold_0")
    assert result.returncode == 0, result.stderr
    steps = (tmp_path / "steps").stat().st_size
    kept = (work / "fold_0" / "model_finetune.keras").read_bytes()

    result = cross_validate("--folds=3")
    assert result.returncode == 0, result.stderr
    # The first fold is not trained again.
    assert (tmp_path / "steps").stat().st_size == 3 * steps
    assert (work / "fold_0" / "model_finetune.keras").read_bytes() == kept
    assert result.stdout.count("finetune: already done") == 1
    pooled = json.loads((work / "cross_validation.json").read_text())
    assert pooled["num_examples"] == 39
    assert [f["num_examples"] for f in pooled["folds"]] == [13, 13, 13]
    assert f"accuracy {pooled['accuracy']:.4f} (95 % inter" in result.stdout
    own = [
        json.loads((work / f"fold_{k}" / "evaluation.json").read_text())
        for k in range(3)
    ]
    assert pooled["confusion_matrix"] == (
        sum(np.array(e["confusion_matrix"]) for e in own).tolist()
    )
    ids = [
        image_id
        for k in range(3)
        for image_id in predictions.load(
            work / f"fold_{k}" / "predictions_test.npz"
        ).ids
    ]
    assert len(ids) == len(set(ids)) == 39

    # A fold's workdir knows which it is; another fold's images are refused.
    fold = ["--phase=evaluate", f"--workdir={work}/fold_2"]
    data = flags.parse(["main.py", *fold]).data
    assert (data.folds, data.fold) == (3, 2)
    result = cross_validate(*fold, "--folds=3", "--fold=1")
    assert result.returncode == 1
    assert "was trained on" in result.stderr

    # The gate is the pooled accuracy's; changed flags are refused.
    result = cross_validate("--folds=3", "--assert_accuracy_at_least=1")
    assert result.returncode == (0 if pooled["accuracy"] == 1 else 3)
    result = cross_validate("--folds=3", "--dropout=0.1")
    assert result.returncode == 2
    assert result.stderr.count("error: ") == 1
    assert "--dropout" in result.stderr


@pytest.mark.slow
def test_heads_alone_are_pooled(tmp_path, cross_validate):
    work = tmp_path / "work"
    flags = ["--folds=3", "--finetune_epochs=0"]
    result = cross_validate(*flags)
    assert result.returncode == 0, result.stderr
    pooled = json.loads((work / "cross_validation.json").read_text())
    assert pooled["num_examples"] == 39
    for k in range(3):
        folder = work / f"fold_{k}"
        saved = [path.name for path in folder.glob("*.keras")]
        assert saved == ["model_transfer.keras"]
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert evaluation["model"] == str(folder / "model_transfer.keras")
        assert pooled["folds"][k]["accuracy"] == evaluation["accuracy"]
    # Nothing took a step.
    assert not (tmp_path / "steps").exists()
    result = cross_validate(*flags)
    assert result.stdout.count("transfer: already done") == 3
