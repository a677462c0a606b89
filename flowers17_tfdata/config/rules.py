"""The rules that a configuration must follow."""

from __future__ import annotations

import os

from flowers17_tfdata.config.config import Config, all_flags, to_values
from flowers17_tfdata.config.data import OWN_PREFIXES
from flowers17_tfdata.config.optimization import OPTIMIZERS, SOLVER
from flowers17_tfdata.config.option import check as check_flag
from flowers17_tfdata.errors import ConfigError, UserError, did_you_mean

# The flags that name a file: the phases that read it, and its suffixes.
_FILES = {
    "weights": (
        (
            *("train", "transfer", "find_lr", "learning_curve", "benchmark"),
            "review",
        ),
        (".h5",),
    ),
    "init_from": (("finetune", "find_lr"), (".keras", ".h5", ".hdf5")),
    "model": (
        ("evaluate", "predict", "export", "report"),
        (".keras", ".h5", ".hdf5"),
    ),
    "labels": (("predict",), ("",)),
}
# The stage that reads the file. A run that has begun it may outlive the file.
_READ_BY = {"weights": "transfer", "init_from": "finetune"}


def check(config: Config) -> None:
    """Checks every flag against its declaration, then the other rules.

    Raises:
      ConfigError: names the flag, the rule and the value.
    """
    values = to_values(config)
    for name in ("workdir", "dataset"):
        if not values[name]:
            raise ConfigError(f"--{name} must not be empty; got ''")
    for flag in all_flags():
        check_flag(flag, values)
        _check_home(flag.name, values[flag.name])
    # These raise a ConfigError if they can't be parsed.
    _ = config.runtime.profile_range
    _ = config.data.fractions
    _ = config.data.group_pattern
    _ = config.export.formats
    if config.data.archive and not config.data.is_flowers17:
        raise ConfigError(
            "--archive goes with --dataset=oxford_flowers17 (seeded or "
            f"official_*); got --dataset={config.data.dataset}"
        )
    _check_output(config)
    _check_own_images(config)
    _check_folds(config)
    _check_extends(config)
    _check_stages(config)
    check_batch_size(config, config.runtime.num_virtual_devices or 1)


def check_files(config: Config) -> None:
    """Checks the files that the phase will read, before minutes of work.

    Raises:
      ConfigError: a file's name has another suffix.
      UserError: there is no such file; names the nearest one beside it.
    """
    values = to_values(config)
    if config.model.weights in ("imagenet", "none"):
        del values["weights"]
    for flag, (phases, suffixes) in _FILES.items():
        value = values.get(flag)
        if not value or config.phase not in phases or _has_begun(config, flag):
            continue
        if not os.path.isfile(os.path.expanduser(value)):
            what = "imagenet, none or " if flag == "weights" else ""
            raise UserError(
                f"--{flag} must be {what}an existing file; got {value!r}"
                f"{_beside(value)}"
            )
        if not value.endswith(suffixes):
            raise ConfigError(
                f"--{flag} must be a file that ends in {' or '.join(suffixes)};"
                f" got {value!r}"
            )
    archive = config.data.archive
    if (
        archive
        and config.phase not in ("predict", "compare")
        and not os.path.exists(os.path.expanduser(archive))
    ):
        raise UserError(f"--archive {archive} does not exist{_beside(archive)}")
    table = config.data.corrections
    if (
        table
        and config.phase not in ("predict", "compare")
        and not os.path.isfile(os.path.expanduser(table))
    ):
        raise UserError(
            f"--corrections must be an existing file; got {table!r}"
            f"{_beside(table)}"
        )


def _has_begun(config: Config, flag: str) -> bool:
    """Whether the run has begun the stage that reads the flag's file."""
    folder = "fold_0" if config.data.runs_all_folds else ""
    workdir = os.path.join(os.path.expanduser(config.workdir), folder)
    stage = _READ_BY.get(flag)
    return stage is not None and os.path.isdir(
        os.path.join(workdir, "checkpoints", stage)
    )


def _beside(value: str) -> str:
    """Returns ` (did you mean ...?)` with files of the same folder, or ''."""
    folder, name = os.path.split(os.path.expanduser(value))
    try:
        others = {*os.listdir(folder or os.curdir)} - {name}
    except OSError:
        return ""
    return did_you_mean(name, others)


def check_batch_size(config: Config, num_replicas: int) -> None:
    """Checks that the replicas share a batch equally.

    Raises:
      ConfigError: the batch size is not a multiple of the number of replicas.
    """
    size = config.optimization.global_batch_size
    if size % num_replicas:
        raise ConfigError(
            "--global_batch_size must be a multiple of the number of replicas "
            f"({num_replicas}); got {size}"
        )


