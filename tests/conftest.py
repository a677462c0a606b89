"""Two logical CPU devices for every test, and a clean state between tests."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import cli, terminal
from flowers17_tfdata.models import batch_norm
from flowers17_tfdata.training import precision
from tests import fakes

NUM_DEVICES = 2
ROOT = pathlib.Path(__file__).parents[1]

# Before TensorFlow starts: it can't be changed afterwards.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration() for _ in range(NUM_DEVICES)],
)
tf.config.set_visible_devices([], "GPU")


@pytest.fixture(scope="session", autouse=True)
def _same_arithmetic_everywhere():
    """Lets `--precision=auto` mean float32 on CPUs with AMX, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_cpu_flags", set)
        yield


@pytest.fixture(autouse=True)
def _restore_global_state(monkeypatch):
    # A fixture of a wider scope may have set another policy.
    keras.config.set_dtype_policy("float32")
    terminal.configure("normal")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def mirrored_strategy() -> tf.distribute.MirroredStrategy:
    """Two replicas on the two logical CPUs, shared by all tests.

    A second MirroredStrategy in the same process would reuse the keys of the
    first one's collectives, for which TensorFlow remembers other shapes.
    """
    return tf.distribute.MirroredStrategy(
        [d.name for d in tf.config.list_logical_devices("CPU")]
    )


@pytest.fixture(params=["one_device", "two_replicas"])
def strategy(request) -> tf.distribute.Strategy:
    """One device, then two replicas: the test runs with each."""
    if request.param == "one_device":
        return tf.distribute.get_strategy()
    return request.getfixturevalue("mirrored_strategy")


@pytest.fixture(scope="session", autouse=True)
def tiny_backbone() -> str:
    """The name of a registered backbone of two convolutions."""
    return fakes.register_tiny_net()


@pytest.fixture(scope="session")
def dummy_archive() -> pathlib.Path:
    """The builder folder's dummy 17flowers.tgz."""
    from flowers17_tfdata.data import oxford_flowers17

    folder = pathlib.Path(oxford_flowers17.__file__).parent / "dummy_data"
    return folder / "17flowers.tgz"


@pytest.fixture(scope="session")
def export_folder(tmp_path_factory) -> pathlib.Path:
    """The exported files of a small random model, and a photograph."""
    from flowers17_tfdata.phases.export import (
        export,
        network,
        onnx_file,
        saved_model,
        tflite,
    )

    folder = tmp_path_factory.mktemp("export")
    export.copy_reader(folder)
    shutil.copy(export.SERVE_SCRIPT, folder)
    model = fakes.make_linear_model()
    subject = network.Network(model, fakes.preprocess_input, None)
    names = [f"class {k}" for k in range(fakes.NUM_CLASSES)]
    saved_model.save(subject, names, folder / "saved_model")
    tflite.convert(subject, folder / "model_float16.tflite")
    smooth = fakes.make_smooth_examples(32).images.pixels
    tflite.convert(subject, folder / "model_int8.tflite", lambda: smooth)
    onnx_file.convert(subject, folder / "model.onnx")
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(names) + "\n")
    photo = tf.io.encode_jpeg(fakes.make_smooth_image(50, 70), quality=95)
    (folder / "photo.jpg").write_bytes(photo.numpy())
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The package's wheel, built from its sdist without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    # From a copy, because building writes beside what it builds; and of what
    # Docker is sent, which must be enough.
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        path = ROOT / line.removeprefix("!")
        if path.is_dir():
            caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, ignore=caches)
        elif path.is_file():
            shutil.copy(path, source)
    sdist = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", sdist], cwd=source, check=True)
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "wheel", *offline]
    subprocess.run([*pip, *folder.glob("*.gz")], cwd=folder, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder that all end-to-end tests share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny_flags(data_dir, dummy_archive, tiny_backbone) -> list[str]:
    """Flags that select the tiny backbone and the dummy archive."""
    return [
        f"--data_dir={data_dir}",
        f"--archive={dummy_archive}",
        f"--backbone={tiny_backbone}",
        "--weights=none",
        "--image_size=32",
        "--global_batch_size=64",
    ]


@pytest.fixture
def weights(tmp_path) -> pathlib.Path:
    """Random weights with measured batch-norm: their features are useful."""
    keras.utils.set_random_seed(2)
    backbone = fakes.build_tiny_net((32, 32, 3))
    images = np.random.default_rng(2).uniform(-1, 1, [8, 32, 32, 3])
    batch_norm.measure_statistics(backbone, [images.astype(np.float32)])
    path = tmp_path / "tiny.weights.h5"
    backbone.save_weights(path)
    return path


@pytest.fixture
def default_flags(tiny_flags) -> list[str]:
    """The flags that `run` puts before its own; modules may override them."""
    # A process can have only one MirroredStrategy.
    return [*tiny_flags, "--strategy=default"]


@pytest.fixture
def run(tmp_path, default_flags, capsys) -> Callable[..., tuple[int, str, str]]:
    """Returns `run(workdir, *flags) -> (exit code, stdout, stderr)`.

    It runs the command line in this process. `workdir` is relative to
    `tmp_path`. A flag given again replaces the one in `default_flags`.
    """

    def run(workdir, *flags):
        code = cli.main(
            [
                "main.py",
                f"--workdir={tmp_path / workdir}",
                *default_flags,
                *map(str, flags),
            ]
        )
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert err.count("error: ") == (code != 0), err
        return code, out, err

    return run


@pytest.fixture
def tiny_command(tiny_flags) -> Callable[..., list[str]]:
    """Returns `command(workdir, *flags)`: the command line of a process.

    It trains with `tiny_flags` and must run in the repository's root. A flag
    given again replaces the one in `tiny_flags`.
    """

    def command(workdir: pathlib.Path, *flags: str) -> list[str]:
        program = [sys.executable, "-m", "tests.worker_main"]
        return [*program, f"--workdir={workdir}", *tiny_flags, *flags]

    return command
