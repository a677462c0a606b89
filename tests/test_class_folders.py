"""Tests of `--phase=folders`: Keras reads the same labels back."""

from __future__ import annotations

import io
import os
import pathlib
import shutil

import keras
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import class_folders, folder_listing
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import UserError
from tests.fakes import FakeSource
from tests.test_folder_source import write_classes, write_picture

MAGIC = {
    "jpg": b"\xff\xd8\xff\xe0",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": b"GIF89a",
    "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
}


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def flowers(data_dir, dummy_archive, tmp_path_factory):
    """Flowers-17 (its ids are not alphabetical), and its class folders."""
    tfds.disable_progress_bar()
    source = open_source(
        DataConfig(data_dir=str(data_dir), archive=str(dummy_archive))
    )
    path = tmp_path_factory.mktemp("out") / "folders"
    assert class_folders.write(source, path)
    return source, path


def _labels_of_source(source, split) -> dict[str, int]:
    return {
        row["id"].decode(): int(row["label"])
        for row in source.read(split).as_numpy_iterator()
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_image_dataset_from_directory_reads_the_same_labels(flowers, split):
    source, path = flowers
    read = keras.utils.image_dataset_from_directory(
        path / split, batch_size=None, shuffle=False, image_size=(8, 8)
    )
    labels = [int(label) for _, label in read]
    names = [os.path.basename(p) for p in read.file_paths]
    assert dict(zip(names, labels, strict=True)) == _labels_of_source(
        source, split
    )
    assert [n.partition("_")[2] for n in read.class_names] == list(
        source.class_names
    )


def test_flow_from_directory_reads_the_same_labels(flowers):
    source, path = flowers
    flow = (
        tf.keras.preprocessing.image.ImageDataGenerator().flow_from_directory(
            path / "train", target_size=(8, 8), shuffle=False
        )
    )
    names = [os.path.basename(name) for name in flow.filenames]
    assert dict(zip(names, flow.classes.tolist(), strict=True)) == (
        _labels_of_source(source, "train")
    )


def test_labels_file_and_original_bytes(flowers):
    source, path = flowers
    lines = (path / "labels.txt").read_text().splitlines()
    assert lines == list(source.class_names)
    for row in source.read("test").as_numpy_iterator():
        folder = class_folders.folder_names(source.class_names)[row["label"]]
        file = path / "test" / folder / row["id"].decode()
        assert file.read_bytes() == row["image"]


@pytest.mark.slow
def test_round_trip(flowers, tmp_path):
    source, path = flowers
    again = open_source(
        DataConfig(dataset=f"folder:{path}", data_dir=str(tmp_path))
    )
    assert again.class_names == source.class_names
    assert again.split_sizes == source.split_sizes
    for split in source.split_sizes:
        labels = {
            os.path.basename(name): label
            for name, label in _labels_of_source(again, split).items()
        }
        assert labels == _labels_of_source(source, split)


def test_round_trip_of_own_images(tmp_path):
    root = write_classes(tmp_path / "own", {"b": 12, "A": 12, "rare/x": 0})
    write_picture(root / "rare" / "one.png", 1)
    source = open_source(
        DataConfig(dataset=f"folder:{root}", data_dir=str(tmp_path / "data"))
    )
    class_folders.write(source, tmp_path / "out")
    # Classes keep their place where a split has none of their images.
    assert sorted(os.listdir(tmp_path / "out" / "test")) == ["A", "b", "rare"]
    again = open_source(
        DataConfig(
            dataset=f"folder:{tmp_path / 'out'}",
            data_dir=str(tmp_path / "data"),
        )
    )
    assert again.class_names == source.class_names == ("A", "b", "rare")
    assert again.split_sizes == source.split_sizes


def test_numbers_are_left_out_of_the_names_of_folders_written_here(tmp_path):
    root = write_classes(tmp_path / "own", {"ü": 12, "Z": 12, "z": 12})
    config = DataConfig(
        dataset=f"folder:{root}", data_dir=str(tmp_path / "data")
    )
    class_folders.write(open_source(config), tmp_path / "out")
    written = DataConfig(
        dataset=f"folder:{tmp_path / 'out'}", data_dir=str(tmp_path / "data")
    )
    assert open_source(written).class_names == ("Z", "z", "ü")
    # A class of the user's own is added.
    for split in ("train", "validation", "test"):
        write_classes(tmp_path / "out" / split, {"3_new": 2})
    assert open_source(written).class_names == ("Z", "z", "ü", "3_new")
    # Without the mark, nothing says who wrote the numbers.
    (tmp_path / "out" / folder_listing.MARK).unlink()
    names = ("0_Z", "1_z", "2_ü", "3_new")
    assert open_source(written).class_names == names


def test_labels_are_the_names_as_they_are(tmp_path):
    names = ["two  blanks", " before", "line\nbreak"]
    text = class_folders.labels_text(names)
    assert text == "two  blanks\n before\nline break\n"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Aster", "Daisy", "aster2"], ["Aster", "Daisy", "aster2"]),
        (["b", "a"], ["0_b", "1_a"]),
        (["Rose", "rose"], ["0_Rose", "1_rose"]),
        (["a/b", "a\\b"], ["0_a_b", "1_a_b"]),
        (["con", "lpt1.x"], ["_con", "_lpt1.x"]),
        (["..", ".git"], ["_", "_.git"]),
        (["a. ", "b\n"], ["a", "b_"]),
        (["a", "é"], ["0_a", "1_é"]),
    ],
)
def test_folder_names_are_safe_and_sort_by_label(names, expected):
    got = class_folders.folder_names(names)
    assert got == expected
    assert got == sorted(got)
    assert len({name.lower() for name in got}) == len(got)


