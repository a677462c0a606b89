"""Tests of --split_seed and --near_duplicates, through the sources."""

from __future__ import annotations

import json

import pytest

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data.oxford_flowers17 import archive, splits
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import ConfigError
from tests.test_folder_source import write_classes

SIZES = {"train": 800, "validation": 260, "test": 260, "unused": 40}
NAMES = [archive.image_name(n) for n in range(1, 1361)]


@pytest.fixture(scope="module")
def open_flowers(data_dir, dummy_archive):
    """Returns `open_flowers(config name, **options) -> Source`."""

    def open_flowers(config_name="seeded", **options) -> Source:
        drawn = config_name == "synthetic"
        return open_source(
            DataConfig(
                dataset=f"oxford_flowers17/{config_name}",
                archive="" if drawn else str(dummy_archive),
                data_dir=str(data_dir),
                **options,
            )
        )

    return open_flowers


def _rows(source: Source) -> dict[str, tuple[str, int, bytes]]:
    """Returns `{id: (split, label, encoded image)}`, each id once."""
    rows = {}
    for split, size in source.split_sizes.items():
        examples = list(source.read(split).as_numpy_iterator())
        assert len(examples) == size
        for example in examples:
            name = example["id"].decode()
            assert name not in rows
            rows[name] = (split, int(example["label"]), example["image"])
    return rows


def _split_of(source: Source) -> dict[str, str]:
    return {name: row[0] for name, row in _rows(source).items()}


def _make_splits(seed: int, pairs) -> dict[str, str]:
    """Returns what the archive's file names alone lead to."""
    labels = [
        flowers17.CLASS_NAMES.index(flowers17.class_name(n))
        for n in range(1, 1361)
    ]
    edges = [(a - 1, b - 1) for a, b in pairs]
    groups = splits.group_pairs(edges, 1360)
    return splits.make_splits(NAMES, labels, groups, SIZES, seed)


def test_seed_0_is_the_prepared_data_set_itself(open_flowers):
    source = open_flowers(split_seed=0)
    assert source.name == "oxford_flowers17/seeded/1.0.0"
    pairs = flowers17.known_near_duplicates()
    assert _split_of(source) == _make_splits(0, pairs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 7])
def test_a_seed_divides_as_the_archive_would_be(open_flowers, seed):
    source = open_flowers(split_seed=seed)
    assert source.split_sizes == SIZES
    pairs = flowers17.known_near_duplicates()
    rows = _rows(source)
    assert {n: row[0] for n, row in rows.items()} == _make_splits(seed, pairs)
    before = _rows(open_flowers())
    assert {n: row[1:] for n, row in rows.items()} == {
        n: row[1:] for n, row in before.items()
    }


@pytest.mark.slow
def test_drawn_flowers_are_divided_too(open_flowers):
    assert open_flowers("synthetic").name == "oxford_flowers17/synthetic/1.0.0"
    source = open_flowers("synthetic", split_seed=2)
    assert source.split_sizes == SIZES
    assert _split_of(source) == _make_splits(2, [])


@pytest.mark.slow
def test_order_is_the_data_set_s_whatever_the_seed(open_flowers):
    place = {name: k for k, name in enumerate(_rows(open_flowers()))}
    source = open_flowers(split_seed=1)
    for split in source.split_sizes:
        names = [
            example["id"].decode()
            for example in source.read(split).as_numpy_iterator()
        ]
        assert names == sorted(names, key=place.__getitem__)


@pytest.mark.slow
def test_names_tell_divisions_apart(open_flowers):
    options = [
        {},
        {"split_seed": 1},
        {"split_seed": 2},
        {"near_duplicates": "anywhere"},
        {"near_duplicates": "anywhere", "split_seed": 1},
    ]
    names = [open_flowers(**o).name for o in options]
    assert len(set(names)) == len(names)
    for name in names[1:]:
        assert name.startswith("oxford_flowers17/seeded/1.0.0@")
    assert names == [open_flowers(**o).name for o in options]


def _audit(source: Source) -> dict:
    return audit_lib.audit(source, source.scan())["near_duplicates"]


@pytest.mark.slow
def test_known_pairs_stay_together_or_lie_anywhere(open_flowers):
    known = {frozenset(p) for p in open_flowers().known_near_duplicates}
    assert len(known) == 132
    for seed in (0, 1):
        apart = open_flowers(near_duplicates="anywhere", split_seed=seed)
        assert apart.split_sizes == SIZES
        assert _split_of(apart) == _make_splits(seed, [])
        assert any("--near_duplicates=anywhere" in n for n in apart.notes)
        pairs = [
            pair
            for pair in _audit(apart)["pairs"]
            if frozenset(pair["ids"]) in known
        ]
        across = sum(len(set(pair["splits"])) > 1 for pair in pairs)
        # The median of 1000 such splits is 69.
        assert 45 <= across <= 90
    assert _audit(open_flowers(split_seed=1))["num_pairs_across_splits"] == 0


