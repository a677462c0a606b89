"""Tests of reading 17flowers.tgz: content, damage, and hostile members."""

from __future__ import annotations

import gzip
import io
import pathlib
import tarfile
from collections.abc import Iterable

import pytest

from flowers17_tfdata.data.oxford_flowers17 import archive
from flowers17_tfdata.data.oxford_flowers17.errors import ArchiveError

Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def images(dummy_archive) -> dict[str, bytes]:
    """The dummy images, read by tarfile alone."""
    with tarfile.open(dummy_archive) as tar:
        return {
            pathlib.PurePosixPath(member.name).name: (
                tar.extractfile(member).read()
            )
            for member in tar
            if member.isreg()
        }


def _tar(path: pathlib.Path, members: Members) -> pathlib.Path:
    # Not compressed, which the reader takes too: packing is most of the time.
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            if isinstance(member, str):
                member = tarfile.TarInfo(member)
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def _folder(folder: pathlib.Path, images: dict[str, bytes]) -> pathlib.Path:
    folder.mkdir(parents=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


def _in_jpg(images: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [(f"jpg/{name}", data) for name, data in images.items()]


def _message(path: pathlib.Path) -> str:
    """Returns the one line that `read_archive` refuses `path` with."""
    with pytest.raises(ArchiveError) as caught:
        archive.read_archive(path)
    message = str(caught.value)
    assert message.startswith(f"archive {path}")
    assert "\n" not in message
    return message


def test_reads_every_image_sorted(dummy_archive, images):
    read = archive.read_archive(dummy_archive)
    assert read == images
    assert list(read) == [f"image_{n:04d}.jpg" for n in range(1, 1361)]


def test_packing_does_not_change_content_or_digest(
    dummy_archive, images, tmp_path
):
    expected = archive.read_archive(dummy_archive)
    # Other files may lie around, as datasplits.mat and macOS' forks do.
    extras = {"README": b"x", "datasplits.mat": b"x", "._image_0001.jpg": b"x"}
    with_jpg = _folder(tmp_path / "with" / "jpg", images | extras).parent
    without_jpg = _folder(tmp_path / "without", images | extras)
    reordered = _tar(
        tmp_path / "reordered.tar",
        [*_in_jpg(extras), *reversed(_in_jpg(images))],
    )
    for path in (with_jpg, without_jpg, reordered, str(with_jpg)):
        read = archive.read_archive(path)
        assert list(read.items()) == list(expected.items()), path
        assert archive.content_digest(read) == archive.content_digest(expected)


def test_home_folder_is_expanded(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _folder(tmp_path / "flowers", images)
    assert archive.read_archive("~/flowers") == images


def test_content_digest_sees_names_and_bytes():
    digest = archive.content_digest({"a": b"1", "b": b"2"})
    assert digest == archive.content_digest({"b": b"2", "a": b"1"})
    assert digest != archive.content_digest({"a": b"2", "b": b"1"})
    assert digest != archive.content_digest({"a": b"1", "b": b"3"})
    assert digest != archive.content_digest({"a": b"1", "c": b"2"})


def test_missing_path(tmp_path):
    assert "does not exist" in _message(tmp_path / "nowhere.tgz")


def test_home_folder_of_nobody():
    with pytest.raises(ArchiveError, match=r"^archive ~no_such_user"):
        archive.read_archive("~no_such_user/a.tgz")


def test_not_an_archive(tmp_path):
    path = tmp_path / "page.tgz"
    path.write_bytes(b"<html>404 Not Found</html>" * 100)
    assert "can't be read" in _message(path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.tgz"
    path.touch()
    assert "can't be read" in _message(path)


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9])
def test_truncated_download(dummy_archive, tmp_path, kept):
    data = dummy_archive.read_bytes()
    path = tmp_path / "half.tgz"
    path.write_bytes(data[: int(len(data) * kept)])
    _message(path)


def test_damaged_bytes_of_one_image(images, tmp_path):
    # Stored, not deflated: the damage changes pixels and breaks nothing else,
    # so that gzip's checksum alone tells.
    packed = _tar(tmp_path / "whole.tar", _in_jpg(images)).read_bytes()
    data = bytearray(gzip.compress(packed, compresslevel=0))
    data[data.index(images["image_0700.jpg"]) + 500] ^= 255
    path = tmp_path / "damaged.tgz"
    path.write_bytes(data)
    _message(path)


def test_missing_image(images, tmp_path):
    kept = {n: d for n, d in images.items() if n != "image_0123.jpg"}
    for path in (
        _tar(tmp_path / "a.tar", _in_jpg(kept)),
        _folder(tmp_path / "folder", kept),
    ):
        message = _message(path)
        assert "image_0001.jpg to image_1360.jpg" in message
        assert "1 are missing" in message
        assert "image_0123.jpg" in message


@pytest.mark.parametrize("name", ["image_1361.jpg", "image_0000.jpg"])
def test_unexpected_image(images, tmp_path, name):
    path = _tar(tmp_path / "a.tar", _in_jpg(images | {name: b"x"}))
    assert name in _message(path)


def test_empty_folder(tmp_path):
    assert "1360 are missing" in _message(tmp_path)


def test_duplicate_member(images, tmp_path):
    members = [*_in_jpg(images), ("other/image_0005.jpg", b"another")]
    message = _message(_tar(tmp_path / "a.tar", members))
    assert "there twice, the first image_0005.jpg" in message


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE],
)
def test_links_and_devices_are_not_images(images, tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(b"not in the archive")
    member = tarfile.TarInfo("jpg/image_0003.jpg")
    member.type = kind
    # A hard link names a member, which tarfile would read as its own.
    member.linkname = (
        "jpg/image_0001.jpg" if kind == tarfile.LNKTYPE else str(secret)
    )
    kept = {n: d for n, d in images.items() if n != "image_0003.jpg"}
    path = _tar(tmp_path / "a.tar", [*_in_jpg(kept), (member, b"")])
    assert "1 are missing, unexpected or there twice" in _message(path)


def test_absurd_declared_size_is_refused_before_reading(tmp_path):
    member = tarfile.TarInfo("jpg/image_0001.jpg")
    member.size = 2**40
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf() + bytes(1024))
    message = _message(path)
    assert f"image_0001.jpg declares {2**40} bytes" in message


