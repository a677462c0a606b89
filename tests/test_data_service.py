"""The tf.data service, as real processes on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.files import read_json_lines
from flowers17_tfdata.input import data_service, input_pipeline
from flowers17_tfdata.input.examples import DecodedImages, Examples
from flowers17_tfdata.models import saved_models
from tests import fakes

ROOT = pathlib.Path(__file__).parent.parent
NUM_EXAMPLES = 30
CONFIG = InputConfig(image_size=fakes.IMAGE_SIZE, train_scale=0.75, crop=0.5)
BATCH = 4
STEPS = 8
# Seconds in practice.
LOST_WORKER_SECS = 90


def _server(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "flowers17_tfdata.data_server", *arguments],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def _service(num_workers):
    """Runs a dispatcher and workers; yields its address and the workers."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            process = stack.enter_context(_server(*arguments))
            stack.callback(process.kill)
            line = process.stdout.readline()
            assert line, "it did not start"
            return process, line

        _, line = start("dispatcher", "--port=0")
        address = line.split()[-1]
        host_port = address.removeprefix("grpc://")
        workers = [
            start("worker", f"--dispatcher={host_port}")[0]
            for _ in range(num_workers)
        ]
        yield address, workers


@pytest.fixture
def files(tmp_path):
    """Pictures whose label tells which they are."""
    images = fakes.make_smooth_examples(NUM_EXAMPLES).images.pixels
    paths = []
    for k, pixels in enumerate(images):
        paths.append(str(tmp_path / f"{k} of 30.png"))
        cv2.imwrite(paths[-1], pixels[..., ::-1])
    return data_service.ImageFiles(paths, np.arange(NUM_EXAMPLES))


def _batches(files, address, **kwargs):
    config = dataclasses.replace(CONFIG, data_service=address)
    return data_service.make_train_dataset(
        files,
        config,
        fakes.preprocess_input,
        global_batch_size=BATCH,
        seed=3,
        **kwargs,
    )


def _local(**kwargs):
    pixels = fakes.make_smooth_examples(NUM_EXAMPLES).images.pixels
    return input_pipeline.make_train_dataset(
        Examples(DecodedImages(pixels), np.arange(NUM_EXAMPLES)),
        CONFIG,
        fakes.preprocess_input,
        global_batch_size=BATCH,
        seed=3,
        **kwargs,
    )


def test_one_data_worker_makes_the_local_batches(files):
    kwargs = {
        "initial_epoch": 1,
        "initial_step": 3,
        "class_weights": np.linspace(0.5, 1.5, NUM_EXAMPLES, dtype=np.float32),
    }
    with _service(1) as (address, _):
        remote = list(_batches(files, address, **kwargs).take(STEPS))
    for a, b in zip(remote, _local(**kwargs).take(STEPS), strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.weights, b.weights)
        # Keras ops against OpenCV, which rounds.
        np.testing.assert_allclose(a.inputs, b.inputs, atol=4 / 255)


def _keys(batches):
    """Tells batches apart: the examples and which of them count."""
    return [
        (*batch.labels.numpy(), *batch.weights.numpy()) for batch in batches
    ]


def test_two_data_workers_make_each_batch_once(files):
    with _service(2) as (address, _):
        remote = _keys(_batches(files, address).take(5 * STEPS))
    # Which they are is settled but for the last ones, still in the making.
    local = _keys(_local().take(10 * STEPS))
    assert len(set(remote)) == len(remote)
    assert set(remote) <= set(local)
    assert set(local[: 2 * STEPS]) <= set(remote)


def test_a_data_worker_killed_mid_epoch_does_not_end_the_run(files):
    with _service(2) as (address, workers):
        batches = iter(_batches(files, address))
        seen = [next(batches) for _ in range(3)]
        workers[0].kill()
        start = time.monotonic()
        seen += [next(batches) for _ in range(10 * STEPS)]
        assert time.monotonic() - start < LOST_WORKER_SECS
    seen = _keys(seen)
    assert len(set(seen)) == len(seen)
    # After the batches that were lost, the other worker makes all of them.
    tail = _keys(_local().take(11 * STEPS))[6 * STEPS : 9 * STEPS]
    assert set(tail) <= set(seen)


def test_run_with_a_data_service(tmp_path, tiny_command):
    with _service(2) as (address, _):
        result = subprocess.run(
            tiny_command(
                tmp_path / "work",
                "--phase=train",
                f"--data_service={address}",
                "--transfer_optimizer=adamw",
                "--feature_views=0",
                "--transfer_epochs=2",
                "--finetune_epochs=1",
                "--refit",
            ),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert result.returncode == 0, result.stderr
    lines = read_json_lines(tmp_path / "work" / "metrics.jsonl")
    kept = saved_models.kept_stage(tmp_path / "work", before_refit=True)
    refit = {"transfer": [17, 34], "finetune": [17]}[kept]
    assert [line["step"] for line in lines] == [13, 26, 13, *refit]


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        address = f"grpc://localhost:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError, match=r"--data_service .* can't be reached"
        ):
            data_service.check_reachable(address)


class _Full:
    """A source whose second image can't be read."""

    def read(self, split):
        raise OSError(28, "No space left on device")


def test_images_are_written_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "images" / "train"
    with pytest.raises(UserError, match=r"can't be written.*No space"):
        data_service.write_images(_Full(), "train", folder)
    assert list((tmp_path / "images").iterdir()) == []
    with pytest.raises(UserError, match="all workers share"):
        data_service.find_images(folder, 2)
