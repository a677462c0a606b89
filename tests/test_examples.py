"""Splits in memory and in a file: the same pixels, resampled the same way."""

from __future__ import annotations

import dataclasses
import os
import tempfile

import cv2
import numpy as np
import pytest
import tensorflow as tf

from flowers17_tfdata import machine
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data import decode
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError
from flowers17_tfdata.input import augmentation, examples
from tests import fakes

SIZE = 48
IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)


def _draw(num_examples, size=SIZE):
    layer = augmentation.RandomAffine()
    epoch = tf.constant(1, tf.int64)
    return layer.draw(3, epoch, num_examples, size, size).numpy()


def _warp(image, transform, size=SIZE):
    out = np.empty([size, size, 3], np.uint8)
    augmentation.warp_affine(image, transform, out=out)
    return out


def _png(image):
    return tf.io.encode_png(image).numpy()


def _jpeg(image):
    # Without subsampled colours, which would hide what is measured.
    return tf.io.encode_jpeg(
        image, quality=95, chroma_downsampling=False
    ).numpy()


def _differences(a, b):
    return np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))


def test_warp_is_the_layers_on_the_host():
    """To within rounding (0.5) and OpenCV's steps of 1/32 pixel.

    These are at most 1/64 pixel off in x and in y: as much as the picture
    changes on the way. Twice that for the rounded weights.
    """
    images = np.stack(
        [fakes.make_smooth_image(SIZE, SIZE, seed, 6) for seed in range(64)]
    )
    rows = _draw(64)
    mirrored = rows[:, 0] * rows[:, 4] - rows[:, 1] * rows[:, 3] < 0
    assert 16 < mirrored.sum() < 48
    expected = augmentation.RandomAffine()(images, rows).numpy()
    warped = np.stack([_warp(*pair) for pair in zip(images, rows, strict=True)])
    slopes = sum(
        np.abs(np.diff(images.astype(np.float32), axis=axis)).max((1, 2, 3))
        for axis in (1, 2)
    )
    differences = _differences(warped, expected)
    assert np.all(differences.max((1, 2, 3)) <= 0.51 + slopes / 32)
    assert differences.mean() < 0.6
    # There is something to see.
    assert _differences(images, expected).mean() > 10


@pytest.mark.parametrize(
    ("dx", "dy"), [(0, 0), (3, 0), (-5, 2), (0, -47), (60, -60)]
)
def test_warp_by_whole_pixels_is_exact_and_repeats_the_border(dx, dy):
    image = fakes.make_noise_examples(1).images.pixels[0]
    size = fakes.IMAGE_SIZE
    transform = IDENTITY.copy()
    transform[[2, 5]] = dx, dy
    position = np.arange(size)
    rows, columns = (
        np.clip(position + shift, 0, size - 1) for shift in (dy, dx)
    )
    np.testing.assert_array_equal(
        _warp(image, transform, size), image[np.ix_(rows, columns)]
    )


def test_after_resize_maps_points_of_the_original():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, SIZE, [100, 2])
    for transform in _draw(5):
        linear, offset = transform[:6].reshape(2, 3)[:, :2], transform[[2, 5]]
        in_resized = points @ linear.T + offset
        # Point 0 is a pixel's centre: half a pixel from the border.
        expected = (in_resized + 0.5) * [2.5, 1.25] - 0.5
        composed = augmentation.after_resize(transform, 2.5, 1.25)
        assert composed.dtype == np.float32
        linear, offset = composed[:6].reshape(2, 3)[:, :2], composed[[2, 5]]
        np.testing.assert_allclose(
            points @ linear.T + offset, expected, atol=1e-3
        )


