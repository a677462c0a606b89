"""Decodes every image of a data set once, and keeps what it finds."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flowers17_tfdata import files, machine
from flowers17_tfdata.data import (
    decode,
    faults,
    near_duplicates,
    pillow_reader,
    series,
)
from flowers17_tfdata.data.near_duplicates import NearDuplicate
from flowers17_tfdata.data.oxford_flowers17 import splits
from flowers17_tfdata.errors import one_line

# Images decoded at once: enough to keep all cores busy, little memory.
_CHUNK = 256

# The most work that a scan loses when it is killed.
_SAVE_SECS = 30.0

# The format of the cache file. Another format means decoding all images anew.
_FORMAT = "thumbnails 4"

_NOTHING = np.zeros([16, 17], np.float16)
_NOT_MEASURED = np.zeros([faults.NUM_MEASURES], np.float32)

# The shares of red, green and blue in a gray level (ITU-R BT.601).
_GRAY = np.array([[0.2989, 0.5870, 0.1140]], np.float32)

# JPEGs are reduced while they are decoded, to no less than this, pixels.
_LEAST_SIDE = 256

# An encoded image, or its file.
Image = bytes | pathlib.Path

# Called with the number of images decoded so far.
OnScanned = Callable[[int], None]


class _Row(NamedTuple):
    """What was found in an image.

    Attributes:
      thumbnail: float16 `[16, 17]`.
      size: height and width, pixels.
      error: why the image can't be decoded, or ''.
      damage: what is damaged in an image that was decoded, or ''.
      measures: float32 `[faults.NUM_MEASURES]`.
      secs: when it was taken, see `series.Shot`.
      camera: by which camera, see `series.Shot`.
      is_known: whether this holds until the bytes change. A denied permission,
        a network's failure or a missing package may be gone tomorrow.
    """

    thumbnail: np.ndarray
    size: Sequence[int]
    error: str
    damage: str = ""
    measures: np.ndarray = _NOT_MEASURED
    secs: float = math.nan
    camera: str = ""
    is_known: bool = True


# The arrays of the cache file: it holds what is known.
_COLUMNS = _Row._fields[:-1]


class ScannedImages(NamedTuple):
    """What was found by decoding images.

    Attributes:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255]; zeros if the
        image can't be decoded.
      sizes: int32 `[n, 2]`, height and width in pixels; zeros if the image
        can't be decoded.
      errors: `{position: message}` for the images that can't be decoded, one
        line each.
      damage: `{position: message}` for the images that are damaged, but were
        decoded, one line each.
      pairs_cache: the file that keeps the near-duplicates, if any.
    """

    thumbnails: np.ndarray
    sizes: np.ndarray
    errors: dict[int, str]
    damage: dict[int, str]
    measures: np.ndarray
    secs: np.ndarray
    cameras: list[str]
    pairs_cache: pathlib.Path | None = None


class Scan(NamedTuple):
    """What was found by decoding a data set of n examples.

    Attributes:
      ids: `[n]`.
      splits: the split of each example, `[n]`; '' if it is left out.
      labels: int64 `[n]`.
      images: what was found in each example's image.
    """

    ids: list[str]
    splits: list[str]
    labels: np.ndarray
    images: ScannedImages


def scan_images(
    encoded: Iterable[bytes], on_scanned: OnScanned | None = None
) -> ScannedImages:
    """Decodes images to thumbnails, holding only some images at a time."""
    return _to_arrays(list(_scan(encoded, on_scanned)))


def scan_files(
    cache: pathlib.Path,
    paths: Mapping[str, pathlib.Path],
    on_scanned: OnScanned | None = None,
) -> ScannedImages:
    """Decodes the files that a cache file doesn't know, and adds them to it.

    Args:
      cache: the `.npz` file.
      paths: `{key: image file}`; the key identifies the file and its contents.
        A file that can't be read counts as one that can't be decoded.
      on_scanned: called with the number of images decoded so far.

    Raises:
      UserError: the cache can't be written.
    """
    known = _load_rows(cache)
    missing = [key for key in paths if key not in known]
    rows = _scan((paths[key] for key in missing), on_scanned)
    saved_at = time.monotonic()
    for key, row in zip(missing, rows, strict=True):
        known[key] = row
        if key == missing[-1] or time.monotonic() - saved_at > _SAVE_SECS:
            kept = [k for k in paths if k in known and known[k].is_known]
            _save_rows(cache, {k: known[k] for k in kept})
            saved_at = time.monotonic()
    found = _to_arrays([known[key] for key in paths])
    return found._replace(pairs_cache=cache.with_suffix(".pairs.npz"))


def _scan(
    images: Iterable[Image], on_scanned: OnScanned | None
) -> Iterator[_Row]:
    remaining, done = iter(images), 0
    # TensorFlow decodes without holding Python's lock.
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as threads:
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            rows = list(threads.map(_scan_image, chunk))
            done += len(rows)
            if on_scanned:
                on_scanned(done)
            yield from rows


def _scan_image(image: Image) -> _Row:
    try:
        encoded = image if isinstance(image, bytes) else image.read_bytes()
        # Decoding all of 12 megapixels for 272 gray levels takes five times as
        # long.
        picture = decode.read(encoded, _LEAST_SIDE)
        thumbnail = _to_thumbnail(picture.pixels)
        measures = faults.measure(picture.pixels)
        shot = series.read(encoded)
    except pillow_reader.MissingReaderError as error:
        return _Row(_NOTHING, (0, 0), str(error), is_known=False)
    except ValueError as error:
        return _Row(_NOTHING, (0, 0), decode.decoder_message(error))
    except OSError as error:
        reason = one_line(error.strerror or error)
        return _Row(_NOTHING, (0, 0), reason, is_known=False)
    return _Row(thumbnail, picture.size, "", picture.damage, measures, *shot)


def _to_thumbnail(pixels: np.ndarray) -> np.ndarray:
    gray = cv2.transform(pixels.astype(np.float32), _GRAY)
    small = cv2.resize(gray, (17, 16), interpolation=cv2.INTER_AREA)
    # Rounded as in the cache file, so that cached images hash the same.
    return small.astype(np.float16)


def _to_arrays(rows: list[_Row]) -> ScannedImages:
    return ScannedImages(
        np.array([r.thumbnail for r in rows], np.float32).reshape(-1, 16, 17),
        np.array([r.size for r in rows], np.int32).reshape(-1, 2),
        {k: str(r.error) for k, r in enumerate(rows) if r.error},
        {k: str(r.damage) for k, r in enumerate(rows) if r.damage},
        np.array([r.measures for r in rows], np.float32).reshape(
            -1, faults.NUM_MEASURES
        ),
        np.array([r.secs for r in rows], np.float64),
        [str(r.camera) for r in rows],
    )


def _load_rows(path: pathlib.Path) -> dict[str, _Row]:
    arrays = load_arrays(path, _FORMAT)
    if not arrays:
        return {}
    rows = zip(*(arrays[name] for name in _COLUMNS), strict=True)
    keys = arrays["keys"].tolist()
    return dict(zip(keys, itertools.starmap(_Row, rows), strict=True))


def _save_rows(path: pathlib.Path, known: dict[str, _Row]) -> None:
    rows = known.values()
    arrays = {name: [getattr(row, name) for row in rows] for name in _COLUMNS}
    save_arrays(path, _FORMAT, arrays | {"keys": list(known)})


def find_pairs(images: ScannedImages) -> list[NearDuplicate]:
    """Finds near-duplicates, or reads them from the file of an earlier run.

    For 50,000 images the search takes at least half a minute, in every phase.
    """
    if images.pairs_cache is None:
        return near_duplicates.find_near_duplicates(images.thumbnails)
    thumbnails = np.ascontiguousarray(images.thumbnails)
    digest = hashlib.sha256(thumbnails.data).hexdigest()
    stored = load_arrays(images.pairs_cache, digest)
    if stored:
        return [NearDuplicate(*row) for row in stored["pairs"].tolist()]
    pairs = near_duplicates.find_near_duplicates(thumbnails)
    table = np.asarray(pairs, np.int64).reshape(-1, 3)
    save_arrays(images.pairs_cache, digest, {"pairs": table})
    return pairs


def find_groups(
    images: ScannedImages, given: Iterable[Sequence[int]] = ()
) -> np.ndarray:
    """Returns the group of each image, int `[n]`.

    Args:
      images: what was found by decoding n images.
      given: pairs of images that belong together, besides near-duplicates.
    """
    pairs = [*find_pairs(images), *given]
    return splits.group_pairs(pairs, len(images.thumbnails))


def load_arrays(path: pathlib.Path, digest: str) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote; empty if it has another digest."""
    try:
        arrays = files.read_arrays(path)
        return arrays if str(arrays["digest"]) == digest else {}
    # Missing, or damaged in any way: it can be computed again.
    except Exception:
        return {}


def save_arrays(path: pathlib.Path, digest: str, arrays: Mapping) -> None:
    """Writes arrays to an `.npz` file, whole or not at all.

    Args:
      path: the file.
      digest: a hash of everything that the arrays depend on.
      arrays: the arrays by name.

    Raises:
      UserError: the file can't be written.
    """
    what = f"the scan of the images, {path} in --data_dir,"
    files.write_arrays(path, {"digest": digest, **arrays}, what)
