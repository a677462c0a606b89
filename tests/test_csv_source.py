"""Tests of `--dataset=csv:FILE`: columns, mistakes, splits, groups."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import pytest

from flowers17_tfdata import cli
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import class_folders
from flowers17_tfdata.data.file_source import FileSource
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError
from tests.test_folder_source import picture, write_classes, write_picture

NAMES = [f"rose/{k:03d}.jpg" for k in range(20)]
NAMES += [f"lily/{k:03d}.jpg" for k in range(10)]
ROWS = [f"{name},{name[:4]}" for name in NAMES]


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """Twenty roses and ten lilies."""
    return write_classes(tmp_path / "photos", {"rose": 20, "lily": 10})


@pytest.fixture
def table(photos) -> pathlib.Path:
    """A table of them, beside them."""
    return write(photos / "labels.csv", "path,label", *ROWS)


def write(path: pathlib.Path, *lines: str) -> pathlib.Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def open_images(tmp_path):
    """Returns `open_images(path, **options) -> FileSource`."""

    def open_images(path, kind="csv", **options) -> FileSource:
        options.setdefault("data_dir", str(tmp_path / "data"))
        return open_source(DataConfig(dataset=f"{kind}:{path}", **options))

    return open_images


def _split_of(source: FileSource) -> dict[str, str]:
    seen = source.scan()
    return dict(zip(seen.ids, seen.splits, strict=True))


def test_a_table_is_read_as_the_folders_are(photos, table, open_images):
    lines = table.read_text().splitlines()
    write(table, lines[0], *sorted(lines[1:], key=lambda line: line[::-1]))
    source, folders = open_images(table), open_images(photos, "folder")
    assert source.class_names == folders.class_names == ("lily", "rose")
    assert source.name.startswith("csv:labels.csv@")
    # The digits stand for images, classes and splits.
    assert source.name.partition("@")[2] == folders.name.partition("@")[2]
    assert _split_of(source) == _split_of(folders)
    for split in ("train", "validation", "test"):
        ours, theirs = (
            list(s.read(split).as_numpy_iterator()) for s in (source, folders)
        )
        assert ours == theirs
        assert source.fingerprints(split) == folders.fingerprints(split)


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").replace("path", "FILENAME"),
        lambda text: text.replace("path,label", "File Name , Class"),
        lambda text: text.replace("path", ",image").replace("\n", "\n7,", 30),
        lambda text: "\n" + text + ",\n\n",
        lambda text: text.replace(",rose", ',"rose"').replace("\n", "\r"),
        lambda text: text.replace("rose/", "./rose//"),
    ],
    ids=["bom", ";", "tab", "names", "others", "blank", "quotes", "dots"],
)
def test_forms_of_a_table(table, open_images, form):
    expected = open_images(table).name
    data = form(table.read_text())
    table.write_bytes(data if isinstance(data, bytes) else data.encode())
    assert open_images(table).name == expected


def test_a_label_in_quotes_is_taken_as_it_is(table, open_images):
    text = table.read_text()
    text = text.replace(",rose", ', "rose, ""red"""').replace(",lily", ",lilı́")
    source = open_images(write(table, *text.splitlines()))
    # The accent is joined with its letter where Unicode has one for both.
    assert source.class_names == ("lilı́", 'rose, "red"')
    text = text.replace("lilı́", "lili\N{COMBINING ACUTE ACCENT}")
    source = open_images(write(table, *text.splitlines()))
    assert source.class_names[0] == "lil\N{LATIN SMALL LETTER I WITH ACUTE}"


def test_images_lie_anywhere(photos, tmp_path, open_images):
    (tmp_path / "tables").mkdir()
    (tmp_path / "link").symlink_to(photos / "lily")
    roses = [f"../photos/{row}" for row in ROWS[:20]]
    lilies = [f"{tmp_path}/link/{k:03d}.jpg,lily" for k in range(10)]
    table = tmp_path / "tables" / "labels.csv"
    source = open_images(write(table, "path,label", *roses, *lilies))
    assert sum(source.split_sizes.values()) == 30
    for row in source.read("test").as_numpy_iterator():
        name = row["id"].decode()
        assert row["image"] == (table.parent / name).read_bytes()
        assert name.startswith(("../photos/rose", f"{tmp_path}/link"))


def test_absolute_paths_beside_the_table_are_names_too(
    photos, table, open_images
):
    expected = open_images(table).name
    write(table, "path,label", *(f"{photos}/{row}" for row in ROWS))
    assert open_images(table).name == expected


