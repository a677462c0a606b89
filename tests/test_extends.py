"""A run that extends an earlier one: splits kept, features not repeated."""

from __future__ import annotations

import collections
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from flowers17_tfdata import cli, files, flags
from flowers17_tfdata.config.config import Config, to_values
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import class_folders, extension, splitting
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.training import resume
from flowers17_tfdata.training.inference import Inference
from tests.test_folder_source import write_classes, write_picture

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


def _assign(labels, groups, known):
    ids = [f"{k:03d}" for k in range(len(labels))]
    pool = splitting.Pool(ids, labels, groups, ["a", "b"])
    return splitting.assign_splits(pool, DataConfig(), SHARES, known)


def test_known_images_stay_and_new_ones_keep_the_proportions():
    labels = [0] * 60 + [1] * 40
    old = _assign(labels[:40], range(40), {})
    # Not what a division of all images would do.
    known = {i: old[i] for i in old if i != "007"} | {"007": "unused"}
    now = _assign(labels, range(100), known)
    assert {i: now[i] for i in known} == known
    for start, end in ((0, 60), (60, 100)):
        counts = collections.Counter(now[f"{k:03d}"] for k in range(start, end))
        for split, share in SHARES.items():
            assert abs(counts[split] - share * (end - start)) <= 1.1
    # Growing by one image at a time keeps them, too.
    known = dict(old)
    for size in range(41, 61):
        known = _assign(labels[:size], range(size), known)
    assert collections.Counter(known.values())["test"] == 9


def test_near_duplicates_of_known_images_never_change_sides():
    groups = [0, 0, 1, 2, 2, 3, *range(4, 30), 0, 1, 2, 2, 3, 30]
    known = {"000": "train", "001": "test", "002": "test", "003": "unused"}
    known |= {"004": "unused", "005": "train"}
    known |= {f"{k:03d}": "validation" for k in range(6, 32)}
    now = _assign([0] * 38, groups, known)
    assert [now[f"{k:03d}"] for k in range(32, 38)] == [
        *("unused", "test", "unused", "unused", "train"),
        # The only new picture.
        "train",
    ]


def test_a_moved_file_is_recognized_by_a_name_of_its_own():
    known = {"a/1": "test", "a/2": "train", "b/3": "test", "b/4": "train"}
    ids = ["b/1", "a/2", "a/3", "c/3", "a/4", "c/5"]
    assert extension.follow_moves(known, ids) == {
        "a/2": "train",
        "b/1": "test",
        # There are two new files named 3.
        "a/4": "train",
    }


def test_a_class_without_a_train_image_is_refused():
    with pytest.raises(UserError, match="class b has no image to train on"):
        _assign([0] * 20 + [1], [*range(20), 0], {"000": "test"})


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_classes(tmp_path / "photos", {"lily": 30, "rose": 30})


def _open(photos, known=None):
    config = DataConfig(
        dataset=f"folder:{photos}", data_dir=str(photos.parent / "data")
    )
    source = open_source(config, known=known)
    scan = source.scan()
    return source, dict(zip(scan.ids, scan.splits, strict=True))


def _add(photos) -> None:
    """Adds a class and five images; removes one."""
    write_classes(photos, {"daisy": 10})
    for k in range(5):
        write_picture(photos / "lily" / f"new{k}.jpg", 7000 + k)
    (photos / "rose" / "003.jpg").unlink()


