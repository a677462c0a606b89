"""One look at every image of a data set: size, thumbnail, errors."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from flowers17_tfdata import files
from flowers17_tfdata.data import decode, near_duplicates
from flowers17_tfdata.data.near_duplicates import NearDuplicate

# Decoded at once: enough for all cores, little memory.
_CHUNK = 256

# A scan that is killed has lost no more than this.
_SAVE_SECS = 30.0

# Of the file of thumbnails: another, and all images are looked at again.
_FORMAT = "thumbnails 1"

# Called with how many images have been looked at.
OnScanned = Callable[[int], None]


class Scan(NamedTuple):
    """What a look at a data set found, an entry an example.

    Attributes:
      ids: names, `[n]`.
      splits: the split of each, `[n]`; '' for one that is left out.
      labels: int64 `[n]`.
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255]; zeros where
        the image can't be decoded.
      sizes: int32 `[n, 2]`, height and width, pixels; zeros likewise.
      errors: `{position: one line}` of the images that can't be decoded.
      pairs_cache: see `find_pairs`.
    """

    ids: list[str]
    splits: list[str]
    labels: np.ndarray
    thumbnails: np.ndarray
    sizes: np.ndarray
    errors: dict[int, str]
    pairs_cache: pathlib.Path | None = None


def scan_images(
    encoded: Iterable[bytes], on_scanned: OnScanned | None = None
) -> decode.Thumbnails:
    """Decodes images to thumbnails, holding only some of them at a time.

    Thumbnails are rounded to half precision, as they are kept on disk: the
    same hashes whether they were.
    """
    parts, errors, done = [], {}, 0
    encoded = iter(encoded)
    while chunk := list(itertools.islice(encoded, _CHUNK)):
        part = decode.make_thumbnails(chunk)
        errors |= {done + k: text for k, text in part.errors.items()}
        parts.append((part.thumbnails.astype(np.float16), part.sizes))
        done += len(chunk)
        if on_scanned:
            on_scanned(done)
    if not parts:
        return decode.Thumbnails(
            np.zeros([0, 16, 17], np.float32), np.zeros([0, 2], np.int32), {}
        )
    thumbnails, sizes = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return decode.Thumbnails(thumbnails.astype(np.float32), sizes, errors)


def scan_with_cache(
    path: pathlib.Path,
    keys: list[str],
    read: Callable[[int], bytes],
    on_scanned: OnScanned | None = None,
) -> decode.Thumbnails:
    """Scans what a cache file doesn't know, and keeps it there.

    Args:
      path: of the .npz.
      keys: what identifies each image and its contents, `[n]`, unique.
      read: from a position to the encoded image; an `OSError` it raises counts
        as an image that can't be decoded.
      on_scanned: progress.

    Raises:
      UserError: the cache can't be written.
    """
    known = _load(path)
    missing = [k for k, key in enumerate(keys) if key not in known]

    def read_or_nothing(position: int) -> bytes:
        try:
            return read(position)
        except OSError:
            # Decoding nothing says that it is no image.
            return b""

    done, saved_at = 0, time.monotonic()
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        found = scan_images(map(read_or_nothing, chunk))
        for k, position in enumerate(chunk):
            known[keys[position]] = (
                found.thumbnails[k],
                found.sizes[k],
                found.errors.get(k, ""),
            )
        done += len(chunk)
        if on_scanned:
            on_scanned(done)
        if done == len(missing) or time.monotonic() - saved_at > _SAVE_SECS:
            _save(path, {key: known[key] for key in keys if key in known})
            saved_at = time.monotonic()
    rows = [known[key] for key in keys]
    return decode.Thumbnails(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 16, 17),
        np.array([r[1] for r in rows], np.int32).reshape(-1, 2),
        {k: str(r[2]) for k, r in enumerate(rows) if r[2]},
    )


def find_pairs(
    thumbnails: np.ndarray, cache: pathlib.Path | None = None
) -> list[NearDuplicate]:
    """Finds near-duplicates, or reads them from the file of an earlier run.

    Of 50,000 images it takes half a minute or more, in every phase.

    Args:
      thumbnails: float32 `[n, 16, 17]`, gray levels in [0, 255].
      cache: file for the pairs of these very thumbnails; None: not kept.
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


def load_arrays(
    path: pathlib.Path, digest: str
) -> dict[str, np.ndarray] | None:
    """Reads what `save_arrays` kept; None: nothing, or of another digest."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["digest"]) == digest:
                return {name: arrays[name] for name in arrays.files}
    # Missing or damaged, however: the images are at hand.
    except Exception:
        pass
    return None


def save_arrays(
    path: pathlib.Path, digest: str, arrays: dict[str, np.ndarray]
) -> None:
    """Keeps arrays in a file that is whole or absent.

    Args:
      path: of the .npz.
      digest: of all that they depend on.
      arrays: to be kept.

    Raises:
      UserError: it can't be written.
    """
    files.write_arrays(
        path,
        {"digest": np.asarray(digest), **arrays},
        f"the scan of the images, {path} in --data_dir,",
    )


def _load(path: pathlib.Path) -> dict[str, tuple]:
    arrays = load_arrays(path, _FORMAT)
    if arrays is None:
        return {}
    columns = [arrays[name] for name in ("keys", "thumbnails", "sizes")]
    errors = map(str, arrays["errors"])
    return {
        str(key): (thumbnail.astype(np.float32), size, error)
        for key, thumbnail, size, error in zip(*columns, errors, strict=True)
    }


def _save(path: pathlib.Path, known: dict[str, tuple]) -> None:
    thumbnails, sizes, errors = zip(*known.values(), strict=True)
    save_arrays(
        path,
        _FORMAT,
        {
            "keys": np.asarray(list(known), np.str_),
            "thumbnails": np.asarray(thumbnails, np.float16),
            "sizes": np.asarray(sizes, np.int32),
            "errors": np.asarray(errors, np.str_),
        },
    )
