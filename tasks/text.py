"""Plain texts with nothing to write about them: for training on every token, and for perplexity.

    accelerate launch eval/perplexity.py --task text --data books/ --maxlen 1024 8192
    accelerate launch eval/finetune.py --task text --data owner/name --objective lm --maxlen 8192

`--data` takes a folder of .txt and .md files, one such file, JSON lines or Parquet with a column `text`, or the name of
a hub data set with such Parquet files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tasks.base import SPLIT_NAMES, DataError, Example, LoadedExamples, LoadRequest, Task
from tasks.readers.files import RECORDS, read_text_file, record_rows, require_path
from tasks.readers.hub import hub_rows
from tasks.readers.rows import Row, Rows, collect, file_provenance

COLUMNS = ("id", "text")
_SUFFIXES = (".txt", ".md")
_FILES = (*_SUFFIXES, *RECORDS)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_text(request: LoadRequest) -> LoadedExamples:
    """Return one example a text; a row of the hub without one is skipped and counted."""
    path = request.data
    if path is None:
        raise DataError(
            "task text has no data of its own; give --data a folder of .txt files, a file or a hub data set"
        )
    if _is_hub_name(path):
        files = (f"**/*{request.split}*.parquet", f"**/{request.split}/*.parquet")
        rows = hub_rows(str(path), files, request=request, columns=COLUMNS)
    elif require_path(path).is_dir() or path.suffix in _SUFFIXES:
        return _load_files(path, request)
    else:
        rows = record_rows(path, COLUMNS)
    return collect(request, rows, partial(_read_row, rows, request.split))


def _is_hub_name(path: Path) -> bool:
    return not path.exists() and _HUB_ID.fullmatch(str(path)) is not None and path.suffix not in _FILES


def _read_row(rows: Rows[Row], split: str, row: Row) -> Iterator[Example]:
    text = row.text("text", may_be_empty=rows.provenance["kind"] == "hub")
    if not text:
        rows.num_skipped += 1
        return
    example_id = row.name(split)
    yield Example(id=example_id, document_id=example_id, context=text, references=())


def _load_files(path: Path, request: LoadRequest) -> LoadedExamples:
    if path.is_dir():
        files: Sequence[Path] = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path} holds no {' or '.join(_SUFFIXES)} file; give --data a folder of texts")
        names = [file.relative_to(path).as_posix() for file in files]
    else:
        files, names = [path], [path.name]
    return collect(request, Rows(zip(files, names, strict=True), file_provenance(path, files)), _read_file)


def _read_file(named: tuple[Path, str]) -> Iterator[Example]:
    file, name = named
    yield Example(id=name, document_id=name, context=read_text_file(file, name), references=())


TEXT = Task(
    name="text",
    description="plain texts, nothing to write about them",
    source="--data takes a folder of .txt and .md files, a file of them, JSON lines or Parquet with `text`, a hub id",
    licence="that of the texts",
    splits=dict.fromkeys(SPLIT_NAMES),
    needs_data=True,
    read=load_text,
    templates={},
    default_template="",
    default_split="train",
    max_new_tokens=0,
    sample={"a.txt": "It rained.\n", "b/c.md": "The river rose.\n"},
)
