"""What the phases of one process share, and its record in `config.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata import files, machine, terminal, timings
from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.config.config import Config, InputConfig
from flowers17_tfdata.data import class_folders, folder_source
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import ConfigError, UserError, one_line
from flowers17_tfdata.input import examples, input_pipeline
from flowers17_tfdata.models import backbones, saved_models, summary
from flowers17_tfdata.training import checkpoints, precision
from flowers17_tfdata.training import strategy as strategy_lib
from flowers17_tfdata.training.workers import Workers

TRAINING_SPLITS = ("train", "validation")

# Input options whose `auto` depends on the machine and on the moment.
_SETTLED = ("cache", "augment_on")


@dataclasses.dataclass(frozen=True)
class Session:
    """What the phases of one process share."""

    config: Config
    workdir: pathlib.Path
    # Where this process writes: the workdir, or, if it is not the chief, a
    # folder that nobody reads. A collective that all take part in (saving
    # replicated variables) needs no distinction then.
    output: pathlib.Path
    strategy: tf.distribute.Strategy
    workers: Workers
    precision: str
    source: Source

    @property
    def compute_dtype(self) -> str:
        """The dtype that the model computes in."""
        return keras.config.dtype_policy().compute_dtype

    def check_unchanged(self, before: str) -> None:
        """Refuses a data set that changed since the workdir's training.

        An image that was trained on then may lie in the test split now.

        Args:
          before: the name of the data set that was trained on; of another
            data set, or '': nothing to compare.

        Raises:
          UserError: names what changed.
        """
        now = self.source.name
        if before == now or _undivided(before) != _undivided(now):
            return
        what = ""
        if now.startswith(folder_source.PREFIX):
            what = class_folders.describe_changes(
                self.workdir / "splits.csv",
                self.source.class_names,
                self.source.scan(),
            )
        raise UserError(
            f"--dataset {now} is not what --workdir {self.workdir} was trained "
            f"on ({before}); changed since: "
            f"{what or 'images, classes, or the flags that divide them'}. An "
            "image of train may be in test now: restore them, or train anew "
            "in another --workdir"
        )

    def model_path(self, stage: str) -> pathlib.Path:
        """Returns where a stage's model is saved."""
        return saved_models.model_path(self.workdir, stage)


def _undivided(name: str) -> str:
    """Returns a data set's name without the digest of splits made here."""
    return name.rpartition("@")[0] or name


def open_devices(
    config: Config,
) -> tuple[tf.distribute.Strategy, Workers, str]:
    """Chooses the devices and the arithmetic.

    Returns:
      The strategy, its workers, the resolved precision.
    """
    strategy = strategy_lib.get_strategy(config.runtime)
    workers = Workers(strategy)
    if not workers.is_chief:
        terminal.be_quiet()
    policy = precision.set_precision(config.runtime.precision)
    terminal.detail(
        f"{strategy.num_replicas_in_sync} replica(s) on {workers.count} "
        f"worker(s), precision {policy}"
    )
    return strategy, workers, policy


@contextlib.contextmanager
def open_session(config: Config) -> Iterator[Session]:
    """Makes the workdir, chooses the devices, opens the data set.

    Raises:
      UserError: any of it can't be had.
    """
    workdir = make_workdir(config.workdir)
    # Checked before minutes of data preparation and of training.
    backbones.get_preprocess(config.model.backbone)
    summary.check_can_plot(config.model)
    strategy, workers, policy = open_devices(config)
    _check_batch_size(config, strategy.num_replicas_in_sync)
    tfds.disable_progress_bar()
    terminal.say(f"{config.phase}: opening {config.data.dataset}")
    with contextlib.ExitStack() as stack:
        output = workdir
        if not workers.is_chief:
            folder = tempfile.TemporaryDirectory(prefix="flowers17_tfdata-")
            output = pathlib.Path(stack.enter_context(folder))
        source = _open_source(config, output)
        config = dataclasses.replace(
            config, input=_settle_input(config, workdir, source, workers)
        )
        yield Session(
            config, workdir, output, strategy, workers, policy, source
        )


def _open_source(config: Config, output: pathlib.Path) -> Source:
    with (
        timings.measure(output, "opening the data set"),
        # TFDS announces what it prepares.
        terminal.other_output_as_details(),
        terminal.ScanProgress(None) as bar,
    ):
        source = open_source(config.data, bar.scanned)
    for note in source.notes:
        terminal.say(note)
    return source


def _settle_input(
    config: Config,
    workdir: pathlib.Path,
    source: Source,
    workers: Workers,
) -> InputConfig:
    """Settles what `auto` leaves to the machine.

    A run that is resumed keeps what it started with: today's free memory must
    not change its result. Workers do alike: in memory where all have it.
    """
    options, splits = config.input, TRAINING_SPLITS
    if config.phase in ("train", "find_lr", *config_lib.STAGES):
        started = checkpoints.started_with(workdir)
        auto = [f for f in _SETTLED if getattr(options, f) == "auto"]
        options = dataclasses.replace(
            options, **{f: started[f] for f in auto if f in started}
        )
    elif config.phase in ("evaluate", "report", "export"):
        splits = (config.evaluation.split,)
    num_images = sum(source.split_sizes.get(split, 0) for split in splits)
    cache = examples.resolve_cache(options, num_images)
    on_device = input_pipeline.resolve_augment_on(options) == "device"
    return dataclasses.replace(
        options,
        cache="memory" if workers.all(cache == "memory") else "none",
        augment_on="device" if workers.all(on_device) else "host",
    )


def _check_batch_size(config: Config, num_replicas: int) -> None:
    size = config.optimization.global_batch_size
    if size % num_replicas:
        raise ConfigError(
            "--global_batch_size must be a multiple of the number of replicas "
            f"({num_replicas}); got {size}"
        )


def make_workdir(path: str) -> pathlib.Path:
    """Makes `--workdir`, and tries whether it can be written.

    Raises:
      UserError: it can't.
    """
    workdir = pathlib.Path(path).expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Not only access rights: a full disk, a read-only mount.
        with tempfile.NamedTemporaryFile(dir=workdir, prefix=".") as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} can't be written: {one_line(error)}"
        ) from error
    return workdir


def write_config(session: Session) -> None:
    """Writes `config.json`: resolved flags, versions, hardware."""
    flags: dict[str, Any] = config_lib.to_values(session.config)
    flags |= {"precision": session.precision}
    for name in ("archive", "data_dir", "weights", "init_from"):
        # Later phases read them from here, in whatever folder they are run.
        # Not a folder that happens to be called imagenet.
        reserved = flags[name] in ("", "imagenet", "none")
        if not reserved and pathlib.Path(flags[name]).expanduser().exists():
            flags[name] = str(pathlib.Path(flags[name]).expanduser().resolve())
    prefix, _, folder = flags["dataset"].rpartition("folder:")
    if not prefix and folder != flags["dataset"]:
        path = pathlib.Path(folder).expanduser().resolve()
        flags["dataset"] = f"folder:{path}"
    files.write_json(
        session.output / "config.json",
        {
            "dataset": session.source.name,
            "flags": flags,
            "num_replicas": session.strategy.num_replicas_in_sync,
            "num_workers": session.workers.count,
            "versions": machine.versions(),
            "hardware": machine.hardware(),
        },
    )
