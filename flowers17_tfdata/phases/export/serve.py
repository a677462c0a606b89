"""Answers TensorFlow Serving's predict requests from the SavedModel beside it.

    python serve.py [--port=8501] [--host=127.0.0.1]

It needs only Python and TensorFlow, and suits trials and a few users.
TensorFlow Serving answers the same requests, batches them and is hardened.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import json
import pathlib
from collections.abc import Callable
from typing import ClassVar

import tensorflow as tf

# More than any photograph needs; larger requests are not read.
_MAX_BODY = 64 * 2**20
_FORM = 'the body must be {"instances": [{"b64": "..."}, ...]}'


class Handler(http.server.BaseHTTPRequestHandler):
    """Handles `POST /v1/models/NAME:predict`, with any name."""

    # The model's signature.
    predict: ClassVar[Callable[..., dict[str, tf.Tensor]]]
    # Seconds after which a silent connection is closed.
    timeout = 30

    def do_POST(self):
        if not self.path.endswith(":predict"):
            return self._answer(404, {"error": f"no {self.path} to POST to"})
        try:
            length = int(self.headers.get("Content-Length", 0))
            # A negative length would read for ever.
            if not 0 < length <= _MAX_BODY:
                raise ValueError(
                    f"Content-Length {length}, at most {_MAX_BODY}"
                )
            instances = json.loads(self.rfile.read(length))["instances"]
            files = [
                base64.b64decode(instance["b64"], validate=True)
                for instance in instances
            ]
            if not files:
                raise ValueError("no instances")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return self._answer(400, {"error": f"{_FORM}: {error!r}"})
        try:
            outputs = self.predict(image_bytes=tf.constant(files))
        except (tf.errors.OpError, ValueError) as error:
            return self._answer(400, {"error": str(error)})
        columns = [value.numpy().tolist() for value in outputs.values()]
        rows = zip(*columns, strict=True)
        predictions = [dict(zip(outputs, row, strict=True)) for row in rows]
        return self._answer(200, {"predictions": predictions})

    def _answer(self, status: int, content: dict) -> None:
        # The labels are bytes.
        body = json.dumps(content, default=bytes.decode).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    folder = pathlib.Path(__file__).parent / "saved_model"
    # The signature alone does not keep the model alive.
    loaded = tf.saved_model.load(str(folder))
    Handler.predict = staticmethod(loaded.signatures["serving_default"])
    address = (options.host, options.port)
    with http.server.ThreadingHTTPServer(address, Handler) as server:
        port = server.server_address[1]
        print(f"http://{options.host}:{port}/v1/models/any", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
