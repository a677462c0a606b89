"""Writes a file or a folder whole or not at all; reads and writes JSON."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowers17_tfdata.errors import UserError, one_line


@contextlib.contextmanager
def whole_file(
    path: pathlib.Path, what: str | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary path, and moves it to `path` if the block succeeds.

    A process that is killed leaves the old file, or none.

    Args:
      path: the file to write; its folder is created if it is missing.
      what: the start of the error message. Defaults to the path.

    Raises:
      UserError: the file can't be written.
    """
    # The same suffix: Keras and NumPy choose the format by it.
    temporary = path.with_name(f".incomplete.{os.getpid()}.{path.name}")
    try:
        with _writing(path, temporary, what):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                # Otherwise a crash of the machine may leave an empty file.
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def removed_if_empty(path: pathlib.Path, *logs: str) -> Iterator[None]:
    """Removes a folder that the block made, if it fails and leaves no result.

    The folders above it that the block made go, too.

    Args:
      path: the folder.
      *logs: the names of files in it that are no results.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if path in missing and {*os.listdir(path)} <= {*logs}:
                for log in os.listdir(path):
                    (path / log).unlink()
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def whole_folder(
    path: pathlib.Path, what: str | None = None
) -> Iterator[pathlib.Path]:
    """Yields an empty folder that replaces `path` if the block succeeds.

    Args:
      path: the folder to write. If it exists, it stays as it is until the new
        one is complete.
      what: the start of the error message. Defaults to the path.

    Raises:
      UserError: the folder can't be written.
    """
    # Replace the folder that a symbolic link leads to, not the link.
    path = path.resolve()
    with _writing(path, path.parent, what), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another process may write the same folder at the same time.
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(
                prefix=f".incomplete.{path.name}.", dir=path.parent
            )
        )
        # Not the scratch folder itself, which other users can't read.
        new, old = pathlib.Path(scratch) / "new", pathlib.Path(scratch) / "old"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


@contextlib.contextmanager
def _writing(
    path: pathlib.Path, temporary: pathlib.Path, what: str | None
) -> Iterator[None]:
    """Turns errors of writing into a `UserError`, and no other file's."""
    try:
        yield
    except OSError as error:
        name = pathlib.Path(error.filename or temporary)
        if not (name.is_relative_to(temporary) or path.is_relative_to(name)):
            raise
        raise UserError(
            f"{what or path} can't be written: {one_line(error)}"
        ) from error
    # TensorFlow's, which this module doesn't import.
    except Exception as error:
        file, reason = full_disk(error)
        if not reason or not pathlib.Path(file).is_relative_to(temporary):
            raise
        raise UserError(f"{what or path} can't be written: {reason}") from error


def full_disk(error: BaseException) -> tuple[str, str]:
    """Returns the file that TensorFlow couldn't write, and why.

    Two empty strings if the error is another one. Its class is that of errors
    for want of memory.
    """
    # Before the file stand the operation and its device, in braces.
    match = re.search(
        r"(/[^;\n{}]*); (No space left on device|Disk quota exceeded)",
        str(error),
    )
    return (match[1], match[2]) if match else ("", "")


def write_text(path: pathlib.Path, text: str, what: str | None = None) -> None:
    """Writes a UTF-8 text file; see `whole_file`."""
    with whole_file(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes indented JSON; see `whole_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {one_line(error)}") from error


def write_arrays(
    path: pathlib.Path, arrays: dict[str, Any], what: str | None = None
) -> None:
    """Writes an `.npz` file of named arrays; see `whole_file`."""
    with whole_file(path, what) as temporary:
        np.savez(temporary, **arrays)


def append_json_line(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Appends a line to a JSON Lines file, whole or not at all.

    Raises:
      UserError: the file can't be written.
    """
    data = (json.dumps(line) + "\n").encode()
    with _writing(path, path, None), open(path, "ab", buffering=0) as file:
        start = file.tell()
        try:
            # A nearly full disk takes a part.
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(start)
            raise


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a JSON Lines file up to the first incomplete line.

    Returns an empty list if there is no file. A process that was killed may
    leave an incomplete last line.
    """
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file.

    Raises whatever NumPy raises if the file is missing or damaged.
    """
    # Opened here: np.load leaves a damaged file open.
    with open(path, "rb") as stream, np.load(stream) as arrays:
        return dict(arrays)