def test_a_table_may_be_a_link(table, tmp_path, open_images):
    kept = tmp_path / "kept" / "0123"
    kept.parent.mkdir()
    table.rename(kept)
    table.symlink_to(kept)
    assert open_images(table).name.startswith("csv:labels.csv@")


def test_the_digits_tell_of_changes_not_of_places(
    photos, table, tmp_path, open_images
):
    name = open_images(table).name
    moved = photos.rename(tmp_path / "elsewhere") / "labels.csv"
    assert open_images(moved).name == name
    renamed = moved.rename(moved.with_name("new.csv"))
    assert open_images(renamed).name == name.replace("labels", "new")
    text = renamed.read_text()
    changed = text.replace("rose/003.jpg,rose", "rose/003.jpg,lily")
    renamed.write_text(changed)
    assert open_images(renamed).name != name.replace("labels", "new")


def _with_splits(splits: str) -> list[str]:
    """Rows of three roses and three lilies, with the splits given by word."""
    rows = ROWS[:3] + ROWS[20:23]
    return [f"{r},{s}" for r, s in zip(rows, splits.split(), strict=True)]


def test_splits_are_used_as_they_are(table, open_images):
    rows = _with_splits("Training val TEST train valid unused")
    source = open_images(write(table, "file,class,split", *rows))
    assert source.split_sizes == {
        "train": 2,
        "validation": 2,
        "test": 1,
        "unused": 1,
    }
    assert _split_of(source)["lily/001.jpg"] == "validation"
    with pytest.raises(ConfigError, match="--split_seed must be 0"):
        open_images(table, split_seed=1)


def test_a_missing_split_is_taken_out_of_train(table, open_images):
    rows = [
        f"{row},{'train' if k % 3 else 'test'}" for k, row in enumerate(ROWS)
    ]
    source = open_images(write(table, "path,label,split", *rows))
    splits = _split_of(source)
    assert {n for n, s in splits.items() if s == "test"} == {*NAMES[::3]}
    assert source.split_sizes["validation"] == 3
    assert "divided here into train, validation" in source.notes[0]
    with pytest.raises(ConfigError, match="comes with a split test"):
        open_images(table, folds=3, fold=0)


def test_an_empty_split_column_is_none(table, open_images):
    expected = open_images(table).name
    write(table, "path,label,split", *(f"{row}," for row in ROWS))
    assert open_images(table).name == expected


def _grouped(table: pathlib.Path) -> pathlib.Path:
    """Gives each plant of three photographs a name; two stay alone."""
    names = [f"plant {k // 3}" for k in range(28)] + ["", ""]
    rows = map(",".join, zip(ROWS, names, strict=True))
    return write(table, "path,label,group", *rows)


@pytest.mark.parametrize(
    "options",
    [
        {"split_seed": 1},
        {"split_seed": 2},
        {"near_duplicates": "anywhere"},
        {"folds": 3, "fold": 1},
    ],
)
def test_groups_are_not_divided(photos, table, open_images, options):
    # A near-duplicate joins two groups, unless it may lie anywhere.
    write_picture(photos / NAMES[0], 0, picture(7))
    write_picture(photos / NAMES[3], 0, picture(7))
    source = open_images(_grouped(table), **options)
    splits = _split_of(source)
    for k in range(0, 28, 3):
        plant = NAMES[k : min(k + 3, 28)]
        assert len({splits[name] for name in plant}) == 1, plant
    if "near_duplicates" not in options:
        assert splits[NAMES[0]] == splits[NAMES[3]]
    assert any("28 images in 10 groups" in note for note in source.notes)
    assert set(source.split_sizes) == {"train", "validation", "test"}


def test_what_is_unused_parts_no_group(table, open_images):
    rows = _with_splits("train unused valid train unused test")
    rows = map(",".join, zip(rows, "xxvyyt", strict=True))
    source = open_images(write(table, "path,label,split,group", *rows))
    assert source.split_sizes["unused"] == 2


def test_near_duplicates_of_groups_may_lie_anywhere(photos, table, open_images):
    for k in range(0, 18, 3):
        write_picture(photos / NAMES[k], 0, picture(7))
    for how, across in (("together", False), ("anywhere", True)):
        source = open_images(_grouped(table), near_duplicates=how)
        found = audit_lib.audit(source, source.scan())["near_duplicates"]
        assert (found["num_pairs_across_splits"] > 0) == across


