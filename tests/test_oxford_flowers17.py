"""Tests of the TFDS builder: offline, on the dummy archive beside it."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from scipy import io as scipy_io

from flowers17_tfdata.data.oxford_flowers17 import archive, splits, synthetic
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.oxford_flowers17.errors import (
    DatasetError,
    DownloadFailed,
)

REPOSITORY = pathlib.Path(__file__).parents[1]
DUMMY_DATA = pathlib.Path(flowers17.__file__).parent / "dummy_data"
ARCHIVE = DUMMY_DATA / "17flowers.tgz"
SPLITS = DUMMY_DATA / "datasplits.mat"
ARCHIVE_DIGEST = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
SPLITS_DIGEST = hashlib.md5(SPLITS.read_bytes()).hexdigest()
SEEDED_SIZES = {"train": 800, "validation": 260, "test": 260, "unused": 40}
OFFICIAL_SIZES = {"train": 680, "validation": 340, "test": 340}
OFFICIAL_KEYS = {"train": "trn", "validation": "val", "test": "tst"}


@pytest.fixture(autouse=True)
def no_progress_bar():
    tfds.disable_progress_bar()
    yield
    tfds.enable_progress_bar()


@pytest.fixture
def download(monkeypatch) -> mock.Mock:
    """The download manager's `download`: serves the dummy files."""
    served = mock.Mock(side_effect=lambda url: DUMMY_DATA / url.split("/")[-1])
    monkeypatch.setattr(tfds.download.DownloadManager, "download", served)
    monkeypatch.setattr(requests, "head", mock.Mock())
    return served


@pytest.fixture
def dummy_digests(monkeypatch) -> None:
    """The dummy files' digests stand in for the published ones."""
    _set_dummy_digests(monkeypatch.setattr)


def _set_dummy_digests(setattr_) -> None:
    digests = {
        "17flowers.tgz": ("sha256", ARCHIVE_DIGEST),
        "datasplits.mat": ("md5", SPLITS_DIGEST),
    }
    setattr_(archive, "DIGESTS", digests)


def _prepare(
    config: str, data_dir, archive_path: str = ""
) -> tfds.core.DatasetBuilder:
    builder = flowers17.Builder(
        config=config, data_dir=data_dir, archive=str(archive_path)
    )
    builder.download_and_prepare()
    return builder