def test_a_folder_that_grew_keeps_its_splits(photos):
    before, old = _open(photos)
    _add(photos)
    # A mirror image of a test image, in a name that sorts first.
    tested = min(i for i, split in old.items() if split == "test")
    pixels = cv2.imread(str(photos / tested))
    write_picture(photos / "lily" / "00copy.jpg", 0, pixels[:, ::-1])
    _, alone = _open(photos)
    assert any(alone[i] != old[i] for i in old if i in alone)
    source, now = _open(photos, old)
    assert all(now[i] == old[i] for i in old if i in now)
    assert now["lily/00copy.jpg"] == "test"
    assert source.class_names == ("daisy", "lily", "rose")
    assert source.name != before.name
    rows = [(i, i.partition("/")[0], split) for i, split in old.items()]
    changes = extension.find_changes(rows, source.class_names, source.scan())
    assert changes["kept"] == 59
    assert sum(changes["added"].values()) == 16
    assert changes["removed"] == ["rose/003.jpg"]
    assert changes["new_classes"] == ["daisy"]
    assert changes["gone_classes"] == []
    line = extension.describe("runs/old", changes)
    assert "59 images keep their splits; 16 added (" in line
    assert "1 removed, first rose/003.jpg; new classes: daisy" in line


def test_a_class_that_is_gone_is_named(photos):
    _, old = _open(photos)
    rows = [(i, i.partition("/")[0], split) for i, split in old.items()]
    (photos / "rose").rename(photos / "Rose")
    source, now = _open(photos, old)
    # Lilies and roses have the same file names, but no lily is gone.
    assert all(now[i.replace("rose", "Rose")] == old[i] for i in old)
    changes = extension.find_changes(rows, source.class_names, source.scan())
    line = extension.describe("runs/old", changes)
    assert "30 images keep their splits; 30 added" in line
    assert "30 removed, first rose/000.jpg; new classes: Rose" in line
    assert "no longer there: rose (if a class was renamed, its images" in line


def _write_config(workdir: pathlib.Path, **values) -> None:
    values = to_values(Config()) | values
    files.write_json(workdir / "config.json", {"flags": values})


def _parse(*arguments: str) -> Config:
    return flags.parse(["main.py", *arguments])


def test_the_earlier_run_s_flags_are_taken_over(tmp_path):
    _write_config(
        tmp_path, dataset="folder:photos", image_size=96, crop=0.5, refit=True
    )
    config = _parse(f"--extends={tmp_path}", "--crop=0.7", "--workdir=new")
    assert config.data.dataset == "folder:photos"
    assert (config.input.image_size, config.input.crop) == (96, 0.7)
    assert config.optimization.refit
    assert config.workdir == "new"


def test_a_run_goes_on_when_the_earlier_one_is_gone(tmp_path):
    _write_config(tmp_path, dataset="folder:photos", image_size=96)
    gone = tmp_path / "gone"
    config = _parse(f"--extends={gone}/", f"--workdir={tmp_path}")
    assert config.input.image_size == 96
    # The same flag in another form.
    key = resume.resume_key(config, "transfer", "x", "float32")
    other = _parse(f"--extends={gone}", f"--workdir={tmp_path}")
    assert resume.resume_key(other, "transfer", "x", "float32") == key


@pytest.mark.parametrize(
    ("recorded", "flag", "expected"),
    [
        (
            {},
            "--workdir=new",
            "--extends goes with --dataset=folder:PATH or csv:FILE, or",
        ),
        ({"dataset": "folder:p"}, "--folds=5", "--extends goes with --folds=0"),
        ({"dataset": "folder:p"}, "", "--extends and --workdir must differ"),
        (None, "--workdir=new", "--extends must name the workdir of a trained"),
    ],
)
def test_mistakes(tmp_path, recorded, flag, expected):
    if recorded is not None:
        _write_config(tmp_path, **recorded)
    workdir = f"--workdir={tmp_path}"
    with pytest.raises(ConfigError, match=expected):
        _parse(f"--extends={tmp_path}", workdir, *filter(None, [flag]))


def _table(path: pathlib.Path, photos: pathlib.Path, **columns) -> DataConfig:
    """Writes a table of all pictures; columns are functions of their number."""
    lines = [",".join(["path", "label", *columns])]
    for k, file in enumerate(sorted(photos.rglob("*.jpg"))):
        values = [str(column(k)) for column in columns.values()]
        lines.append(",".join([str(file), file.parent.name, *values]))
    path.write_text("\n".join(lines))
    return DataConfig(dataset=f"csv:{path}", data_dir=str(path.parent / "data"))


