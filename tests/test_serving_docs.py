"""docs/serving.md and the model card: their Python runs as it stands."""

from __future__ import annotations

import base64
import http.server
import json
import pathlib
import re
import threading

import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata.export import network, onnx_file, saved_model, tflite
from flowers17_tfdata.export.usage import make_section
from tests import fakes

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "serving.md"
NAMES = [f"class {k}" for k in range(fakes.NUM_CLASSES)]


@pytest.fixture(scope="module")
def export_folder(tmp_path_factory):
    """An export as its files, of a small random model, and a photograph."""
    folder = tmp_path_factory.mktemp("export")
    model = fakes.make_model()
    subject = network.Network(model, fakes.preprocess_input)
    saved_model.save(subject, NAMES, folder / "saved_model")
    tflite.convert_float16(subject, folder / "model_float16.tflite")
    noise = fakes.make_noise_examples(8).images.pixels
    tflite.convert_int8(subject, folder / "model_int8.tflite", lambda: noise)
    onnx_file.convert(subject, folder / "model.onnx")
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    photo = tf.io.encode_jpeg(fakes.make_smooth_image(50, 70), quality=95)
    (folder / "photo.jpg").write_bytes(photo.numpy())
    return folder


@pytest.fixture
def serving(export_folder):
    """The port of a stand-in for TensorFlow Serving's REST interface."""
    loaded = tf.saved_model.load(str(export_folder / "saved_model"))
    serve = loaded.signatures["serving_default"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/flowers17:predict"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            files = [
                base64.b64decode(instance["b64"], validate=True)
                for instance in json.loads(body)["instances"]
            ]
            outputs = serve(image_bytes=tf.constant(files))
            rows = [
                {name: _plain(value[k]) for name, value in outputs.items()}
                for k in range(len(files))
            ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"predictions": rows}).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def _plain(tensor: tf.Tensor) -> list:
    values = tensor.numpy().tolist()
    return [v.decode() if isinstance(v, bytes) else v for v in values]


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


def test_the_card_s_python_runs(export_folder, monkeypatch, capsys):
    monkeypatch.chdir(export_folder)
    files = sorted(path.name for path in export_folder.iterdir())
    blocks = _blocks(make_section(NAMES, fakes.IMAGE_SIZE, files))
    assert len(blocks) == 6
    expected = _expected(export_folder)
    names: dict = {}
    for block in blocks:
        names.pop("probabilities", None)
        exec(block, names)
        if "probabilities" in names:
            np.testing.assert_allclose(
                np.ravel(names["probabilities"]), expected, atol=0.02
            )
    assert NAMES[expected.argmax()] in capsys.readouterr().out


def test_the_card_tells_only_of_files_that_are_there():
    section = make_section(NAMES, 32, ["model.keras"])
    assert "model.keras" in section
    assert "saved_model" not in section
    assert "tflite" not in section
    assert "onnx" not in section
