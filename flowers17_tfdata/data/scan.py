"""One look at every image of a data set: size, thumbnail, errors."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from flowers17_tfdata.data import decode
from flowers17_tfdata.errors import UserError, one_line

# Decoded at once: enough for all cores, little memory.
_CHUNK = 256

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
    """

    ids: list[str]
    splits: list[str]
    labels: np.ndarray
    thumbnails: np.ndarray
    sizes: np.ndarray
    errors: dict[int, str]


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

    found = scan_images(map(read_or_nothing, missing), on_scanned)
    for k, position in enumerate(missing):
        known[keys[position]] = (
            found.thumbnails[k],
            found.sizes[k],
            found.errors.get(k, ""),
        )
    rows = [known[key] for key in keys]
    result = decode.Thumbnails(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 16, 17),
        np.array([r[1] for r in rows], np.int32).reshape(-1, 2),
        {k: str(r[2]) for k, r in enumerate(rows) if r[2]},
    )
    if missing:
        _save(path, keys, result)
    return result


def _load(path: pathlib.Path) -> dict[str, tuple]:
    try:
        with np.load(path) as arrays:
            columns = [arrays[name] for name in ("keys", "thumbnails", "sizes")]
            errors = map(str, arrays["errors"])
            return {
                str(key): (thumbnail.astype(np.float32), size, error)
                for key, thumbnail, size, error in zip(
                    *columns, errors, strict=True
                )
            }
    # Missing or damaged, however: the images are at hand.
    except Exception:
        return {}


def _save(
    path: pathlib.Path, keys: list[str], found: decode.Thumbnails
) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            temporary,
            keys=np.asarray(keys, np.str_),
            thumbnails=found.thumbnails.astype(np.float16),
            sizes=found.sizes,
            errors=np.asarray(
                [found.errors.get(k, "") for k in range(len(keys))], np.str_
            ),
        )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"what was found in the images can't be kept in --data_dir ({path})"
            f": {one_line(error)}"
        ) from error
