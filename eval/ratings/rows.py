"""Rows of a file of ratings: a published set, a table, or a rating sheet, whose last line a kill may have torn."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.errors import UserError
from tasks.base import DataError
from tasks.readers.files import read_records, require_file
from tasks.readers.kept import open_to_read
from tasks.readers.opening import PACKED
from tasks.readers.rows import BadRow, Row, kind_of

# Fields of a sheet's first line. A table of one's own may have a column of one of these names.
_HEADER = {"sheet", "scales", "answers"}


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error of bad data into that of a user's mistake."""
    try:
        yield
    except DataError as error:
        raise UserError(str(error)) from error


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; a torn last line of a rating sheet is left out.

    Raises:
        UserError: A row cannot be read.
        DataError: The file cannot be read.
    """
    found = list(read_records(require_file(path)))
    if found and isinstance(found[-1], BadRow) and is_sheet(found[0]) and lacks_line_end(path):
        found.pop()
    rows: list[Row] = []
    for row in found:
        if isinstance(row, BadRow):
            raise UserError(row.problem)
        rows.append(replace(row, index=len(rows)))
    return rows


def is_sheet(first: Row | BadRow) -> bool:
    """Return whether the first row is the header of a rating sheet."""
    return isinstance(first, Row) and not first.is_table and first.fields.keys() >= _HEADER


def lacks_line_end(path: Path) -> bool:
    """Return whether the last line of a file has no end, as where a kill tore it."""
    if path.suffix.lower() in PACKED:
        return False
    with open_to_read(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read(1) not in (b"", b"\n")


def field_of(row: Row, name: str) -> Any:
    """Return a field.

    Raises:
        UserError: The row lacks it.
    """
    if name not in row.fields:
        raise UserError(f"{row.where}: field '{name}' is missing; fields found: {', '.join(row.fields)[:200]}")
    return row.fields[name]


def numbers(value: Any, row: Row, name: str) -> tuple[float | None, ...]:
    """Return the ratings of a list, or the one rating that is no list; see `number`."""
    return tuple(number(one, row, name) for one in (value if isinstance(value, list) else [value]))


def number(value: Any, row: Row, name: str) -> float | None:
    """Return a rating; None for an empty one.

    Raises:
        UserError: It is no finite number.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{row.where}: rating {name} is {str(value)[:40]!r}; give a number, or nothing")
    return found


def spans_of(row: Row, name: str) -> list[list[int]] | None:
    """Return a field of pairs of positions in a text; None where it is absent, or a cell of a table.

    Raises:
        UserError: It is something else.
    """
    value = row.fields.get(name)
    if value is None or (row.is_table and isinstance(value, str)):
        return None
    if not isinstance(value, list):
        raise UserError(f"{row.where}: field '{name}' is {kind_of(value)}; give a list of pairs [start, end]")
    for one in value:
        is_pair = isinstance(one, list) and len(one) == 2 and all(type(end) is int for end in one)
        if not is_pair or not 0 <= one[0] <= one[1]:
            raise UserError(f"{row.where}: field '{name}' holds {str(one)[:40]}; give pairs [start, end] of characters")
    return value