@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (60, 60), (80, 70), (96, 95)]
)
def test_one_resampling_shows_what_resize_and_warp_do(height, width):
    for seed, transform in enumerate(_draw(8)):
        image = fakes.make_smooth_image(height, width, seed)
        resized = decode.decode_and_resize(_png(image), SIZE).numpy()
        composed = augmentation.after_resize(
            transform, width / SIZE, height / SIZE
        )
        differences = _differences(
            _warp(image, composed), _warp(resized, transform)
        )
        assert differences.mean() < 0.5
        assert differences.max() <= 3


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [
        (48, 48, 1),
        (96, 95, 1),
        (96, 96, 2),
        (130, 99, 2),
        (191, 400, 2),
        (192, 200, 4),
        (383, 383, 4),
        (400, 384, 8),
        (1000, 800, 8),
    ],
)
@pytest.mark.parametrize("encode", [_png, _jpeg])
def test_reduced_decoding(height, width, factor, encode):
    """The largest reduction that leaves `SIZE`; a JPEG's is rounded up."""
    image = fakes.make_smooth_image(height, width)
    ratio = decode.reduction(height, width, SIZE)
    assert ratio == factor
    reduced = decode.decode_reduced(encode(image), ratio)
    assert reduced.dtype == np.uint8
    assert min(reduced.shape[:2]) >= SIZE
    shape = (-(-height // factor), -(-width // factor), 3)
    if encode is _png:
        shape = (height // factor, width // factor, 3)
    assert reduced.shape == shape
    expected = cv2.resize(image, shape[1::-1], interpolation=cv2.INTER_AREA)
    # The JPEG decoder rounds colours up by one.
    assert _differences(reduced, expected).mean() < 2


@pytest.mark.parametrize("encode", [_png, _jpeg])
@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (80, 70), (96, 96), (192, 208)]
)
def test_decoding_at_each_reading_shows_the_same(height, width, encode):
    encoded = [
        encode(fakes.make_smooth_image(height, width, seed))
        for seed in range(6)
    ]
    pixels = [decode.decode_and_resize(e, SIZE).numpy() for e in encoded]
    decoded = examples.DecodedImages(np.stack(pixels))
    ratio = decode.reduction(height, width, SIZE)
    stored = fakes.encode_images(encoded, SIZE, ratio)
    indices = np.array([4, 0, 5, 0], np.int64)
    plain = stored.read(indices)
    assert plain.dtype == np.uint8
    np.testing.assert_array_equal(plain, decoded.read(indices))
    transforms = _draw(6)[indices]
    differences = _differences(
        stored.resample(indices, transforms, SIZE),
        decoded.resample(indices, transforms, SIZE),
    )
    assert differences.mean() < (0.5 if encode is _png else 1.5)
    assert differences.max() <= (3 if encode is _png else 5)


def test_an_elongated_image_is_not_sampled_with_gaps():
    """Stripes finer than the sampling must come out grey, not as stripes."""
    stripes = np.zeros([SIZE, 6 * SIZE, 3], np.uint8)
    stripes[:, ::2] = 255
    stored = fakes.encode_images([_png(stripes)], SIZE)
    identity = np.array([[1, 0, 0, 0, 1, 0, 0, 0]], np.float32)
    image = stored.resample(np.array([0]), identity, SIZE)[0].astype(float)
    assert np.abs(image - 127.5).max() < 30


def test_digests_tell_other_pixels():
    for images in (
        fakes.make_noise_examples(3).images,
        fakes.encode_images([b"one", b"two"], SIZE),
    ):
        name = "pixels" if hasattr(images, "pixels") else "data"
        values = getattr(images, name).copy()
        same = dataclasses.replace(images, **{name: values.copy()})
        values.flat[-1] ^= 1
        other = dataclasses.replace(images, **{name: values})
        assert len(set(images.digests())) == len(images.digests()) > 1
        assert same.digests() == images.digests()
        assert other.digests()[:-1] == images.digests()[:-1]
        assert other.digests()[-1] != images.digests()[-1]


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_chosen_examples_are_those_of_the_split(cache):
    split = _load(
        [_png(fakes.make_smooth_image(90, 80, k)) for k in range(5)], cache
    )
    chosen = examples.choose_examples(split, np.array([4, 1, 2]))
    assert chosen.ids == tuple(split.ids[k] for k in (4, 1, 2))
    np.testing.assert_array_equal(chosen.labels, split.labels[[4, 1, 2]])
    indices, transforms = np.array([2, 0]), _draw(2)
    np.testing.assert_array_equal(
        chosen.images.read(indices), split.images.read(np.array([2, 4]))
    )
    np.testing.assert_array_equal(
        chosen.images.resample(indices, transforms, SIZE),
        split.images.resample(np.array([2, 4]), transforms, SIZE),
    )
    digests = split.images.digests()
    assert chosen.images.digests() == [digests[k] for k in (4, 1, 2)]


def test_cache_takes_at_most_half_of_what_is_free(monkeypatch):
    needed = 100 * 3 * SIZE**2
    auto = InputConfig(image_size=SIZE)
    monkeypatch.setattr(machine, "free_memory", lambda: 2 * needed)
    assert examples.resolve_cache(auto, 100) == "memory"
    assert examples.resolve_cache(auto, 101) == "none"
    monkeypatch.setattr(machine, "free_memory", lambda: 0)
    assert examples.resolve_cache(auto, 100) == "none"
    memory = InputConfig(image_size=SIZE, cache="memory")
    assert examples.resolve_cache(memory, 100) == "memory"
    monkeypatch.setattr(machine, "free_memory", lambda: 2**60)
    none = InputConfig(image_size=SIZE, cache="none")
    assert examples.resolve_cache(none, 100) == "none"


class _Source:
    """A source with the given encoded images in its split train."""

    name = "fake"
    check_split = Source.check_split

    class_names = tuple("abcdefghijklmnopqrst")

    def __init__(self, encoded):
        self._encoded = encoded
        self.split_sizes = {"train": len(encoded), "empty": 0}

    def read(self, split):
        count = self.split_sizes[split]
        return tf.data.Dataset.from_tensor_slices(
            {
                "image": tf.constant(self._encoded[:count], tf.string),
                "label": tf.range(count, dtype=tf.int64) + 7,
                "id": [f"image_{k}.jpg" for k in range(count)]
                or tf.constant([], tf.string),
            }
        )


def _load(encoded, cache, split="train"):
    config = InputConfig(image_size=SIZE, cache=cache)
    return examples.load_examples(_Source(encoded), split, config)


def test_load_examples_decodes_resizes_and_caches():
    image = np.full([50, 70, 3], 90, np.uint8)
    loaded = _load([_png(image)], "memory")
    assert isinstance(loaded.images, examples.DecodedImages)
    assert loaded.images.pixels.dtype == np.uint8
    assert loaded.images.pixels.shape == (1, SIZE, SIZE, 3)
    assert np.all(loaded.images.pixels == 90)
    assert isinstance(
        _load([_png(image)], "none").images, examples.EncodedImages
    )
    assert isinstance(
        _load([_png(image)], "auto").images, examples.DecodedImages
    )


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs Linux's full device"
)
def test_a_full_temporary_folder_is_named(monkeypatch):
    monkeypatch.setattr(
        tempfile,
        "TemporaryFile",
        lambda **_: open("/dev/full", "wb"),  # noqa: SIM115
    )
    image = _png(np.full([50, 70, 3], 90, np.uint8))
    with pytest.raises(UserError, match=r"No space left.*: set TMPDIR"):
        _load([image], "none")


