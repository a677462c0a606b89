"""Random and damaged input is read, or refused with one of our errors.

    FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py

generates that many examples per test; the normal suite generates a few.
"""

from __future__ import annotations

import io
import json
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers17_tfdata import flags
from flowers17_tfdata.config.config import Config
from flowers17_tfdata.data import decode, scan
from flowers17_tfdata.data.oxford_flowers17 import archive
from flowers17_tfdata.data.oxford_flowers17.errors import ArchiveError
from flowers17_tfdata.errors import ConfigError
from flowers17_tfdata.training import cluster
from tests import fakes

many = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def _image(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image = Image.fromarray(fakes.make_smooth_image(24, 17))
    image.save(stream, kind, exif=exif.tobytes() if kind == "JPEG" else b"")
    return stream.getvalue()


IMAGES = [_image(kind) for kind in ("JPEG", "PNG", "GIF", "BMP")]


@st.composite
def damaged(draw, originals):
    """Replaces, removes or repeats some bytes of an original."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 64))
        data[at : at + length] = draw(st.binary(max_size=64))
    return bytes(data)


@many
@given(damaged(IMAGES) | st.binary(max_size=300))
def test_images(data):
    found = scan.scan_images([data])
    for message in (*found.errors.values(), *found.damage.values()):
        assert message
        assert "\n" not in message
    if not found.errors:
        image = decode.decode_and_resize(decode.upright(data), 16)
        assert image.shape == (16, 16, 3)


NAMES = st.one_of(
    st.sampled_from(
        [
            "jpg/image_0001.jpg",
            "image_0002.jpg",
            "../image_0003.jpg",
            "/tmp/image_0004.jpg",
            "a/../../image_0005.jpg",
            "jpg/image_9999.jpg",
        ]
    ),
    st.text(max_size=20),
)


@st.composite
def archives(draw):
    """Draws a tar of odd members, possibly compressed or damaged."""
    stream = io.BytesIO()
    mode = draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
    kind = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as tar:
        for _ in range(draw(st.integers(0, 4))):
            member = tarfile.TarInfo(draw(NAMES))
            member.type = draw(
                st.sampled_from(
                    [
                        tarfile.REGTYPE,
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.CHRTYPE,
                        tarfile.FIFOTYPE,
                        tarfile.DIRTYPE,
                    ]
                )
            )
            member.linkname = draw(NAMES)
            data = draw(st.binary(max_size=50))
            member.size = len(data)
            try:
                tar.addfile(member, io.BytesIO(data))
            # tarfile itself can't write it.
            except (ValueError, UnicodeError):
                continue
    whole = stream.getvalue()
    return draw(st.just(whole) | damaged([whole]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@many
@given(data=archives() | st.binary(max_size=600))
def test_archives(folder, data):
    path = folder / "a.tgz"
    path.write_bytes(data)
    # No drawn archive has all 1360 images.
    with pytest.raises(ArchiveError) as error:
        archive.read_archive(path)
    assert "\n" not in str(error.value)
    assert os.listdir(folder) == ["a.tgz"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["worker", "chief", "localhost:1", "a:2"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "cluster",
                    "task",
                    "worker",
                    "chief",
                    "ps",
                    "type",
                    "index",
                    "",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
ADDRESSES = st.lists(
    st.sampled_from(["a:1", "b:2", "c:65535", "d", ":1", "a b:3", "e:0"])
    | st.text(max_size=8),
    max_size=3,
)
NEARLY = st.fixed_dictionaries(
    {
        "cluster": st.dictionaries(
            st.sampled_from(["worker", "chief"]), ADDRESSES, max_size=2
        ),
        "task": st.fixed_dictionaries(
            {
                "type": st.sampled_from(["worker", "chief", "ps", 0]),
                "index": st.integers(-1, 3) | st.sampled_from(["0", "٣", None]),
            }
        ),
    }
)


@many
@given(JSON.map(json.dumps) | NEARLY.map(json.dumps) | st.text(max_size=100))
def test_tf_config(text):
    try:
        text.encode()
        os.environ["TF_CONFIG"] = text
    # An environment variable can't contain these.
    except ValueError:
        return
    try:
        resolver = cluster.find_cluster()
        if resolver is not None:
            count, index = cluster.place(resolver)
            assert 0 <= index < count
    except ConfigError as error:
        assert "\n" not in str(error)
    finally:
        del os.environ["TF_CONFIG"]


VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["none", "auto", "true", "1e999", "0x10", "-0", "1_0"]),
)


@st.composite
def command_lines(draw):
    flags.define_flags()
    known = st.sampled_from(
        [n for n in flags.FLAGS if n not in ("flagfile", "?", "undefok")]
    )
    names = known | st.text(max_size=8)
    line = []
    for _ in range(draw(st.integers(0, 4))):
        name, value = draw(names), draw(VALUES)
        if name.strip("-").startswith("flagfile"):
            continue
        line.append(draw(st.sampled_from([f"--{name}={value}", name, value])))
    return line


@many
@given(command_lines())
def test_command_lines(line):
    try:
        result = flags.parse(["main.py", *line])
    except ConfigError as error:
        assert str(error)
        return
    except (flags.HelpRequested, flags.VersionRequested):
        return
    assert result is None or isinstance(result, Config)


@many
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_flag_files(folder, data):
    path = folder / "x.flags"
    # A line may include another file, but there is only this one.
    path.write_bytes(data.replace(b"flagfile", b""))
    try:
        result = flags.parse(["main.py", f"--flagfile={path}"])
    except ConfigError:
        return
    finally:
        path.unlink()
    assert result is None or isinstance(result, Config)
