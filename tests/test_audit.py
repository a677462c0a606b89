"""Tests of the audit, and of opening a data set by its flags."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flowers17_tfdata import terminal
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import scan
from flowers17_tfdata.data.oxford_flowers17 import archive
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import ConfigError, UserError
from tests.fakes import FakeSource

SEEDED_SIZES = {"train": 800, "validation": 260, "test": 260, "unused": 40}


CLASS_NAMES = ("rose", "lily", "empty")


def audit(source) -> dict:
    return audit_lib.audit(source, source.scan())


def _image(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(40, 216, [7, 9, 3], np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


A, B, C, D = (_image(seed) for seed in range(4))


def _examples() -> dict[str, list[tuple[str, int, bytes]]]:
    return {
        "train": [
            ("a.jpg", 0, _jpeg(A)),
            ("broken.jpg", 0, _jpeg(B)[:300]),
            ("c.jpg", 1, _jpeg(C)),
            ("c_again.jpg", 1, _jpeg(C, quality=50)[:-2]),
        ],
        "test": [
            ("d.jpg", 1, _jpeg(cv2.resize(D, (40, 50)))),
            ("mirrored_a.jpg", 0, _jpeg(A[:, ::-1])),
        ],
    }


@pytest.fixture(scope="module")
def report() -> dict:
    """The audit of a fake source with planted faults."""
    return audit(FakeSource(CLASS_NAMES, _examples()))


def test_audit_counts(report):
    assert report["dataset"] == "fake/config/1.0.0"
    # Without the one that cannot be decoded.
    assert report["num_examples"] == 5
    assert report["splits"] == {
        "train": {
            "num_examples": 4,
            "per_class": {"rose": 2, "lily": 2, "empty": 0},
        },
        "test": {
            "num_examples": 2,
            "per_class": {"rose": 1, "lily": 1, "empty": 0},
        },
    }


def test_audit_sizes_are_of_the_decodable_images(report):
    assert report["image_sizes"] == {
        "height": {"minimum": 50, "median": 120.0, "maximum": 120},
        "width": {"minimum": 40, "median": 160.0, "maximum": 160},
    }


def test_audit_lists_undecodable_files(report):
    (entry,) = report["undecodable"]
    assert (entry["split"], entry["id"]) == ("train", "broken.jpg")
    assert entry["error"]
    assert "\n" not in entry["error"]


def test_audit_lists_and_shows_damaged_files(report, capsys):
    assert report["damaged"] == [
        {
            "split": "train",
            "id": "c_again.jpg",
            "error": "Premature end of JPEG file",
        }
    ]
    terminal.show_audit(report)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("damaged files, used all the same: 1")
    assert lines[at + 1] == "  train c_again.jpg: Premature end of JPEG file"
    terminal.show_audit(report | {"damaged": []})
    assert "damaged files" not in capsys.readouterr().out


def test_audit_finds_the_duplicate_that_straddles_splits(report):
    found = report["near_duplicates"]
    assert found["num_pairs"] == 2
    assert found["num_pairs_across_splits"] == 1
    assert found["num_groups"] == 2
    ids_and_splits = [(p["ids"], p["splits"]) for p in found["pairs"]]
    assert ids_and_splits == [
        (["a.jpg", "mirrored_a.jpg"], ["train", "test"]),
        (["c.jpg", "c_again.jpg"], ["train", "train"]),
    ]
    assert all(0 <= pair["distance"] <= 32 for pair in found["pairs"])


def test_audit_is_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_audit_adds_known_pairs_that_hashing_misses():
    source = FakeSource(
        CLASS_NAMES,
        _examples(),
        known_near_duplicates=(
            ("d.jpg", "c.jpg"),
            ("mirrored_a.jpg", "a.jpg"),
            ("a.jpg", "not_in_the_set.jpg"),
        ),
    )
    found = audit(source)["near_duplicates"]
    by_ids = {tuple(p["ids"]): p for p in found["pairs"]}
    assert len(by_ids) == found["num_pairs"] == 3
    assert by_ids["c.jpg", "d.jpg"]["distance"] is None
    assert by_ids["c.jpg", "d.jpg"]["splits"] == ["train", "test"]
    assert by_ids["a.jpg", "mirrored_a.jpg"]["distance"] is not None
    assert found["num_pairs_across_splits"] == 2
    # c_again.jpg, c.jpg and d.jpg are one group now.
    assert found["num_groups"] == 2


def test_audit_tells_examples_apart_whose_ids_repeat():
    # Data sets without file names count from 0 in every split.
    found = audit(
        FakeSource(
            CLASS_NAMES,
            {
                "train": [("0", 0, _jpeg(A)), ("1", 0, _jpeg(B))],
                "test": [("0", 0, _jpeg(C)), ("1", 0, _jpeg(B, quality=60))],
            },
        )
    )["near_duplicates"]
    (pair,) = found["pairs"]
    assert pair["ids"] == ["1", "1"]
    assert pair["splits"] == ["train", "test"]


def test_audit_of_nothing_but_undecodable_files():
    report = audit(
        FakeSource(CLASS_NAMES, {"train": [("a", 0, b"x"), ("b", 0, b"")]})
    )
    assert len(report["undecodable"]) == 2
    assert report["image_sizes"] == {}
    assert report["near_duplicates"]["num_pairs"] == 0


@pytest.mark.parametrize("data", [b"", b"not an image", _jpeg(A)[:300]])
def test_undecodable_image_does_not_stop_the_others(data):
    found = scan.scan_images([_jpeg(A), data, _jpeg(B)])
    assert list(found.errors) == [1]
    assert found.sizes.tolist() == [[120, 160], [0, 0], [120, 160]]
    assert not found.thumbnails[1].any()
    assert found.thumbnails[2].any()
    # The message is the decoder's, without the name of the op.
    for noise in ("__wrapped__", "job:localhost", "}}", "[Op:"):
        assert noise not in found.errors[1]


@pytest.fixture(scope="module")
def config(data_dir, dummy_archive) -> DataConfig:
    """The dummy archive, prepared in the folder that all tests share."""
    tfds.disable_progress_bar()
    config = DataConfig(data_dir=str(data_dir), archive=str(dummy_archive))
    open_source(config)
    return config


def _ids(source: Source, split: str) -> list[bytes]:
    return [e["id"] for e in source.read(split).as_numpy_iterator()]


def test_open_source(config, dummy_archive):
    source = open_source(config)
    assert source.name == "oxford_flowers17/seeded/1.0.0"
    assert source.split_sizes == SEEDED_SIZES
    assert len(source.class_names) == 17
    assert source.class_names[:2] == ("Buttercup", "Colts Foot")
    assert ("image_0002.jpg", "image_0042.jpg") in source.known_near_duplicates
    images = archive.read_archive(dummy_archive)
    for example in source.read("unused").as_numpy_iterator():
        assert set(example) == {"image", "label", "id"}
        assert example["image"] == images[example["id"].decode()]
        assert example["label"].dtype == np.int64


def test_reading_again_gives_the_same_order(config):
    first = _ids(open_source(config), "validation")
    assert len(set(first)) == 260
    again = open_source(DataConfig(data_dir=config.data_dir))
    assert _ids(again, "validation") == first
    assert _ids(again, "validation") == first
    # Classes are mixed on disk: stored order is not the archive's.
    assert first != sorted(first)


def test_reading_follows_the_files_one_after_another(dummy_archive, tmp_path):
    # A large data set has many files; the order must not depend on how many
    # are read at once, nor be drawn anew.
    builder = flowers17.Builder(
        config="official_1", data_dir=tmp_path, archive=str(dummy_archive)
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=5)
    )
    by_file = [
        example["file_name"]
        for shard in range(5)
        for example in tfds.as_numpy(
            builder.as_dataset(split=f"train[{shard}shard:{shard + 1}shard]")
        )
    ]
    assert len(set(by_file)) == 680
    source = open_source(
        DataConfig(
            dataset="oxford_flowers17/official_1", data_dir=str(tmp_path)
        )
    )
    assert _ids(source, "train") == by_file
    assert _ids(source, "train") == by_file


def test_audit_of_the_seeded_split(config):
    report = audit(open_source(config))
    assert report["num_examples"] == 1360
    assert report["undecodable"] == []
    found = report["near_duplicates"]
    assert found["num_pairs"] == 132
    assert found["num_pairs_across_splits"] == 0
    json.dumps(report, allow_nan=False)


def test_unknown_split(config):
    source = open_source(config)
    with pytest.raises(UserError) as caught:
        source.read("holdout")
    message = str(caught.value)
    assert "--split" in message
    assert "train, validation, test, unused" in message
    assert "'holdout'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "dataset",
    [
        "no_such_flowers",
        "oxford_flowers17/no_such_config",
        "not a name!",
        "oxford_flowers17:9.9.9",
    ],
)
def test_unknown_dataset(tmp_path, dataset):
    with pytest.raises(ConfigError) as caught:
        open_source(DataConfig(dataset=dataset, data_dir=str(tmp_path)))
    message = str(caught.value)
    assert "--dataset" in message
    assert repr(dataset) in message
    assert "seeded, official_1" in message
    assert "\n" not in message


def test_a_folder_without_its_prefix_gets_a_hint(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ConfigError, match=r"mean --dataset=folder:\.\./photo"):
        open_source(DataConfig(dataset="../photos", data_dir=str(tmp_path)))


def test_another_archive_than_prepared(config, dummy_archive, tmp_path):
    for name, data in archive.read_archive(dummy_archive).items():
        (tmp_path / name).write_bytes(data)
    same = DataConfig(data_dir=config.data_dir, archive=str(tmp_path))
    # Another packing of the same images is the same archive.
    assert open_source(same).split_sizes == SEEDED_SIZES
    (tmp_path / "image_0001.jpg").write_bytes(_jpeg(A))
    with pytest.raises(UserError) as caught:
        open_source(same)
    message = str(caught.value)
    assert f"--archive {tmp_path}" in message
    assert "--data_dir" in message
    assert "\n" not in message


def test_data_dir_that_cannot_be_written(dummy_archive, tmp_path):
    file = tmp_path / "file"
    file.touch()
    config = DataConfig(
        dataset="oxford_flowers17/official_1",
        archive=str(dummy_archive),
        data_dir=str(file / "data"),
    )
    with pytest.raises(UserError, match="--data_dir") as caught:
        open_source(config)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named(dummy_archive, tmp_path, monkeypatch):
    def full(builder):
        # TFDS puts it in the place of TensorFlow's ResourceExhaustedError.
        raise RuntimeError(
            "ResourceExhaustedError: Failed to finalize writing of split "
            '"train": /d/incomplete/x.tfrecord; No space left on device'
        )

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    config = DataConfig(archive=str(dummy_archive), data_dir=str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_source(config)
    message = str(caught.value)
    assert f"--data_dir ({tmp_path}" in message
    assert message.endswith(": No space left on device")
