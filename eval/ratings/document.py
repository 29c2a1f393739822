"""Write the tables of docs/metrics.md from the package's agreements: python -m eval.ratings.document [PAGE]."""

from __future__ import annotations

import sys
from pathlib import Path

from eval.metrics.agreement import FILE
from eval.ratings.schema import Agreements
from eval.ratings.table import LEGEND, describe_sets, describe_skipped, sections
from eval.records.disk import read_json
from eval.records.typed import from_json
from eval.reporting.tables import as_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_START, _END = "<!-- agreement -->\n", "<!-- end of agreement -->\n"


def as_markdown_tables(content: Agreements, *, is_full: bool) -> str:
    """Return the tables as Markdown, under headings of level 3."""
    parts = [f"- {line}" for line in [*describe_sets(content), *describe_skipped(content)]]
    for title, rows in sections(content, is_full=is_full):
        parts += ["", f"### {title}", "", as_markdown(rows, num_names=1)]
    return "\n".join([*parts, "", LEGEND]) + "\n"


def document(page: str) -> str:
    """Return a page with the headline tables of the package's agreements between its markers."""
    before, start, rest = page.partition(_START)
    _, end, after = rest.partition(_END)
    content = from_json(Agreements, read_json(FILE), FILE.name)
    return f"{before}{start}{as_markdown_tables(content, is_full=False)}{end}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    file.write_text(document(file.read_text(encoding="utf-8")), encoding="utf-8")
