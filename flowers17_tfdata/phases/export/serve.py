"""Answers TensorFlow Serving's predict requests from the SavedModel beside it.

    python serve.py [--port=8501] [--host=127.0.0.1]
    curl --data-binary @photo.jpg http://127.0.0.1:8501/v1/models/any:predict

It needs Python, TensorFlow and the folder `pictures` beside it, and Pillow for
the formats that TensorFlow doesn't decode. It suits trials and a few users.
TensorFlow Serving answers the same JSON, but for `names_at_95`, batches it and
is hardened.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

# TensorFlow's notes would bury the address.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
from pictures import image_formats

# More than any photograph needs; larger requests are not read.
_MAX_BODY = 64 * 2**20
_FORM = 'the body must be a picture or {"instances": [{"b64": "..."}, ...]}'
# The most characters of the answer to a wrong request.
_MAX_ERROR = 200


class Handler(http.server.BaseHTTPRequestHandler):
    """Handles `POST /v1/models/NAME:predict`, with any name."""

    # The model's signature.
    predict: ClassVar[Callable[..., dict[str, tf.Tensor]]]
    # In the order of the probabilities.
    class_names: ClassVar[list[bytes]]
    # Seconds after which a silent connection is closed.
    timeout = 30

    def do_GET(self):
        self._fail(405, f"POST a picture to /v1/models/any:predict; {_FORM}")

    def do_POST(self):
        if not self.path.endswith(":predict"):
            return self._fail(404, f"no {self.path} to POST to")
        try:
            pictures = _pictures(self._body())
            readable = _each(_to_readable, pictures)
            predictions = self._predictions(readable)
        except (tf.errors.OpError, ValueError) as error:
            return self._fail(400, _message(error))
        return self._answer(200, {"predictions": predictions})

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        # A negative length would read for ever.
        if not 0 < length <= _MAX_BODY:
            raise ValueError(
                f"{_FORM} of at most {_MAX_BODY} bytes; it has {length}"
            )
        if self.headers.get("Expect") == "100-continue":
            # curl waits a second for this before it sends a large body.
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.rfile.read(length)

    def _predictions(self, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
        """Returns the model's outputs for each picture."""

        def predict(*batch: bytes) -> dict[str, tf.Tensor]:
            return self.predict(image_bytes=tf.constant(batch))

        try:
            outputs = predict(*pictures)
        except tf.errors.OpError:
            # Raises the error with the position of the picture.
            _each(predict, pictures)
            raise
        columns = [value.numpy().tolist() for value in outputs.values()]
        rows = [
            dict(zip(outputs, row, strict=True))
            for row in zip(*columns, strict=True)
        ]
        for row in rows:
            if "classes_at_95" in row:
                row["names_at_95"] = self._names_at_95(row)
        return rows

    def _names_at_95(self, row: dict[str, Any]) -> list[bytes]:
        """Returns the names of the classes at 95 %, the likeliest first."""
        found = zip(row["probabilities"], self.class_names, strict=True)
        members = zip(found, row["classes_at_95"], strict=True)
        inside = [pair for pair, is_in in members if is_in]
        return [name for _, name in sorted(inside, reverse=True)]

    def _fail(self, status: int, message: str) -> None:
        self._answer(status, {"error": message[:_MAX_ERROR]})

    def _answer(self, status: int, content: dict) -> None:
        # The labels are bytes.
        body = json.dumps(content, default=bytes.decode).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _pictures(body: bytes) -> list[bytes]:
    """Returns the picture that a body is, or those in its JSON."""
    if image_formats.recognize(body):
        return [body]
    if not body.lstrip().startswith(b"{"):
        raise ValueError(f"{_FORM}; {image_formats.describe(body)}")
    try:
        instances = json.loads(body).get("instances")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_FORM}: {error}") from error
    if not isinstance(instances, list) or not instances:
        raise ValueError(f"{_FORM}; it has no instances")
    return _each(_from_base64, instances)


def _from_base64(instance: Any) -> bytes:
    if not isinstance(instance, dict) or "b64" not in instance:
        raise ValueError('an instance must be {"b64": "..."}')
    try:
        return base64.b64decode(instance["b64"], validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"b64 must be base64: {error}") from error


def _to_readable(picture: bytes) -> bytes:
    """Returns the picture in a format that the model reads."""
    kind = image_formats.format_of(picture)
    if kind in ("JPEG", "PNG") or image_formats.is_plain_bmp(picture):
        return picture
    try:
        from pictures import pillow_reader
    except ImportError as error:
        package = "pillow-heif" if kind == "HEIC" else "pillow"
        raise ValueError(
            f"it is {kind}, which needs: pip install {package}"
        ) from error
    return pillow_reader.to_png(pillow_reader.read(picture))


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Returns what `function` makes of each item.

    Raises:
      ValueError: with the item's position, if there are several.
    """
    results = []
    for k, item in enumerate(items):
        try:
            results.append(function(item))
        except (tf.errors.OpError, ValueError) as error:
            where = f"instances[{k}]: " if len(items) > 1 else ""
            raise ValueError(where + _message(error)) from error
    return results


def _message(error: Exception) -> str:
    """Returns an error's message, on one line."""
    # TensorFlow puts the names of operations before and after it.
    text = str(error).partition("\n\t [[")[0].rpartition("\n")[2]
    return text.removeprefix("assertion failed: [").removesuffix("]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    folder = pathlib.Path(__file__).parent / "saved_model"
    # The signature alone does not keep the model alive.
    loaded = tf.saved_model.load(str(folder))
    Handler.predict = staticmethod(loaded.signatures["serving_default"])
    Handler.class_names = loaded.class_names().numpy().tolist()
    address = (options.host, options.port)
    try:
        server = http.server.ThreadingHTTPServer(address, Handler)
    except OSError as error:
        parser.error(f"--host and --port: {error}")
    with server:
        port = server.server_address[1]
        print(f"http://{options.host}:{port}/v1/models/any:predict", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
