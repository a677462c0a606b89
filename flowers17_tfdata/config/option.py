"""How a flag is declared: its default, help, bounds, needs and kind.

A flag is a field of one of the option classes in this package, declared once,
by `Kind.option`. The absl flags, the help, the checks, what later phases take
over from a run and what may change when a run resumes all follow from that.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from flowers17_tfdata.errors import ConfigError, did_you_mean


class Kind(enum.Enum):
    """What changing a flag means for a run that exists already."""

    # Later phases use the run's value (the data, the input, the network, the
    # batch size); a resumed run refuses another one.
    RUN = enum.auto()
    # Later phases use the run's value, but any value gives the same model.
    RECALLED = enum.auto()
    # Changes how the model is trained: a resumed run refuses another value.
    TRAINING = enum.auto()
    # `auto` depends on the machine: a resumed run keeps what it started with.
    SETTLED = enum.auto()
    # Does not change the trained model.
    FREE = enum.auto()

    @property
    def is_fixed(self) -> bool:
        """Whether a resumed run refuses another value."""
        return self in (Kind.RUN, Kind.TRAINING, Kind.SETTLED)

    def option(self, default: Any, help_text: str, **rules: Any) -> Any:
        """Declares a flag of this kind as a dataclass field; see `Flag`."""
        metadata = {"help": help_text, "kind": self, **rules}
        return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Needs:
    """A rule: a flag goes only with some values of another flag.

    Attributes:
      flag: the other flag.
      values: the allowed values of the other flag; with `never`, the
        forbidden ones.
      never: whether `values` are the forbidden ones.
      above: the rule holds only where the first flag is above this.
      below: the rule holds only where the first flag is below this. Without
        either bound, it holds where the flag has not its default value.
      hint: what to do instead, for the message.
    """

    flag: str
    values: tuple[Any, ...]
    never: bool = False
    above: float | None = None
    below: float | None = None
    hint: str = ""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A declared flag.

    Attributes:
      name: the name of the flag and of the dataclass field.
      default: the default value, a bool, int, float or str.
      help: one sentence for `--help`.
      kind: what changing the flag means for a run that exists.
      common: whether `--help` shows it, or only `--helpfull`.
      stage: the only stage that depends on it; '': all do.
      choices: the allowed values, if they are few.
      bounds: the least and the greatest value; None: no limit.
      above: an exclusive lower bound.
      needs: rules about other flags.
      required_by: the phase that needs a value.
    """

    name: str
    default: Any
    help: str
    kind: Kind
    common: bool = False
    stage: str = ""
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float | None] | None = None
    above: float | None = None
    needs: tuple[Needs, ...] = ()
    required_by: str = ""


def flags_of(config_class: Any) -> list[Flag]:
    """Returns the flags that an option class declares, in their order."""
    return [
        Flag(field.name, field.default, **field.metadata)
        for field in dataclasses.fields(config_class)
        if field.metadata
    ]


def check(flag: Flag, values: Mapping[str, Any]) -> None:
    """Checks a flag's value against its declaration.

    Args:
      flag: the flag.
      values: `{flag name: value}` of all flags.

    Raises:
      ConfigError: names the flag, the rule and the value.
    """
    name, value = flag.name, values[flag.name]
    broken = ""
    if flag.choices and value not in flag.choices:
        broken = f"one of {', '.join(flag.choices)}"
    if flag.bounds:
        low, high = flag.bounds
        # Negated, so that NaN fails too.
        if not value >= low:
            broken = f"at least {low}"
        elif high is not None and not value <= high:
            broken = f"at most {high}"
    if flag.above is not None and not flag.above < value < 1e6:
        broken = f"a number above {flag.above}"
    if broken:
        similar = did_you_mean(value, flag.choices) if flag.choices else ""
        raise ConfigError(f"--{name} must be {broken}; got {value!r}{similar}")
    if flag.required_by == values["phase"] and not value.strip(", "):
        raise ConfigError(
            f"--{name} must be given for --phase={flag.required_by}; got "
            f"{value!r}"
        )
    for needs in flag.needs:
        _check_needs(flag, needs, values)


def _check_needs(flag: Flag, needs: Needs, values: Mapping[str, Any]) -> None:
    value, other = values[flag.name], values[needs.flag]
    bound = ""
    if needs.above is not None:
        holds, bound = value > needs.above, f" above {needs.above:g}"
    elif needs.below is not None:
        holds, bound = value < needs.below, f" below {needs.below:g}"
    else:
        holds = value != flag.default
    if not holds or (other in needs.values) != needs.never:
        return
    verb, allowed = "goes with", ", ".join(map(str, needs.values))
    if needs.never:
        verb, allowed = "does not go with", other
    raise ConfigError(
        f"--{flag.name}{bound} {verb} --{needs.flag}={allowed}; got "
        f"--{flag.name}={value} and --{needs.flag}={other}"
        + (f" ({needs.hint})" if needs.hint else "")
    )
