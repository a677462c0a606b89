"""The table of docs/serving.md, cell by cell: which pictures are read where.

Every file shows the same picture. Each column reads it by the code that the
page names, and its probabilities are compared with those of the others.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib
import io
import json
import pathlib
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pillow_heif
import pytest
import tensorflow as tf
from PIL import Image

from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data.source import open_source
from flowers17_tfdata.input.examples import Pictures, load_examples
from flowers17_tfdata.phases.export import saved_model
from flowers17_tfdata.phases.export.network import Network
from tests import fakes, run_page

pytestmark = pytest.mark.slow

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "serving.md"
SIZE = fakes.IMAGE_SIZE

# What is shown: gray is what a gray file shows, LAYERS what a transparent one
# holds, with colors hidden in its right quarter.
PIXELS = np.array(fakes.make_smooth_image(40, 56))
GRAY = np.dstack([PIXELS[..., 1]] * 3)
ON_WHITE = PIXELS.copy()
ON_WHITE[:, 42:] = 255
ALPHA = np.full(PIXELS.shape[:2], 255, np.uint8)
ALPHA[:, 42:] = 0
LAYERS = np.dstack([PIXELS, ALPHA])

# The largest difference of a probability. Where the pixels are the same, only
# the arithmetic differs; Pillow decodes and resizes for TFLite and ONNX, and
# TFLite rounds to int8 besides.
TOLERANCES = {
    "predict": 1e-5,
    "SavedModel": 1e-5,
    "serve.py": 1e-5,
    "TFLite": 0.015,
    "ONNX": 0.002,
}
# The mean difference of a pixel from the picture, after lossy compression.
PIXEL_TOLERANCE = 4

# The probabilities of each file, or why it is refused.
Found = dict[str, np.ndarray | str]
Reader = Callable[[dict[str, bytes]], Found]


def _save(image, kind: str, turned=False, **options) -> bytes:
    """Encodes an image; `turned`: on its side, and EXIF says so."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif.tobytes()
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _jpeg_of_12_bits() -> bytes:
    encoded = bytearray(_save(PIXELS, "JPEG"))
    encoded[encoded.index(b"\xff\xc0") + 4] = 12
    return bytes(encoded)


def _make_files() -> dict[str, dict[str, tuple[bytes, np.ndarray]]]:
    """Returns `{row of the table: {name: (file, what it shows)}}`."""
    pillow_heif.register_heif_opener()
    image = Image.fromarray(PIXELS)
    palette = image.quantize(256)
    gray = PIXELS[..., 1]
    wide = PIXELS.astype(np.uint16) * 257
    jpeg = {"quality": 95}
    return {
        "JPEG": {
            "baseline.jpg": (_save(image, "JPEG", **jpeg), PIXELS),
            "progressive.jpg": (
                _save(image, "JPEG", progressive=True, **jpeg),
                PIXELS,
            ),
            "gray.jpg": (_save(gray, "JPEG", **jpeg), GRAY),
            "cmyk.jpg": (_save(image.convert("CMYK"), "JPEG", **jpeg), PIXELS),
            "turned.jpg": (_save(image, "JPEG", turned=True, **jpeg), PIXELS),
        },
        "JPEG of 12 bits": {"12_bits.jpg": (_jpeg_of_12_bits(), PIXELS)},
        "PNG": {
            "8_bits.png": (_save(image, "PNG"), PIXELS),
            "16_bits.png": (tf.io.encode_png(wide).numpy(), PIXELS),
            "gray_16_bits.png": (_save(wide[..., 1], "PNG"), GRAY),
            "palette.png": (_save(palette, "PNG"), PIXELS),
            "transparent.png": (_save(LAYERS, "PNG"), ON_WHITE),
            "turned.png": (_save(image, "PNG", turned=True), PIXELS),
        },
        "GIF": {"palette.gif": (_save(palette, "GIF"), PIXELS)},
        "BMP of 24 bits": {"24_bits.bmp": (_save(image, "BMP"), PIXELS)},
        "other BMP": {
            "palette.bmp": (_save(palette, "BMP"), PIXELS),
            "gray.bmp": (_save(gray, "BMP"), GRAY),
            "32_bits.bmp": (_save(image.convert("RGBA"), "BMP"), PIXELS),
        },
        "WebP": {
            "lossy.webp": (_save(image, "WebP", quality=95), PIXELS),
            "transparent.webp": (
                _save(LAYERS, "WebP", lossless=True, exact=True),
                ON_WHITE,
            ),
        },
        "TIFF": {
            "8_bits.tif": (_save(image, "TIFF"), PIXELS),
            "gray_16_bits.tif": (_save(wide[..., 1], "TIFF"), GRAY),
            "transparent.tif": (_save(LAYERS, "TIFF"), ON_WHITE),
            "turned.tif": (_save(image, "TIFF", turned=True), PIXELS),
        },
        "AVIF": {
            "plain.avif": (_save(image, "AVIF", quality=95), PIXELS),
            "turned.avif": (_save(image, "AVIF", turned=True), PIXELS),
        },
        "HEIC": {"plain.heic": (_save(image, "HEIF", quality=95), PIXELS)},
    }


