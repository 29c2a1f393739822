"""SCROLLS' format: one reference a line, the input being the query, a blank line, and the document.

    {"id": "va-sq-1", "pid": "va-sq-1_0", "input": "What ...?\\n\\nGrad G: So yes .", "output": "..."}

Lines with one id are references of one example. The hub has a zip file a task, with `NAME/SPLIT.jsonl` inside. The
references of the test splits are hidden: their `output` is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasks.base import DataError, LoadRequest
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.rows import BadRow, Row, Rows

HUB_ID = "tau/scrolls"
# The newest that is known to hold all seven zip files.
REVISION = "fd1aa83070c138b7b7f381388d3b59f1f70a0fa7"
SAMPLE_DOCUMENT = "It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."


def sample_lines(name: str, query: str | None, *outputs: str) -> dict[str, list[dict[str, str]]]:
    """Return the sample of a task: a line for each output."""
    before = "" if query is None else f"{query}\n\n"
    lines = [
        {"id": f"{name}-{i}", "pid": f"{name}-{i}_0", "input": f"{before}Report {i}. {SAMPLE_DOCUMENT}", "output": one}
        for i, one in enumerate(outputs)
    ]
    return {f"{name}.zip/{name}/validation.jsonl": lines}


@dataclass(frozen=True, kw_only=True)
class ScrollsItem:
    """The merged lines of one id: each output once, and `where` the first line is, for messages."""

    where: str
    id: str
    input: str
    references: tuple[str, ...]

    def query_and_document(self) -> tuple[str, str]:
        """Return the input before and after its first blank line."""
        query, _, document = self.input.partition("\n\n")
        if not query.strip():
            raise DataError(f"{self.where}: field 'input' has no query before the first blank line")
        if not document.strip():
            raise DataError(f"{self.where}: field 'input' has no document after the query and a blank line")
        return query.strip(), document.strip()


def scrolls_rows(name: str, request: LoadRequest, *, elsewhere: str = "") -> Rows[Row | ScrollsItem]:
    """Return the items of one of the sets; rows without an `input` come as they are.

    They come from the hub, or from a local file: JSON lines, the zip file, or a folder that holds one of them.
    `elsewhere` says where the hidden references can be had; it follows "use --split validation".

    Raises:
        DataError: The hub or the file is at fault, or the requested references are hidden.
    """
    hidden = f"the references of the test split are hidden in SCROLLS; use --split validation{elsewhere}"
    member = f"{name}/{request.split}.jsonl"
    if request.data is None:
        if request.split == "test":
            raise DataError(f"task {name}: {hidden}")
        rows = hub_rows(HUB_ID, (f"{name}.zip",), request=request, member=member)
    else:
        rows = data_rows(request.data, request.split, member=member)
    # References may stand anywhere in a file. With a limit, a hub's file is read no further than necessary, so only
    # adjacent lines are merged; in the files of SCROLLS, lines of one id are adjacent.
    stream = request.data is None and request.reads_parts
    merged = _merge(rows, stream=stream, hidden=hidden if request.split == "test" else None)
    return Rows(merged, rows.provenance, source=rows)


def _merge(rows: Iterable[Row | BadRow], *, stream: bool, hidden: str | None) -> Iterator[Row | ScrollsItem | BadRow]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row, BadRow) or "input" not in row.fields:
            yield row
            continue
        try:
            if hidden and row.fields.get("output", "") is None:
                raise DataError(f"{row.where}: field 'output' is null: {hidden}")
            name = row.text("id")
        except DataError as error:
            yield BadRow(str(error))
            continue
        if stream and groups and name not in groups:
            yield from _merged(groups)
            groups = {}
        groups.setdefault(name, []).append(row)
    yield from _merged(groups)


def _merged(groups: dict[str, list[Row]]) -> Iterator[ScrollsItem | BadRow]:
    for name, group in groups.items():
        try:
            group[0].text("input")
            # Not stripped: without its query, it begins with the blank line.
            first = str(group[0].fields["input"])
            references = tuple(dict.fromkeys([row.text("output") for row in group]))
            for row in group[1:]:
                if row.fields["input"] != first:
                    raise DataError(f"{row.where}: id '{name}' occurs with another input; make ids unique")
        except DataError as error:
            yield BadRow(str(error))
        else:
            yield ScrollsItem(where=group[0].where, id=name, input=first, references=references)