def test_both_caches_hold_the_split_in_its_order(monkeypatch, tmp_path):
    encoded = [
        encode(fakes.make_smooth_image(50 + 20 * seed, 90, seed))
        for seed, encode in enumerate([_png, _jpeg, _png, _jpeg])
    ]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    in_memory, in_file = (_load(encoded, cache) for cache in ("memory", "none"))
    for loaded in (in_memory, in_file):
        assert loaded.num_examples == 4
        assert loaded.labels.dtype == np.int64
        np.testing.assert_array_equal(loaded.labels, [7, 8, 9, 10])
    everything = np.arange(4)
    expected = [decode.decode_and_resize(e, SIZE).numpy() for e in encoded]
    for loaded in (in_memory, in_file):
        np.testing.assert_array_equal(loaded.images.read(everything), expected)
    # The file has no name by which it could stay behind.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_joined_splits_show_what_each_shows(cache):
    encoded = [_png(fakes.make_smooth_image(90, 80, k)) for k in range(7)]
    whole, first, second = (
        _load(part, cache) for part in (encoded, encoded[:4], encoded[4:])
    )
    joined = examples.join_examples([first, second])
    assert joined.num_examples == 7
    np.testing.assert_array_equal(joined.labels[4:], second.labels)
    assert joined.ids == first.ids + second.ids
    transforms = _draw(7)
    for indices in ([6, 0, 4, 3, 4], [5], [1, 2]):
        indices = np.array(indices)
        for name, arguments in (
            ("read", ()),
            ("resample", (transforms[indices], SIZE)),
        ):
            np.testing.assert_array_equal(
                getattr(joined.images, name)(indices, *arguments),
                getattr(whole.images, name)(indices, *arguments),
            )
    assert joined.images.digests() != first.images.digests()


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("cut", [0, 300])
def test_undecodable_image_is_named(cache, cut):
    good = _jpeg(fakes.make_smooth_image(60, 60))
    broken = good[:cut] or b"not a jpeg"
    with pytest.raises(
        UserError,
        match=r"^fake, split train: image_1\.jpg can't be decoded \(\w.*\);",
    ) as error:
        _load([good, broken, good, broken], cache)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_split_without_examples_is_refused(cache):
    with pytest.raises(UserError, match="fake has no examples in split 'empty"):
        _load([], cache, "empty")
    with pytest.raises(UserError, match="--split must be one of train, empty"):
        _load([], cache, "tset")


def test_a_split_without_labels_is_refused():
    class Unlabelled(Source):
        def read(self, split):
            image = tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8))
            return tf.data.Dataset.from_tensors(
                {"image": image, "label": np.int64(-1), "id": "x7"}
            )

    source = Unlabelled(
        name="unlabelled", class_names=("a", "b"), split_sizes={"test": 1}
    )
    for cache in ("memory", "none"):
        config = InputConfig(image_size=32, cache=cache)
        with pytest.raises(UserError, match=r"split test: .* x7 has -1"):
            examples.load_examples(source, "test", config)
