"""Tests of the data set in other people's projects: docs/data_set.md.

Each project is a virtual environment of its own that sees the dependencies
installed here, but not this repository, and runs in processes of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv

import pytest

from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from tests import run_page

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "data_set.md"
COPYING = "Copy the folder"
DUMMY_DATA = pathlib.Path(flowers17.__file__).parent / "dummy_data"


def _run(command: list, cwd: pathlib.Path) -> str:
    """Runs a command as another project would; returns its output."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    environment |= {
        # What is prepared once is read by name from then on.
        "TFDS_DATA_DIR": str(cwd / "tensorflow_datasets"),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def _run_script(
    python: pathlib.Path, script: str, cwd: pathlib.Path, *args: object
) -> dict:
    """Returns the JSON that a script's last line prints."""
    # Not -c: that would put the working directory on the path.
    file = cwd / "user_script.py"
    file.write_text(textwrap.dedent(script))
    return json.loads(_run([python, file, *args], cwd).splitlines()[-1])


def _make_environment(folder: pathlib.Path) -> pathlib.Path:
    """Makes a virtual environment; returns its interpreter."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = sysconfig.get_path(
        "purelib", vars={"base": str(folder), "platbase": str(folder)}
    )
    dependencies = [
        path
        for path in sys.path
        if pathlib.Path(path).name in ("site-packages", "dist-packages")
    ]
    # Python doesn't read the .pth files of these folders: an editable
    # installation of this package stays out.
    pathlib.Path(packages, "dependencies.pth").write_text(
        "\n".join(dependencies)
    )
    return python


def _make_project(folder: pathlib.Path) -> pathlib.Path:
    """Makes a working directory that holds the dummy archive."""
    folder.mkdir()
    for name in ("17flowers.tgz", "datasplits.mat"):
        shutil.copy(DUMMY_DATA / name, folder)
    return folder


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The interpreter of an environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("installed")
    python = _make_environment(folder)
    pip = [sys.executable, "-m", "pip", f"--python={python}"]
    _run([*pip, "install", "--no-deps", "--no-index", wheel], folder)
    return python


@pytest.fixture(scope="module")
def project(installed, tmp_path_factory) -> pathlib.Path:
    """A project folder in which the data set has been prepared by name."""
    folder = _make_project(tmp_path_factory.mktemp("user") / "project")
    script = """
        import json
        import pathlib
        import flowers17_tfdata.data
        import tensorflow_datasets as tfds

        tfds.load(
            "oxford_flowers17", builder_kwargs={"archive": "17flowers.tgz"}
        )
        print(json.dumps({"file": flowers17_tfdata.__file__}))
    """
    found = pathlib.Path(_run_script(installed, script, folder)["file"])
    # The wheel's, not this repository's.
    assert installed.parents[1] in found.parents
    return folder


@pytest.mark.slow
def test_loading_slicing_and_info(installed, project):
    script = """
        import json
        import flowers17_tfdata.data
        import numpy as np
        import tensorflow_datasets as tfds

        def ids(split):
            dataset = tfds.load("oxford_flowers17", split=split)
            return [int(e["image_id"]) for e in tfds.as_numpy(dataset)]

        builder_cls = tfds.builder_cls("oxford_flowers17")
        builder = tfds.builder("oxford_flowers17")
        label = builder.info.features["label"]
        pairs = tfds.load("oxford_flowers17", split="test", as_supervised=True)
        images, labels = zip(*tfds.as_numpy(pairs))
        print(json.dumps({
            "class": builder_cls.__module__,
            "configs": list(builder_cls.builder_configs),
            "full_name": builder.info.full_name,
            "supervised_keys": builder.info.supervised_keys,
            "splits": {
                name: split.num_examples
                for name, split in builder.info.splits.items()
            },
            "features": sorted(builder.info.features),
            "names": [label.int2str(k) for k in range(label.num_classes)],
            "tulip": label.str2int("Tulip"),
            "citation": builder.info.citation,
            "description": builder.info.description,
            "images": sorted({(i.dtype.name, i.shape[-1]) for i in images}),
            "labels": sorted({int(k) for k in labels}),
            "supervised": len(labels),
            "train": ids("train"),
            "test": ids("test"),
            "tenth": ids("train[:10%]"),
            "mixed": ids("train[:50]+test[:10]"),
        }))
    """
    got = _run_script(installed, script, project)
    assert got["class"].startswith("flowers17_tfdata.data.oxford_flowers17.")
    assert got["configs"] == [c.name for c in flowers17.Builder.BUILDER_CONFIGS]
    assert got["full_name"] == "oxford_flowers17/seeded/1.0.0"
    assert got["supervised_keys"] == ["image", "label"]
    assert got["splits"] == {
        "train": 800,
        "validation": 260,
        "test": 260,
        "unused": 40,
    }
    assert got["features"] == ["file_name", "image", "image_id", "label"]
    assert got["names"] == list(flowers17.CLASS_NAMES)
    assert got["tulip"] == 15
    # They come from files of the folder that the wheel must hold.
    assert "nilsback2006visual" in got["citation"]
    assert "1360 photographs" in got["description"]
    assert got["images"] == [["uint8", 3]]
    assert got["labels"] == list(range(17))
    assert got["supervised"] == 260
    assert len(got["tenth"]) == 80
    assert set(got["tenth"]) < set(got["train"])
    assert len(got["mixed"]) == 60
    assert len(set(got["mixed"]) & set(got["train"])) == 50
    assert len(set(got["mixed"]) & set(got["test"])) == 10


@pytest.mark.slow
def test_data_source_needs_array_record_and_tfds_says_so(installed, project):
    script = """
        import json
        import flowers17_tfdata.data
        import tensorflow_datasets as tfds

        try:
            tfds.builder("oxford_flowers17").as_data_source(split="train")
        except NotImplementedError as error:
            print(json.dumps({"message": str(error)}))
    """
    message = _run_script(installed, script, project)["message"]
    assert "Random access data source for file format" in message
    assert "TFRECORD is not supported" in message
    # Which of the formats it names first is chance.
    assert "run download_and_prepare with file_format=" in message
    assert "array_record" in message


def test_a_wrong_value_on_a_page_is_found():
    assert run_page.run_block("x = 2\nx + 1  # 3\nx\n", {}) == 1
    with pytest.raises(AssertionError, match="x is 2, not 3"):
        run_page.run_block("x = 2\nx  # 3\n", {})


@pytest.mark.slow
def test_blocks_of_the_page(installed, project):
    blocks = run_page.read_blocks(PAGE.read_text())
    skipped = {COPYING, "DataFrame"}
    if importlib.util.find_spec("array_record") is None:
        # TFDS depends on it on Linux only.
        skipped.add("Random access")
    ran = _run(
        [
            *(installed, REPOSITORY / "tests" / "run_page.py", PAGE),
            *(f"--skip={heading}" for heading in skipped),
        ],
        project,
    )
    expected = sum(
        language == "python" and heading not in skipped
        for heading, language, _ in blocks
    )
    assert expected >= 8
    assert f"{expected} blocks" in ran.splitlines()[-1]


@pytest.mark.slow
def test_data_frame_block_of_the_page(installed, project):
    pytest.importorskip("pandas")
    runner = [installed, REPOSITORY / "tests" / "run_page.py", PAGE]
    ran = _run([*runner, "--only=Load", "--only=DataFrame"], project)
    assert "2 blocks" in ran.splitlines()[-1]


@pytest.mark.slow
def test_copied_folder_works_without_the_package(tmp_path):
    python = _make_environment(tmp_path / "environment")
    commands, code = (
        [c for heading, kind, c in blocks if (heading, kind) == wanted]
        for blocks in [run_page.read_blocks(PAGE.read_text())]
        for wanted in ((COPYING, "sh"), (COPYING, "python"))
    )
    assert len(commands) == len(code) == 1
    (tmp_path / "flowers17_tfdata").symlink_to(REPOSITORY / "flowers17_tfdata")
    project = _make_project(tmp_path / "my_project")
    _run(["bash", "-euc", commands[0]], tmp_path)
    (tmp_path / "flowers17_tfdata").unlink()
    script = f"""
