"""EIPs: Ethereum improvement proposal, without its abstract -> abstract; each has the date on which it was created.

    git clone https://github.com/ethereum/EIPs && accelerate launch eval/run.py --task eips --data EIPs --maxlen 8192
    accelerate launch eval/run.py --task eips --data eips.jsonl --split test --maxlen 8192

Splits are dates: `test` was created in 2025 or later, after the training data of many models, `validation` in 2024,
`train` before. So `test` tells reading from knowing by heart. `--data` takes a clone, or records with `id`, `created`,
`body` and `abstract` as JSON lines, CSV, TSV or Parquet:

    {"id": "eip-107", "created": "2016-06-05", "body": "## Motivation...", "abstract": "This draft ..."}

Of a clone, proposals with an abstract of fewer than 40 words or a body of fewer than 1,000 are left out and counted.
No paper has numbers for this set.

Source: ethereum/EIPs on GitHub, CC0; its format is that of EIP-1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tasks.base import SPLIT_NAMES, DataError, Example, LoadedExamples, LoadRequest, Task, template_variants
from tasks.readers.files import read_text_file, record_rows, require_path
from tasks.readers.rows import BadRow, Row, Rows, collect, file_provenance

_LEAST_WORDS = {"abstract": 40, "body": 1000}
_DATE = re.compile(r"(\d{4})-\d\d-\d\d")
_HEAD = re.compile(r"---\n(.*?)\n---\n(.*)", re.DOTALL)
_ABSTRACT = re.compile(r"^## Abstract[ \t]*\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def load_eips(request: LoadRequest) -> LoadedExamples:
    """Return one example a proposal that was created in the years of the split."""
    if request.data is None:
        raise DataError("task eips has no data of its own; give --data a clone of github.com/ethereum/EIPs, or a file")
    path = require_path(request.data)
    rows = _clone_rows(path) if path.is_dir() else record_rows(path)
    return collect(request, rows, partial(_read, rows, request.split))


def _read(rows: Rows[Row], split: str, row: Row) -> Iterator[Example]:
    created = row.text("created")
    if (date := _DATE.fullmatch(created)) is None:
        raise DataError(f"{row.where}: field 'created' is {created[:40]!r}; expected a date such as 2025-01-31")
    body, abstract = row.text("body"), row.text("abstract")
    year = int(date[1])
    if split != ("test" if year >= 2025 else "validation" if year == 2024 else "train"):
        rows.num_skipped += 1
        return
    name = row.name(split)
    yield Example(id=name, document_id=name, context=body, references=(abstract,), stratum=date[1])


def _clone_rows(folder: Path) -> Rows[Row]:
    folder = folder / "EIPS" if (folder / "EIPS").is_dir() else folder
    files = sorted(folder.glob("*.md"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise DataError(f"{folder} holds no .md file; give --data a clone of ethereum/EIPs, or a file of records")

    def read() -> Iterator[Row | BadRow]:
        for file in files:
            try:
                text = read_text_file(file, file.name).replace("\r\n", "\n")
            except DataError as error:
                yield BadRow(str(error))
                continue
            if (row := _parse(file.name, text)) is None:
                rows.num_skipped += 1
            else:
                yield row

    rows: Rows[Row] = Rows(read(), file_provenance(folder, files))
    return rows


def _parse(name: str, text: str) -> Row | None:
    """Return head, abstract and body of a proposal; None for one without abstract, or too short."""
    head, section = _HEAD.match(text), _ABSTRACT.search(text)
    if head is None or section is None:
        return None
    known = dict(re.findall(r"^([a-z-]+):[ \t]*(.*?)[ \t]*$", head[1], re.MULTILINE))
    parts = {"abstract": section[1].strip(), "body": _ABSTRACT.sub("", head[2], count=1).strip()}
    if any(len(parts[part].split()) < least for part, least in _LEAST_WORDS.items()):
        return None
    return Row(name, {"id": name.removesuffix(".md"), "created": known.get("created", ""), **parts})


EIPS = Task(
    name="eips",
    description="Ethereum improvement proposal, dated -> abstract",
    source="--data takes a clone of ethereum/EIPs, or records with id, created, body and abstract",
    licence="CC0",
    splits=dict.fromkeys(SPLIT_NAMES),
    needs_data=True,
    read=load_eips,
    templates=template_variants(
        "instruct",
        "Here is a technical proposal without its abstract.\n\n",
        "\n\nWrite the abstract of the proposal above, in one paragraph.",
        "\n\nAbstract:",
    ),
    sample={
        "eips.jsonl": [
            {
                "id": f"eip-{year}",
                "created": f"{year}-03-01",
                "body": f"## Motivation\n\nIn {year} the river rose, and the bridge was closed.",
                "abstract": f"This proposal of {year} closes the bridge.",
            }
            for year in (2025, 2026)
        ]
    },
)
