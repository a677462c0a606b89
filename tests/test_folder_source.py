"""Tests of `--dataset=folder:PATH`: layouts, mistakes, splits, the cache."""

from __future__ import annotations

import errno
import os
import pathlib
import unicodedata
import zlib

import cv2
import numpy as np
import pytest

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import near_duplicates, scan
from flowers17_tfdata.data.file_source import FileSource
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.errors import ConfigError, UserError


def picture(seed: int) -> np.ndarray:
    """A smooth random picture, uint8 BGR `[60, 80, 3]`."""
    coarse = np.random.default_rng(seed).integers(40, 216, [7, 9, 3], np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)


def write_picture(path: pathlib.Path, seed: int, image=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(seed) if image is None else image
    kind = path.suffix.lower()
    encoded, data = cv2.imencode(".png" if kind == ".gif" else kind, image)
    assert encoded
    path.write_bytes(data.tobytes())


def write_classes(root: pathlib.Path, counts: dict[str, int]) -> pathlib.Path:
    """Writes class folders of different pictures."""
    seed = zlib.crc32(root.name.encode()) % 1000 * 1000
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            write_picture(root / name / f"{k:03d}.jpg", seed := seed + 1)
    return root


@pytest.fixture
def flat(tmp_path) -> pathlib.Path:
    """Twenty roses and ten lilies."""
    return write_classes(tmp_path / "photos", {"rose": 20, "lily": 10})


@pytest.fixture
def open_folder(tmp_path):
    """Returns `open_folder(root, **options) -> FileSource`."""

    def open_folder(root, on_scanned=None, **options) -> FileSource:
        config = DataConfig(
            dataset=f"folder:{root}", data_dir=str(tmp_path / "data"), **options
        )
        return open_source(config, on_scanned)

    return open_folder


def _split_of(source: FileSource) -> dict[str, str]:
    seen = source.scan()
    return dict(zip(seen.ids, seen.splits, strict=True))


def _rows(source, split) -> list[dict]:
    return list(source.read(split).as_numpy_iterator())


def test_flat_folders_are_split_in_proportion(flat, open_folder):
    source = open_folder(flat)
    assert source.class_names == ("lily", "rose")
    assert source.split_sizes == {"train": 21, "validation": 5, "test": 4}
    assert source.name.startswith("folder:photos@")
    counts = audit_lib.audit(source, source.scan())["splits"]
    assert counts["train"]["per_class"] == {"lily": 7, "rose": 14}
    assert "divided here into train, validation, test" in source.notes[0]


def test_reading_gives_the_files_as_they_are(flat, open_folder):
    source = open_folder(flat)
    seen = []
    for split in source.split_sizes:
        for row in _rows(source, split):
            name = row["id"].decode()
            assert row["image"] == (flat / name).read_bytes()
            assert source.class_names[row["label"]] == name.partition("/")[0]
            assert row["label"].dtype == np.int64
            seen.append(name)
    assert sorted(seen) == sorted(
        p.relative_to(flat).as_posix() for p in flat.rglob("*.jpg")
    )


def test_some_images_are_read_alone(flat, open_folder):
    source = open_folder(flat)
    (first, second, *_) = [
        example["id"].decode()
        for example in source.read("train").as_numpy_iterator()
    ]
    found = source.read_images("train", {first, second, "rose/none.jpg"})
    assert found == {i: (flat / i).read_bytes() for i in (first, second)}
    (flat / first).unlink()
    assert source.read_images("train", {first, second}).keys() == {second}


def test_order_is_the_same_each_time_and_mixes_the_classes(flat, open_folder):
    first = _rows(open_folder(flat), "train")
    assert [r["id"] for r in first] == [
        r["id"] for r in _rows(open_folder(flat), "train")
    ]
    # Batch-norm statistics come from the first batches: they must show all.
    assert len({int(r["label"]) for r in first[:7]}) == 2


def test_kinds_of_files(tmp_path, open_folder):
    root = write_classes(tmp_path / "x", {"a": 10, "b": 10})
    gray = cv2.cvtColor(picture(1), cv2.COLOR_BGR2GRAY)
    alpha = cv2.cvtColor(picture(2), cv2.COLOR_BGR2BGRA)
    write_picture(root / "a" / "gray.JPG", 0, gray)
    write_picture(root / "a" / "deep" / "er" / "alpha.PNG", 0, alpha)
    write_picture(root / "b" / "x.BmP", 3)
    write_picture(root / "b" / "png_inside.gif", 4)
    write_picture(root / "b" / "photo.webp", 6)
    good = (root / "a" / "gray.JPG").read_bytes()
    for name in ("saved.jfif", "c.jpg_large", "no_suffix"):
        (root / "b" / name).write_bytes(good + name.encode())
    for name in ("a.mp4", "b.MP4", "notes.txt", ".x.jpg", "none"):
        (root / "a" / name).touch()
    (root / "__MACOSX").mkdir()
    (root / ".git").mkdir()
    write_picture(root / "stray.jpg", 5)
    source = open_folder(root)
    assert source.class_names == ("a", "b")
    assert sum(source.split_sizes.values()) == 28
    assert "a/deep/er/alpha.PNG" in _split_of(source)
    assert source.notes[1].startswith("skipped: 2 .mp4 files, 1 ")
    for kind in (
        *(".txt file,", "file without a suffix"),
        *("hidden file", "image in no class folder"),
    ):
        assert f"1 {kind}" in source.notes[1]


@pytest.mark.parametrize("validation", ["validation", "val", "Valid"])
def test_split_folders_are_used_as_they_are(tmp_path, open_folder, validation):
    root = tmp_path / "x"
    for split, count in (("train", 6), (validation, 2), ("test", 3)):
        write_classes(root / split, {"a": count, "b": count})
    source = open_folder(root)
    assert source.split_sizes == {"train": 12, "validation": 4, "test": 6}
    for name, split in _split_of(source).items():
        folder = name.partition("/")[0]
        assert split == ("validation" if folder == validation else folder)


def test_missing_splits_are_carved_out_of_train(tmp_path, open_folder):
    root = write_classes(tmp_path / "x" / "train", {"a": 20, "b": 20}).parent
    assert open_folder(root).split_sizes == {
        "train": 28,
        "validation": 6,
        "test": 6,
    }
    write_classes(root / "test", {"a": 1, "b": 2})
    source = open_folder(root, split_fractions="0.4,0.4,0.2")
    assert source.split_sizes == {"train": 20, "validation": 20, "test": 3}
    assert "divided here into train, validation" in source.notes[0]


def test_near_duplicates_across_given_splits_are_reported(
    tmp_path, open_folder
):
    root = tmp_path / "x"
    for split in ("train", "validation", "test"):
        write_classes(root / split, {"a": 3, "b": 3})
    write_picture(root / "train" / "a" / "twin.jpg", 0, picture(7))
    write_picture(root / "test" / "b" / "twin.png", 0, picture(7))
    source = open_folder(root)
    found = audit_lib.audit(source, source.scan())["near_duplicates"]
    assert found["num_pairs_across_splits"] == 1
    assert found["num_pairs_across_classes"] == 1
    (pair,) = found["pairs"]
    assert pair["ids"] == ["test/b/twin.png", "train/a/twin.jpg"]


def test_near_duplicates_stay_together(tmp_path, open_folder):
    root = write_classes(tmp_path / "x", {"a": 30, "b": 30})
    for k in range(0, 30, 3):
        twin = cv2.imread(str(root / "a" / f"{k:03d}.jpg"))
        write_picture(root / "a" / f"twin_{k:03d}.png", 0, twin)
    for seed in range(3):
        splits = _split_of(open_folder(root, split_seed=seed))
        for k in range(0, 30, 3):
            assert splits[f"a/{k:03d}.jpg"] == splits[f"a/twin_{k:03d}.png"]


def test_a_group_larger_than_a_split_bends_the_sizes(tmp_path, open_folder):
    root = write_classes(tmp_path / "x", {"a": 4, "b": 10})
    for k in range(16):
        write_picture(root / "a" / f"burst_{k}.png", 0, picture(5))
    source = open_folder(root)
    splits = _split_of(source)
    assert len({splits[f"a/burst_{k}.png"] for k in range(16)}) == 1
    assert all(source.split_sizes.values())


def test_a_file_that_cannot_be_read_is_tried_again(
    flat, open_folder, monkeypatch
):
    """A denied permission says nothing about the image."""
    bad = flat / "rose" / "003.jpg"
    read_bytes = pathlib.Path.read_bytes

    def denied(path):
        if path == bad:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", denied)
        source = open_folder(flat)
    assert sum(source.split_sizes.values()) == 29
    assert "first rose/003.jpg (Permission denied)" in source.notes[-1]
    scanned = []
    source = open_folder(flat, on_scanned=scanned.append)
    assert sum(source.split_sizes.values()) == 30
    # The others are known.
    assert scanned == [1]


def test_undecodable_images_are_left_out_and_reported(flat, open_folder):
    good = (flat / "rose" / "000.jpg").read_bytes()
    (flat / "rose" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (flat / "lily" / "text.png").write_text("no image")
    (flat / "lily" / "gone.jpg").symlink_to(flat / "nowhere.jpg")
    source = open_folder(flat)
    assert sum(source.split_sizes.values()) == 30
    assert {k for k, s in _split_of(source).items() if not s} == {
        "lily/gone.jpg",
        "lily/text.png",
        "rose/cut.jpg",
    }
    assert "3 of 33 files can't be decoded" in source.notes[-1]
    listed = audit_lib.audit(source, source.scan())["undecodable"]
    assert [(f["id"], f["split"]) for f in listed] == [
        ("lily/gone.jpg", ""),
        ("lily/text.png", ""),
        ("rose/cut.jpg", ""),
    ]


@pytest.mark.parametrize("ratio", [1, 3])
def test_a_large_photograph_cut_short_is_found(tmp_path, open_folder, ratio):
    root = write_classes(tmp_path / "x", {"a": 5, "b": 5})
    large = cv2.resize(picture(1), (1600 // ratio, 1200 // ratio))
    write_picture(root / "a" / "large.jpg", 0, large)
    assert _split_of(open_folder(root))["a/large.jpg"]
    data = (root / "a" / "large.jpg").read_bytes()
    (root / "a" / "large.jpg").write_bytes(data[: int(len(data) * 0.7)])
    assert not _split_of(open_folder(root))["a/large.jpg"]


def test_damaged_images_are_used_and_named_also_from_the_cache(
    flat, open_folder
):
    good = (flat / "rose" / "000.jpg").read_bytes()
    (flat / "rose" / "last.jpg").write_bytes(good[:-2])
    for _ in range(2):
        source = open_folder(flat)
        assert sum(source.split_sizes.values()) == 31
        (found,) = audit_lib.audit(source, source.scan())["damaged"]
        assert found["id"] == "rose/last.jpg"
        assert found["split"] == _split_of(source)["rose/last.jpg"]
        assert found["error"] == "Premature end of JPEG file"


def _no_train(root):
    (root / "rose").rename(root / "test")
    (root / "lily").rename(root / "validation")


def _two_validations(root):
    for name in ("train", "val", "validation"):
        write_classes(root / name, {"a": 2, "b": 2})
    _remove_classes(root)


def _remove_classes(root):
    for name in ("rose", "lily"):
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()


def _splits(root, **classes):
    for split, counts in classes.items():
        write_classes(root / split, counts)
    _remove_classes(root)


TWO = {"a": 3, "b": 3}

MISTAKES = {
    "mixed": (
        lambda root: write_classes(root / "train", TWO),
        "class folders alone, or split folders",
    ),
    "test beside classes": (
        lambda root: write_classes(root / "test", TWO),
        "got test, lily, rose",
    ),
    "no train": (_no_train, "with train; got test, validation"),
    "two validations": (
        _two_validations,
        "each once, with train; got train, val, validation",
    ),
    "unknown split": (
        lambda root: _splits(root, train=TWO, holdout=TWO),
        "got train, holdout",
    ),
    "class in test alone": (
        lambda root: _splits(root, train=TWO, test={**TWO, "c": 2}),
        "train and test differ in c",
    ),
    "class not in test": (
        lambda root: _splits(root, train={**TWO, "c": 2}, test=TWO),
        "train and test differ in c",
    ),
    "empty split": (
        lambda root: _splits(root, train=TWO, test={"a": 0, "b": 0}),
        "test holds none",
    ),
    "empty class": (
        lambda root: (root / "tulip").mkdir(),
        "tulip holds none",
    ),
    "one name in two forms": (
        lambda root: [(root / n).mkdir() for n in ("ros\xe9", "rose\u0301")],
        "are two folders of one name",
    ),
    "another case in test": (
        lambda root: _splits(root, train=TWO, test={"A": 2, "b": 2}),
        "train and test differ in A, a",
    ),
    "no class": (_remove_classes, "at least 2 classes; got 0"),
    "one level too high": (
        lambda root: _splits(root, photos=TWO),
        "did you mean folder:",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_layout_mistakes_get_one_line(flat, open_folder, mistake):
    make, expected = MISTAKES[mistake]
    make(flat)
    with pytest.raises(ConfigError) as caught:
        open_folder(flat)
    message = str(caught.value)
    assert expected in message
    assert f"--dataset=folder:{flat}" in message
    assert "\n" not in message


def test_both_forms_of_a_name_are_one_class(tmp_path, open_folder):
    """macOS writes accents apart from their letters; other systems don't."""
    sources = []
    for place, forms in (("linux", ("NFC", "NFC")), ("mac", ("NFC", "NFD"))):
        root = tmp_path / place / "x"
        for split, form in zip(("train", "test"), forms, strict=True):
            names = [unicodedata.normalize(form, n) for n in ("zé", "ü", "z")]
            write_classes(root / split, dict.fromkeys(names, 10))
            for name in names:
                file = unicodedata.normalize(form, "ö.jpg")
                (root / split / name / "000.jpg").rename(
                    root / split / name / file
                )
        sources.append(open_folder(root))
    linux, mac = sources
    assert mac.class_names == linux.class_names == ("z", "zé", "ü")
    assert mac.name == linux.name
    for split in linux.split_sizes:
        assert mac.fingerprints(split) == linux.fingerprints(split)
        for a, b in zip(_rows(mac, split), _rows(linux, split), strict=True):
            assert a == b


def test_files_that_differ_by_the_form_alone_are_two_images(flat, open_folder):
    for seed, name in enumerate(("\xe9.jpg", "e\u0301.jpg")):
        write_picture(flat / "rose" / name, seed)
    assert len(_split_of(open_folder(flat))) == 32


def test_names_that_are_easily_confused_get_a_hint(flat, open_folder):
    write_classes(flat, {"Rose ": 3})
    source = open_folder(flat)
    assert source.class_names == ("Rose ", "lily", "rose")
    assert "blanks: 'Rose ' and 'rose'" in source.notes[-1]


def test_class_names_of_any_language_are_kept(tmp_path, open_folder):
    # A narrow no-break space, Persian and emoji joiners: all are letters' own.
    names = ["50\u202f%", "گل\u200cسرخ", "👩\u200d🌾", "a, b", "[x]", "-"]
    root = write_classes(tmp_path / "x", dict.fromkeys(names, 4))
    assert open_folder(root).class_names == tuple(sorted(names))


def test_numbers_before_names_belong_to_the_names(tmp_path, open_folder):
    root = write_classes(tmp_path / "x", {"0_rose": 4, "1_lily": 4})
    assert open_folder(root).class_names == ("0_rose", "1_lily")


def test_the_reason_for_an_empty_class_is_reported(flat, open_folder):
    (flat / "tulip").mkdir()
    (flat / "tulip" / "1.mp4").touch()
    with pytest.raises(ConfigError, match=r"tulip holds none \(.*1 \.mp4"):
        open_folder(flat)


def test_a_class_of_which_nothing_decodes(flat, open_folder):
    (flat / "tulip").mkdir()
    (flat / "tulip" / "1.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="leaves none for tulip") as caught:
        open_folder(flat)
    assert "first tulip/1.jpg" in str(caught.value)


def test_mostly_undecodable_is_an_error(flat, open_folder):
    for k in range(31):
        (flat / "rose" / f"bad{k}.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"31 of 61 files can't be decoded"):
        open_folder(flat)


def test_too_few_images(tmp_path, open_folder):
    root = write_classes(tmp_path / "x", {"a": 1, "b": 1})
    with pytest.raises(UserError, match="--split_fractions") as caught:
        open_folder(root)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path, open_folder):
    with pytest.raises(ConfigError, match="must name a folder"):
        open_folder(tmp_path / "nowhere")


def test_a_pipe_is_not_waited_for(flat, open_folder):
    os.mkfifo(flat / "rose" / "pipe.jpg")
    notes = "\n".join(open_folder(flat).notes)
    assert "1 pipe or device" in notes


def test_links_are_followed_but_not_in_circles(tmp_path, open_folder):
    other = write_classes(tmp_path / "elsewhere", {"more": 5})
    root = write_classes(tmp_path / "x", {"a": 5, "b": 5})
    (root / "a" / "linked").symlink_to(other / "more")
    (root / "a" / "up").symlink_to(root / "a")
    assert sum(open_folder(root).split_sizes.values()) == 15


def test_names_that_are_not_utf8_are_reported(flat, open_folder):
    path = os.fsencode(flat / "rose") + b"/\xff.jpg"
    with open(path, "wb") as file:
        file.write((flat / "rose" / "000.jpg").read_bytes())
    source = open_folder(flat)
    assert sum(source.split_sizes.values()) == 30
    assert any(
        "1 image with a name that is not UTF-8" in n for n in source.notes
    )


def test_only_what_changed_is_decoded_again(flat, open_folder, monkeypatch):
    scanned = []
    first = open_folder(flat, scanned.append)
    assert scanned == [30]
    monkeypatch.setattr(near_duplicates, "find_near_duplicates", pytest.fail)
    again = open_folder(flat, scanned.append)
    assert scanned == [30]
    assert again.name == first.name
    audit = audit_lib.audit(again, again.scan())
    assert audit == audit_lib.audit(first, first.scan())
    monkeypatch.undo()
    write_picture(flat / "rose" / "000.jpg", 12345)
    assert open_folder(flat, scanned.append).name != first.name
    assert scanned == [30, 1]


def test_damaged_cache_is_made_anew(flat, open_folder, tmp_path):
    name = open_folder(flat).name
    files = list((tmp_path / "data" / "folders").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(b"PK damaged")
    assert open_folder(flat).name == name
    assert all(file.stat().st_size > 100 for file in files)


def test_a_scan_that_was_killed_goes_on(flat, open_folder, monkeypatch):
    monkeypatch.setattr(scan, "_CHUNK", 10)
    monkeypatch.setattr(scan, "_SAVE_SECS", 0.0)

    def interrupt(num_images):
        if num_images == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_folder(flat, on_scanned=interrupt)
    scanned = []
    open_folder(flat, on_scanned=scanned.append)
    # The first ten were kept.
    assert scanned == [10, 20]


def test_digest_changes_with_images_classes_and_splits(flat, open_folder):
    names = {open_folder(flat).name, open_folder(flat, split_seed=1).name}
    write_picture(flat / "rose" / "new.jpg", 777)
    names.add(open_folder(flat).name)
    (flat / "rose" / "000.jpg").rename(flat / "lily" / "rose0.jpg")
    names.add(open_folder(flat).name)
    assert len(names) == 4


def test_digest_is_the_same_in_another_place(flat, open_folder, tmp_path):
    name = open_folder(flat).name
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    flat.rename(moved)
    for file in moved.rglob("*.jpg"):
        os.utime(file, (1, 1))
    assert open_folder(moved).name == name


def test_what_is_in_no_split_does_not_change_the_digest(flat, open_folder):
    name = open_folder(flat).name
    (flat / "rose" / "broken.jpg").write_bytes(b"x")
    (flat / "rose" / "notes.txt").touch()
    assert open_folder(flat).name == name


def test_a_folder_that_cannot_be_listed_is_an_error(
    flat, open_folder, monkeypatch
):
    (flat / "rose" / "private").mkdir()
    scandir = os.scandir

    def refuse(path="."):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"can't be read.*private"):
        open_folder(flat)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_class_folder_whose_name_can_t_be_written_is_refused(
    flat, open_folder, name
):
    folder = os.path.join(os.fsencode(flat), name)
    os.mkdir(folder)
    with pytest.raises(ConfigError, match="a class folder's name must be") as e:
        open_folder(flat)
    assert "\n" not in str(e.value)


def test_images_in_a_folder_whose_name_is_not_utf8_are_skipped(
    flat, open_folder
):
    folder = os.path.join(os.fsencode(flat), b"rose", b"caf\xe9", b"inner")
    os.makedirs(folder)
    picture = (flat / "rose" / "000.jpg").read_bytes()
    with open(os.path.join(folder, b"x.jpg"), "wb") as file:
        file.write(picture)
    source = open_folder(flat)
    assert any("a name that is not UTF-8" in note for note in source.notes)
    assert sum(source.split_sizes.values()) == 30
