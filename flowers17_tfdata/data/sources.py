"""Turns `--dataset` into a prepared TFDS data set."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import filelock
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata import config as config_lib
from flowers17_tfdata.config import DataConfig
from flowers17_tfdata.data.oxford_flowers17 import archive as archive_lib
from flowers17_tfdata.data.oxford_flowers17 import errors as builder_errors
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    did_you_mean,
    one_line,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared image classification data set.

    Attributes:
      name: `name/config/version`.
      class_names: in the order of the labels.
      split_sizes: `{split: number of examples}`.
      known_near_duplicates: pairs of example ids known to show one picture,
        beyond what hashing finds.
    """

    name: str
    class_names: tuple[str, ...]
    split_sizes: Mapping[str, int]
    known_near_duplicates: tuple[tuple[str, str], ...]
    _builder: tfds.core.DatasetBuilder

    def check_split(self, split: str) -> None:
        """Raises a `UserError` if there is no such split."""
        if split not in self.split_sizes:
            raise UserError(
                f"--split must be one of {', '.join(self.split_sizes)} for "
                f"{self.name}; got {split!r}"
                f"{did_you_mean(split, self.split_sizes)}"
            )

    def read(self, split: str) -> tf.data.Dataset:
        """Reads a split in its stored order, images still encoded.

        Returns:
          `{"image": string, "label": int64, "id": string}`, scalars.

        Raises:
          UserError: there is no such split.
        """
        self.check_split(split)
        image_key, label_key = self._builder.info.supervised_keys
        has_names = "file_name" in self._builder.info.features
        examples = self._builder.as_dataset(
            split=split,
            # Decoding is the pipeline's: once, then cached.
            decoders={image_key: tfds.decode.SkipDecoding()},
            shuffle_files=False,
            read_config=tfds.ReadConfig(
                # Stored order, whatever the number of files: an example's
                # position is what its randomness is drawn by.
                interleave_cycle_length=1,
                try_autocache=False,
                skip_prefetch=True,
            ),
        )

        def select(position, example):
            name = (
                example["file_name"]
                if has_names
                else tf.strings.as_string(position)
            )
            return {
                "image": example[image_key],
                "label": tf.cast(example[label_key], tf.int64),
                "id": name,
            }

        return examples.enumerate().map(select)


def open_source(config: DataConfig) -> Source:
    """Finds the data set, prepares it if it isn't yet, and checks it.

    Raises:
      ConfigError: no such data set or config, or not one of labelled images.
      UserError: the source can't be read or downloaded.
    """
    builder = _make_builder(config)
    if not builder.data_path.exists():
        builder = _prepare(config, builder)
    elif config.archive:
        _check_same_archive(builder, config.archive)
    _check_features(builder, config.dataset)
    known = ()
    if config_lib.is_flowers17(config.dataset):
        known = tuple(
            (archive_lib.image_name(a), archive_lib.image_name(b))
            for a, b in flowers17.known_near_duplicates()
        )
    label_key = builder.info.supervised_keys[1]
    return Source(
        name=builder.info.full_name,
        class_names=tuple(builder.info.features[label_key].names),
        split_sizes={n: s.num_examples for n, s in builder.info.splits.items()},
        known_near_duplicates=known,
        _builder=builder,
    )


def _make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    kwargs = {"data_dir": config.data_dir or None}
    if config.archive:
        kwargs["archive"] = config.archive
    try:
        return tfds.builder(config.dataset, **kwargs)
    except (
        tfds.core.DatasetNotFoundError,
        # TFDS: an unknown config, a malformed name, an unknown version.
        ValueError,
        KeyError,
        AssertionError,
    ) as error:
        names = ", ".join(c.name for c in flowers17.Builder.BUILDER_CONFIGS)
        raise ConfigError(
            "--dataset must name a TFDS data set (of oxford_flowers17: "
            f"{names}); got {config.dataset!r}: {one_line(error, 120)}"
        ) from error


def _prepare(
    config: DataConfig, builder: tfds.core.DatasetBuilder
) -> tfds.core.DatasetBuilder:
    """Prepares the data set, once, whoever else wants it at the same time."""
    folder = pathlib.Path(builder.data_path)
    lock = folder.parent / f".{folder.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            # Another process may have made it while this one waited.
            builder = _make_builder(config)
            with _user_errors():
                builder.download_and_prepare()
            return builder
    except (
        OSError,
        tfds.download.DownloadError,
        AssertionError,
    ) as error:
        raise UserError(
            f"{builder.name} can't be prepared in --data_dir "
            f"({builder.data_path}): {one_line(error)}"
        ) from error


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turns what the builder raises into errors that name the flags."""
    try:
        yield
    except builder_errors.ArchiveError as error:
        # The message starts with the argument's name: the flag's as well.
        raise UserError(f"--{error}") from error
    except builder_errors.DownloadFailed as error:
        raise DownloadFailed(str(error)) from error
    except builder_errors.DatasetError as error:
        raise UserError(str(error)) from error


def _check_same_archive(builder: tfds.core.DatasetBuilder, archive: str):
    stored = (builder.info.metadata or {}).get("content_digest")
    with _user_errors():
        images = archive_lib.read_archive(archive)
    given = archive_lib.content_digest(images)
    if stored != given:
        raise UserError(
            f"--archive {archive} holds other images than the data set "
            f"prepared in {builder.data_path}: drop --archive, or pass "
            "another --data_dir"
        )


def _check_features(builder: tfds.core.DatasetBuilder, dataset: str) -> None:
    keys = builder.info.supervised_keys
    features = builder.info.features
    if not (
        keys
        and len(keys) == 2
        and all(isinstance(key, str) for key in keys)
        and isinstance(features[keys[0]], tfds.features.Image)
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise ConfigError(
            "--dataset must have an image and a class label as its supervised "
            f"keys; {dataset} has {keys}"
        )
