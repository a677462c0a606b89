"""Errors that a user can act on: one line, and the exit code it ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake outside the program: a file, a folder, the network, the data.

    The message is one line that names the flag or file, the rule and the
    value. The command line prints it without a traceback.
    """

    exit_code = 1


class ConfigError(UserError):
    """A flag or a combination of flags that breaks a rule."""

    exit_code = 2


class DownloadFailed(UserError):
    """A data set or weights can't be downloaded.

    The command line adds what can be done without a network.

    Attributes:
      constructor: the function of keras.applications whose weights are missing;
        '' if something else is.
    """

    def __init__(self, message: str, constructor: str = ""):
        super().__init__(message)
        self.constructor = constructor


class AccuracyGateMissed(UserError):
    """The evaluated accuracy is below `--assert_accuracy_at_least`."""

    exit_code = 3


class Preempted(UserError):
    """A signal stopped the training after it was saved: start it again."""

    exit_code = 42


class WorkerLost(UserError):
    """Another worker of the run is gone, so that no step can end."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns the message on one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def counted(number: int, noun: str) -> str:
    """Returns e.g. `1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Returns ` (did you mean ...?)` with the nearest choices, or ''."""
    near = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(value.lower(), near, 3, 0.6)
    if not close:
        return ""
    return f" (did you mean {', '.join(near[name] for name in close)}?)"
