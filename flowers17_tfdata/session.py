"""A run that is open: its workdir, its devices and its data set."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_datasets as tfds

from flowers17_tfdata import files, machine, terminal, timings
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import Config, all_flags, to_values
from flowers17_tfdata.config.input import InputConfig
from flowers17_tfdata.config.option import Kind
from flowers17_tfdata.data import class_folders, corrections, extension
from flowers17_tfdata.data.source import Source, open_source
from flowers17_tfdata.errors import UserError, counted, one_line
from flowers17_tfdata.input import examples, input_pipeline
from flowers17_tfdata.models import backbones, saved_models, summary
from flowers17_tfdata.training import precision, resume
from flowers17_tfdata.training import strategy as strategies
from flowers17_tfdata.training.workers import Workers

TRAINING_SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Session:
    """What the phases of one process share.

    Attributes:
      config: the configuration, with `auto` resolved for the input pipeline.
      workdir: the folder of the run, which all workers share.
      output: the folder that this process writes to: the workdir, or if it is
        not the chief, a temporary folder. So all workers can save replicated
        variables, which is a collective operation, in the same way.
      strategy: the distribution strategy.
      workers: the processes of the run.
      precision: the resolved dtype policy.
      source: the data set.
    """

    config: Config
    workdir: pathlib.Path
    output: pathlib.Path
    strategy: tf.distribute.Strategy
    workers: Workers
    precision: str
    source: Source

    @property
    def compute_dtype(self) -> str:
        """The dtype that the model computes in."""
        return keras.config.dtype_policy().compute_dtype

    def record(self) -> dict[str, Any]:
        """Returns the flags, devices and versions that a result depends on."""
        flags = to_values(self.config) | {"precision": self.precision}
        return {
            "flags": flags,
            "num_replicas": self.strategy.num_replicas_in_sync,
            "num_workers": self.workers.count,
            "versions": machine.versions(),
            "hardware": machine.hardware(),
        }

    def check_unchanged(self, before: str) -> None:
        """Refuses a data set that changed since the workdir's training.

        An image that was trained on may now be in the test split.

        Args:
          before: the name of the data set that was trained on. The name of
            another data set, or '', is not compared.

        Raises:
          UserError: names what changed.
        """
        now = self.source.name
        if before == now or _undivided(before) != _undivided(now):
            return
        what = ""
        if self.config.data.own_images is not None:
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
            "in another --workdir, with --extends for images that were added"
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
    """Chooses the devices and the precision.

    Returns:
      The strategy, its workers, and the resolved precision.
    """
    strategy = strategies.get_strategy(config.runtime)
    workers = Workers(strategy)
    if not workers.is_chief:
        terminal.configure("quiet")
    policy = precision.set_precision(config.runtime.precision)
    terminal.detail(
        f"{counted(strategy.num_replicas_in_sync, 'replica')} on "
        f"{counted(workers.count, 'worker')}, precision {policy}"
    )
    return strategy, workers, policy


@contextlib.contextmanager
def open_session(
    config: Config, trains: bool, resumes: bool
) -> Iterator[Session]:
    """Creates the workdir, chooses the devices, opens the data set.

    Args:
      config: the configuration.
      trains: whether the phase reads the training splits.
      resumes: whether it keeps the settings that a run in the workdir has.

    Raises:
      UserError: any of these fails.
    """
    workdir = make_workdir(config.workdir)
    # Checked before minutes of data preparation and of training.
    backbones.get_preprocess(config.model.backbone)
    summary.check_can_plot(config.model)
    strategy, workers, policy = open_devices(config)
    rules.check_batch_size(config, strategy.num_replicas_in_sync)
    tfds.disable_progress_bar()
    terminal.say(f"{config.phase}: opening {config.data.dataset}")
    with contextlib.ExitStack() as stack:
        output = workdir
        if not workers.is_chief:
            folder = tempfile.TemporaryDirectory(prefix="flowers17_tfdata-")
            output = pathlib.Path(stack.enter_context(folder))
        source = _open_source(config, workdir, output, resumes)
        started = resume.started_with(workdir) if resumes else {}
        splits = (config.evaluation.split,) if not trains else TRAINING_SPLITS
        settled = _settle_input(config.input, started, splits, source, workers)
        config = dataclasses.replace(config, input=settled)
        yield Session(
            config, workdir, output, strategy, workers, policy, source
        )


def _open_source(
    config: Config, workdir: pathlib.Path, output: pathlib.Path, writes: bool
) -> Source:
    before: list[extension.Row] = []
    earlier = pathlib.Path(config.data.extends).expanduser()
    if config.data.extends:
        is_trained = bool(resume.started_with(workdir))
        if is_trained and not extension.copy_path(workdir).exists():
            raise UserError(
                f"--workdir {workdir} was trained without --extends="
                f"{config.data.extends}: pass another --workdir"
            )
        before = extension.read_old_splits(
            earlier, workdir, is_trained=is_trained
        )
    with (
        timings.measure(output, "opening the data set"),
        # TFDS prints what it prepares.
        terminal.other_output_as_details(),
        terminal.ScanProgress(None) as bar,
    ):
        known = {file: split for file, _, split in before}
        source = open_source(config.data, bar.scanned, known)
    if config.data.extends:
        undone = corrections.count_undone(earlier, source)
        if undone:
            terminal.say(
                f"warning: {counted(undone, 'correction')} of {earlier} "
                "undone: a table of corrections replaces the earlier one, so "
                "it must contain it"
            )
    told = _told_before(config, output)
    for note in source.notes:
        if note not in told:
            terminal.say(note)
    if before and writes:
        if not extension.copy_path(output).exists():
            extension.copy_splits(earlier, output)
        changes = extension.find_changes(
            before, source.class_names, source.scan()
        )
        terminal.say(extension.describe(str(earlier), changes), **changes)
    return source


def _told_before(config: Config, workdir: pathlib.Path) -> list[str]:
    """Returns the notes that the audit of this run has shown already."""
    if config.phase == "prepare":
        # To audit again is to ask again.
        return []
    audits = [workdir / "audit.json"]
    if config.data.folds:
        audits.append(workdir.parent / "fold_0" / "audit.json")
    told = []
    for path in audits:
        # Without an audit, or with a damaged one, they are shown again.
        with contextlib.suppress(UserError):
            told += files.read_json(path).get("notes", [])
    return told


def _settle_input(
    options: InputConfig,
    started: dict[str, Any],
    splits: tuple[str, ...],
    source: Source,
    workers: Workers,
) -> InputConfig:
    """Resolves the options whose `auto` depends on the machine.

    A resumed run keeps what it started with: today's free memory must not
    change its result. All workers decide alike: they cache in memory only if
    each of them can.
    """
    kept = {
        flag.name: started[flag.name]
        for flag in all_flags()
        if flag.kind is Kind.SETTLED
        and flag.name in started
        and getattr(options, flag.name) == "auto"
    }
    options = dataclasses.replace(options, **kept)
    num_images = sum(source.split_sizes.get(split, 0) for split in splits)
    cache = examples.resolve_cache(options, num_images)
    on_device = input_pipeline.resolve_augment_on(options) == "device"
    return dataclasses.replace(
        options,
        cache="memory" if workers.all(cache == "memory") else "none",
        augment_on="device" if workers.all(on_device) else "host",
    )


def make_workdir(path: str) -> pathlib.Path:
    """Creates `--workdir` and checks that it can be written.

    Raises:
      UserError: it can't.
    """
    workdir = pathlib.Path(path).expanduser()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Access rights alone miss a full disk or a read-only mount.
        with tempfile.NamedTemporaryFile(dir=workdir, prefix=".") as probe:
            probe.write(b"x")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} can't be written: {one_line(error)}"
        ) from error
    return workdir


def write_config(session: Session, more: Mapping[str, Any]) -> None:
    """Writes `config.json`: resolved flags, versions, hardware, and `more`."""
    record = session.record()
    flags = record["flags"]
    # Later phases may run in another current folder.
    paths = "archive data_dir corrections weights init_from extends"
    for name in paths.split():
        flags[name] = resume.absolute(flags[name])
    own = session.config.data.own_images
    if own is not None:
        flags["dataset"] = f"{own.prefix}{own.absolute}"
    if flags["corrections"]:
        # The user's own table may be edited or moved after this.
        copy = corrections.copy_path(session.workdir)
        if pathlib.Path(flags["corrections"]) != copy:
            with files.whole_file(session.output / copy.name) as temporary:
                shutil.copyfile(flags["corrections"], temporary)
        flags["corrections"] = resume.absolute(str(copy))
    files.write_json(
        session.output / "config.json",
        {"dataset": session.source.name, **record, **more},
    )
