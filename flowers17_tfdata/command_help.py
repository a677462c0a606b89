"""The text of `--help` and `--helpfull`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from flowers17_tfdata import flag_files
from flowers17_tfdata.config.config import GROUPS
from flowers17_tfdata.config.option import Flag, flags_of
from flowers17_tfdata.phases.registry import PHASES, Phase

_EXAMPLES = """\
examples:
  # The whole job in minutes, without a download:
  {program} --flagfile=quickstart
  # The Oxford flowers: the head alone in a minute, or fine-tuned in minutes:
  {program} --flagfile=fast --workdir=runs/fast
  {program} --flagfile=flowers17 --workdir=runs/flowers17
  # Classify photographs; the workdir supplies the other flags:
  {program} --phase=predict --workdir=runs/flowers17 photo.jpg
  {program} --phase=predict --workdir=runs/flowers17 \\
      --images='photos/**/*.jpg' --format=csv > predictions.csv
  # The flags of one phase, and all flags:
  {program} --phase=predict --help
  {program} --helpfull"""

_OFFLINE = """\
Without a network:
  try everything on the synthetic data set:
      {program} --flagfile=quickstart
  train on the Oxford flowers from a file that you bring along:
      {program} --archive=17flowers.tgz
    which a machine with a network downloads from (60 MB)
      https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz
  train on your own photographs, one folder per class:
      {program} --dataset=folder:PATH
{weights}  start from random weights (slow and less accurate): --weights=none
  all flags: {program} --helpfull"""

_OFFLINE_WEIGHTS = """\
  bring the weights of {name} along: on a machine with a network,
      python -c "import keras; keras.applications.{name}(include_top=False)"
    writes them to ~/.keras/models; copy the file to that folder here
"""


def offline_text(program: str, constructor: str = "") -> str:
    """Returns what to do where nothing can be downloaded.

    Args:
      program: how the program was called.
      constructor: the function of keras.applications whose weights are missing;
        '': none.
    """
    weights = _OFFLINE_WEIGHTS.format(name=constructor) if constructor else ""
    return _OFFLINE.format(program=program, weights=weights)


def help_text(program: str, phase: Phase | None, full: bool) -> str:
    """Returns the text of `--help`.

    Args:
      program: how the program was called.
      phase: show only the flags that this phase reads; None: of all phases.
      full: show all flags, not only the common ones.
    """
    lines = [
        f"usage: {program} --phase=PHASE [--workdir=DIR] [--flagfile=NAME] "
        "[--FLAG=VALUE ...]",
        "",
        "phases:",
        *(f"  {p.name:14} {p.help}" for p in PHASES.values()),
        "",
        "flag files, besides your own (--flagfile=PATH):",
        *(
            f"  {name:11} {flag_files.purpose(path)}"
            for name, path in flag_files.shipped().items()
        ),
        "",
        _EXAMPLES.format(program=program),
    ]
    if phase and phase.reads_run:
        lines += [
            "",
            f"{phase.name} takes flags that are not given from the workdir's "
            "config.json.",
        ]
    for name, config_class in GROUPS.items():
        if phase and name not in ("run", "runtime", *phase.groups):
            continue
        flags = [f for f in flags_of(config_class) if full or f.common]
        if flags:
            lines += ["", f"{_title(name)}: {config_class.__doc__}"]
        for flag in flags:
            lines += _flag_lines(flag)
    if not full:
        lines += ["", f"all flags: {program} --helpfull"]
    return "\n".join(lines)


def _title(group: str) -> str:
    """Returns a group's name, and the phases that read it."""
    readers = [p.name for p in PHASES.values() if group in p.groups]
    if readers in ([], [group]):
        return group
    return f"{group} ({', '.join(readers)})"


def _flag_lines(flag: Flag) -> Iterator[str]:
    default = flag.default
    shown = "''" if default == "" else str(default)
    prefix = "[no]" if isinstance(default, bool) else ""
    yield f"  --{prefix}{flag.name}={'|'.join(flag.choices) or shown}"
    text = flag.help + (f" Default: {default}." if flag.choices else "")
    yield from textwrap.wrap(
        text, 74, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