def test_missing_and_broken_images_are_left_out_and_named(
    photos, table, open_images
):
    (photos / "rose" / "cut.jpg").write_bytes(b"\xff\xd8\xff cut")
    shutil.copy(photos / NAMES[0], photos / "rose" / "raw.NEF")
    more = ["rose/cut.jpg,rose", "lily/gone.jpg,lily", "rose/raw.NEF,rose"]
    source = open_images(write(table, "path,label", *ROWS, *more, ROWS[0]))
    assert sum(source.split_sizes.values()) == 30
    first, second, third = source.notes[1:]
    assert first.startswith("skipped: 1 .nef; only JPEG")
    assert second == "lines that repeat an image and its label: 1, used once"
    assert (
        "2 of 32 files can't be decoded, first lily/gone.jpg (line 33: No "
        "such file" in third
    )
    listed = audit_lib.audit(source, source.scan())["undecodable"]
    assert [(f["id"], f["split"]) for f in listed] == [
        ("lily/gone.jpg", ""),
        ("rose/cut.jpg", ""),
    ]
    assert listed[1]["error"].startswith("line 32: ")


def test_a_missing_file_that_comes_back_is_used(photos, table, open_images):
    (photos / NAMES[5]).rename(photos / "away.jpg")
    assert not _split_of(open_images(table))[NAMES[5]]
    (photos / "away.jpg").rename(photos / NAMES[5])
    assert all(_split_of(open_images(table)).values())


GOOD = ["path,label", *ROWS]

