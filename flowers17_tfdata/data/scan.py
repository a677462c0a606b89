"""Decodes every image of a data set once: size, thumbnail, errors."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from flowers17_tfdata import files, machine
from flowers17_tfdata.data import decode, near_duplicates
from flowers17_tfdata.data.near_duplicates import NearDuplicate
from flowers17_tfdata.data.oxford_flowers17 import splits

# Images decoded at once: enough to keep all cores busy, little memory.
_CHUNK = 256

# The most work that a scan loses when it is killed.
_SAVE_SECS = 30.0

# The format of the cache file. Another format means decoding all images anew.
_FORMAT = "thumbnails 1"

# JPEGs are reduced while they are decoded, to no less than this, pixels.
_LEAST_SIDE = 256

# Called with the number of images decoded so far.
OnScanned = Callable[[int], None]

# A thumbnail, float16 `[16, 17]`; height and width, int32 `[2]`; the error, or
# ''. The cache file has an array for each.
_Row = tuple[np.ndarray, np.ndarray, str]
_COLUMNS = ("thumbnails", "sizes", "errors")


class ScannedImages(NamedTuple):
    """What was found by decoding images.

    Attributes:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255]; zeros if the
        image can't be decoded.
      sizes: int32 `[n, 2]`, height and width in pixels; zeros if the image
        can't be decoded.
      errors: `{position: message}` for the images that can't be decoded, one
        line each.
    """

    thumbnails: np.ndarray
    sizes: np.ndarray
    errors: dict[int, str]


class Scan(NamedTuple):
    """What was found by decoding a data set of n examples.

    Attributes:
      ids: `[n]`.
      splits: the split of each example, `[n]`; '' if it is left out.
      labels: int64 `[n]`.
      images: what was found in each example's image.
      pairs_cache: see `find_pairs`.
    """

    ids: list[str]
    splits: list[str]
    labels: np.ndarray
    images: ScannedImages
    pairs_cache: pathlib.Path | None = None


def scan_images(
    encoded: Iterable[bytes], on_scanned: OnScanned | None = None
) -> ScannedImages:
    """Decodes images to thumbnails, holding only some images at a time."""
    rows: list[_Row] = []
    for chunk in _scan_chunks(encoded):
        rows += chunk
        if on_scanned:
            on_scanned(len(rows))
    return _to_arrays(rows)


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
    done, saved_at = 0, time.monotonic()
    for rows in _scan_chunks(_read(paths[key]) for key in missing):
        known |= zip(missing[done : done + len(rows)], rows, strict=True)
        done += len(rows)
        if on_scanned:
            on_scanned(done)
        if done == len(missing) or time.monotonic() - saved_at > _SAVE_SECS:
            _save_rows(cache, {k: known[k] for k in paths if k in known})
            saved_at = time.monotonic()
    return _to_arrays([known[key] for key in paths])


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        # Decoding it reports that it is no image.
        return b""


def _scan_chunks(encoded: Iterable[bytes]) -> Iterator[list[_Row]]:
    images = iter(encoded)
    # TensorFlow decodes without holding Python's lock.
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as threads:
        while chunk := list(itertools.islice(images, _CHUNK)):
            yield list(threads.map(_scan_image, chunk))


def _scan_image(encoded: bytes) -> _Row:
    try:
        with tf.device("CPU:0"):
            encoded = decode.upright(encoded)
            if encoded.startswith(decode.JPEG_MAGIC):
                size = tf.io.extract_jpeg_shape(encoded)[:2].numpy()
                # Decoding all of 12 megapixels for 272 gray levels takes five
                # times as long. A truncated file is detected all the same.
                ratio = decode.reduction(*size, _LEAST_SIDE)
                image = decode.decode_reduced(encoded, ratio)
            else:
                image = decode.decode_reduced(encoded, 1)
                size = np.array(image.shape[:2], np.int32)
            gray = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
            small = tf.image.resize(gray, [16, 17], method="area")[..., 0]
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        nothing = np.zeros([16, 17], np.float16), np.zeros(2, np.int32)
        return *nothing, decode.decoder_message(error)
    # Rounded as in the cache file, so that cached images hash the same.
    return small.numpy().astype(np.float16), size, ""


def _to_arrays(rows: list[_Row]) -> ScannedImages:
    return ScannedImages(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 16, 17),
        np.array([row[1] for row in rows], np.int32).reshape(-1, 2),
        {k: str(row[2]) for k, row in enumerate(rows) if row[2]},
    )


def _load_rows(path: pathlib.Path) -> dict[str, _Row]:
    arrays = load_arrays(path, _FORMAT)
    if arrays is None:
        return {}
    rows = zip(*(arrays[name] for name in _COLUMNS), strict=True)
    return dict(zip(arrays["keys"].tolist(), rows, strict=True))


def _save_rows(path: pathlib.Path, known: dict[str, _Row]) -> None:
    columns = dict(
        zip(_COLUMNS, zip(*known.values(), strict=True), strict=True)
    )
    save_arrays(path, _FORMAT, {"keys": list(known), **columns})


def find_pairs(
    thumbnails: np.ndarray, cache: pathlib.Path | None = None
) -> list[NearDuplicate]:
    """Finds near-duplicates, or reads them from the file of an earlier run.

    For 50,000 images the search takes at least half a minute, in every phase.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      cache: the file that keeps the pairs of these very thumbnails, if any.
    """
    if cache is None:
        return near_duplicates.find_near_duplicates(thumbnails)
    digest = hashlib.sha256(np.ascontiguousarray(thumbnails)).hexdigest()
    stored = load_arrays(cache, digest)
    if stored is not None:
        return [NearDuplicate(*row) for row in stored["pairs"].tolist()]
    pairs = near_duplicates.find_near_duplicates(thumbnails)
    table = np.asarray(pairs, np.int64).reshape(-1, 3)
    save_arrays(cache, digest, {"pairs": table})
    return pairs


def find_groups(
    thumbnails: np.ndarray, pairs_cache: pathlib.Path | None = None
) -> np.ndarray:
    """Returns the near-duplicate group of each image, int `[n]`.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      pairs_cache: see `find_pairs`.
    """
    pairs = find_pairs(thumbnails, pairs_cache)
    return splits.group_pairs(pairs, len(thumbnails))


def load_arrays(
    path: pathlib.Path, digest: str
) -> dict[str, np.ndarray] | None:
    """Reads what `save_arrays` wrote; None: nothing, or of another digest."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays) if str(arrays["digest"]) == digest else None
    # Missing, or damaged in any way: it can be computed again.
    except Exception:
        return None


def save_arrays(
    path: pathlib.Path, digest: str, arrays: Mapping[str, Any]
) -> None:
    """Writes arrays to an `.npz` file, whole or not at all.

    Args:
      path: the file.
      digest: a hash of everything that the arrays depend on.
      arrays: the arrays by name.

    Raises:
      UserError: the file can't be written.
    """
    files.write_arrays(
        path,
        {"digest": digest, **arrays},
        f"the scan of the images, {path} in --data_dir,",
    )
