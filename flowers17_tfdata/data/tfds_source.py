"""TFDS data sets as a `Source`, with their own splits or others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping

import filelock
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata import errors, files
from flowers17_tfdata.config.data import DataConfig
from flowers17_tfdata.data import scan, splitting
from flowers17_tfdata.data.oxford_flowers17 import archive, splits
from flowers17_tfdata.data.oxford_flowers17 import errors as builder_errors
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.scan import OnScanned
from flowers17_tfdata.data.source import Source, fingerprint

# Data sets whose images any split may take.
_DIVIDED_ANEW = ("oxford_flowers17/seeded", "oxford_flowers17/synthetic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(Source):
    """A prepared TFDS data set, with its own splits or with splits made here.

    Attributes:
      _builder: the prepared data set.
      _divided: the names of its splits that were divided here.
      _split_of: the new split of each of their examples, one divided split
        after another.
    """

    _builder: tfds.core.DatasetBuilder
    _divided: tuple[str, ...] = ()
    _split_of: tuple[str, ...] = ()

    def read(self, split):
        self.check_split(split)
        if split not in self._split_of:
            return self._read_prepared(split)
        chosen = tf.constant([s == split for s in self._split_of])
        # In the stored order: the seed only changes which images are chosen.
        parts = map(self._read_prepared, self._divided)
        examples = functools.reduce(tf.data.Dataset.concatenate, parts)
        chosen_examples = examples.enumerate().filter(lambda k, _: chosen[k])
        return chosen_examples.map(lambda _, example: example)

    def _read_prepared(self, split: str) -> tf.data.Dataset:
        image_key, label_key = self._builder.info.supervised_keys
        # Stored order, whatever the number of files: augmentation is drawn by
        # an example's position.
        read_config = tfds.ReadConfig(
            interleave_cycle_length=1, try_autocache=False, skip_prefetch=True
        )
        examples = self._builder.as_dataset(
            split=split,
            # The input pipeline decodes the images, once.
            decoders={image_key: tfds.decode.SkipDecoding()},
            shuffle_files=False,
            read_config=read_config,
        )

        def select(position, example):
            position = tf.strings.as_string(position)
            return {
                "image": example[image_key],
                "label": tf.cast(example[label_key], tf.int64),
                "id": example.get("file_name", position),
            }

        return examples.enumerate().map(select)

    def fingerprints(self, split):
        """Hashes names, or positions in a data set that is divided here."""
        # Names are unique in oxford_flowers17, whose configurations share the
        # archive's digest. In other data sets they may repeat.
        contents = _content_digest(self._builder)
        if contents:
            ids = self.read(split).map(lambda e: e["id"]).as_numpy_iterator()
            return [fingerprint(contents, name.decode()) for name in ids]
        whole = self._builder.info.full_name
        places = [k for k, s in enumerate(self._split_of) if s == split]
        return [fingerprint(whole, *self._divided, str(k)) for k in places]


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turns the builder's errors into errors that name the flags."""
    try:
        yield
    except builder_errors.ArchiveError as error:
        # The message starts with the argument's name, which is the flag's.
        raise errors.UserError(f"--{error}") from error
    except builder_errors.DownloadFailed as error:
        raise errors.DownloadFailed(str(error)) from error
    except builder_errors.DatasetError as error:
        raise errors.UserError(str(error)) from error


@_user_errors()
def open_tfds(
    config: DataConfig, cache_dir: pathlib.Path, on_scanned: OnScanned | None
) -> TfdsSource:
    """Opens a TFDS data set, and divides it where the flags ask for it.

    Args:
      config: the flags.
      cache_dir: the folder that keeps what was found by decoding the images.
      on_scanned: see `source.open_source`.

    Raises:
      ConfigError: see `source.open_source`.
      UserError: see `source.open_source`.
    """
    source = _open_prepared(config)
    if source.name.rpartition("/")[0] in _DIVIDED_ANEW:
        anywhere = config.near_duplicates == "anywhere"
        if not (config.split_seed or config.folds or anywhere):
            return source
        pool = _read_pool(source)
        return _divide(config, source, pool, splits.FLOWERS17_SIZES)
    fractions = splitting.fractions_of_train(config, source.split_sizes)
    if not fractions:
        return source
    pool = _scan_train(source, cache_dir, on_scanned)
    return _divide(config, source, pool, fractions)


def _read_pool(source: TfdsSource) -> splitting.Pool:
    """Returns all examples of oxford_flowers17, in the published groups."""
    rows = [
        (example["id"].decode(), int(example["label"]))
        for split in splits.FLOWERS17_SIZES
        for example in source.read(split).as_numpy_iterator()
    ]
    ids, labels = zip(*rows, strict=True)
    pairs = [[ids.index(i) for i in p] for p in source.known_near_duplicates]
    groups = splits.group_pairs(pairs, len(ids)).tolist()
    return splitting.Pool(ids, labels, groups, source.class_names)