MISTAKES = {
    "no columns": (["id,breed", *ROWS], "a column path (or file, filename, im"),
    "found": (["id,breed", *ROWS], "image); it names id, breed"),
    "no label": (["path;name", "a.jpg;b"], "label (or class, category); it na"),
    "no header": (ROWS, "it names rose/000.jpg, rose"),
    "empty": ([], "it names none"),
    "no line": (GOOD[:1], "a line for each image; it holds none"),
    "two labels": (
        ["path,Label,class", "a.jpg,1,b"],
        "one column label; Label and class could both be it",
    ),
    "fields": (
        [*GOOD, "", "rose/000.jpg,rose, red"],
        "line 33 has 3 fields, the first line 2: put a field that holds ','",
    ),
    "without label": ([*GOOD, "rose/000.jpg,"], "line 32: the label is missin"),
    "without path": ([*GOOD, ",rose"], "line 32: the path is missing"),
    "quotes": ([*GOOD, 'a.jpg,"rose', "b.jpg,b"], "line 32: quotes must match"),
    "lines": ([*GOOD, 'a.jpg,"a', 'b"', "x,"], "line 32: a label must have no"),
    "after a field of two lines": (
        ["path,note,label", 'rose/000.jpg,"two', 'lines",rose', "x"],
        "line 4 has 1 fields",
    ),
    "address": (
        [*GOOD, "https://host/a.jpg,rose"],
        "line 32: the path must name a file (download the images); got https",
    ),
    "folder": ([*GOOD, "rose,rose"], "line 32: the path must name a regular"),
    "two labels for one": (
        [*GOOD, "./rose/003.jpg,lily"],
        "rose/003.jpg must have one label; it has 'rose' in line 5 and 'lily'",
    ),
    "one class": (GOOD[:20], "at least 2 labels; got only rose"),
    "unknown split": (
        ["path,label,split", *_with_splits("train " * 5 + "holdout")],
        "line 7: a split must be train, validation, test or unused; got 'hold",
    ),
    "some splits": (
        ["path,label,split", *(f"{row}," for row in ROWS), f"{ROWS[0]},test"],
        "rose/000.jpg must have one split",
    ),
    "split missing": (
        ["path,label,split", *_with_splits("train " * 6), f"{ROWS[5]},"],
        "line 8: the split is missing",
    ),
    "no train": (
        ["path,label,split", *_with_splits("train " * 3 + "test " * 3)],
        "every class must hold images to train on, and every split images; li",
    ),
    "group in two splits": (
        [
            "path,label,split,group",
            *(f"{r},x" for r in _with_splits("train train test " * 2)),
        ],
        "a group must lie in one split; 'x' is in train (line 5) and in test",
    ),
    "no suffix": (
        [row.replace(".jpg", "") for row in GOOD],
        "first line 2: rose/000 (did you mean rose/000.jpg?)",
    ),
    "backslashes": (
        [row.replace("/", "\\") for row in GOOD],
        "(did you mean rose/000.jpg?)",
    ),
    "elsewhere": (
        [f"photos/{row}" if k else row for k, row in enumerate(GOOD)],
        "none of the files exists; paths start in the table's folder",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line(table, open_images, mistake):
    lines, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        open_images(write(table, *lines))
    message = str(caught.value)
    assert expected in message
    assert message.startswith(f"--dataset=csv:{table}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("path,label\na.jpg,rosé\n".encode("latin-1"), "line 2 holds the byte"),
        ("path,label\n".encode("utf-16"), "must be UTF-8; line 1 holds"),
        (b"path,label\n\0,b\n", "it holds NUL bytes"),
    ],
)
def test_another_encoding_gets_one_line(table, open_images, data, expected):
    table.write_bytes(data)
    with pytest.raises(ConfigError, match=expected):
        open_images(table)


def test_what_is_no_table_gets_one_line(photos, open_images):
    with pytest.raises(ConfigError, match="must name a file; there is none"):
        open_images(photos / "none.csv")
    with pytest.raises(ConfigError, match="must name a file; it is a folder"):
        open_images(photos / "rose")
    os.mkfifo(photos / "pipe.jpg")
    table = write(photos / "a.csv", *GOOD, "pipe.jpg,rose")
    with pytest.raises(ConfigError, match="line 32: the path must name a reg"):
        open_images(table)


def test_mostly_missing_is_an_error(photos, table, open_images):
    for name in NAMES[:19]:
        (photos / name).unlink()
    message = r"19 of 30 files can't be decoded, first rose/000.jpg \(line 2:"
    with pytest.raises(UserError, match=message):
        open_images(table)


def test_splits_csv_is_a_table(photos, table, open_images):
    """In the folder of the photographs, it freezes their splits."""
    for source in (open_images(table), open_images(photos, "folder")):
        path = photos / "splits.csv"
        class_folders.write_splits(path, source.class_names, source.scan())
        again = open_images(path)
        assert _split_of(again) == _split_of(source)
        assert again.name.partition("@")[2] == source.name.partition("@")[2]


def test_the_table_is_not_written_over(photos, table, capsys):
    shutil.copy(table, photos / "splits.csv")
    link = photos.parent / "link"
    link.symlink_to(photos)
    dataset = f"--dataset=csv:{photos}/splits.csv"
    for workdir in (photos, link):
        assert cli.main(["main.py", dataset, f"--workdir={workdir}"]) == 2
        assert "--workdir must be another folder" in capsys.readouterr().err


@pytest.fixture
def default_flags(tmp_path, default_flags, table) -> list[str]:
    return [
        *default_flags,
        f"--data_dir={tmp_path / 'data'}",
        f"--dataset=csv:{_grouped(table)}",
        "--archive=",
        "--global_batch_size=16",
    ]


@pytest.mark.slow
def test_a_run_on_a_table(run, tmp_path, photos, table, monkeypatch):
    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.chdir(photos)
        code, out, err = run(
            "work", "--phase=transfer", "--dataset=csv:labels.csv"
        )
    assert code == 0, err
    assert "28 images in 10 groups" in out
    flags = json.loads((work / "config.json").read_text())["flags"]
    assert flags["dataset"] == f"csv:{table}"
    for phase in ("prepare", "evaluate", "folders"):
        code, _, err = run("work", f"--phase={phase}")
        assert code == 0, err
    assert {path.name for path in (work / "folders" / "test").iterdir()} == {
        "lily",
        "rose",
    }

    # Another label is told from what was trained on.
    text = table.read_text()
    table.write_text(text.replace("rose/000.jpg,rose", "rose/000.jpg,lily"))
    code, _, err = run("work", "--phase=transfer")
    assert code == 1
    assert "is not what --workdir" in err
    assert "first rose/000.jpg (rose in" in err

    # The same table by another name goes on.
    renamed = write(photos / "renamed.csv", *text.splitlines())
    code, out, err = run("work", "--phase=transfer", f"--dataset=csv:{renamed}")
    assert code == 0, err
    assert "transfer: already done" in out

    # The photographs are known in folders, too.
    code, _, err = run(
        "other",
        *("--phase=evaluate", f"--dataset=folder:{photos}"),
        f"--model={work / 'model_transfer.keras'}",
        "--split_seed=5",
    )
    assert code == 1
    assert "were trained on by" in err
