"""The page about the run folder has the fields of the records."""

from __future__ import annotations

from eval.records import schema
from eval.records.document import PAGE, SECTIONS, document


def test_the_page_is_what_the_command_writes() -> None:
    page = PAGE.read_text()
    assert document(page) == page, "run: python -m eval.records.document"
    assert all(page.count(f"<!-- fields: {name} -->") == 1 for name in SECTIONS)


def test_a_field_that_is_missing_from_the_page_comes_back() -> None:
    page = PAGE.read_text()
    row = "| `finish_reason` | text |"
    assert row in page
    assert document(page.replace(row, "| `gone` | text |")) == page
    assert "| `identity.model.revision` |" in page
    assert schema.PlacementRecord.__doc__ in page
