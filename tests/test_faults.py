"""Tests of the faults that the audit finds in photographs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flowers17_tfdata import terminal
from flowers17_tfdata.data import audit as audit_lib
from flowers17_tfdata.data import faults, scan
from tests import fakes


def _photo(seed: int, height: int = 300, width: int = 400) -> np.ndarray:
    """A colored picture of sharp leaves, RGB, with levels from 30 to 220."""
    rng = np.random.default_rng(seed)
    image = fakes.make_smooth_image(height, width, seed)
    for _ in range(60):
        center = tuple(int(k) for k in rng.integers(0, [width, height]))
        axes = tuple(int(k) for k in rng.integers(5, 40, 2))
        color = [int(k) for k in rng.integers(30, 220, 3)]
        turn = int(rng.integers(180))
        cv2.ellipse(image, center, axes, turn, 0, 360, color, -1)
    return np.clip(image, 30, 220)


def _encode(image: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


def _blurred(image: np.ndarray, sigma: float = 4) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _lit(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(np.float32(factor) * image, 0, 255).astype(np.uint8)


def _gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB
    )


def _framed(image: np.ndarray, level: int) -> np.ndarray:
    """The middle of a picture before a plain background."""
    framed = np.full_like(image, level)
    rows, columns = slice(90, 210), slice(120, 280)
    framed[rows, columns] = image[rows, columns]
    return framed


def _before_blur(image: np.ndarray) -> np.ndarray:
    out = _blurred(image, 12)
    out[130:170, 180:220] = image[130:170, 180:220]
    return out


# The kind of fault of each.
DAMAGED = {
    "blurred": _blurred(_photo(100)),
    "dark": _lit(_photo(101), 0.15),
    "over-exposed": _lit(_photo(102), 4),
    "gray among colored": _gray(_photo(103)),
    "unusual aspect ratio": _photo(104, 200, 500),
}
# None is at fault.
FINE = {
    "dark background": _framed(_photo(110), 5),
    "white background": _framed(_photo(111), 255),
    "blurred background": _before_blur(_photo(112)),
    "portrait": _photo(113, 400, 300),
    "large": _photo(114, 1500, 2000),
    "small": _photo(115, 100, 120),
    "tiny": cv2.resize(_photo(116), (7, 5), interpolation=cv2.INTER_AREA),
}


def _audit(images: dict[str, np.ndarray], suffix: str = ".jpg") -> dict:
    rows = [(name, 0, _encode(image, suffix)) for name, image in images.items()]
    source = fakes.FakeSource(["rose"], {"train": rows})
    return audit_lib.audit(source, source.scan())


@pytest.fixture(scope="module")
def report() -> dict:
    """The audit of 20 good pictures, of good ones that look bad, and bad."""
    good = {f"good {k}": _photo(k) for k in range(20)}
    return _audit(good | FINE | {f"a {k}": i for k, i in DAMAGED.items()})


def test_every_fault_is_found_and_no_other(report):
    found = [(fault["kind"], fault["id"]) for fault in report["faults"]]
    assert found == [(kind, f"a {kind}") for kind in DAMAGED]
    assert {fault["split"] for fault in report["faults"]} == {"train"}


@pytest.mark.parametrize("times", [2, 5])
def test_sharpness_is_that_of_the_picture_whatever_its_size(times):
    image = _blurred(_photo(1, 256, 340), 2)
    size = 340 * times, 256 * times
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    one, other = (faults.measure(i)[0] for i in (image, large))
    assert other == pytest.approx(one, rel=0.3)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp"])
def test_formats_that_are_not_reduced_are_measured_alike(suffix):
    jpeg, other = (
        np.array(
            [
                faults.measure(scan.decode.read(_encode(i, kind), 256).pixels)
                for i in (_photo(1), _photo(2, 900, 1200), *DAMAGED.values())
            ]
        )
        for kind in (".jpg", suffix)
    )
    np.testing.assert_allclose(jpeg[:, 1], other[:, 1], atol=4)
    np.testing.assert_allclose(jpeg[:, 2], other[:, 2], atol=0.1)
    np.testing.assert_allclose(jpeg[:, 0], other[:, 0], rtol=0.25, atol=60)
    np.testing.assert_allclose(jpeg[:, 3], other[:, 3], rtol=0.1, atol=2)


@pytest.mark.parametrize(
    "damage", [_blurred, lambda i: _lit(i, 0.3), lambda i: _lit(i, 4), _gray]
)
def test_what_all_images_are_is_no_fault(damage):
    assert (
        _audit({str(k): damage(_photo(k)) for k in range(12)})["faults"] == []
    )


def test_panoramas_are_usual_if_a_tenth_of_the_images_are():
    shapes = [(100, 150)] * 9 + [(100, 250)]
    sizes = np.array(shapes * 2)
    measures = np.tile(faults.measure(_photo(0)), (20, 1))
    assert faults.find(measures, sizes) == []
    few = faults.find(measures, np.array([(100, 150)] * 19 + [(250, 100)]))
    assert [(f.position, f.value) for f in few] == [(19, 2.5)]


def test_the_worst_comes_first_and_broken_files_do_not_count():
    images = {str(k): _photo(k) for k in range(10)}
    images |= {"soft": _blurred(_photo(20), 3), "softer": _blurred(_photo(21))}
    images |= {"dark": _lit(_photo(22), 0.3), "darker": _lit(_photo(23), 0.1)}
    rows = [(name, 0, _encode(image)) for name, image in images.items()]
    rows.insert(0, ("broken", 0, b"no image"))
    source = fakes.FakeSource(["rose"], {"train": rows})
    found = audit_lib.audit(source, source.scan())["faults"]
    names = [fault["id"] for fault in found]
    assert names == ["softer", "soft", "darker", "dark"]
    values = [fault["value"] for fault in found]
    assert values[0] < values[1]


def test_no_image_at_all_has_no_fault():
    assert faults.find(np.zeros([1, 4]), np.zeros([1, 2])) == []


def test_prepare_names_the_kinds(report, capsys):
    terminal.show_audit(report)
    lines = capsys.readouterr().out.splitlines()
    for kind in DAMAGED:
        assert f"{kind}: 1 image, first a {kind}" in lines
    worse = {"kind": "dark", "split": "train", "id": "worse", "value": 1.0}
    terminal.show_audit(report | {"faults": [worse, *report["faults"]]})
    assert "dark: 2 images, first worse" in capsys.readouterr().out
