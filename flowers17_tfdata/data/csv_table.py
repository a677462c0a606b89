"""Reads tables of comma-separated values, as spreadsheets write them."""

from __future__ import annotations

import csv
import io
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from flowers17_tfdata.errors import one_line

_DELIMITERS = ",;\t"

# A column, and the names that its header may have, in lower case and without
# blanks and underscores; the first is the one that messages use.
Columns = Mapping[str, Sequence[str]]

Row = TypeVar("Row")


class Mistake(Exception):
    """What is wrong in the table, without the table's name."""


def read_rows(
    table: pathlib.Path,
    columns: Columns,
    required: Sequence[str],
    make_row: Callable[..., Row],
) -> list[Row]:
    """Reads the rows that aren't blank.

    The first line names the columns; others than `columns` are ignored. Commas,
    semicolons or tabs separate them.

    Args:
      table: the file, UTF-8.
      columns: the columns to read.
      required: those that must be there.
      make_row: called with the number of the line, and with the value of each
        column that is there by its name. A `Mistake` that it raises gets the
        line.

    Raises:
      Mistake: the table is no such table.
      OSError: it can't be read.
    """
    text = _decode(table.read_bytes())
    delimiter, positions = _find_columns(text, columns, required)
    (_, header), *records = _records(text, delimiter, strict=True)
    rows = []
    for line, fields in records:
        if len(fields) != len(header):
            raise Mistake(
                f"line {line} has {len(fields)} fields, the first line "
                f"{len(header)}: put a field that holds {delimiter!r} in quotes"
            )
        values = {name: fields[k] for name, k in positions.items()}
        try:
            rows.append(make_row(line, **values))
        except Mistake as mistake:
            raise Mistake(f"line {line}: {mistake}") from mistake
    return rows


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Mistake(
            f"must be UTF-8; line {line} holds the byte "
            f"{data[error.start]:#04x}: save it as UTF-8"
        ) from error
    if "\0" in text:
        raise Mistake("must be text; it holds NUL bytes")
    return text


def _records(
    text: str, delimiter: str, strict: bool
) -> Iterator[tuple[int, list[str]]]:
    """Yields the line and the fields of each record that isn't blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=strict,
    )
    while True:
        # A field in quotes may go over several lines.
        line = reader.line_num + 1
        try:
            fields = [field.strip() for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise Mistake(
                f"line {line}: quotes must match ({error})"
            ) from error
        if any(fields):
            yield line, fields


def _find_columns(
    text: str, columns: Columns, required: Sequence[str]
) -> tuple[str, dict[str, int]]:
    """Returns the delimiter, and the position of each column that is there."""
    headers = {
        # Quotes needn't match if another delimiter is the right one.
        d: next(_records(text, d, strict=False), (0, []))[1]
        for d in _DELIMITERS
    }
    found = {d: _positions(header, columns) for d, header in headers.items()}
    delimiter = max(found, key=lambda d: (len(found[d]), len(headers[d])))
    header, positions = headers[delimiter], found[delimiter]
    for name, places in positions.items():
        if len(places) > 1:
            names = " and ".join(header[k] for k in places)
            raise Mistake(
                f"must have one column {name}; {names} could both be it: "
                "rename one of them"
            )
    for name in required:
        if name not in positions:
            raise Mistake(
                f"the first line must name a column {name} (or "
                f"{', '.join(n for n in columns[name] if n != name)}); it "
                f"names {one_line(', '.join(header), 80) if header else 'none'}"
            )
    return delimiter, {name: places[0] for name, places in positions.items()}


def _positions(header: Sequence[str], columns: Columns) -> dict[str, list[int]]:
    """Returns the positions of the fields that name each column."""
    names = [re.sub("[ _]", "", field).lower() for field in header]
    places = {
        column: [k for k, name in enumerate(names) if name in known]
        for column, known in columns.items()
    }
    return {column: found for column, found in places.items() if found}