def _scan_train(
    source: TfdsSource, cache_dir: pathlib.Path, on_scanned: OnScanned | None
) -> splitting.Pool:
    """Returns the examples of train, grouped by the near-duplicates found.

    They are read from the cache if no file of the data set has changed its size
    or modification time since it was written.
    """
    digest = hashlib.sha256(source.name.encode())
    for file in sorted(pathlib.Path(source._builder.data_path).iterdir()):
        status = file.stat()
        state = f"{file.name}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(state.encode())
    path = cache_dir / f"{source.name.replace('/', '-')}.npz"
    found = scan.load_arrays(path, digest.hexdigest())
    if not found:
        sizes = {"train": source.split_sizes["train"]}
        train = dataclasses.replace(source, split_sizes=sizes).scan(on_scanned)
        groups = scan.find_groups(train.images)
        found = {"labels": train.labels, "groups": groups}
        scan.save_arrays(path, digest.hexdigest(), found)
    labels, groups = found["labels"].tolist(), found["groups"].tolist()
    # Positions, because names need not be unique.
    ids = [str(k) for k in range(len(labels))]
    return splitting.Pool(ids, labels, groups, source.class_names)


def _divide(
    config: DataConfig,
    source: TfdsSource,
    pool: splitting.Pool,
    shares: Mapping[str, float],
) -> TfdsSource:
    """Returns the data set with new splits.

    Args:
      config: the flags.
      source: the data set. Those of its splits that have a share are divided.
      pool: the examples of these splits, in the stored order.
      shares: see `splitting.assign_splits`.
    """
    split_of = splitting.assign_splits(pool, config, shares)
    divided = tuple(split for split in shares if split in source.split_sizes)
    new = tuple(split_of[image_id] for image_id in pool.ids)
    digest = hashlib.sha256("\n".join(new).encode()).hexdigest()[:8]
    sizes = {s: new.count(s) for s in splits.FLOWERS17_SIZES if s in new}
    kept = {s: n for s, n in source.split_sizes.items() if s not in divided}
    return dataclasses.replace(
        source,
        name=f"{source.name}@{digest}",
        split_sizes=sizes | kept,
        notes=tuple(splitting.notes(config, sizes)),
        _divided=divided,
        _split_of=new,
    )


def _open_prepared(config: DataConfig) -> TfdsSource:
    builder = _make_builder(config)
    if not builder.data_path.exists():
        builder = _prepare(config, builder)
    elif config.archive:
        _check_same_archive(builder, config.archive)
    _check_features(builder, config.dataset)
    pairs = flowers17.known_near_duplicates() if config.is_flowers17 else []
    label_key = builder.info.supervised_keys[1]
    return TfdsSource(
        name=builder.info.full_name,
        class_names=tuple(builder.info.features[label_key].names),
        split_sizes={n: s.num_examples for n, s in builder.info.splits.items()},
        known_near_duplicates=tuple(
            (archive.image_name(a), archive.image_name(b)) for a, b in pairs
        ),
        _builder=builder,
    )


def _make_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    data_dir = config.data_dir or None
    kwargs = {"archive": config.archive} if config.archive else {}
    try:
        return tfds.builder(config.dataset, data_dir=data_dir, **kwargs)
    # TFDS raises any of these for an unknown name, config or version.
    except (ValueError, KeyError, AssertionError) as error:
        if pathlib.Path(config.dataset).expanduser().is_dir():
            raise errors.ConfigError(
                f"--dataset={config.dataset} names a folder (did you mean "
                f"--dataset=folder:{config.dataset}?)"
            ) from error
        names = ", ".join(c.name for c in flowers17.Builder.BUILDER_CONFIGS)
        raise errors.ConfigError(
            "--dataset must be folder:PATH, csv:FILE or a TFDS data set "
            f"(oxford_flowers17 has {names}); got {config.dataset!r}: "
            f"{errors.one_line(error, 120)}"
        ) from error


def _prepare(
    config: DataConfig, builder: tfds.core.DatasetBuilder
) -> tfds.core.DatasetBuilder:
    """Prepares the data set, once if several processes ask at the same time."""
    folder = pathlib.Path(builder.data_path)
    lock = folder.parent / f".{folder.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            # Another process may have prepared it while this one waited.
            builder = _make_builder(config)
            builder.download_and_prepare()
            return builder
    except (
        *(OSError, tfds.download.DownloadError, AssertionError),
        # TFDS raises the second in the place of the first.
        *(tf.errors.OpError, RuntimeError),
    ) as error:
        reason = files.full_disk(error)[1] or errors.one_line(error)
        raise errors.UserError(
            f"{builder.name} can't be prepared in --data_dir "
            f"({builder.data_path}): {reason}"
        ) from error


def _check_same_archive(builder: tfds.core.DatasetBuilder, path: str) -> None:
    images = archive.read_archive(path)
    if _content_digest(builder) != archive.content_digest(images):
        raise errors.UserError(
            f"--archive {path} holds other images than the data set "
            f"prepared in {builder.data_path}: drop --archive, or pass "
            "another --data_dir"
        )


def _content_digest(builder: tfds.core.DatasetBuilder) -> str | None:
    return (builder.info.metadata or {}).get("content_digest")


def _check_features(builder: tfds.core.DatasetBuilder, dataset: str) -> None:
    keys, features = builder.info.supervised_keys or (), builder.info.features
    kinds = [type(features[key]) for key in keys if isinstance(key, str)]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        raise errors.ConfigError(
            "--dataset must have an image and a class label as its supervised "
            f"keys; {dataset} has {keys or None}"
        )