def test_a_thousand_folder_names_sort_by_label():
    names = [f"class {k}" for k in range(1000)]
    got = class_folders.folder_names(names)
    assert got == sorted(got)
    assert got[7] == "007_class 7"


def test_long_names_are_cut_to_whole_letters():
    (name,) = class_folders.folder_names(["é" * 300])
    assert len(name.encode()) <= 130
    assert set(name.partition("_")[2]) == {"é"}


def test_suffixes_are_by_contents_and_names_unique(tmp_path):
    examples = [
        ("x/a.png", 0, MAGIC["jpg"]),
        ("y/A.jpeg", 0, MAGIC["jpg"] + b"2"),
        ("a", 0, MAGIC["png"]),
        ("12", 1, MAGIC["gif"]),
        ("a:b?.jpg", 1, MAGIC["bmp"]),
        ("con.jpg", 1, MAGIC["bmp"]),
    ]
    source = FakeSource(["k", "l"], {"train": examples})
    class_folders.write(source, tmp_path / "out")
    assert {k for k in _files(tmp_path / "out") if k.startswith("train")} == {
        "train/k/a.jpg",
        "train/k/A_2.jpg",
        "train/k/a.png",
        "train/l/12.gif",
        "train/l/a_b_.bmp",
        "train/l/_con.bmp",
    }


SMALL = {"train": [("a", 0, MAGIC["png"]), ("b", 1, MAGIC["png"])]}


def test_writing_again_changes_nothing(tmp_path):
    source, path = FakeSource(["k", "l"], SMALL), tmp_path / "out"
    assert class_folders.write(source, path)
    times = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert not class_folders.write(source, path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == times


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: (p / "mine.txt").touch(), "added, removed or changed"),
        (lambda p: (p / "labels.txt").unlink(), "added, removed or changed"),
        (lambda p: (p / folder_listing.MARK).unlink(), "something else"),
        (lambda p: (p / folder_listing.MARK).write_text("x"), "something else"),
    ],
)
def test_a_folder_with_other_contents_is_left_alone(tmp_path, change, expected):
    source, path = FakeSource(["k", "l"], SMALL), tmp_path / "out"
    class_folders.write(source, path)
    change(path)
    before = _files(path)
    with pytest.raises(UserError, match=f"--folders_dir .*{expected}"):
        class_folders.write(source, path)
    assert _files(path) == before


def test_another_data_set_is_left_alone(tmp_path):
    path = tmp_path / "out"
    class_folders.write(FakeSource(["k", "l"], SMALL), path)
    with pytest.raises(UserError, match=r"holds fake/.*; this is other"):
        class_folders.write(FakeSource(["k", "l"], SMALL, name="other"), path)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="--folders_dir"):
        class_folders.write(FakeSource(["k", "l"], SMALL), tmp_path / "out")


def test_formats_that_keras_does_not_read_become_png(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "WebP", lossless=True)
    rows = [*SMALL["train"], ("c", 0, stream.getvalue())]
    source = FakeSource(["k", "l"], {"train": rows})
    class_folders.write(source, tmp_path / "out")
    with Image.open(tmp_path / "out" / "train" / "k" / "c.png") as image:
        assert image.format == "PNG"
        assert image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("bad", [b"", b"RIFF....WEBP"])
def test_no_image_leaves_nothing_behind(tmp_path, bad):
    rows = [*SMALL["train"], ("c", 0, bad)]
    source = FakeSource(["k", "l"], {"train": rows})
    with pytest.raises(UserError, match="split train: c: "):
        class_folders.write(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    source = FakeSource(["k", "l"], SMALL)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        class_folders.write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".incomplete.")


def test_changes_are_described(tmp_path):
    rows = [(f"k/{k}.png", k % 2, MAGIC["png"]) for k in range(4)]
    before = FakeSource(["k", "l"], {"train": rows[:3], "test": rows[3:]})
    path = tmp_path / "splits.csv"
    class_folders.write_splits(path, before.class_names, before.scan())
    assert path.read_text().splitlines()[:2] == [
        "file,class,split",
        "k/0.png,k,train",
    ]

    def describe(**examples):
        now = FakeSource(["k", "l"], examples)
        return class_folders.describe_changes(path, now.class_names, now.scan())

    same = describe(train=rows[:3], test=rows[3:])
    assert same == "the contents of images"
    moved = describe(train=rows[1:3], test=[rows[3], rows[0]])
    assert "images: 1 moved, first k/0.png (k in train to k in test)" in moved
    fewer = describe(train=rows[:2], test=rows[3:])
    assert "1 removed, first k/2.png" in fewer
    more = describe(train=[*rows[:3], ("new.png", 1, b"")], test=rows[3:])
    assert "1 added, first new.png (nowhere to l in train)" in more
    path.unlink()
    assert describe(train=rows) == ""
