"""`--corrections`: tables of corrected labels, for every kind of data set."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import tensorflow as tf

from flowers17_tfdata import files, flags
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import Config, to_values
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import corrections
from flowers17_tfdata.data.corrections import correct
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import ConfigError, UserError
from flowers17_tfdata.training import resume
from tests import fakes
from tests.test_folder_source import write_classes

HEADER = "file,class,new_class"


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    return write_classes(tmp_path / "photos", {"lily": 12, "rose": 12})


@pytest.fixture
def open_photos(tmp_path, photos):
    """Returns `open_photos(*lines, **options) -> Source`."""

    def open_photos(*lines, dataset="", **options) -> Source:
        if lines:
            path = write(tmp_path / "fixes.csv", *lines)
            options["corrections"] = str(path)
        return open_source(
            DataConfig(
                dataset=dataset or f"folder:{photos}",
                data_dir=str(tmp_path / "data"),
                **options,
            )
        )

    return open_photos


def write(path: pathlib.Path, *lines: str) -> pathlib.Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _table(source: Source) -> dict[str, tuple[str, str]]:
    """Returns the split and the class of each image of the scan."""
    scan = source.scan()
    names = [source.class_names[label] for label in scan.labels]
    return dict(
        zip(scan.ids, zip(scan.splits, names, strict=True), strict=True)
    )


def _read(source: Source) -> dict[str, tuple[str, str]]:
    """Returns the split and the class of each image that is read."""
    return {
        example["id"].decode(): (split, source.class_names[example["label"]])
        for split in source.split_sizes
        for example in source.read(split).as_numpy_iterator()
    }


def test_labels_change_and_images_go_but_no_other_image_moves(open_photos):
    before = open_photos()
    old = _table(before)
    trained = [i for i, (split, _) in sorted(old.items()) if split == "train"]
    tested = min(i for i, (split, _) in old.items() if split == "test")
    moved, gone = trained[0], trained[-1]
    after = open_photos(
        HEADER,
        f"{moved},lily,rose",
        f"{gone},rose,(drop)",
        f"{tested},lily,lily",
    )
    expected = {
        **old,
        moved: ("train", "rose"),
        gone: ("", "rose"),
    }
    assert _table(after) == expected
    assert _read(after) == {
        i: place for i, place in expected.items() if place[0]
    }
    assert after.split_sizes["train"] == before.split_sizes["train"] - 1
    assert after.name.rpartition("@")[0] == before.name.rpartition("@")[0]
    assert after.name != before.name
    # An image is known by either label.
    for split in before.split_sizes:
        assert after.fingerprints(split) == before.fingerprints(split)
    assert after.read_images("train", [moved]).keys() == {moved}
    assert after.notes[-1] == (
        "corrections of fixes.csv: 1 label changed, 1 image dropped, 1 label "
        "kept"
    )


def test_the_name_stands_for_what_is_corrected(open_photos):
    plain = open_photos().name
    one = open_photos(HEADER, "lily/000.jpg,lily,rose").name
    again = open_photos(
        "class;new_class;file",
        "rose;rose;rose/003.jpg",
        "lily;rose;lily/000.jpg",
    )
    assert one == again.name
    other = open_photos(HEADER, "lily/000.jpg,lily,(drop)").name
    assert len({plain, one, other}) == 3
    # Labels that are kept change nothing.
    assert open_photos(HEADER, "lily/000.jpg,lily,lily").name == plain


def test_the_audit_lists_corrections_and_ignores_dropped_images(
    photos, open_photos
):
    # A twin in another class, whose label is wrong.
    (photos / "rose" / "twin.jpg").write_bytes(
        (photos / "lily" / "000.jpg").read_bytes()
    )
    before = audit_lib.audit(open_photos(), open_photos().scan())
    assert before["near_duplicates"]["num_pairs_across_classes"] == 1
    assert before["corrections"]["rows"] == []
    source = open_photos(
        HEADER, "rose/twin.jpg,rose,(drop)", "lily/003.jpg,lily,rose"
    )
    after = audit_lib.audit(source, source.scan())
    assert after["num_examples"] == before["num_examples"] - 1
    assert after["near_duplicates"]["num_pairs"] == 0
    found = after["corrections"]
    assert (found["num_relabelled"], found["num_dropped"]) == (1, 1)
    split = _table(source)["lily/003.jpg"][0]
    assert {
        "split": split,
        "id": "lily/003.jpg",
        "class": "lily",
        "new_class": "rose",
    } in found["rows"]
    assert any(row["new_class"] is None for row in found["rows"])
    assert json.dumps(after)


def test_a_table_as_a_spreadsheet_saves_it(tmp_path, photos, open_photos):
    csv = write(
        photos / "all.csv",
        "path;label",
        *(f"lily/{k:03d}.jpg;lily" for k in range(12)),
        *(f"rose/{k:03d}.jpg;rose" for k in range(12)),
    )
    fixes = tmp_path / "fixes.csv"
    fixes.write_bytes(
        "\ufeffImage;Label;New Class;why\r\n\r\n"
        "rose/004.jpg;rose;lily;looks like one\r\n".encode()
    )
    source = open_photos(dataset=f"csv:{csv}", corrections=str(fixes))
    assert _read(source)["rose/004.jpg"][1] == "lily"


def test_tfds(data_dir, dummy_archive, tmp_path):
    config = DataConfig(data_dir=str(data_dir), archive=str(dummy_archive))
    before = open_source(config)
    old = _read(before)
    (moved, (split, name)), (gone, (_, other)) = sorted(old.items())[:2]
    new = next(n for n in before.class_names if n != name)
    path = write(
        tmp_path / "fixes.csv",
        HEADER,
        f'{moved},"{name}","{new}"',
        f'{gone},"{other}",(drop)',
    )
    after = open_source(dataclasses.replace(config, corrections=str(path)))
    del old[gone]
    assert _read(after) == {**old, moved: (split, new)}
    assert after.name.startswith(f"{before.name}@")
    assert _table(after)[gone][0] == ""
    # Such a data set may be extended, too, for its features.
    data = DataConfig(corrections=str(path), extends="x")
    rules.check(Config(data=data))


@pytest.fixture
def numbered() -> Source:
    """A data set whose ids repeat in its splits."""
    images = [tf.io.encode_png(tf.zeros([4, 4, 3], tf.uint8)).numpy()] * 4
    rows = [(str(k), k % 2, image) for k, image in enumerate(images)]
    return fakes.FakeSource("ab", {"train": rows, "test": rows[:2]})


def test_ids_that_repeat_need_their_split(numbered, tmp_path):
    path = write(tmp_path / "x.csv", HEADER + ",split", "1,b,a,test")
    with pytest.raises(ConfigError, match="it is in train, test: write which"):
        correct(numbered, write(tmp_path / "y.csv", HEADER, "1,b,a"))
    source = correct(numbered, path)
    labels = {
        split: [e["label"] for e in source.read(split).as_numpy_iterator()]
        for split in source.split_sizes
    }
    assert labels == {"train": [0, 1, 0, 1], "test": [0, 0]}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["lily/000.jpg,lily,rose"], "the first line must name a column file"),
        (["file,class"], "must name a column new_class (or newclass"),
        ([HEADER], "must hold a line; it holds none"),
        (
            [HEADER, "", "lily/00.jpg,lily,rose"],
            "line 3: lily/00.jpg must be an image of the data set, named as in "
            "splits.csv (did you mean lily/0",
        ),
        (
            [HEADER, "lily/000.jpg,lily,rosé"],
            "line 2: lily/000.jpg: there is no class rosé (did you mean rose?)",
        ),
        (
            [HEADER, "lily/000.jpg,lily,Drop"],
            "line 2: lily/000.jpg: there is no class Drop (did you mean (drop)",
        ),
        (
            [HEADER, "lily/000.jpg,rose,(drop)"],
            "line 2: lily/000.jpg must have the class that the data set gives "
            "it, lily; got rose",
        ),
        (
            [HEADER, "lily/000.jpg,rose,lily"],
            "lily, which is the new one: it is corrected already; got rose",
        ),
        (
            [HEADER, "lily/000.jpg,lily,"],
            "line 2: the new_class is missing: write a class, the same to keep "
            "it, or (drop)",
        ),
        (
            [HEADER, "lily/000.jpg,lily,rose", "lily/000.jpg,lily,(drop)"],
            "line 3: lily/000.jpg must have one new class; line 2 gives it "
            "another",
        ),
        (
            [HEADER, *(f"lily/{k:03d}.jpg,lily,rose" for k in range(12))],
            "every class must keep images to train on; lily has none left",
        ),
        ([HEADER, "lily/000.jpg,lily"], "line 2 has 2 fields, the first line"),
    ],
)
def test_mistakes_are_named(open_photos, lines, expected):
    with pytest.raises(ConfigError) as error:
        open_photos(*lines)
    assert "fixes.csv: " in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_split_must_keep_images(numbered, tmp_path):
    lines = ["0,a,(drop),test", "1,b,(drop),test"]
    path = write(tmp_path / "x.csv", HEADER + ",split", *lines)
    with pytest.raises(ConfigError, match="no image is left in split test"):
        correct(numbered, path)


def test_a_missing_table_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "fixes.csv").touch()
    config = Config(
        data=DataConfig(
            dataset="folder:x", corrections=str(tmp_path / "fixs.csv")
        )
    )
    with pytest.raises(UserError, match=r"did you mean fixes\.csv\?"):
        rules.check_files(config)


def test_a_run_may_resume_with_a_moved_table_but_not_with_another(open_photos):
    name = open_photos(HEADER, "lily/000.jpg,lily,rose").name
    key = resume.resume_key(Config(), "transfer", name, "float32")
    assert "corrections" not in key
    assert key["dataset"] == name


def test_later_phases_correct_as_the_run_did(tmp_path):
    values = to_values(Config()) | {
        "dataset": "folder:x",
        "corrections": "/fixes.csv",
    }
    files.write_json(tmp_path / "config.json", {"flags": values})
    words = ["main.py", "--phase=evaluate", f"--workdir={tmp_path}"]
    assert flags.parse(words).data.corrections == "/fixes.csv"
    # Another data set has other images.
    other = flags.parse([*words, "--dataset=folder:y"])
    assert other.data.corrections == ""


def test_corrections_that_a_later_table_lacks_are_counted(
    tmp_path, open_photos
):
    lines = [
        "lily/000.jpg,lily,rose",
        "lily/001.jpg,lily,(drop)",
        "lily/002.jpg,lily,lily",
    ]
    write(corrections.copy_path(tmp_path), HEADER, *lines)
    assert corrections.count_undone(tmp_path, open_photos()) == 2
    later = open_photos(HEADER, lines[1], "lily/000.jpg,lily,(drop)")
    assert corrections.count_undone(tmp_path, later) == 1
    later = open_photos(HEADER, *lines, "rose/000.jpg,rose,lily")
    assert corrections.count_undone(tmp_path, later) == 0
    assert corrections.count_undone(tmp_path / "none", later) == 0
