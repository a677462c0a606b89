"""Answers TensorFlow Serving's REST requests from the SavedModel beside it.

    python serve.py [--port=8501] [--host=127.0.0.1]
    curl localhost:8501/v1/models/any/metadata

To try a model out, or for a few users: it needs Python and TensorFlow alone.
TensorFlow Serving takes the same requests, batches them and is hardened.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import http.server
import json
import pathlib
import re

import tensorflow as tf

_PATH = re.compile(r"/v1/models/[^/:]+(?:/versions/\d+)?(:predict|/metadata|)")

# Beyond any photograph; what declares more is not read.
_MAX_BODY = 64 * 2**20


class Handler(http.server.BaseHTTPRequestHandler):
    """`POST /v1/models/NAME:predict`; the server holds the model."""

    # Of a connection that says nothing, seconds.
    timeout = 30

    def do_GET(self):
        match = _PATH.fullmatch(self.path)
        if not match or match[1] == ":predict":
            return self._answer(404, {"error": f"no {self.path} to GET"})
        names = [name.decode() for name in self.server.class_names]
        self._answer(200, {"state": "AVAILABLE", "class_names": names})

    def do_POST(self):
        match = _PATH.fullmatch(self.path)
        if not match or match[1] != ":predict":
            return self._answer(404, {"error": f"no {self.path} to POST to"})
        length = self.headers.get("Content-Length") or ""
        # Digits alone: -1 would read for ever.
        if not (length.isascii() and length.isdigit()):
            return self._answer(411, {"error": "Content-Length is missing"})
        if int(length[:20]) > _MAX_BODY:
            return self._answer(413, {"error": f"more than {_MAX_BODY} bytes"})
        try:
            instances = json.loads(self.rfile.read(int(length)))["instances"]
            files = [
                base64.b64decode(instance["b64"], validate=True)
                for instance in instances
            ]
            if not files:
                raise ValueError("no instances")
        except (
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
            binascii.Error,
        ) as error:
            form = 'the body must be {"instances": [{"b64": "..."}, ...]}'
            return self._answer(400, {"error": f"{form}: {error!r}"})
        try:
            outputs = self.server.predict(image_bytes=tf.constant(files))
        except (tf.errors.OpError, ValueError) as error:
            return self._answer(400, {"error": str(error)})
        columns = {k: _plain(v) for k, v in outputs.items()}
        rows = [
            {name: values[k] for name, values in columns.items()}
            for k in range(len(files))
        ]
        return self._answer(200, {"predictions": rows})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _plain(tensor: tf.Tensor) -> list:
    """Returns rows of Python numbers, or of text."""
    return [
        [v.decode() if isinstance(v, bytes) else v for v in row]
        for row in tensor.numpy().tolist()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    folder = pathlib.Path(__file__).parent / "saved_model"
    loaded = tf.saved_model.load(str(folder))
    address = (options.host, options.port)
    with http.server.ThreadingHTTPServer(address, Handler) as server:
        # Held here: the signature alone does not keep the model alive.
        server.model = loaded
        server.predict = loaded.signatures["serving_default"]
        server.class_names = loaded.class_names().numpy().tolist()
        port = server.server_address[1]
        print(f"http://{options.host}:{port}/v1/models/any", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
