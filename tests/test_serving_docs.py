"""docs/serving.md and serve.py: the Python of the page runs as it stands."""

from __future__ import annotations

import base64
import http.client
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.phases.export import (
    network,
    onnx_file,
    saved_model,
    serve,
    tflite,
)
from tests import fakes

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "serving.md"
NAMES = [f"class {k}" for k in range(fakes.NUM_CLASSES)]


@pytest.fixture(scope="module")
def export_folder(tmp_path_factory):
    """The exported files of a small random model, and a photograph."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(serve.__file__, folder)
    model = fakes.make_model()
    subject = network.Network(model, fakes.preprocess_input)
    saved_model.save(subject, NAMES, folder / "saved_model")
    tflite.convert(subject, folder / "model_float16.tflite")
    noise = fakes.make_noise_examples(8).images.pixels
    tflite.convert(subject, folder / "model_int8.tflite", lambda: noise)
    onnx_file.convert(subject, folder / "model.onnx")
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    photo = tf.io.encode_jpeg(fakes.make_smooth_image(50, 70), quality=95)
    (folder / "photo.jpg").write_bytes(photo.numpy())
    return folder


@pytest.fixture(scope="module")
def serving(export_folder):
    """The port of the exported serve.py, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-I", "serve.py", "--port=0"],
        cwd=export_folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # The shell makes background jobs, which this may be, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            address = process.stdout.readline()
            yield int(re.search(r":(\d+)/", address)[1])
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            # Otherwise leaving the block would wait for it.
            process.kill()
    assert process.returncode == 0


def _ask(port: int, path: str, body: bytes | None = None):
    """Returns the status and the answer of a request; a POST with a body."""
    url = f"http://localhost:{port}/v1/models/{path}"
    try:
        with urllib.request.urlopen(url, data=body) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_several_files_and_bad_requests(
    export_folder, serving
):
    photo = base64.b64encode((export_folder / "photo.jpg").read_bytes())
    instance = {"b64": photo.decode()}
    body = json.dumps({"instances": [instance, instance]}).encode()
    status, answer = _ask(serving, "any:predict", body)
    assert status == 200
    for row in answer["predictions"]:
        np.testing.assert_allclose(
            row["probabilities"], _expected(export_folder), atol=1e-5
        )
        assert row["labels"][0] == NAMES[_expected(export_folder).argmax()]
        assert row["scores"] == sorted(row["scores"], reverse=True)

    assert _ask(serving, "any:classify", body)[0] == 404
    broken = {"b64": base64.b64encode(b"no image").decode()}
    for bad in (
        b"no JSON",
        b"{}",
        b'{"instances": []}',
        b'{"instances": [{"b64": "%"}]}',
        b'{"instances": ["text"]}',
        b"[" * 100_000,
        json.dumps({"instances": [broken]}).encode(),
    ):
        status, answer = _ask(serving, "any:predict", bad)
        assert status == 400, bad
        assert answer["error"]
    for length in ("-1", "abc", "9" * 30, "9" * 5000):
        connection = http.client.HTTPConnection("localhost", serving)
        connection.putrequest("POST", "/v1/models/any:predict")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == 400
        connection.close()
    # It still answers.
    assert _ask(serving, "any:predict", body)[0] == 200


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _expected(folder: pathlib.Path) -> np.ndarray:
    classify = saved_model.load(folder / "saved_model")
    return classify([(folder / "photo.jpg").read_bytes()])[0]


def test_the_documented_python_runs(
    export_folder, serving, monkeypatch, capsys
):
    monkeypatch.chdir(export_folder)
    blocks = _blocks(DOCS.read_text())
    assert len(blocks) == 4
    expected = _expected(export_folder)
    best = NAMES[expected.argmax()]
    for block in blocks:
        names: dict = {}
        exec(block.replace("localhost:8501", f"localhost:{serving}"), names)
        out = capsys.readouterr().out
        assert out.startswith(best) or "print" not in block
        if "probabilities" in names:
            # Pillow and TensorFlow round differently when they resize.
            np.testing.assert_allclose(
                np.ravel(names["probabilities"]), expected, atol=0.02
            )
