"""Errors of the builder about the data, as opposed to the program."""

from __future__ import annotations


class DatasetError(Exception):
    """The dataset can't be made; the message is one line that says why."""


class ArchiveError(DatasetError):
    """The argument `archive` doesn't name the archive.

    The message starts with the argument's name: "archive PATH does not exist".
    """


class DownloadFailed(DatasetError):
    """A file of the dataset can't be downloaded."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """Returns the message on one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
