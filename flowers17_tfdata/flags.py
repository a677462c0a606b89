"""The absl flags, made from the declarations in `config`.

Only this module uses `absl.flags`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence

from absl import flags

from flowers17_tfdata import flag_files
from flowers17_tfdata.config import rules
from flowers17_tfdata.config.config import Config, all_flags, from_values
from flowers17_tfdata.config.recorded import recorded_values
from flowers17_tfdata.errors import ConfigError, did_you_mean
from flowers17_tfdata.phases.registry import PHASES, Phase

# Not absl's own: a program that uses `api` may have flags of the same names.
FLAGS = flags.FlagValues()

# Services may open models in several threads.
_lock = threading.Lock()

# What other programs call our flags, with `_` for `-`.
_KNOWN_ELSEWHERE = {
    ("transfer_epochs", "finetune_epochs"): (
        "epochs num_epochs n_epochs max_epochs"
    ),
    ("transfer_learning_rate", "finetune_learning_rate"): (
        "lr learning_rate base_lr max_lr"
    ),
    ("transfer_optimizer", "finetune_optimizer"): "opt optim optimizer",
    ("global_batch_size",): "batch_size bs batch",
    ("backbone",): "model_name arch architecture network base_model encoder",
    ("dataset=folder:PATH",): (
        "data data_path data_root dataset_dir train_dir path root folder"
    ),
    ("image_size",): "img_size imgsz input_size input_shape size resolution",
    ("workdir",): "output_dir out_dir save_dir log_dir logdir model_dir",
    ("weight_decay",): "wd",
    ("dropout",): "drop drop_rate",
    ("label_smoothing",): "smoothing",
    ("weights",): "pretrained",
    ("unfreeze_from",): "freeze unfreeze freeze_epochs trainable",
    ("schedule",): "sched scheduler lr_scheduler",
    ("split_fractions",): "val_split validation_split test_size valid_pct",
    ("folds",): "cv kfold num_folds n_splits",
    ("seed",): "random_state random_seed",
    ("model", "init_from"): "checkpoint ckpt initial_checkpoint resume",
    ("phase",): "mode task command",
    ("precision",): "amp fp16 bf16 mixed_precision",
    ("strategy",): "device devices gpus num_gpus",
    ("images",): "image file files input",
    ("top_k",): "topk",
}

# What a value must be, by absl's name of the flag's type.
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}

# The flag file that a flag's value comes from, if it does, by the flag's name.
_file_of: dict[str, str] = {}

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
        define = _DEFINE[type(flag.default)]
        define(flag.name, flag.default, flag.help, flag_values=FLAGS)
    for name, text, short_name in (
        ("help", "Show the common flags.", "h"),
        ("helpfull", "Show all flags.", None),
        ("version", "Show the version.", None),
    ):
        flags.DEFINE_bool(
            name, False, text, flag_values=FLAGS, short_name=short_name
        )


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
    with _lock:
        return _parse(argv)


def _parse(argv: list[str]) -> Config:
    define_flags()
    # `api` parses several command lines in one process.
    FLAGS.unparse_flags()
    _file_of.clear()
    try:
        rest = FLAGS(_flag_files_first(argv))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--flagfile can't be read: {error}") from error
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error)) from error
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_illegal_value(error)) from error
    except flags.Error as error:
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
                f"{_meaning(rest[1:])}"
            )
        named = filter(None, [*values["images"].split(","), *rest[1:]])
        # In a list with line breaks, commas belong to the names.
        values["images"] = "\n".join(named) + "\n"
    given = {name for name in values if FLAGS[name].present}
    if values["extends"]:
        # Once the earlier run is gone, this one's own record has its flags.
        recorded = recorded_values(
            values["extends"], with_training=True
        ) or recorded_values(values["workdir"], with_training=True)
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
            given |= {"folds", "fold", "extends", "groups", "corrections"}
        elif "folds" in given:
            given |= {"fold"}
        values |= {n: v for n, v in recorded.items() if n not in given}
    config = from_values(values)
    rules.check(config)
    return config


def describe_origin(message: str) -> str:
    """Returns which flags in a message come from a flag file; '' for none.

    The user has not typed these.
    """
    named = dict.fromkeys(re.findall(r"--(\w+)", message))
    origins = [f"--{n} is from {_file_of[n]}" for n in named if n in _file_of]
    return f" ({', '.join(origins)})" if origins else ""


def _unknown_flag(error: flags.UnrecognizedFlagError) -> str:
    name = error.flagname.replace("-", "_")
    # absl's message ends with the flags that are spelled alike.
    alike = str(error).partition("Did you mean: ")[2].rstrip(" ?")
    meant = tuple(filter(None, alike.split(", ")))
    for ours, others in _KNOWN_ELSEWHERE.items():
        if name in others.split():
            meant = ours
    hint = ", ".join(f"--{ours}" for ours in meant)
    hint = f" (did you mean {hint}?)" if hint else ""
    return f"there is no flag --{error.flagname}{hint}"


def _illegal_value(error: flags.IllegalFlagValueError) -> str:
    text = " ".join(str(error).split())
    match = re.match(r"flag --(\w+)=(.*?): ", text)
    kind = _KINDS.get(FLAGS[match[1]].flag_type()) if match else None
    if not match or not kind:
        return text
    return f"--{match[1]} must be {kind}; got {match[2]!r}"


def _meaning(words: Sequence[str]) -> str:
    """Returns a hint at the flags that words without dashes may stand for."""
    word, *others = words
    meant = ""
    if word == "predict":
        named = others[0] if len(others) == 1 else "FILES"
        meant = f"--phase=predict --images={named}"
    elif word in PHASES:
        meant = f"--phase={word}"
    elif os.path.isdir(word):
        meant = f"--dataset=folder:{word}"
    elif word.endswith(".flags"):
        meant = f"--flagfile={word}"
    elif word.endswith(".csv"):
        meant = f"--dataset=csv:{word}"
    elif os.path.isfile(word):
        meant = f"--phase=predict --images={word}"
    return f" (did you mean {meant}?)" if meant else ""


def _flag_files_first(argv: list[str]) -> list[str]:
    """Puts what flag files hold first: other flags win, wherever they stand."""
    read, others, arguments = list[str](), list[str](), iter(argv[1:])
    for argument in arguments:
        option, equals, name = argument.partition("=")
        if argument == "--":
            others += [argument, *arguments]
        elif option in flag_files.OPTIONS:
            file = name if equals else next(arguments, "")
            lines = list(flag_files.read_arguments(file))
            read += lines
            _file_of.update({_name_of(line): file for line in lines})
        else:
            others.append(argument)
    for argument in others:
        _file_of.pop(_name_of(argument), None)
    return [argv[0], *read, *others]


def _name_of(argument: str) -> str:
    """Returns the name of the flag that `--NAME=VALUE` or `--noNAME` sets."""
    name = argument.lstrip("-").partition("=")[0]
    negated = name.removeprefix("no")
    return negated if negated in FLAGS else name
