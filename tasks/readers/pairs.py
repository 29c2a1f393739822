"""Sets of documents with one text each that should be written about them: two fields of a row.

pair = PairFields(context="description", target="abstract")
collect(request, rows, partial(read_pair, rows, request.split, pair))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.base import Example
from tasks.readers.rows import Row, Rows


@dataclass(frozen=True, kw_only=True)
class PairFields:
    """Names of the fields that hold the document and the text to be written."""

    context: str
    target: str

    @property
    def columns(self) -> tuple[str, str]:
        return self.context, self.target

    def read(self, rows: Rows[Row], row: Row) -> tuple[str, str] | None:
        """Return both texts, or None for a row of the hub that lacks one, which is left out and counted.

        Raises:
            DataError: A field is missing or no text, or empty in a local file.
        """
        from_hub = rows.provenance["kind"] == "hub"
        context, target = (row.text(field, may_be_empty=from_hub) for field in self.columns)
        if context and target:
            return context, target
        rows.skip()
        return None


def read_pair(rows: Rows[Row], split: str, fields: PairFields, row: Row) -> Iterator[Example]:
    """Yield the example of a row, unless it is left out."""
    if pair := fields.read(rows, row):
        name = f"{split}-{row.index}"
        yield Example(id=name, document_id=name, context=pair[0], references=(pair[1],))
