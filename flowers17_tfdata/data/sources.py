"""Turns `--dataset` into a prepared TFDS data set."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterator

import filelock
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import DataConfig
from flowers17_tfdata.data import carving, division, folder_source
from flowers17_tfdata.data import scan as scan_lib
from flowers17_tfdata.data.oxford_flowers17 import archive as archive_lib
from flowers17_tfdata.data.oxford_flowers17 import errors as builder_errors
from flowers17_tfdata.data.oxford_flowers17 import (
    oxford_flowers17_dataset_builder as flowers17,
)
from flowers17_tfdata.data.oxford_flowers17 import splits as splits_lib
from flowers17_tfdata.data.source import Source
from flowers17_tfdata.errors import (
    ConfigError,
    DownloadFailed,
    UserError,
    one_line,
)

# Of `oxford_flowers17`: those whose images any split may take.
_DIVISIBLE = ("seeded", "synthetic")


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

    def fingerprints(self, split):
        """Hashes of the images' digest and file name, which all configs share.

        Of `oxford_flowers17`: elsewhere, names may repeat.
        """
        contents = (self._builder.info.metadata or {}).get("content_digest")
        if not contents:
            return []
        names = self.read(split).map(lambda example: example["id"])
        return [
            _fingerprint(contents, name.decode())
            for name in names.as_numpy_iterator()
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarvedSource(Source):
    """A data set of which one split, or several, were divided here."""

    _whole: Source
    # The splits of the whole that were divided, one behind the other.
    _divided: tuple[str, ...]
    # The new split of each of their examples.
    _split_of: tuple[str, ...]

    def read(self, split):
        self.check_split(split)
        if split not in self._split_of:
            return self._whole.read(split)
        chosen = tf.constant([s == split for s in self._split_of])
        # In the order of the whole, whatever the division: all that changes
        # with its seed is which images there are.
        parts = [self._whole.read(part) for part in self._divided]
        examples = functools.reduce(tf.data.Dataset.concatenate, parts)
        chosen_ones = examples.enumerate().filter(lambda k, _: chosen[k])
        return chosen_ones.map(lambda _, example: example)

    def fingerprints(self, split):
        """The whole's, or hashes of the examples' positions in it."""
        if split not in self._split_of:
            return self._whole.fingerprints(split)
        own = [f for s in self._divided for f in self._whole.fingerprints(s)]
        if not own:
            own = [
                _fingerprint(self._whole.name, *self._divided, str(k))
                for k in range(len(self._split_of))
            ]
        return [
            fingerprint
            for fingerprint, s in zip(own, self._split_of, strict=True)
            if s == split
        ]


def _fingerprint(*parts: str) -> str:
    text = "\n".join(parts)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_source(
    config: DataConfig, on_scanned: scan_lib.OnScanned | None = None
) -> Source:
    """Finds the data set, prepares it if it isn't yet, and checks it.

    Splits that it lacks are carved out of train; of the data sets made to be
    divided anew, all images are, where the flags ask for it.

    Args:
      config: which, where, and how it is divided.
      on_scanned: called with the number of images looked at so far, where all
        have to be, to split them.

    Raises:
      ConfigError: no such data set or config, or not one of labelled images;
        a flag would divide what is divided.
      UserError: the source can't be read, downloaded or split.
    """
    if config.dataset.startswith(folder_source.PREFIX):
        return folder_source.open_folder(
            config, _data_dir(config) / "folders", on_scanned
        )
    source = _open_tfds(config)
    if _is_divisible(source):
        return _divide(config, source)
    division.check_has_effect(config, source.split_sizes)
    fractions = config_lib.split_fractions(config)
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


def _is_divisible(source: TfdsSource) -> bool:
    name, config_name, *_ = source.name.split("/")
    return name == "oxford_flowers17" and config_name in _DIVISIBLE


def _divide(config: DataConfig, source: TfdsSource) -> Source:
    """Divides all images anew, if that is asked for."""
    as_it_is = not config.split_seed and config.near_duplicates == "together"
    if as_it_is and not config.folds:
        return source
    divided = tuple(splits_lib.FLOWERS17_SIZES)
    pool = _look_at(source, divided)
    with _user_errors():
        split_of = division.by_sizes(pool, config, splits_lib.FLOWERS17_SIZES)
    return _divided(
        source,
        divided,
        tuple(split_of[i] for i in pool.ids),
        notes=division.notes(
            config,
            f"{source.name}: all images divided anew (--split_seed="
            f"{config.split_seed})",
        ),
    )


def _look_at(source: TfdsSource, splits: tuple[str, ...]) -> division.Pool:
    """Returns the images of some splits; near-duplicates are the known ones."""
    ids: list[str] = []
    labels: list[int] = []
    for split in splits:
        examples = source.read(split).map(lambda e: (e["id"], e["label"]))
        for image_id, label in examples.as_numpy_iterator():
            ids.append(image_id.decode())
            labels.append(int(label))
    position = {image_id: k for k, image_id in enumerate(ids)}
    pairs = [
        [position[image_id] for image_id in pair]
        for pair in source.known_near_duplicates
    ]
    groups = splits_lib.group_pairs(pairs, len(ids)).tolist()
    return division.Pool(ids, labels, groups, source.class_names)


def _divided(
    source: TfdsSource,
    divided: tuple[str, ...],
    split_of: tuple[str, ...],
    notes: tuple[str, ...],
) -> CarvedSource:
    """Returns a data set with new splits.

    Args:
      source: the whole.
      divided: the splits of it that no longer are.
      split_of: the new split of each of their examples.
      notes: see `Source`.
    """
    kept = {s: n for s, n in source.split_sizes.items() if s not in divided}
    digest = hashlib.sha256("\n".join(split_of).encode()).hexdigest()[:8]
    names = [s for s in splits_lib.FLOWERS17_SIZES if s in split_of]
    return CarvedSource(
        name=f"{source.name}@{digest}",
        class_names=source.class_names,
        split_sizes={s: split_of.count(s) for s in names} | kept,
        known_near_duplicates=source.known_near_duplicates,
        notes=notes,
        _whole=source,
        _divided=divided,
        _split_of=split_of,
    )


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
    pool = division.Pool(ids, labels, groups, source.class_names)
    split_of = division.by_fractions(pool, config, fractions)
    return _divided(
        source,
        ("train",),
        tuple(split_of[i] for i in ids),
        notes=division.notes(
            config,
            f"{source.name} has no split {' or '.join(list(fractions)[1:])}: "
            "carved out of train (--split_fractions, --split_seed)",
        ),
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