def _check_output(config: Config) -> None:
    """Refuses a table for people in a file that is named as data."""
    output, form = config.predict.output, config.predict.format
    suffix = os.path.splitext(output)[1].lower()
    meant = {".csv": "csv", ".json": "json", ".jsonl": "json"}.get(suffix, form)
    if meant != form:
        raise ConfigError(
            f"--output={output} goes with --format={meant}; got {form}"
        )


def _check_stages(config: Config) -> None:
    options = config.optimization
    if config.phase == "finetune" and not options.finetune_epochs:
        raise ConfigError(
            "--finetune_epochs must be at least 1 for --phase=finetune; got 0"
        )
    if (
        config.phase == "find_lr"
        and config.find_lr.find_lr_stage == "transfer"
        and options.transfer_optimizer == SOLVER
    ):
        raise ConfigError(
            "--find_lr_stage=transfer goes with --transfer_optimizer="
            f"{', '.join(OPTIMIZERS)}; got {SOLVER}, which needs no learning "
            "rate"
        )


def _check_home(name: str, value: object) -> None:
    """Checks that ~NAME at the start of a path is a user's home folder."""
    path = str(value)
    for prefix in OWN_PREFIXES:
        path = path.removeprefix(prefix)
    if path.startswith("~") and os.path.expanduser(path) == path:
        raise ConfigError(
            f"--{name}: {path.partition(os.sep)[0]} has no home folder; got "
            f"{value!r}"
        )


def _check_own_images(config: Config) -> None:
    own = config.data.own_images
    if own is None:
        if config.data.groups:
            raise ConfigError(
                "--groups goes with --dataset=folder:PATH or csv:FILE; got "
                f"--dataset={config.data.dataset}"
            )
        return
    if not own.path:
        raise ConfigError(
            "--dataset=folder:PATH must name a folder, and csv:FILE a table; "
            f"got {config.data.dataset!r}"
        )
    if own.prefix == "folder:":
        _check_nothing_lies_in(own.path, config)
        return
    splits = os.path.join(os.path.expanduser(config.workdir), "splits.csv")
    if os.path.realpath(splits) == os.path.realpath(own.absolute):
        raise ConfigError(
            "--workdir must be another folder than that of the table "
            f"splits.csv, which the run would replace; got {config.workdir}"
        )


def _check_nothing_lies_in(folder: str, config: Config) -> None:
    # The next run would take what this one writes there for a class.
    for name, path in (
        ("workdir", config.workdir),
        ("data_dir", config.data.data_dir),
        ("folders_dir", config.folders.folders_dir),
        ("export_dir", config.export.export_dir),
    ):
        if path and _lies_in(path, folder):
            raise ConfigError(
                f"--{name} must lie outside the folder of images {folder}; got "
                f"{path}"
            )


def _lies_in(path: str, folder: str) -> bool:
    path, folder = (
        os.path.join(os.path.realpath(os.path.expanduser(p)), "")
        for p in (path, folder)
    )
    return path.startswith(folder)


def _check_extends(config: Config) -> None:
    data = config.data
    if not data.extends:
        return
    if data.own_images is None and not data.corrections:
        raise ConfigError(
            "--extends goes with --dataset=folder:PATH or csv:FILE, or with "
            f"--corrections; got --dataset={data.dataset}"
        )
    if data.folds:
        raise ConfigError(
            "--extends goes with --folds=0, because it keeps the test split; "
            f"got {data.folds}"
        )
    old, new = (
        os.path.realpath(os.path.expanduser(path))
        for path in (data.extends, config.workdir)
    )
    if old == new:
        raise ConfigError(
            f"--extends and --workdir must differ; got {config.workdir} twice"
        )


def _check_folds(config: Config) -> None:
    folds, fold = config.data.folds, config.data.fold
    if 0 < folds < 3:
        raise ConfigError(
            "--folds must be 0, or at least 3: one to test, one to validate, "
            f"the others to train on; got {folds}"
        )
    if fold >= 0 and not folds:
        raise ConfigError(f"--fold goes with --folds=K; got --fold={fold}")
    if fold >= 0 and fold >= folds:
        raise ConfigError(f"--fold must be below --folds={folds}; got {fold}")
    if not config.data.runs_all_folds:
        return
    for flag, value, wanted in (
        ("phase", config.phase, "train"),
        ("split", config.evaluation.split, "test"),
        ("launch_local", config.runtime.launch_local, 0),
    ):
        if value != wanted:
            raise ConfigError(
                f"--folds without --fold=N goes with --{flag}={wanted} alone; "
                f"got {value!r}"
            )
    if config.runtime.strategy == "multi_worker":
        raise ConfigError(
            "--folds without --fold=N does not go with --strategy="
            "multi_worker: pass --fold=0, then 1, ..., each with a --workdir"
        )