def _examples(builder, split: str) -> list[dict]:
    dataset = builder.as_dataset(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return list(tfds.as_numpy(dataset))


def _image_ids(builder, split: str) -> list[int]:
    return sorted(int(e["image_id"]) for e in _examples(builder, split))


def _error_line(config: str, data_dir, archive_path: str = "") -> str:
    """Returns the one line that preparing fails with; nothing is left."""
    with pytest.raises(DatasetError) as caught:
        _prepare(config, data_dir, archive_path)
    message = str(caught.value)
    assert "\n" not in message
    _assert_nothing_prepared(config, data_dir)
    return message


def _assert_nothing_prepared(config: str, data_dir) -> None:
    builder = flowers17.Builder(config=config, data_dir=data_dir)
    assert not builder.data_path.exists()
    left = [p.name for p in pathlib.Path(data_dir).rglob("*") if p.is_file()]
    assert not [n for n in left if "tfrecord" in n or "dataset_info" in n]


class SeededConfigTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks, the archive's digest verified."""

    DATASET_CLASS = flowers17.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("seeded",)
    SPLITS = SEEDED_SIZES
    DL_DOWNLOAD_RESULT = "17flowers.tgz"
    # archive.py holds the digests: TFDS' own would not name --archive.
    SKIP_CHECKSUMS = True

    def setUp(self):
        super().setUp()
        monkeypatch = pytest.MonkeyPatch()
        self.addCleanup(monkeypatch.undo)
        _set_dummy_digests(monkeypatch.setattr)


class OfficialConfigTest(tfds.testing.DatasetBuilderTestCase):
    """TFDS' own checks, with a local archive and datasplits.mat beside it."""

    DATASET_CLASS = flowers17.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("official_1",)
    SPLITS = OFFICIAL_SIZES
    # No such file: the local ones must do.
    DL_DOWNLOAD_RESULT = "not_to_be_downloaded"
    SKIP_CHECKSUMS = True

    def _make_builder(self, config=None):
        return flowers17.Builder(
            data_dir=self.tmp_dir, config=config, archive=str(ARCHIVE)
        )


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> tfds.core.DatasetBuilder:
    """The seeded config of the local dummy archive."""
    return _prepare("seeded", tmp_path_factory.mktemp("seeded"), ARCHIVE)


def test_example_fields_agree_with_the_archive(seeded):
    images = archive.read_archive(ARCHIVE)
    seen = set()
    for split in SEEDED_SIZES:
        for example in _examples(seeded, split):
            name = example["file_name"].decode()
            number = int(example["image_id"])
            assert name == f"image_{number:04d}.jpg"
            # The stored bytes are the archive's: no second JPEG generation.
            assert example["image"] == images[name]
            label = flowers17.CLASS_NAMES[example["label"]]
            assert label == flowers17.class_name(number)
            seen.add(name)
    assert seen == set(images)


def test_seeded_split_is_that_of_make_splits(seeded):
    pairs = [(a - 1, b - 1) for a, b in flowers17.known_near_duplicates()]
    expected = _make_splits(splits.group_pairs(pairs, 1360))
    for split in SEEDED_SIZES:
        assert _image_ids(seeded, split) == expected[split]


def _make_splits(groups) -> dict[str, list[int]]:
    split_of = splits.make_splits(
        [f"image_{n:04d}.jpg" for n in range(1, 1361)],
        [
            flowers17.CLASS_NAMES.index(flowers17.class_name(n))
            for n in range(1, 1361)
        ],
        groups,
        SEEDED_SIZES,
        0,
    )
    members = collections.defaultdict(list)
    for name in sorted(split_of):
        members[split_of[name]].append(archive.image_number(name))
    return members


def test_supervised_pair_and_metadata(seeded):
    assert seeded.info.supervised_keys == ("image", "label")
    assert seeded.info.features["label"].names == list(flowers17.CLASS_NAMES)
    reopened = flowers17.Builder(
        config="seeded", data_dir=seeded.data_path.parents[2]
    )
    assert reopened.info.metadata["content_digest"] == archive.content_digest(
        archive.read_archive(ARCHIVE)
    )


def test_official_split_is_downloaded_verified_and_followed(
    download, dummy_digests, tmp_path
):
    builder = _prepare("official_3", tmp_path)
    assert [call.args[0] for call in download.call_args_list] == [
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/datasplits.mat",
    ]
    _assert_follows_mat(builder, 3)


def test_official_split_of_a_local_archive_needs_no_download(
    download, tmp_path
):
    builder = _prepare("official_2", tmp_path, ARCHIVE)
    download.assert_not_called()
    _assert_follows_mat(builder, 2)


def _assert_follows_mat(builder, k: int) -> None:
    numbers = scipy_io.loadmat(SPLITS)
    assert set(builder.info.splits) == set(OFFICIAL_KEYS)
    for split, key in OFFICIAL_KEYS.items():
        expected = np.sort(numbers[f"{key}{k}"].ravel()).tolist()
        assert _image_ids(builder, split) == expected


def test_synthetic_images_are_split_without_the_photographs_pairs(
    monkeypatch, download, tmp_path
):
    images = archive.read_archive(ARCHIVE)
    # Drawing all 1360 takes long; which images they are does not matter here.
    monkeypatch.setattr(
        synthetic, "iter_synthetic_images", lambda seed: iter(images.items())
    )
    builder = _prepare("synthetic", tmp_path)
    download.assert_not_called()
    expected = _make_splits(range(1360))
    for split in SEEDED_SIZES:
        assert _image_ids(builder, split) == expected[split]


@pytest.mark.parametrize("config", ["seeded", "official_1"])
def test_failing_download_names_the_way_out(download, tmp_path, config):
    download.side_effect = ConnectionError("no route\nto host")
    message = _error_line(config, tmp_path)
    assert "no route to host" in message
    assert "--archive" in message
    assert "17flowers.tgz" in message


def test_unreachable_host_is_told_at_once(download, monkeypatch, tmp_path):
    """TFDS alone tries again for minutes."""
    no_route = mock.Mock(side_effect=requests.ConnectionError("no route"))
    monkeypatch.setattr(requests, "head", no_route)
    with pytest.raises(DownloadFailed, match="no route"):
        _prepare("seeded", tmp_path)
    download.assert_not_called()
    # What was downloaded before needs no host.
    folder = tmp_path / "downloads"
    folder.mkdir(exist_ok=True)
    (folder / "robots.ox.ac.uk_17_17flowersXYZ.tgz").touch()
    download.side_effect = ConnectionError("asked all the same")
    with pytest.raises(DownloadFailed, match="asked all the same"):
        _prepare("seeded", tmp_path)


def test_replaced_archive_is_refused(download, tmp_path):
    # The published digest stays: the dummy archive is not that file.
    message = _error_line("seeded", tmp_path)
    assert ARCHIVE_DIGEST in message
    assert archive.DIGESTS["17flowers.tgz"][1] in message
    assert "--archive" in message


def test_replaced_splits_file_is_refused(
    download, dummy_digests, monkeypatch, tmp_path
):
    other = ("md5", "0" * 32)
    monkeypatch.setitem(archive.DIGESTS, "datasplits.mat", other)
    message = _error_line("official_1", tmp_path)
    assert SPLITS_DIGEST in message
    assert "0" * 32 in message
    assert "datasplits.mat" in message


def test_published_digests_are_those_of_a_sha256_and_an_md5():
    sizes = {
        name: (algorithm, len(bytes.fromhex(digest)))
        for name, (algorithm, digest) in archive.DIGESTS.items()
    }
    assert sizes == {
        "17flowers.tgz": ("sha256", 32),
        "datasplits.mat": ("md5", 16),
    }


def test_corrupt_photograph_is_named(tmp_path):
    folder = tmp_path / "flowers"
    folder.mkdir()
    images = archive.read_archive(ARCHIVE)
    images["image_0777.jpg"] = images["image_0777.jpg"][:200]
    for name, data in images.items():
        (folder / name).write_bytes(data)
    message = _error_line("seeded", tmp_path / "data", folder)
    assert "1 of 1360" in message
    assert "image_0777.jpg" in message


@pytest.mark.parametrize(
    "content",
    [
        b"not MATLAB's",
        b"<html>404 Not Found</html>" * 50,
        {"another_key": np.arange(3)},
        # Image 1 is in two splits, image 1360 in none.
        {"trn1": [1, 2], "val1": [1], "tst1": np.arange(3, 1360)},
    ],
    ids=["not_mat", "web_page", "without_the_key", "image_twice"],
)
def test_unreadable_splits_file_is_named(tmp_path, content):
    local = shutil.copy(ARCHIVE, tmp_path)
    mat = tmp_path / "datasplits.mat"
    if isinstance(content, dict):
        scipy_io.savemat(mat, content)
    else:
        mat.write_bytes(content)
    message = _error_line("official_1", tmp_path / "data", local)
    assert f"{mat} can't be read as datasplits.mat" in message


def _run_python(code: str, *args: str, cwd: pathlib.Path) -> list:
    """Runs `code` in a new process; returns the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_load_by_name_in_another_process(tmp_path):
    code = """
import json, sys
import flowers17_tfdata.data
import tensorflow_datasets as tfds

tfds.disable_progress_bar()
dataset, info = tfds.load(
    "oxford_flowers17",
    split="test",
    data_dir=sys.argv[1],
    builder_kwargs={"archive": sys.argv[2]},
    with_info=True,
)
numbers = sorted(int(e["image_id"]) for e in tfds.as_numpy(dataset))
sizes = {name: split.num_examples for name, split in info.splits.items()}
print(json.dumps([info.full_name, sizes, numbers]))
"""
    full_name, sizes, numbers = _run_python(
        code, str(tmp_path / "data"), str(ARCHIVE), cwd=tmp_path
    )
    assert full_name == "oxford_flowers17/seeded/1.0.0"
    assert sizes == SEEDED_SIZES
    assert len(set(numbers)) == 260
    # Another process hashes strings with another seed: the split must not
    # depend on it.
    pairs = [(a - 1, b - 1) for a, b in flowers17.known_near_duplicates()]
    groups = splits.group_pairs(pairs, 1360)
    assert numbers == _make_splits(groups)["test"]


@pytest.mark.slow
def test_imports_stay_light(tmp_path):
    code = """
import json, sys
import flowers17_tfdata
package = sorted({"tensorflow", "tensorflow_datasets"} & set(sys.modules))
import flowers17_tfdata.data
data = sorted({"tensorflow"} & set(sys.modules))
print(json.dumps([package, data]))
"""
    package, data = _run_python(code, cwd=tmp_path)
    assert package == []
    assert data == []
