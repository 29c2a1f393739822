"""Rows of a file of ratings: a published set, a table, or a rating sheet, whose last line a kill may have torn."""

from __future__ import annotations

import os
from pathlib import Path

from eval.errors import UserError
from tasks.readers.files import read_records, require_file
from tasks.readers.kept import open_to_read
from tasks.readers.opening import PACKED
from tasks.readers.rows import BadRow, Row


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file; a torn last line of a rating sheet is left out.

    Raises:
        UserError: A row cannot be read.
        DataError: The file cannot be read.
    """
    found = list(read_records(require_file(path)))
    if found and isinstance(found[-1], BadRow) and is_sheet(found[0]) and lacks_line_end(path):
        found.pop()
    rows = []
    for row in found:
        if isinstance(row, BadRow):
            raise UserError(row.problem)
        rows.append(row)
    return rows


def is_sheet(first: Row | BadRow) -> bool:
    """Return whether the first row is the header of a rating sheet."""
    return isinstance(first, Row) and "sheet" in first.fields


def lacks_line_end(path: Path) -> bool:
    """Return whether the last line of a file has no end, as where a kill tore it."""
    if path.suffix.lower() in PACKED:
        return False
    with open_to_read(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read(1) not in (b"", b"\n")