def test_malformed_sparse_header(tmp_path):
    member = tarfile.TarInfo("jpg/image_0001.jpg")
    member.pax_headers = {"GNU.sparse.size": "many"}
    assert "can't be read" in _message(
        _tar(tmp_path / "a.tar", [(member, b"")])
    )


def test_names_that_point_outside_write_nothing(images, tmp_path):
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    escapes = {
        "image_0001.jpg": "../image_0001.jpg",
        "image_0002.jpg": "../../image_0002.jpg",
        "image_0003.jpg": f"{tmp_path}/image_0003.jpg",
    }
    members = [
        (escapes.get(name, f"jpg/{name}"), data)
        for name, data in images.items()
    ]
    path = _tar(folder / "a.tar", members)
    before = set(tmp_path.rglob("*"))
    assert archive.read_archive(path) == images
    assert set(tmp_path.rglob("*")) == before


def test_find_splits_file(tmp_path):
    tgz = tmp_path / "17flowers.tgz"
    tgz.touch()
    folder = tmp_path / "extracted"
    folder.mkdir()
    assert archive.find_splits_file("") is None
    assert archive.find_splits_file(tgz) is None
    beside = tmp_path / "datasplits.mat"
    beside.touch()
    assert archive.find_splits_file(tgz) == beside
    assert archive.find_splits_file(folder) == beside
    inside = folder / "datasplits.mat"
    inside.touch()
    assert archive.find_splits_file(folder) == inside


def test_image_names_and_numbers_are_inverse():
    assert archive.image_name(7) == "image_0007.jpg"
    assert [
        archive.image_number(archive.image_name(n)) for n in (1, 80, 1360)
    ] == [1, 80, 1360]
