"""Tests of dividing a data set's train split."""

from __future__ import annotations

import collections

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import splitting
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import UserError

THIRDS = {"train": 0.7, "validation": 0.15, "test": 0.15}


def _assign(labels, groups=None, fractions=THIRDS, seed=0):
    ids = [f"{k:03d}" for k in range(len(labels))]
    groups = list(range(len(labels))) if groups is None else groups
    pool = splitting.Pool(ids, labels, groups, class_names=())
    return splitting.assign_fractions(pool, fractions, seed)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["train"], {"train": 0.6, "validation": 0.3, "test": 0.1}),
        (["train", "test"], {"train": 2 / 3, "validation": 1 / 3}),
        (["train", "validation"], {"train": 6 / 7, "test": 1 / 7}),
        (["train", "validation", "test", "unused"], {}),
    ],
)
def test_fractions_of_what_is_missing(present, expected):
    config = DataConfig(split_fractions="0.6,0.3,0.1")
    got = splitting.fractions_of_train(config, present)
    assert got == pytest.approx(expected)
    assert list(got) == list(expected)


def test_every_class_is_divided_in_proportion():
    labels = [0] * 100 + [1] * 40 + [2] * 20
    counts = collections.Counter(
        (labels[int(i)], split) for i, split in _assign(labels).items()
    )
    assert sum(counts.values()) == 160
    for label, size in ((0, 100), (1, 40), (2, 20)):
        for split, fraction in THIRDS.items():
            assert abs(counts[label, split] - size * fraction) < 1


def test_groups_stay_together_also_across_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200).tolist()
    groups = rng.integers(0, 80, 200).tolist()
    for seed in range(5):
        split_of = _assign(labels, groups, seed=seed)
        splits = collections.defaultdict(set)
        for image_id, split in split_of.items():
            splits[groups[int(image_id)]].add(split)
        assert all(len(s) == 1 for s in splits.values())


def test_another_seed_is_another_split_and_the_same_is_the_same():
    labels = [0, 1] * 50
    assert _assign(labels) == _assign(labels)
    assert _assign(labels) != _assign(labels, seed=1)


def test_the_order_of_listing_does_not_matter():
    ids = [f"{k:03d}" for k in range(100)]
    labels = [k % 3 for k in range(100)]
    groups = [k // 2 for k in range(100)]
    order = np.random.default_rng(0).permutation(100)
    pool = splitting.Pool(ids, labels, groups, class_names=())
    shuffled = splitting.Pool(
        *([column[k] for k in order] for column in pool[:3]), class_names=()
    )
    assert splitting.assign_fractions(
        shuffled, THIRDS, 0
    ) == splitting.assign_fractions(pool, THIRDS, 0)


@pytest.mark.parametrize("fractions", [THIRDS, {"train": 0.2, "test": 0.8}])
def test_train_gets_one_of_every_class(fractions):
    labels = [0] * 60 + [1] * 60 + [2] + [3] * 2 + [4] * 3
    for seed in range(20):
        split_of = _assign(labels, fractions=fractions, seed=seed)
        trained = {labels[int(i)] for i, s in split_of.items() if s == "train"}
        assert trained == {0, 1, 2, 3, 4}


def test_a_split_without_images_is_an_error():
    with pytest.raises(UserError, match="--split_fractions") as caught:
        _assign([0, 1])
    assert "\n" not in str(caught.value)


def _picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(40, 216, [7, 9, 3], np.uint8)
    return cv2.resize(coarse, (40, 30), interpolation=cv2.INTER_CUBIC)


class TwoToned(tfds.core.GeneratorBasedBuilder):
    """Forty pictures of two classes; each fourth is the one before it."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = ("train",)

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["dark", "light"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in self.SPLITS}

    def _generate_examples(self):
        for k in range(40):
            seed = k - 1 if k % 4 == 3 else k
            yield k, {"image": _picture(seed), "label": k // 2 % 2}


class TwoTonedTested(TwoToned):
    """The same, with a test split."""

    SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A folder that the builders above are prepared in."""
    tfds.disable_progress_bar()
    return tmp_path_factory.mktemp("tfds")


def _open(tfds_dir, name, on_scanned=None, **options) -> Source:
    config = DataConfig(dataset=name, data_dir=str(tfds_dir), **options)
    return open_source(config, on_scanned)


def _rows(source, split) -> list[dict]:
    return list(source.read(split).as_numpy_iterator())


def test_a_tfds_set_of_train_alone_gets_the_other_splits(tfds_dir):
    source = _open(tfds_dir, "two_toned")
    assert set(source.split_sizes) == {"train", "validation", "test"}
    assert source.name.startswith("two_toned/1.0.0@")
    assert "divided here into train, validation, test" in source.notes[0]
    builder = tfds.builder("two_toned", data_dir=tfds_dir)
    whole = tfds.as_numpy(
        builder.as_dataset(
            split="train", decoders={"image": tfds.decode.SkipDecoding()}
        )
    )
    seen = {}
    for split, size in source.split_sizes.items():
        rows = _rows(source, split)
        assert len(rows) == size
        assert len({row["label"] for row in rows}) == 2
        for row in rows:
            seen[row["id"]] = (row["image"], row["label"], split)
    assert sorted((row["image"], row["label"]) for row in whole) == sorted(
        row[:2] for row in seen.values()
    )
    split_of_picture = collections.defaultdict(set)
    for image, _, split in seen.values():
        split_of_picture[image].add(split)
    assert len(split_of_picture) == 30
    assert all(len(splits) == 1 for splits in split_of_picture.values())


def test_a_tfds_test_split_is_left_as_it_is(tfds_dir):
    source = _open(tfds_dir, "two_toned_tested")
    assert source.split_sizes["test"] == 40
    assert source.split_sizes["train"] + source.split_sizes["validation"] == 40
    assert len(_rows(source, "test")) == 40


def test_tfds_images_are_decoded_once(tfds_dir):
    name = _open(tfds_dir, "two_toned").name
    other = _open(tfds_dir, "two_toned", split_seed=1).name
    assert other != name
    scanned = []
    assert _open(tfds_dir, "two_toned", scanned.append).name == name
    again = _open(tfds_dir, "two_toned", scanned.append, split_seed=1)
    assert again.name == other
    assert scanned == []


def test_a_tfds_set_prepared_anew_is_decoded_again(tfds_dir):
    _open(tfds_dir, "two_toned")
    for file in (tfds_dir / "two_toned" / "1.0.0").iterdir():
        file.touch()
    scanned = []
    _open(tfds_dir, "two_toned", scanned.append)
    assert scanned == [40]
