"""Turns `--dataset` into a prepared TFDS data set."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

import filelock
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata import config as config_lib
from flowers17_tfdata.config import DataConfig
from flowers17_tfdata.data import carving, folder_source
from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.oxford_flowers17 import archive as archive_lib
from flowers17_tfdata.data.oxford_flowers17 import errors as builder_errors
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    one_line,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource(Source):
    """A TFDS data set, as it is split there."""

    _builder: tfds.core.DatasetBuilder

    @property
    def data_path(self) -> pathlib.Path:
        """The folder that it is prepared in."""
        return pathlib.Path(self._builder.data_path)

    def read(self, split):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarvedSource(Source):
    """A data set whose train split was divided here."""

    _whole: Source
    # The new split of each example of the whole's train split.
    _split_of: tuple[str, ...]

    def read(self, split):
        self.check_split(split)
        if split not in self._split_of:
            return self._whole.read(split)
        chosen = tf.constant([s == split for s in self._split_of])
        examples = self._whole.read("train").enumerate()
        return examples.filter(lambda k, _: chosen[k]).map(lambda _, e: e)


def open_source(
    config: DataConfig, on_scanned: scan_lib.OnScanned | None = None
) -> Source:
    """Finds the data set, prepares it if it isn't yet, and checks it.

    Splits that it lacks are carved out of train.

    Args:
      config: which, where, and how it is split.
      on_scanned: called with the number of images looked at so far, where all
        have to be, to split them.

    Raises:
      ConfigError: no such data set or config, or not one of labelled images.
      UserError: the source can't be read, downloaded or split.
    """
    fractions = config_lib.split_fractions(config)
    if config.dataset.startswith(folder_source.PREFIX):
        return folder_source.open_folder(
            config.dataset.removeprefix(folder_source.PREFIX),
            cache_dir=_data_dir(config) / "folders",
            fractions=fractions,
            seed=config.split_seed,
            on_scanned=on_scanned,
        )
    source = _open_tfds(config)
    wanted = carving.fractions_to_carve(source.split_sizes, fractions)
    if not wanted:
        return source
    if "train" not in source.split_sizes:
        raise ConfigError(
            "--dataset must have a split train; "
            f"{config.dataset} has {', '.join(source.split_sizes)}"
        )
    return _carve(config, source, wanted, on_scanned)


def _data_dir(config: DataConfig) -> pathlib.Path:
    path = pathlib.Path(config.data_dir or tfds.core.constants.DATA_DIR)
    return path.expanduser()


def _carve(
    config: DataConfig,
    source: TfdsSource,
    fractions: dict[str, float],
    on_scanned: scan_lib.OnScanned | None,
) -> CarvedSource:
    """Divides a data set's train split."""
    labels, groups = _look_at_train(
        source, _data_dir(config) / "folders", on_scanned
    )
    # Positions, which are unique; names need not be.
    ids = [str(k) for k in range(len(labels))]
    split_of = carving.carve(ids, labels, groups, fractions, config.split_seed)
    splits = tuple(split_of[i] for i in ids)
    kept = {s: n for s, n in source.split_sizes.items() if s != "train"}
    digest = hashlib.sha256("\n".join(splits).encode()).hexdigest()[:8]
    return CarvedSource(
        name=f"{source.name}@{digest}",
        class_names=source.class_names,
        split_sizes={s: splits.count(s) for s in fractions} | kept,
        notes=(
            f"{source.name} has no split {' or '.join(list(fractions)[1:])}: "
            "carved out of train (--split_fractions, --split_seed)",
        ),
        _whole=source,
        _split_of=splits,
    )


def _look_at_train(
    source: TfdsSource,
    cache_dir: pathlib.Path,
    on_scanned: scan_lib.OnScanned | None,
) -> tuple[list[int], list[int]]:
    """Returns labels and near-duplicate groups, from a file of an earlier look.

    The file is of one preparation of the data set: another has another size,
    or another time.
    """
    digest = hashlib.sha256(source.name.encode())
    for file in sorted(source.data_path.iterdir()):
        status = file.stat()
        state = f"{file.name}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(state.encode())
    path = cache_dir / f"{source.name.replace('/', '-')}.npz"
    found = scan_lib.load_arrays(path, digest.hexdigest())
    if found is None:
        train = dataclasses.replace(
            source, split_sizes={"train": source.split_sizes["train"]}
        )
        seen = train.scan(on_scanned)
        found = {
            "labels": seen.labels,
            "groups": carving.find_groups(seen.thumbnails),
        }
        scan_lib.save_arrays(path, digest.hexdigest(), found)
    return found["labels"].tolist(), found["groups"].tolist()


def _open_tfds(config: DataConfig) -> TfdsSource:
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
    return TfdsSource(
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
