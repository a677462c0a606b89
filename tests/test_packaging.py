"""setup.cfg declares what the package imports; its wheel works alone."""

from __future__ import annotations

import ast
import configparser
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import cv2
import pytest

import flowers17_tfdata
from tests import fakes

ROOT = pathlib.Path(__file__).parents[1]

# Import names that differ from the names on PyPI.
_ON_PYPI = {
    "PIL": "pillow",
    "absl": "absl-py",
    "pillow_heif": "pillow-heif",
    "ai_edge_litert": "ai-edge-litert",
    "cv2": "opencv-python-headless",
    "tensorflow_datasets": "tensorflow-datasets",
}
# Imported only where one export format or benchmark needs it.
_OPTIONAL = {"ai-edge-litert", "onnxruntime", "pillow-heif", "tf2onnx"}
_EXTRAS = ("export", "onnx", "heic")
# The benchmark measures them beside this package if they are there.
_PEERS = {"timm", "torch"}


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _names(requirements: str) -> set[str]:
    lines = [line.strip() for line in requirements.splitlines()]
    return {
        re.split(r"[\s\[<>=]", line)[0]
        for line in lines
        if line and not line.startswith("#")
    }


def _imported() -> set[str]:
    found = set()
    for path in (ROOT / "flowers17_tfdata").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    tops = {name.partition(".")[0] for name in found}
    # The folder `pictures` lies beside serve.py in an export.
    tops -= {"flowers17_tfdata", "pictures", *sys.stdlib_module_names}
    return {_ON_PYPI.get(name, name) for name in tops}


def test_every_import_is_declared_and_every_declaration_used():
    declared = _names(_setup()["options"]["install_requires"])
    # TFDS and TensorFlow need these and don't declare or always bring them.
    indirect = {"importlib_resources", "tensorboard"}
    assert _imported() - _OPTIONAL - _PEERS == declared - indirect


def test_optional_imports_have_an_extra():
    extras = _setup()["options.extras_require"]
    offered = set().union(*(_names(extras[e]) for e in _EXTRAS))
    assert offered == _OPTIONAL
    assert offered <= _names(extras["test"])


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """A folder with the wheel installed, apart from its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, f"--target={folder}", wheel], check=True)
    return folder


def _run(
    installed: pathlib.Path, folder: pathlib.Path, *arguments: str
) -> subprocess.CompletedProcess:
    """Runs the installed command in a folder, without this repository."""
    return subprocess.run(
        [installed / "bin" / "flowers17-tfdata", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(installed), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_the_flag_files(wheel):
    package = (ROOT / "flowers17_tfdata").rglob("*")
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package
        if path.is_file() and path.suffix != ".pyc"
    } | {
        f"flowers17_tfdata/configs/{path.name}"
        for path in (ROOT / "configs").glob("*.flags")
    }
    with zipfile.ZipFile(wheel) as file:
        names = {n for n in file.namelist() if ".dist-info/" not in n}
    assert names == expected
    assert wheel.name.split("-")[1] == flowers17_tfdata.__version__


@pytest.mark.slow
def test_installed_flag_files_include_each_other(installed, tmp_path):
    done = _run(installed, tmp_path, "--flagfile=gpu_x8", "--version")
    assert done.returncode == 0, done.stderr
    version = flowers17_tfdata.__version__
    assert done.stdout == f"flowers17-tfdata {version}\n"


@pytest.mark.slow
def test_installed_it_trains_in_any_folder(installed, tmp_path):
    for k in range(16):
        path = tmp_path / "photos" / ("cat", "dog")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), fakes.make_smooth_image(32, 32, seed=k))
    done = _run(
        *(installed, tmp_path, "--flagfile=quickstart"),
        *("--dataset=folder:photos", "--image_size=32", "--finetune_epochs=0"),
        "--assert_accuracy_at_least=0",
    )
    assert done.returncode == 0, done.stderr
    workdir = tmp_path / "runs" / "quickstart"
    assert (workdir / "report.html").is_file()
    config = json.loads((workdir / "config.json").read_text())
    assert config["flags"]["label_smoothing"] == 0.1


def test_docker_gets_what_it_copies():
    text = (ROOT / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE))
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert set(copied.split()) == sent
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(_setup()["options.extras_require"])
