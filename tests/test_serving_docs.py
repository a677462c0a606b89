"""docs/serving.md and serve.py: the Python of the page runs as it stands."""

from __future__ import annotations

import base64
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from flowers17_tfdata.phases.export import saved_model

pytestmark = pytest.mark.slow

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def serving(export_folder):
    """The port of the exported serve.py, in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-E", "serve.py", "--port=0"],
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


def _body(*pictures: bytes) -> bytes:
    """Returns the JSON of a request."""
    encoded = [base64.b64encode(data).decode() for data in pictures]
    return json.dumps({"instances": [{"b64": x} for x in encoded]}).encode()


def test_the_server_answers_several_files(export_folder, serving):
    photo = (export_folder / "photo.jpg").read_bytes()
    status, answer = _ask(serving, "any:predict", _body(photo, photo))
    assert status == 200
    for row in answer["predictions"]:
        np.testing.assert_allclose(
            row["probabilities"], _expected(export_folder), atol=1e-5
        )
        assert row["labels"][0] == _best(export_folder)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    # The picture alone.
    answer["predictions"].pop()
    assert _ask(serving, "any:predict", photo) == (200, answer)


# A text of 4 MB, which would be longer if it came back with its escapes.
LONG = b"\xff\0" * 2**21


def test_the_server_answers_bad_requests_in_a_line(export_folder, serving):
    photo = (export_folder / "photo.jpg").read_bytes()
    assert _ask(serving, "any:classify", photo)[0] == 404
    form = 'the body must be a picture or {"instances": [{"b64": "..."}, ...]}'
    for body, reason in [
        (b"no JSON", f"{form}; it begins with b'no JSON'"),
        (LONG, f"{form}; it begins with b'\\xff"),
        (b'{"a": "' + LONG, f"{form}: 'utf-8' codec can't decode"),
        (b"<svg/>", f"{form}; it is a text of XML"),
        (b"{", f"{form}: Expecting property name"),
        (b"{}", f"{form}; it has no instances"),
        (b'{"instances": []}', f"{form}; it has no instances"),
        (b'{"instances": {"b64": ""}}', f"{form}; it has no instances"),
        (b'{"instances": ["text"]}', 'an instance must be {"b64": "..."}'),
        (b'{"instances": [{"b64": "%"}]}', "b64 must be base64: "),
        (b'{"instances": [{"b64": 5}]}', "b64 must be base64: "),
        (b'{"a": ' * 100_000, f"{form}: "),
        (_body(LONG), "no JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF or HEIC: it "),
        (photo[:300], "jpeg::Uncompress failed. Invalid JPEG data"),
        (_body(photo[:300]), "jpeg::Uncompress failed. Invalid JPEG data"),
        (_body(photo, photo[:300]), "instances[1]: jpeg::Uncompress failed."),
        (_body(photo, b"%PDF", photo), "instances[1]: no JPEG, PNG, GIF"),
        (b'{"instances": [{}, 1]}', "instances[0]: an instance must be"),
    ]:
        status, answer = _ask(serving, "any:predict", body)
        assert status == 400, reason
        assert answer["error"].startswith(reason)
        assert len(answer["error"]) <= 200
        assert "\n" not in answer["error"]
    for length in ("-1", "abc", "9" * 30, "9" * 5000):
        connection = http.client.HTTPConnection("localhost", serving)
        connection.putrequest("POST", "/v1/models/any:predict")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 400
        assert len(response.read()) < 250
        connection.close()
    # It still answers.
    assert _ask(serving, "any:predict", photo)[0] == 200


def test_the_server_lets_curl_send_a_large_body_at_once(serving):
    with socket.create_connection(("localhost", serving), 60) as connection:
        connection.sendall(
            b"POST /v1/models/any:predict HTTP/1.1\r\n"
            b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"text")
        assert b" 400 " in connection.recv(100)


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _expected(folder: pathlib.Path) -> np.ndarray:
    classify = saved_model.load(folder / "saved_model")
    answers = classify([(folder / "photo.jpg").read_bytes()])
    return answers["probabilities"][0]


def _best(folder: pathlib.Path) -> str:
    names = (folder / "labels.txt").read_text().splitlines()
    return names[_expected(folder).argmax()]


def test_the_documented_python_runs(
    export_folder, serving, monkeypatch, capsys
):
    monkeypatch.chdir(export_folder)
    monkeypatch.syspath_prepend(export_folder)
    blocks = _blocks(DOCS.read_text())
    assert len(blocks) == 4
    expected = _expected(export_folder)
    best = _best(export_folder)
    for block in blocks:
        names: dict = {}
        exec(block.replace("localhost:8501", f"localhost:{serving}"), names)
        out = capsys.readouterr().out
        assert out.startswith(best) or "print" not in block
        if "probabilities" in names:
            # Pillow and TensorFlow round differently when they resize.
            np.testing.assert_allclose(
                np.ravel(names["probabilities"]), expected, atol=0.015
            )
