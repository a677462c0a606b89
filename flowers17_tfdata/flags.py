"""The absl flags, made from the declarations in `config`.

Only this module uses `absl.flags`.
"""

from __future__ import annotations

from absl import flags

from flowers17_tfdata import flag_files
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import Config, all_flags, from_values
from flowers17_tfdata.config.recorded import recorded_values
from flowers17_tfdata.errors import ConfigError, did_you_mean
from flowers17_tfdata.phases.registry import PHASES, Phase

FLAGS = flags.FLAGS

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_flags() -> None:
    """Defines a flag for every option, once per process."""
    if "phase" in FLAGS:
        return
    for flag in all_flags():
        _DEFINE[type(flag.default)](flag.name, flag.default, flag.help)
    flags.DEFINE_bool("help", False, "Show the common flags.", short_name="h")
    flags.DEFINE_bool("helpfull", False, "Show all flags.")
    flags.DEFINE_bool("version", False, "Show the version.")


class VersionRequested(Exception):
    """`--version` was given."""


class HelpRequested(Exception):
    """`--help` or `--helpfull` was given.

    Attributes:
      phase: the phase given with it, if any.
      full: whether it was `--helpfull`.
    """

    def __init__(self, phase: Phase | None, full: bool):
        super().__init__()
        self.phase = phase
        self.full = full


def parse(argv: list[str]) -> Config:
    """Parses `argv` (program name first) into a checked `Config`.

    Raises:
      HelpRequested, VersionRequested: instead of a run.
      ConfigError: an unknown flag, a malformed value, a broken rule.
    """
    define_flags()
    # Tests parse several command lines in one process.
    FLAGS.unparse_flags()
    try:
        rest = FLAGS(_flag_files_first(argv))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--flagfile can't be read: {error}") from error
    # ValueError comes from flags that absl and TensorFlow define.
    except (flags.Error, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if FLAGS.version:
        raise VersionRequested
    values = {f.name: FLAGS[f.name].value for f in all_flags()}
    phase = PHASES.get(values["phase"])
    if FLAGS.help or FLAGS.helpfull:
        raise HelpRequested(
            phase if FLAGS["phase"].present else None, FLAGS.helpfull
        )
    if phase is None:
        raise ConfigError(
            f"--phase must be one of {', '.join(PHASES)}; got "
            f"{values['phase']!r}{did_you_mean(values['phase'], PHASES)}"
        )
    if len(rest) > 1:
        # `--phase=predict *.jpg`, which the shell expands.
        if phase.name != "predict":
            raise ConfigError(
                f"every argument must be a --flag=value; got {rest[1]!r}"
            )
        named = filter(None, [*values["images"].split(","), *rest[1:]])
        # In a list with line breaks, commas belong to the names.
        values["images"] = "\n".join(named) + "\n"
    given = {name for name in values if FLAGS[name].present}
    if values["extends"]:
        recorded = recorded_values(values["extends"], with_training=True)
        if not recorded:
            raise ConfigError(
                "--extends must name the workdir of a trained run, which holds "
                f"config.json; got {values['extends']}"
            )
        values |= {n: v for n, v in recorded.items() if n not in given}
    if phase.reads_run:
        recorded = recorded_values(values["workdir"], phase.recalls_training)
        if "dataset" in given:
            # The run's splits mean nothing for another data set.
            given |= {"split_fractions", "split_seed", "near_duplicates"}
            given |= {"folds", "fold", "extends"}
        elif "folds" in given:
            given |= {"fold"}
        values |= {n: v for n, v in recorded.items() if n not in given}
    config = from_values(values)
    rules.check(config)
    return config


def _flag_files_first(argv: list[str]) -> list[str]:
    """Puts what flag files hold first: other flags win, wherever they stand."""
    read, others, arguments = list[str](), list[str](), iter(argv[1:])
    for argument in arguments:
        option, equals, name = argument.partition("=")
        if argument == "--":
            others += [argument, *arguments]
        elif option in flag_files.OPTIONS:
            read += flag_files.read_arguments(
                name if equals else next(arguments, "")
            )
        else:
            others.append(argument)
    return [argv[0], *read, *others]