FILES = _make_files()
ENCODED = {n: f for files in FILES.values() for n, (f, _) in files.items()}


def _read_table() -> dict[str, dict[str, str]]:
    """Returns `{row: {column: cell}}` of the page."""
    section = PAGE.read_text().partition("## Which pictures are read\n\n")[2]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.partition("\n\n")[0].splitlines()
    ]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


TABLE = _read_table()


# The columns ---------------------------------------------------------------


def _by_train(files: dict[str, bytes], folder: pathlib.Path) -> Found:
    """Returns the pixels that training reads, or the audit's reason."""
    for name, data in files.items():
        for label in ("a", "b"):
            path = folder / "photos" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    config = DataConfig(
        dataset=f"folder:{folder / 'photos'}",
        data_dir=str(folder / "data"),
        near_duplicates="anywhere",
    )
    source = open_source(config)
    scan = source.scan()
    found = {scan.ids[k]: reason for k, reason in scan.images.errors.items()}
    for split in source.split_sizes:
        loaded = load_examples(source, split, InputConfig(image_size=SIZE))
        pixels = loaded.images.read(np.arange(loaded.num_examples))
        found |= dict(zip(loaded.ids, pixels, strict=True))
    return {name: found[f"a/{name}"] for name in files}


def _by_predict(files: dict[str, bytes], folder: pathlib.Path) -> Found:
    """Returns the pixels that `--phase=predict` reads, or its reason."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    images = Pictures([str(folder / name) for name in files], SIZE)
    pixels = images.read(np.arange(len(files)))
    return {
        name: images.errors.get(k, pixels[k]) for k, name in enumerate(files)
    }


def _by_page(heading: str, folder: pathlib.Path) -> Reader:
    """Returns a reader that runs the code below a heading of the page."""
    (code,) = [
        code
        for title, _, code in run_page.read_blocks(PAGE.read_text())
        if title == heading
    ]
    assert code.count('"photo.jpg"') == 1

    def read(encoded: bytes) -> np.ndarray:
        path = folder / "any"
        path.write_bytes(encoded)
        names: dict = {}
        exec(code.replace('"photo.jpg"', repr(str(path))), names)
        return np.ravel(names["probabilities"])

    return _one_by_one(read)


def _one_by_one(read: Callable[[bytes], np.ndarray]) -> Reader:
    def reader(files):
        found = {}
        for name, encoded in files.items():
            try:
                found[name] = read(encoded)
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                found[name] = str(error)
        return found

    return reader


@contextlib.contextmanager
def _server(export_folder: pathlib.Path) -> Iterator[Reader]:
    """Runs the exported serve.py in a thread."""
    serve = importlib.import_module("serve")
    loaded = tf.saved_model.load(str(export_folder / "saved_model"))
    serve.Handler.predict = staticmethod(loaded.signatures["serving_default"])

    def ask(picture: bytes) -> np.ndarray:
        port = server.server_address[1]
        url = f"http://127.0.0.1:{port}/v1/models/any:predict"
        try:
            with urllib.request.urlopen(url, data=picture) as response:
                (row,) = json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error
        return np.array(row["probabilities"])

    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(address, serve.Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield _one_by_one(ask)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def classify(export_folder) -> Callable[[np.ndarray], np.ndarray]:
    """A function from one image's pixels to its probabilities."""
    model = keras.models.load_model(
        export_folder / "model.keras", compile=False
    )
    run = Network(model, fakes.preprocess_input, None).runner()
    return lambda pixels: run(pixels[np.newaxis])["probabilities"][0]