import json
import sys

# Even where this package is installed beside its dependencies.
sys.modules["flowers17_tfdata"] = None
try:
    import flowers17_tfdata
except ImportError:
    pass
else:
    raise AssertionError("can be imported")

{code[0]}
image_ids = sorted(int(e["image_id"]) for e in tfds.as_numpy(test))
print(json.dumps({{
    "class": tfds.builder_cls("oxford_flowers17").__module__,
    "imported": [m for m in sys.modules if m.startswith("flowers17_tfdata.")],
    "image_ids": image_ids,
    "drawn": sorted(int(e["image_id"]) for e in tfds.as_numpy(drawn)),
    "citation": info.citation,
}}))
"""
    got = _run_script(python, script, project)
    assert got["class"] == (
        "my_datasets.oxford_flowers17.oxford_flowers17_dataset_builder"
    )
    assert got["imported"] == []
    assert "nilsback2006visual" in got["citation"]
    assert len(set(got["image_ids"])) == len(set(got["drawn"])) == 260
    # The photographs' known pairs group the one, nothing groups the other.
    assert got["image_ids"] != got["drawn"]


def test_table_of_labels_on_the_page():
    rows = re.findall(
        r"^\| (\d+) \| ([\w ]+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert [(int(k), name) for k, name, _ in rows] == list(
        enumerate(flowers17.CLASS_NAMES)
    )
    for _, name, first in rows:
        assert flowers17.class_name(int(first)) == name
        assert int(first) % 80 == 1


def test_configs_on_the_page():
    page = PAGE.read_text()
    for config in flowers17.Builder.BUILDER_CONFIGS:
        assert f"`{config.name}`" in page
