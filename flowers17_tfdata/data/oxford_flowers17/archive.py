"""Reads the Oxford Flowers-17 archive: a .tgz or its extracted folder."""

from __future__ import annotations

import hashlib
import lzma
import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator

from .errors import ArchiveError, DatasetError, one_line

NUM_IMAGES = 1360
IMAGES_PER_CLASS = 80

BASE_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"
ARCHIVE_URL = BASE_URL + "17flowers.tgz"
ARCHIVE_SHA256 = (
    "fe38a60f8b4a95e657551247d3e7d799a3fafcdbc595be504b12839967823d70"
)
SPLITS_URL = BASE_URL + "datasplits.mat"
SPLITS_MD5 = "4828cddfd0d803c5abbdebcb1e148a1e"

# Part of messages to users of a command line and of `tfds.load` alike.
HOW_TO_PASS = 'with --archive=PATH (in code: builder_kwargs={"archive": PATH})'

_IMAGE_NAME = re.compile(r"image_(\d{4})\.jpg")
# The largest photograph has 0.12 MB; a member far above that is not one.
_MAX_IMAGE_BYTES = 32 * 2**20


def image_name(number: int) -> str:
    """Returns the file name of image `number`, 1 to 1360."""
    return f"image_{number:04d}.jpg"


def image_number(file_name: str) -> int:
    """Returns the image number, 1 to 1360, of a file name."""
    return int(_IMAGE_NAME.fullmatch(file_name)[1])


def read_archive(path: str | pathlib.Path) -> dict[str, bytes]:
    """Reads all images into memory (60 MB), without extracting to disk.

    Args:
      path: the .tgz, or the folder it extracts to (the one that holds `jpg/`
        or the images themselves).

    Returns:
      `{file name: JPEG bytes}` for image_0001.jpg to image_1360.jpg, sorted.

    Raises:
      ArchiveError: not readable, not an archive, or not these 1360 images.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not path.exists():
        raise ArchiveError(f"archive {path} does not exist")
    images: dict[str, bytes] = {}
    try:
        entries = _folder_images(path) if path.is_dir() else _tar_images(path)
        for name, data in entries:
            if name in images:
                raise ArchiveError(f"archive {path} holds {name} twice")
            images[name] = data
    # tarfile lets ValueError out for some malformed headers.
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise ArchiveError(
            f"archive {path} can't be read as a 17flowers.tgz or its folder: "
            f"{one_line(error)}"
        ) from error
    expected = [image_name(number + 1) for number in range(NUM_IMAGES)]
    missing = [name for name in expected if name not in images]
    unexpected = sorted(set(images) - set(expected))
    if missing or unexpected:
        example = f"missing {missing[0]}" if missing else f"has {unexpected[0]}"
        raise ArchiveError(
            f"archive {path} must hold {image_name(1)} to "
            f"{image_name(NUM_IMAGES)}; it holds {len(images)} images "
            f"({len(missing)} missing, {len(unexpected)} unexpected; {example})"
        )
    return {name: images[name] for name in expected}


def _folder_images(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    jpg = folder / "jpg"
    for file in sorted((jpg if jpg.is_dir() else folder).iterdir()):
        if _IMAGE_NAME.fullmatch(file.name) and file.is_file():
            yield file.name, file.read_bytes()


def _tar_images(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as tar:
        for member in tar:
            name = pathlib.PurePosixPath(member.name).name
            # Links and devices are never followed: only regular files count.
            if not (member.isreg() and _IMAGE_NAME.fullmatch(name)):
                continue
            if member.size > _MAX_IMAGE_BYTES:
                raise ArchiveError(
                    f"archive {path}: {member.name} declares {member.size} "
                    f"bytes; an image has at most {_MAX_IMAGE_BYTES}"
                )
            yield name, tar.extractfile(member).read()
        # tar stops at its end mark; the compressed stream's checksum, which
        # tells whether the bytes are whole, comes after it.
        while tar.fileobj.read(2**20):
            pass


def content_digest(images: dict[str, bytes]) -> str:
    """Returns a SHA-256 of the images' names and bytes, however packed."""
    digest = hashlib.sha256()
    for name in sorted(images):
        digest.update(name.encode() + hashlib.sha256(images[name]).digest())
    return digest.hexdigest()


def verify_digest(path: str | pathlib.Path, algorithm: str, expected: str):
    """Checks a downloaded file's digest.

    Raises:
      DatasetError: it differs; names both digests.
    """
    actual = hashlib.new(algorithm, pathlib.Path(path).read_bytes()).hexdigest()
    if actual != expected:
        raise DatasetError(
            f"the download {path} has {algorithm} {actual}, not {expected}: "
            "it is damaged or was replaced; delete it and try again, or pass "
            f"a copy you trust {HOW_TO_PASS}"
        )


def check_official_split(numbers_of: dict[str, list[int]], path: object):
    """Checks that a split holds every image number exactly once.

    Raises:
      DatasetError: it doesn't; names the file.
    """
    numbers = [n for split in numbers_of.values() for n in split]
    if sorted(numbers) != list(range(1, NUM_IMAGES + 1)):
        raise DatasetError(
            f"{path} must put each of the images 1 to {NUM_IMAGES} into one "
            f"split; it lists {len(numbers)} numbers, {len(set(numbers))} of "
            "them different"
        )


def splits_beside(archive: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the datasplits.mat in or beside a local archive, if any."""
    if not archive:
        return None
    archive = pathlib.Path(os.path.expanduser(archive))
    for folder in (archive, archive.parent):
        if (folder / "datasplits.mat").is_file():
            return folder / "datasplits.mat"
    return None
