"""The absl flags, made from the fields of `config.Config`.

Only this module and `cli.py` touch `FLAGS`.
"""

from __future__ import annotations

import dataclasses
import textwrap

from absl import flags

from flowers17_tfdata.config import config as config_lib
from flowers17_tfdata.errors import ConfigError

FLAGS = flags.FLAGS

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _flag_groups():
    yield "run", config_lib.Config
    yield from config_lib.groups()


def define_flags() -> None:
    """Defines a flag for every option, once per process."""
    if "phase" in FLAGS:
        return
    for _, config_class in _flag_groups():
        for field in config_lib.options(config_class):
            _DEFINE[type(field.default)](
                field.name, field.default, field.metadata["help"]
            )
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h")


class HelpWanted(Exception):
    """`--help` was given.

    Attributes:
      phase: that was given with it, if one was.
    """

    def __init__(self, phase: str | None):
        super().__init__(phase)
        self.phase = phase if phase in config_lib.PHASES else None


def parse(argv: list[str]) -> config_lib.Config:
    """Parses `argv` (program name first) into a `Config`.

    Raises:
      HelpWanted: instead of a run.
      ConfigError: an unknown flag, a malformed value, a broken rule.
    """
    define_flags()
    # A process may run several command lines one after another (tests do).
    FLAGS.unparse_flags()
    try:
        rest = FLAGS(argv)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--flagfile can't be read: {error}") from error
    # ValueError: of flags that absl and TensorFlow define.
    except (flags.Error, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if FLAGS.help:
        raise HelpWanted(FLAGS.phase if FLAGS["phase"].present else None)
    names = [
        field.name
        for _, config_class in _flag_groups()
        for field in config_lib.options(config_class)
    ]
    values = {name: FLAGS[name].value for name in names}
    if len(rest) > 1:
        # `--phase=predict *.jpg`, which the shell expands.
        if values["phase"] != "predict":
            raise ConfigError(
                f"every argument must be a --flag=value; got {rest[1]!r}"
            )
        named = filter(None, [*values["images"].split(","), *rest[1:]])
        # The line break says that commas are parts of names.
        values["images"] = "\n".join(named) + "\n"
    if values["phase"] in config_lib.PHASES_ON_A_RUN:
        given = {name for name in names if FLAGS[name].present}
        recorded = config_lib.recorded_values(
            values["workdir"], values["phase"]
        )
        if "dataset" in given:
            # Of another data set, the run's split means nothing.
            given |= {"split_fractions", "split_seed", "near_duplicates"}
            given |= {"folds", "fold"}
        elif "folds" in given:
            given |= {"fold"}
        values |= {n: v for n, v in recorded.items() if n not in given}
    return config_lib.from_values(values)


# The groups of flags that each phase looks at, beside `run` and `runtime`.
_GROUPS_OF_PHASE = {
    "prepare": {"data"},
    "transfer": {"data", "input", "model", "optimization"},
    "finetune": {"data", "input", "model", "optimization"},
    "refit": {"data", "input", "model", "optimization"},
    "train": {"data", "input", "model", "optimization", "evaluation"},
    "evaluate": {"data", "evaluation"},
    "predict": {"evaluation", "predict"},
    "export": {"data", "evaluation", "export"},
    "report": {"data", "evaluation"},
    "folders": {"data", "folders"},
    "compare": {"evaluation", "compare"},
    "find_lr": {"data", "input", "model", "optimization", "find_lr"},
    "benchmark": {"data", "input", "model", "optimization"},
}

_PHASES = """\
phases:
  prepare    build the data set and audit it
  transfer   fit the head to the frozen backbone's features
  finetune   unfreeze the upper backbone and train on
  refit      train the better of the two on validation, too
  train      all of these, then evaluate and report (the default)
  evaluate   any saved model on any split
  predict    what photographs show
  export     SavedModel that takes JPEGs, Keras, TFLite, ONNX
  report     one HTML page that shows a run
  folders    the splits as class folders, for other programs
  compare    two recipes, image by image, over all their runs
  find_lr    a learning rate for a stage, by a range test
  benchmark  how fast each part is, beside stock Keras"""

_EXAMPLES = """\
examples:
  # The whole job in minutes, without a download:
  {program} --flagfile=configs/quickstart.flags
  # The photographs, the head alone, in a minute; then fine-tuned, in minutes:
  {program} --flagfile=configs/fast.flags --workdir=runs/fast
  {program} --flagfile=configs/flowers17.flags --workdir=runs/flowers17
  # What a photograph shows; the workdir remembers the rest:
  {program} --phase=predict --workdir=runs/flowers17 photo.jpg
  {program} --phase=predict --workdir=runs/flowers17 \\
      --images='photos/**/*.jpg' --format=csv > predictions.csv
  # The flags of one phase:
  {program} --phase=predict --help"""

_OFFLINE = """\
Without a network:
  try all of it on drawn flowers:
      {program} --flagfile=configs/quickstart.flags
  train on the photographs from files that you bring along:
      {program} --archive=17flowers.tgz --weights=inception_v3_notop.h5
    which a machine with a network gets from (60 and 88 MB)
      https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz
      {weights_url}
  train on photographs of your own, a folder for each class:
      {program} --dataset=folder:PATH --weights=inception_v3_notop.h5
  or from random weights (slow, and worse): --weights=none
  all flags: {program} --help"""


_WEIGHTS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
)


def offline_text(program: str) -> str:
    """Returns what to do where nothing can be downloaded."""
    return _OFFLINE.format(program=program, weights_url=_WEIGHTS_URL)


def help_text(program: str, phase: str | None = None) -> str:
    """Returns the help of all flags, or of those that one phase looks at."""
    lines = [
        f"usage: {program} --phase=PHASE [--workdir=DIR] "
        "[--flagfile=configs/X.flags] [--FLAG=VALUE ...]",
        "",
        _PHASES,
        "",
        _EXAMPLES.format(program=program),
    ]
    if phase in config_lib.PHASES_ON_A_RUN:
        taken = "the data set, the input and the network from the workdir's"
        if phase == "find_lr":
            taken = "what the run was trained with from the workdir's"
        lines += [
            "",
            f"{phase} takes {taken}\nconfig.json, unless flags say otherwise.",
        ]
    # The long list that is seldom needed comes last.
    groups = sorted(_flag_groups(), key=lambda group: group[0] == "runtime")
    for name, config_class in groups:
        always = name in ("run", "runtime")
        if phase and not always and name not in _GROUPS_OF_PHASE[phase]:
            continue
        lines += ["", f"{name}: {config_class.__doc__.splitlines()[0]}"]
        for field in config_lib.options(config_class):
            lines += _flag_help(field)
    return "\n".join(lines)


def _flag_help(field: dataclasses.Field) -> list[str]:
    choices = field.metadata["choices"]
    value = "|".join(choices) if choices else _shown(field.default)
    prefix = "[no]" if isinstance(field.default, bool) else ""
    text = field.metadata["help"]
    if choices:
        text += f" Default: {field.default}."
    return [
        f"  --{prefix}{field.name}={value}",
        *textwrap.wrap(
            text, 74, initial_indent=" " * 6, subsequent_indent=" " * 6
        ),
    ]


def _shown(default: object) -> str:
    return "''" if default == "" else str(default)