@pytest.fixture(scope="module")
def readers(export_folder, classify, tmp_path_factory) -> Iterator[dict]:
    """`{column: reader}`; only train returns pixels."""

    def predict(files):
        found = _by_predict(files, tmp_path_factory.mktemp("predict"))
        return {
            name: x if isinstance(x, str) else classify(x)
            for name, x in found.items()
        }

    graph = saved_model.load(export_folder / "saved_model")
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(export_folder)
        patch.syspath_prepend(export_folder)
        with _server(export_folder) as server:
            yield {
                "train": lambda files: _by_train(
                    files, tmp_path_factory.mktemp("train")
                ),
                "predict": predict,
                "SavedModel": _one_by_one(
                    lambda data: graph([data])["probabilities"][0]
                ),
                "serve.py": server,
                "TFLite": _by_page("TensorFlow Lite", folder),
                "ONNX": _by_page("ONNX", folder),
            }


@pytest.fixture(scope="module")
def trained(readers) -> Found:
    """The pixels that training reads."""
    return readers["train"](ENCODED)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Acts as if a package were not installed."""
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        if package == "pillow-heif":
            patch.setattr(
                importlib.util,
                "find_spec",
                lambda name: None if name == "pillow_heif" else find(name),
            )
        else:
            pictures = importlib.import_module("pictures")
            patch.setitem(sys.modules, "pictures.pillow_reader", None)
            patch.delattr(pictures, "pillow_reader", raising=False)
        yield


# The tests -----------------------------------------------------------------


def test_training_reads_what_each_file_shows(trained, classify):
    for files in FILES.values():
        for name, (_, shown) in files.items():
            if isinstance(trained[name], np.ndarray):
                small = Image.fromarray(shown).resize(
                    (SIZE, SIZE), Image.Resampling.BILINEAR
                )
                difference = np.abs(trained[name] - np.float32(small)).mean()
                assert difference < PIXEL_TOLERANCE, name


def test_the_tolerances_are_below_what_a_mistake_makes(classify):
    resized = [
        np.array(Image.fromarray(x).resize((SIZE, SIZE)))
        for x in (PIXELS, ON_WHITE, np.rot90(PIXELS).copy(), PIXELS[..., ::-1])
    ]
    right, *wrong = map(classify, resized)
    for probabilities in wrong:
        difference = np.abs(probabilities - right).max()
        assert difference > 3 * max(TOLERANCES.values())


@pytest.mark.parametrize(
    "column", ["train", "predict", "SavedModel", "serve.py", "TFLite", "ONNX"]
)
def test_each_cell_is_true(column, readers, trained, classify):
    read = readers[column]
    found = read(ENCODED)
    with _without("pillow-heif"):
        without_heif = read(ENCODED)
    without_pillow = found
    if column == "serve.py":
        with _without("pillow"):
            without_pillow = read(ENCODED)

    def cell(name: str) -> str:
        if isinstance(found[name], str):
            # In words, not in a traceback.
            assert "JPEG" in found[name], found[name]
            return "no"
        if column != "train":
            np.testing.assert_allclose(
                found[name],
                classify(trained[name]),
                atol=TOLERANCES[column],
                err_msg=name,
            )
        if isinstance(without_heif[name], str):
            assert "pip install pillow-heif" in without_heif[name]
            return "pillow-heif"
        if isinstance(without_pillow[name], str):
            assert without_pillow[name].endswith("pip install pillow")
            return "Pillow"
        return "yes"

    happened = {
        row: " or ".join(sorted({cell(name) for name in files}))
        for row, files in FILES.items()
    }
    assert happened == {row: cells[column] for row, cells in TABLE.items()}
