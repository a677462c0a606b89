"""The absl flags, made from the fields of `config.Config`.

Only this module and `cli.py` touch `FLAGS`.
"""

from __future__ import annotations

import textwrap

from absl import flags

from flowers17_tfdata import config as config_lib
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


def parse(argv: list[str]) -> config_lib.Config | None:
    """Parses `argv` (program name first) into a `Config`.

    Returns:
      The configuration, or None if help was asked for.

    Raises:
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
        return None
    if len(rest) > 1:
        raise ConfigError(
            f"every argument must be a --flag=value; got {rest[1]!r}"
        )
    names = [
        field.name
        for _, config_class in _flag_groups()
        for field in config_lib.options(config_class)
    ]
    values = {name: FLAGS[name].value for name in names}
    if values["phase"] in config_lib.PHASES_ON_A_RUN:
        given = {name for name in names if FLAGS[name].present}
        recorded = config_lib.recorded_values(values["workdir"])
        values |= {n: v for n, v in recorded.items() if n not in given}
    return config_lib.from_values(values)


def help_text(program: str) -> str:
    """Returns the grouped help of all flags."""
    lines = [
        f"usage: {program} --phase=PHASE [--workdir=DIR] "
        "[--flagfile=configs/X.flags] [--FLAG=VALUE ...]",
        "",
        "  prepare   build the TFDS data set and audit it",
        "  transfer  train the head on the frozen backbone",
        "  finetune  unfreeze the upper backbone and train on",
        "  train     prepare if needed, transfer, finetune, evaluate, report",
        "  evaluate  any saved model on any split",
        "  report    report.html: one page that shows a run",
        "  benchmark how fast each part is, beside stock Keras",
        "",
        "examples:",
        f"  {program} --flagfile=configs/quickstart.flags",
        f"  {program} --flagfile=configs/flowers17.flags "
        "--archive=17flowers.tgz",
        f"  {program} --phase=evaluate --workdir=DIR --split=validation",
    ]
    for name, config_class in _flag_groups():
        lines += ["", f"{name}:"]
        for field in config_lib.options(config_class):
            choices = field.metadata["choices"]
            value = "|".join(choices) if choices else _shown(field.default)
            prefix = "[no]" if isinstance(field.default, bool) else ""
            lines.append(f"  --{prefix}{field.name}={value}")
            text = field.metadata["help"]
            if choices:
                text += f" Default: {field.default}."
            lines += textwrap.wrap(
                text, 74, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


def _shown(default: object) -> str:
    return "''" if default == "" else str(default)
