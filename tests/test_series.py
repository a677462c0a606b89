"""Tests of series of photographs: their EXIF, and the audit's warning."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import ExifTags, Image

from flowers17_tfdata import terminal
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import decode, series
from flowers17_tfdata.data.source import open_source
from tests import fakes

# 2024-05-01 10:00:00, as seconds.
START = 1714557600


def _exif(secs: float, camera: str = "Lens 5", serial: str = "") -> Image.Exif:
    whole = int(secs)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker ", camera
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = (
        f"2024:05:01 10:{whole // 60:02d}:{whole % 60:02d}"
    )
    if secs != whole:
        details[ExifTags.Base.SubsecTimeOriginal] = f"{secs - whole:.2f}"[2:]
    if serial:
        details[ExifTags.Base.BodySerialNumber] = serial
    return exif


def _encode(kind: str = "JPEG", exif=None, seed: int = 0) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(fakes.make_smooth_image(60, 80, seed, 9))
    options = {} if exif is None else {"exif": exif.tobytes()}
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"]
)
def test_time_and_camera_are_read(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    encoded = _encode(kind, _exif(61.25, serial="77"))
    assert series.read(encoded) == (START + 61.25, "Maker Lens 5 77")
    assert math.isnan(series.read(_encode(kind)).secs)


def test_exif_behind_the_pixels_of_a_png_is_read_without_decoding():
    encoded = _encode("PNG", _exif(0))
    start = encoded.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
    chunk, rest = encoded[start:end], encoded[:start] + encoded[end:]
    at = rest.index(b"IEND") - 4
    moved = bytearray(rest[:at] + chunk + rest[at:])
    # What can't be decoded can't have been.
    pixels = moved.index(b"IDAT") + 8
    moved[pixels : pixels + 4] = b"xxxx"
    assert series.read(bytes(moved)).secs == START


@pytest.mark.parametrize(
    "text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "2024-05-01", ""]
)
def test_a_time_that_was_not_set_is_none(text):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = text
    assert math.isnan(series.read(_encode(exif=exif)).secs)


def test_malformed_exif_is_passed_over():
    encoded = _encode(exif=_exif(0))
    at = encoded.index(b"II*\0" if b"II*\0" in encoded else b"MM\0*")
    for k in range(at, at + 100):
        bent = encoded[:k] + b"\xff" + encoded[k + 1 :]
        series.read(bent)
        assert decode.read(bent).size in ((60, 80), (80, 60))
    cut = encoded[:at] + b"\xff" * 60 + encoded[at + 60 :]
    assert series.read(cut) == series.Shot() or math.isnan(
        series.read(cut).secs
    )


def test_runs_are_of_one_camera_and_without_a_longer_gap():
    secs = np.array([30, 0, 10, 20.5, 5, math.nan, 5, 100, 109, 30])
    cameras = ["a", "a", "a", "a", "b", "a", "b", "a", "a", "c"]
    # 20.5 follows 10 too late, and 30 follows 20.5 in time.
    assert series.find(secs, cameras) == [[1, 2], [3, 0], [7, 8], [4, 6]]


def _source(splits: list[str], **attributes) -> fakes.FakeSource:
    """Photographs two seconds apart, each in the split of its number."""
    rows: dict[str, list] = {}
    for k, split in enumerate(splits):
        encoded = _encode(exif=_exif(2 * k), seed=k)
        rows.setdefault(split, []).append((f"{k}.jpg", 0, encoded))
    return fakes.FakeSource(["rose"], rows, **attributes)


def _audit(source) -> dict:
    return audit_lib.audit(source, source.scan())


def test_a_series_across_splits_is_warned_of(capsys):
    splits = ["train", "train", "unused", "test", "train"]
    report = _audit(_source(splits, name="folder:photos@0"))
    assert report["series"] == {
        "num_series": 1,
        "num_series_across_splits": 1,
        "num_images_across_splits": 4,
        "series": [
            {
                "ids": ["0.jpg", "1.jpg", "3.jpg", "4.jpg"],
                "splits": ["train", "train", "test", "train"],
            }
        ],
    }
    terminal.show_audit(report)
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "series" in line
    ]
    assert "1 series of photographs (4 images" in line
    assert "first 0.jpg (train) and 3.jpg (test)" in line
    assert "--groups" in line
    # A TFDS data set has no such flag.
    terminal.show_audit(report | {"dataset": "tf_flowers/3.0.1"})
    out = capsys.readouterr().out
    assert "1 series" in out
    assert "--groups" not in out


@pytest.mark.parametrize("splits", [["train"] * 3, ["train", "unused"]])
def test_a_series_in_one_split_is_not_warned_of(splits, capsys):
    report = _audit(_source(splits))
    assert report["series"]["num_series"] == 1
    assert report["series"]["series"] == []
    terminal.show_audit(report)
    assert "series" not in capsys.readouterr().out


def test_times_are_kept_in_the_cache_of_the_scan(tmp_path):
    for k in range(12):
        path = tmp_path / "photos" / ("rose", "lily")[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(exif=_exif(2 * k), seed=k))
    config = DataConfig(
        dataset=f"folder:{tmp_path / 'photos'}", data_dir=str(tmp_path / "data")
    )
    scanned = []
    first, again = (
        _audit(open_source(config, scanned.append)) for _ in range(2)
    )
    assert scanned == [12]
    assert first == again
    assert first["series"]["num_images_across_splits"] == 12
    # It is warned of, not moved: --groups is for that.
    assert first["series"]["num_series_across_splits"] == 1