def test_splits_of_an_earlier_run_do_not_divide_a_group(photos, tmp_path):
    plain = open_source(_table(tmp_path / "a.csv", photos)).scan()
    known = dict(zip(plain.ids, plain.splits, strict=True))
    grouped = _table(tmp_path / "b.csv", photos, group=lambda k: k // 5)
    with pytest.raises(UserError, match=r"--extends: .* has group \d+ in"):
        open_source(grouped, known=known)
    open_source(grouped)


def test_a_split_that_the_table_gives_wins_over_an_earlier_run(
    photos, tmp_path
):
    config = _table(
        tmp_path / "a.csv",
        photos,
        split=lambda k: "test" if k % 4 == 0 else "train",
    )
    scan = open_source(config).scan()
    known = dict(zip(scan.ids, scan.splits, strict=True))
    moved = scan.ids[5]
    now = open_source(config, known=known | {moved: "test"}).scan()
    assert now.splits[5] in ("train", "validation")


def _features(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns `{hash of an image: its features}`."""
    rows = {}
    for path in (workdir / "features").iterdir():
        arrays = files.read_arrays(path)
        values = arrays["values"].swapaxes(0, 1)
        rows |= dict(zip(arrays["images"].tolist(), values, strict=True))
    return rows


@pytest.mark.slow
def test_only_new_images_are_computed_and_the_old_test_images_compared(
    run, tmp_path, photos, weights, monkeypatch, capsys
):
    old, new = tmp_path / "old", tmp_path / "new"
    code, _, err = run(
        "old",
        f"--dataset=folder:{photos}",
        "--archive=",
        f"--data_dir={tmp_path / 'data'}",
        f"--weights={weights}",
        "--feature_views=3",
        "--finetune_epochs=0",
        "--refit",
    )
    assert code == 0, err
    _add(photos)

    def go_on(*arguments):
        command = ["main.py", f"--workdir={new}", *arguments]
        assert cli.main([*command, "--strategy=default"]) == 0
        return " ".join(capsys.readouterr().out.split())

    counts, outputs = [], Inference.outputs

    def counted(self, batches):
        for part in outputs(self, batches):
            counts.append(len(part))
            yield part

    with monkeypatch.context() as patch:
        patch.setattr(Inference, "outputs", counted)
        out = go_on("--phase=transfer", f"--extends={old}")
    known, now = _features(old), _features(new)
    added = set(now) - set(known)
    # Three views of each of them.
    assert sum(counts) == 3 * len(added) > 0
    for digest in set(now) & set(known):
        np.testing.assert_array_equal(now[digest], known[digest])
    assert f"images known from {old}" in out

    out = go_on("--phase=train", f"--extends={old}")
    splits = {
        name: {
            file: split
            for file, _, split in class_folders.read_splits(path / "splits.csv")
        }
        for name, path in (("old", old), ("new", new))
    }
    tested = [f for f, split in splits["old"].items() if split == "test"]
    left = [f for f in tested if f in splits["new"]]
    assert all(splits["new"][f] == "test" for f in left)
    result = json.loads((new / "extension.json").read_text())
    assert result["comparison"]["num_examples"] == len(left)
    assert result["removed"] == ["rose/003.jpg"]
    before = files.read_json(old / "evaluation.json")
    if len(left) == len(tested):
        accuracy = result["comparison"]["baseline_accuracy"]
        assert accuracy == before["accuracy"]
    daisies = files.read_json(new / "evaluation.json")["per_class"]["daisy"]
    assert result["new_classes"]["daisy"] == {
        "correct": round(daisies["recall"] * daisies["support"]),
        "num_examples": daisies["support"],
    }
    assert f"test images of {old}: " in out
    assert "; new class daisy: " in out
    assert "test images of that run" in (new / "report.html").read_text()

    # The new run doesn't need the old one any more.
    shutil.rmtree(old)
    out = go_on("--phase=evaluate")
    assert "test: accuracy" in out