@pytest.mark.slow
def test_images_trained_on_are_known_in_another_division(open_flowers):
    whole, other = open_flowers(), open_flowers(split_seed=1)
    for source in (whole, other):
        marks = {s: source.fingerprints(s) for s in source.split_sizes}
        assert {s: len(m) for s, m in marks.items()} == SIZES
        assert len({m for split in marks.values() for m in split}) == 1360
    common = len(_names(whole, "test") & _names(other, "train"))
    marks = set(other.fingerprints("train"))
    assert common == sum(f in marks for f in whole.fingerprints("test")) > 50
    # Files of the same names, but other pictures.
    drawn = open_flowers("synthetic").fingerprints("test")
    assert marks.isdisjoint(drawn)


def _names(source: Source, split: str) -> set[str]:
    examples = source.read(split).as_numpy_iterator()
    return {example["id"].decode() for example in examples}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_seed": 3}, "--split_seed must be 0 for .* splits; got 3"),
        (
            {"near_duplicates": "anywhere"},
            "--near_duplicates must be together for .* got anywhere",
        ),
    ],
)
def test_what_comes_divided_is_not_divided(
    open_flowers, tmp_path, options, message
):
    root = tmp_path / "photos"
    for split in ("train", "validation", "test"):
        write_classes(root / split, {"a": 3, "b": 3})
    for opened in (
        lambda: open_flowers("official_1", **options),
        lambda: open_source(
            DataConfig(
                dataset=f"folder:{root}", data_dir=str(tmp_path), **options
            )
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            opened()
        assert "\n" not in str(caught.value)


def test_twins_of_a_folder_lie_anywhere_if_so_asked(tmp_path):
    root = write_classes(tmp_path / "photos", {"a": 40, "b": 40})
    for k in range(0, 40, 2):
        data = (root / "a" / f"{k:03d}.jpg").read_bytes()
        (root / "a" / f"twin_{k:03d}.jpg").write_bytes(data)
    found = {}
    for how in ("together", "anywhere"):
        source = open_source(
            DataConfig(
                dataset=f"folder:{root}",
                data_dir=str(tmp_path / "data"),
                near_duplicates=how,
            )
        )
        audit = _audit(source)
        assert audit["num_pairs"] == 20
        found[how] = source.name, audit["num_pairs_across_splits"]
    assert found["together"][1] == 0
    assert found["anywhere"][1] > 3
    assert found["together"][0] != found["anywhere"][0]


@pytest.mark.slow
def test_a_model_is_not_tested_on_what_another_seed_trained_it_on(
    run, tmp_path
):
    code, _, err = run("one", "--phase=transfer", "--split_seed=1")
    assert code == 0, err
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["dataset"].startswith("oxford_flowers17/seeded/1.0.0@")
    # The workdir remembers its seed.
    code, out, err = run("one", "--phase=evaluate")
    assert code == 0, err
    assert "--split_seed=1" in out
    evaluation = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    assert evaluation["dataset"] == config["dataset"]

    model = f"--model={tmp_path / 'one' / 'model_transfer.keras'}"
    for flags in (
        ["one", "--split_seed=0"],
        ["one", "--split_seed=2"],
        ["one", "--near_duplicates=anywhere"],
        ["one", "--dataset=oxford_flowers17/official_1"],
        ["other", model],
    ):
        code, _, err = run(flags[0], "--phase=evaluate", *flags[1:])
        assert code == 1, (flags, err)
        assert "trained on" in err
    for seed in (0, 2):
        code, _, err = run("one", "--phase=transfer", f"--split_seed={seed}")
        assert code == 1
        assert "the flags that divide them" in err

    # A workdir of the data set's own split stays what it was.
    assert run("zero", "--phase=transfer")[0] == 0
    for phase in ("evaluate", "transfer"):
        code, _, err = run("zero", f"--phase={phase}", "--split_seed=1")
        assert code == 1
        assert "the flags that divide them" in err


@pytest.mark.slow
def test_the_audit_tells_of_a_plain_split(run, tmp_path):
    code, out, err = run(
        "work", "--phase=prepare", "--near_duplicates=anywhere"
    )
    assert code == 0, err
    audit = json.loads((tmp_path / "work" / "audit.json").read_text())
    across = audit["near_duplicates"]["num_pairs_across_splits"]
    assert across > 40
    assert f"{across} pairs across splits" in out
