"""Random access to images: decoded in memory, encoded in a file, or on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf
from PIL import Image

from flowers17_tfdata import machine
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.data import decode, pillow_reader
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import UserError, one_line
from flowers17_tfdata.input import augmentation

# The share of the free memory that the image cache may take. The activations of
# the network need the rest.
_CACHE_SHARE = 0.5

# An image is resampled directly if no side is longer than this many times the
# final size. Beyond, bilinear interpolation would skip pixels: an elongated
# image has a long side even if its short one can't be reduced further.
_LONGEST = 2.5


# A file, its contents, or its pixels, uint8 `[height, width, 3]`, RGB.
PictureLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image
PICTURE_TYPES = (str, os.PathLike, bytes, np.ndarray, Image.Image)


class Images(Protocol):
    """Random access to the images of a split."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Reads images as evaluation uses them.

        Args:
          indices: int64 `[batch]`, positions in the split.

        Returns:
          uint8 `[batch, image_size, image_size, 3]` in [0, 255].
        """

    def resample(
        self, indices: np.ndarray, transforms: np.ndarray, size: int
    ) -> np.ndarray:
        """Reads images and resamples each.

        Args:
          indices: int64 `[batch]`, positions in the split.
          transforms: float32 `[batch, 8]`, from output pixels to pixels of
            the images that `read` returns; see `RandomAffine.draw`.
          size: height and width of the result, pixels.

        Returns:
          uint8 `[batch, size, size, 3]` in [0, 255].
        """

    def digests(self) -> list[str]:
        """Returns a hash of each image."""


class Examples(NamedTuple):
    """The examples of a split.

    Attributes:
      images: random access to the images.
      labels: int64 `[n]`, the class of each image.
      ids: the identifier of each example in its source, `[n]`.
    """

    images: Images
    labels: np.ndarray
    ids: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """Images that were decoded and resized once.

    Attributes:
      pixels: uint8 `[n, image_size, image_size, 3]`.
    """

    pixels: np.ndarray

    def read(self, indices):
        return self.pixels[indices]

    def resample(self, indices, transforms, size):
        batch = np.empty([len(indices), size, size, 3], np.uint8)
        for k, index in enumerate(indices):
            augmentation.warp_affine(
                self.pixels[index], transforms[k], out=batch[k]
            )
        return batch

    def digests(self):
        return [_digest(image) for image in self.pixels]


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Images that are decoded at each access, from one memory-mapped file.

    `resample` transforms an image from its own size to the final size in one
    step. On photographs of 1.7 to 2.1 times the final size, the result was
    nearer to an area-sampled reference than resizing first (44.0 against 39.9
    dB PSNR, mean of 60).

    Attributes:
      data: uint8 `[bytes]`, the encoded images, concatenated.
      ends: int64 `[n]`, where each image ends.
      ratios: int64 `[n]`, see `decode.reduction`.
      image_size: height and width of the images that `read` returns, pixels.
    """

    data: np.ndarray
    ends: np.ndarray
    ratios: np.ndarray
    image_size: int

    def read(self, indices):
        size = self.image_size
        batch = np.empty([len(indices), size, size, 3], np.uint8)
        for k, index in enumerate(indices):
            image = decode.decode_reduced(self._encoded(index), 1)
            batch[k] = decode.resize_host(image, size)
        return batch

    def _encoded(self, index) -> bytes:
        start = self.ends[index - 1] if index else 0
        return self.data[start : self.ends[index]].tobytes()

    def resample(self, indices, transforms, size):
        full = self.image_size
        batch = np.empty([len(indices), size, size, 3], np.uint8)
        for k, index in enumerate(indices):
            if size == full and (transforms[k] == augmentation.IDENTITY).all():
                # Nothing to transform: the image as `read` returns it.
                batch[k] = self.read([index])[0]
                continue
            image = decode.decode_reduced(
                self._encoded(index), self.ratios[index]
            )
            height, width = image.shape[:2]
            if max(height, width) > _LONGEST * size:
                image = decode.resize_host(image, full)
                height = width = full
            transform = augmentation.after_resize(
                transforms[k], width / full, height / full
            )
            augmentation.warp_affine(image, transform, out=batch[k])
        return batch

    def digests(self):
        starts = [0, *self.ends[:-1]]
        return [
            _digest(self.data[start:end])
            for start, end in zip(starts, self.ends, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures from outside a data set, read at each access on all cores.

    One that can't be read is black, and `errors` says why. All batches share
    the threads: resizing a photograph of 12 megapixels takes 180 MB.

    Attributes:
      pictures: the pictures.
      image_size: height and width of the images, pixels.
      errors: `{position: message}`, filled by `read`.
      damage: the same of images that are damaged, but were read.
    """

    pictures: Sequence[PictureLike]
    image_size: int
    errors: dict[int, str] = dataclasses.field(default_factory=dict)
    damage: dict[int, str] = dataclasses.field(default_factory=dict)
    _threads: futures.ThreadPoolExecutor = dataclasses.field(
        default_factory=lambda: futures.ThreadPoolExecutor(machine.num_cores())
    )

    def read(self, indices):
        # The last batch is filled up with copies of an image: decode it once.
        positions, inverse = np.unique(indices, return_inverse=True)
        images = list(self._threads.map(self._decode, positions.tolist()))
        return np.stack(images)[inverse]

    def _decode(self, position: int) -> np.ndarray:
        try:
            picture = _read(self.pictures[position])
            if picture.damage:
                self.damage[position] = picture.damage
            return decode.resize_host(picture.pixels, self.image_size)
        except OSError as error:
            self.errors[position] = error.strerror or str(error)
        except ValueError as error:
            self.errors[position] = decode.decoder_message(error)
        return np.zeros([self.image_size, self.image_size, 3], np.uint8)

    def resample(self, indices, transforms, size):
        images = DecodedImages(self.read(indices))
        return images.resample(np.arange(len(indices)), transforms, size)

    def digests(self):
        raise NotImplementedError("predictions are not cached")


@dataclasses.dataclass(frozen=True)
class JoinedImages:
    """The images of several splits, one split after another.

    Attributes:
      parts: the images of each split, all of the same size.
      starts: int64 `[parts]`, the position of the first image of each split.
    """

    parts: tuple[Images, ...]
    starts: np.ndarray

    def read(self, indices):
        return self._gather(indices, lambda part, at, _: part.read(at))

    def resample(self, indices, transforms, size):
        return self._gather(
            indices,
            lambda part, at, here: part.resample(at, transforms[here], size),
        )

    def _gather(self, indices, read):
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        places = [np.flatnonzero(owners == k) for k in range(len(self.parts))]
        pieces = [
            read(part, indices[here] - start, here)
            for part, start, here in zip(
                self.parts, self.starts, places, strict=True
            )
        ]
        return np.concatenate(pieces)[np.argsort(np.concatenate(places))]

    def digests(self):
        return [digest for part in self.parts for digest in part.digests()]


@dataclasses.dataclass(frozen=True)
class ChosenImages:
    """Some of the images of a split.

    Attributes:
      images: all images of the split.
      chosen: int64 `[n]`, the positions of these images in the split.
    """

    images: Images
    chosen: np.ndarray

    def read(self, indices):
        return self.images.read(self.chosen[indices])

    def resample(self, indices, transforms, size):
        return self.images.resample(self.chosen[indices], transforms, size)

    def digests(self):
        digests = self.images.digests()
        return [digests[k] for k in self.chosen]


def choose_examples(split: Examples, chosen: np.ndarray) -> Examples:
    """Returns the examples of a split at some positions, int64 `[n]`."""
    return Examples(
        ChosenImages(split.images, chosen),
        split.labels[chosen],
        tuple(split.ids[k] for k in chosen) if split.ids else (),
    )


def _read(given: PictureLike) -> decode.Picture:
    if isinstance(given, Image.Image):
        given = np.asarray(pillow_reader.as_shown(given))
    if isinstance(given, np.ndarray):
        return decode.Picture(given, given.shape[:2])
    if not isinstance(given, bytes):
        given = pathlib.Path(given).read_bytes()
    return decode.read(given)


def join_examples(splits: Sequence[Examples]) -> Examples:
    """Concatenates several splits into one."""
    if len(splits) == 1:
        return splits[0]
    sizes = [split.num_examples for split in splits]
    starts = np.cumsum([0, *sizes[:-1]])
    return Examples(
        JoinedImages(tuple(split.images for split in splits), starts),
        np.concatenate([split.labels for split in splits]),
        tuple(name for split in splits for name in split.ids),
    )


def _digest(values: np.ndarray) -> str:
    data = np.ascontiguousarray(values).data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def resolve_cache(config: InputConfig, num_images: int) -> str:
    """Resolves `--cache=auto` to `memory` or `none` by the free memory.

    Args:
      config: the options of the input pipeline.
      num_images: the number of images in all splits that are read.
    """
    if config.cache != "auto":
        return config.cache
    needed = num_images * 3 * config.image_size**2
    fits = needed <= _CACHE_SHARE * machine.free_memory()
    return "memory" if fits else "none"


def load_examples(source: Source, split: str, config: InputConfig) -> Examples:
    """Reads a split and decodes all of it once.

    Args:
      source: the data set.
      split: the name of the split.
      config: the options of the input pipeline. `cache=auto` is resolved for
        this split alone.

    Raises:
      UserError: an image can't be decoded, an example has no label, or the
        split is empty or doesn't exist.
    """
    source.check_split(split)
    num_examples, size = source.split_sizes[split], config.image_size
    if not num_examples:
        raise UserError(f"{source.name} has no examples in split {split!r}")
    labels: list[int] = []
    ids: list[str] = []

    def read(decode_fn: Callable[[tf.Tensor], Any]) -> Iterator[Any]:
        for decoded, label, name in _decoded(source, split, decode_fn):
            labels.append(label)
            ids.append(name)
            yield decoded

    images: Images
    if resolve_cache(config, num_examples) == "memory":
        pixels = np.empty([num_examples, size, size, 3], np.uint8)
        resized = read(lambda data: decode.resize(_pixels(data), size))
        for k, image in enumerate(resized):
            pixels[k] = image
        images = DecodedImages(pixels)
    else:
        images = _spool(read(_shape_and_file), size)
    return Examples(images, np.asarray(labels, np.int64), tuple(ids))


def _pixels(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes on the host; see `decode.read`."""

    def pixels(encoded: bytes) -> np.ndarray:
        return decode.read(encoded).pixels

    image = tf.numpy_function(pixels, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3])


def _shape_and_file(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns an image's shape and its upright file."""

    def shape_and_file(encoded: bytes) -> tuple[np.ndarray, bytes]:
        picture = decode.read(encoded)
        return np.array(picture.pixels.shape), picture.to_file()

    types = [tf.int64, tf.string]
    shape, file = tf.numpy_function(
        shape_and_file, [encoded], types, stateful=False
    )
    return tf.ensure_shape(shape, [3]), tf.ensure_shape(file, [])


def _decoded(
    source: Source, split: str, decode_fn: Callable[[tf.Tensor], Any]
) -> Iterator[tuple[Any, int, str]]:
    """Yields `(decode_fn(encoded), label, id)` in order."""
    examples = source.read(split)

    def decoded(example):
        return decode_fn(example["image"]), example["label"], example["id"]

    results = examples.map(decoded, num_parallel_calls=tf.data.AUTOTUNE)
    where, num_classes = (
        f"{source.name}, split {split}",
        len(source.class_names),
    )
    position = 0
    try:
        for image, label, name in results.as_numpy_iterator():
            # TFDS marks a split without labels with -1.
            if not 0 <= label < num_classes:
                raise UserError(
                    f"{where}: every example must have a label from 0 to "
                    f"{num_classes - 1}; {name.decode()} has {label}"
                )
            yield image, label, name.decode()
            position += 1
    except tf.errors.InvalidArgumentError as error:
        broken = next(examples.skip(position).as_numpy_iterator())
        message = "it can't be resized"
        try:
            decode.read(broken["image"])
        # The message of `error` would hold a traceback.
        except ValueError as cause:
            message = decode.decoder_message(cause)
        raise UserError(
            f"{where}: {broken['id'].decode()} can't be decoded ({message}); "
            "--phase=prepare lists all such files"
        ) from error


def _spool(
    images: Iterable[tuple[np.ndarray, bytes]], image_size: int
) -> EncodedImages:
    """Copies encoded images to a temporary file.

    Args:
      images: the shape, int32 `[3]`, and the bytes of each image.
      image_size: height and width of the images when they are read, pixels.

    Raises:
      UserError: the disk is full.
    """
    ends, ratios = [], []
    try:
        with tempfile.TemporaryFile(prefix="flowers17_tfdata_") as file:
            for (height, width, _), encoded in images:
                file.write(encoded)
                ends.append(file.tell())
                ratios.append(decode.reduction(height, width, image_size))
            file.flush()
            # The mapping outlives the closed file. The kernel drops its pages,
            # which are page cache, when memory runs short.
            data = np.memmap(file, np.uint8, "r")
    except OSError as error:
        if error.filename:
            raise
        raise UserError(
            f"the images can't be written to {tempfile.gettempdir()} "
            f"({one_line(error)}): set TMPDIR to a folder with more space"
        ) from error
    return EncodedImages(data, np.array(ends), np.array(ratios), image_size)
