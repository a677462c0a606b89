"""Tests of `--groups`: images that one split keeps together, by their paths."""

from __future__ import annotations

import pathlib

import pytest

from flowers17_tfdata import cli, files, flags
from flowers17_tfdata.config.config import Config, to_values
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError
from tests.test_folder_source import write_picture

PLANT = r"/plant(\d+)_"


def _write(root: pathlib.Path, num_plants: int = 10, shots: int = 3) -> None:
    """Writes pictures of plants, `shots` of each, and one without a number."""
    for label, name in enumerate(("lily", "rose")):
        for k in range(num_plants * shots):
            plant = f"plant{label * 100 + k // shots}_{k}.jpg"
            write_picture(root / name / plant, 1000 * label + k)
        write_picture(root / name / "alone.jpg", 1000 * label + 999)


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    _write(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def open_images(tmp_path):
    """Returns `open_images(dataset, groups, **options) -> (source, splits)`."""

    def open_images(dataset, groups=PLANT, known=None, **options):
        if isinstance(dataset, pathlib.Path):
            dataset = f"folder:{dataset}"
        config = DataConfig(
            dataset=dataset,
            groups=groups,
            data_dir=str(tmp_path / "data"),
            **options,
        )
        source = open_source(config, known=known)
        scan = source.scan()
        return source, dict(zip(scan.ids, scan.splits, strict=True))

    return open_images


def _splits_of_plants(split_of: dict[str, str]) -> list[set[str]]:
    found: dict[str, set[str]] = {}
    for name, split in split_of.items():
        if "plant" in name:
            found.setdefault(name.partition("_")[0], set()).add(split)
    return list(found.values())


@pytest.mark.parametrize(
    "options",
    [
        {"split_seed": 1},
        {"near_duplicates": "anywhere"},
        {"folds": 3, "fold": 1},
    ],
)
def test_no_split_or_fold_parts_a_group(photos, open_images, options):
    source, splits = open_images(photos, **options)
    plants = _splits_of_plants(splits)
    assert len(plants) == 20
    assert all(len(found) == 1 for found in plants)
    assert set(source.split_sizes) == {"train", "validation", "test"}
    assert source.notes[-1] == (
        f"--groups={PLANT}: 60 images in 20 groups, each kept in one split; "
        "2 images in no group"
    )
    # Without the flag, they are parted.
    _, alone = open_images(photos, "", **options)
    assert any(len(found) > 1 for found in _splits_of_plants(alone))


@pytest.mark.parametrize(
    ("groups", "number"),
    [
        # The whole match; all parentheses; some that match nothing.
        (r"plant\d+", 20),
        (r"^(\w+)/plant(\d+)", 20),
        (r"^lily/plant(\d+)|^(rose)/plant", 11),
    ],
)
def test_what_names_a_group(photos, open_images, groups, number):
    source, _ = open_images(photos, groups)
    assert f"in {number} groups" in source.notes[-1]


def test_images_of_a_table_are_grouped_by_their_paths(photos, open_images):
    files = sorted(photos.rglob("*.jpg"))
    names = [path.relative_to(photos).as_posix() for path in files]
    table = photos.parent / "photos" / "all.csv"
    rows = [f"{name},{name[:4]}" for name in names]
    table.write_text("\n".join(["path,label", *rows]))
    _, splits = open_images(f"csv:{table}")
    assert splits == open_images(photos)[1]
    rows = [f"{row},{k}" for k, row in enumerate(rows)]
    table.write_text("\n".join(["path,label,group", *rows]))
    with pytest.raises(ConfigError, match=r"--groups=.* without a column grou"):
        open_images(f"csv:{table}")


def test_what_comes_divided_is_counted_and_not_moved(tmp_path, open_images):
    for split in ("train", "validation", "test", "unused"):
        _write(tmp_path / "photos" / split, num_plants=2)
    # A plant that is in no other split.
    write_picture(tmp_path / "photos/train/rose/plant777_0.jpg", 5)
    source, splits = open_images(tmp_path / "photos")
    assert all(name.startswith(f"{split}/") for name, split in splits.items())
    assert source.notes[-1] == (
        f"--groups={PLANT}: 49 images in 5 groups, 4 of them divided between "
        "splits, first 0 (test, train, validation); 8 images in no group"
    )


def test_a_group_in_a_given_test_split_does_not_stop_the_division(
    tmp_path, open_images
):
    _write(tmp_path / "photos" / "train", num_plants=8)
    _write(tmp_path / "photos" / "test", num_plants=2)
    source, splits = open_images(tmp_path / "photos")
    assert set(source.split_sizes) == {"train", "validation", "test"}
    train = {n: s for n, s in splits.items() if n.startswith("train/")}
    assert all(len(found) == 1 for found in _splits_of_plants(train))
    assert "4 of them divided between splits" in source.notes[-1]


def test_new_images_join_the_split_of_their_group(photos, open_images):
    _, old = open_images(photos)
    tested = min(n for n, s in old.items() if s == "test" and "plant" in n)
    start = tested.partition("_")[0]
    for k in range(4):
        write_picture(photos / f"{start}_new{k}.jpg", 7000 + k)
    _, now = open_images(photos, known=old)
    assert all(now[name] == split for name, split in old.items())
    assert {now[f"{start}_new{k}.jpg"] for k in range(4)} == {"test"}
    # The earlier run had no groups.
    _, parted = open_images(photos, "")
    with pytest.raises(UserError, match=r"--extends: .* train anew"):
        open_images(photos, known=parted)


@pytest.mark.parametrize(
    ("groups", "options", "expected"),
    [
        (
            "garden",
            {},
            "must match the paths of images, such as lily/alone.jpg",
        ),
        (r"\d*", {}, "it matches none of 62"),
        ("(jpg)", {}, "puts all 62 images in one group, 'jpg'"),
        (
            r"^(\w+)/",
            {},
            "no image for validation: .* --groups=.* makes 2 groups, the "
            "largest 'lily' of 31 images: match more of the path",
        ),
        (
            r"^(\w+)/",
            {"folds": 3, "fold": 0},
            "--folds must be at most 1 .* --groups=.* makes 2 groups",
        ),
    ],
)
def test_groups_that_do_not_help_get_one_line(
    photos, open_images, groups, options, expected
):
    with pytest.raises(UserError, match=expected) as caught:
        open_images(photos, groups, **options)
    assert "--groups=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_later_phases_take_it_over_but_not_for_other_images(tmp_path):
    values = to_values(Config()) | {"dataset": "folder:p", "groups": PLANT}
    files.write_json(tmp_path / "config.json", {"flags": values})
    command = ["main.py", "--phase=evaluate", f"--workdir={tmp_path}"]
    assert flags.parse(command).data.groups == PLANT
    other = flags.parse([*command, "--dataset=tf_flowers"])
    assert other.data.groups == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--dataset=folder:photos", "--groups=(a"],
            "--groups must be a regular expression; got '(a': missing )",
        ),
        (
            ["--dataset=tf_flowers", "--groups=a"],
            "--groups goes with --dataset=folder:PATH or csv:FILE; got "
            "--dataset=tf_flowers",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_read(
    tmp_path, capsys, arguments, expected
):
    command = ["main.py", "--phase=prepare", f"--workdir={tmp_path / 'w'}"]
    assert cli.main([*command, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_groups_of_several_classes_are_told(photos, open_images):
    # The second digit of a plant repeats in both classes.
    source, _ = open_images(photos, r"plant\d*(\d)_")
    (note,) = [note for note in source.notes if "--groups=" in note]
    assert "(10 of them with images of several classes)" in note
