"""Reads the Oxford Flowers-17 archive and the publishers' splits."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator, Mapping

from PIL import Image
from scipy import io as scipy_io

from .errors import ArchiveError, DatasetError, one_line

NUM_IMAGES = 1360
IMAGES_PER_CLASS = 80

HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"
DIGESTS = {
    "17flowers.tgz": (
        "sha256",
        "fe38a60f8b4a95e657551247d3e7d799a3fafcdbc595be504b12839967823d70",
    ),
    "datasplits.mat": ("md5", "4828cddfd0d803c5abbdebcb1e148a1e"),
}

# Each split's prefix in datasplits.mat.
_OFFICIAL_KEYS = {"train": "trn", "validation": "val", "test": "tst"}
_IMAGE_NAME = re.compile(r"image_(\d{4})\.jpg")
# The largest photograph has 0.12 MB; a far larger member is no photograph.
_MAX_IMAGE_BYTES = 32 * 2**20
# The formats that TensorFlow decodes, whatever the file's name.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP")


def image_name(number: int) -> str:
    """Returns the file name of image `number`, 1 to 1360."""
    return f"image_{number:04d}.jpg"


def image_number(file_name: str) -> int:
    """Returns the image number, 1 to 1360, of a file name."""
    return int(_IMAGE_NAME.sub(r"\1", file_name))


def read_archive(path: str | pathlib.Path) -> dict[str, bytes]:
    """Reads all images into memory (60 MB), without extracting to disk.

    Args:
      path: the .tgz, or the folder it extracts to (the one that holds `jpg/`
        or the images themselves).

    Returns:
      `{file name: JPEG bytes}` for image_0001.jpg to image_1360.jpg, sorted.

    Raises:
      ArchiveError: the file is missing, unreadable or not an archive, or it
        does not hold exactly these 1360 images.
    """
    path = pathlib.Path(os.path.expanduser(path))
    if not path.exists():
        raise ArchiveError(f"archive {path} does not exist")
    expected = [image_name(number + 1) for number in range(NUM_IMAGES)]
    try:
        read = _folder_images if path.is_dir() else _tar_images
        images = sorted(read(path))
        found = collections.Counter(name for name, _ in images)
        found.subtract(expected)
        if wrong := sorted(name for name, excess in found.items() if excess):
            raise ValueError(
                f"it must hold each of {expected[0]} to {expected[-1]} once; "
                f"{len(wrong)} are missing, unexpected or there twice, the "
                f"first {wrong[0]}"
            )
    # A damaged file makes tarfile and the decompressors raise many types.
    except Exception as error:
        raise ArchiveError(
            f"archive {path} can't be read as a 17flowers.tgz or its folder: "
            f"{one_line(error)}"
        ) from error
    return dict(images)


def _folder_images(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    jpg = folder / "jpg"
    for file in (jpg if jpg.is_dir() else folder).iterdir():
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
                raise ValueError(
                    f"{member.name} declares {member.size} bytes; an image has "
                    f"at most {_MAX_IMAGE_BYTES}"
                )
            stream = tar.extractfile(member)
            assert stream is not None, "a regular file has contents"
            yield name, stream.read()
        # tarfile stops at the archive's end mark. The checksum of the
        # compressed stream, which detects damage, comes after it.
        while tar.fileobj.read(2**20):
            pass


def content_digest(images: Mapping[str, bytes]) -> str:
    """Returns a SHA-256 of the images' names and bytes, however packed."""
    digest = hashlib.sha256()
    for name in sorted(images):
        digest.update(name.encode() + hashlib.sha256(images[name]).digest())
    return digest.hexdigest()


def check_decodable(images: Mapping[str, bytes]) -> None:
    """Decodes every image whole.

    Args:
      images: `{file name: JPEG bytes}`.

    Raises:
      DatasetError: images can't be decoded; the message lists up to five.
    """
    errors = []
    for name, data in images.items():
        try:
            # Pillow refuses a huge image by its header. TensorFlow would
            # allocate its memory, and print warnings about damaged images.
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
        # Pillow raises many types.
        except Exception as error:
            errors.append(f"{name}: {one_line(error, 160)}")
    if errors:
        raise DatasetError(
            f"{len(errors)} of {len(images)} images can't be decoded "
            f"({'; '.join(errors[:5])}); replace them, the split needs them all"
        )


def find_splits_file(archive: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the datasplits.mat in or beside a local archive, if any."""
    path = pathlib.Path(os.path.expanduser(archive))
    files = (path / "datasplits.mat", path.parent / "datasplits.mat")
    return next((f for f in files if archive and f.is_file()), None)


def read_official_split(path: str | pathlib.Path, k: int) -> dict[str, str]:
    """Reads one of the publishers' three splits.

    Args:
      path: the publishers' datasplits.mat.
      k: the split's number, 1 to 3.

    Returns:
      `{file name: train, validation or test}` of all 1360 images.

    Raises:
      DatasetError: the file is unreadable, or does not hold every image
        number exactly once.
    """
    try:
        table = scipy_io.loadmat(path)
        assigned = [
            (int(number), split)
            for split, key in _OFFICIAL_KEYS.items()
            for number in table[f"{key}{k}"].ravel()
        ]
        if sorted(n for n, _ in assigned) != list(range(1, NUM_IMAGES + 1)):
            raise ValueError(
                f"it must put each of the images 1 to {NUM_IMAGES} into "
                "exactly one split"
            )
    # A damaged file makes SciPy raise many types.
    except Exception as error:
        raise DatasetError(
            f"{path} can't be read as datasplits.mat: {one_line(error)}"
        ) from error
    return {image_name(number): split for number, split in assigned}
