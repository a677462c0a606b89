"""Two logical CPU devices for every test, and a clean state between tests."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

from flowers17_tfdata.training import precision
from tests import fakes

NUM_DEVICES = 2

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
    # Also what a fixture of a wider scope has left.
    keras.config.set_dtype_policy("float32")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def mirrored_strategy() -> tf.distribute.MirroredStrategy:
    """Two replicas on the two logical CPUs.

    One for all tests: a second strategy in a process starts again at the first
    collective's key, which TensorFlow still holds with the old shape.
    """
    return tf.distribute.MirroredStrategy(
        [d.name for d in tf.config.list_logical_devices("CPU")]
    )


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
def data_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder that all end-to-end tests share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def tiny_command(data_dir, dummy_archive) -> Callable[..., list[str]]:
    """Returns `command(workdir, *flags)`: the command line as a process.

    With the tiny backbone on the dummy archive. To be run in the repository's
    root; a flag given again replaces the one here.
    """

    def command(workdir: pathlib.Path, *flags: str) -> list[str]:
        return [
            *(sys.executable, "-m", "tests.worker_main"),
            f"--workdir={workdir}",
            f"--data_dir={data_dir}",
            f"--archive={dummy_archive}",
            "--backbone=tiny_net",
            "--weights=none",
            "--image_size=32",
            "--global_batch_size=64",
            *flags,
        ]

    return command
