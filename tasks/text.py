"""Plain texts, without anything to write about them: for training on every token, and for perplexity.

    accelerate launch eval/perplexity.py --task text --data books/ --maxlen 1024 8192
    accelerate launch eval/finetune.py --task text --data owner/name --objective lm --maxlen 8192

`--data` takes a folder of .txt and .md files, one such file, JSON lines or Parquet with a column `text`, or the name of
a hub data set with such Parquet files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task
from tasks.readers.files import file_provenance, read_text_file, record_rows, require_path
from tasks.readers.hub import hub_rows
from tasks.readers.sources import Row, Rows, check_request, collect, sha256_of

SPLITS = dict.fromkeys(("train", "validation", "test"))
COLUMNS = ("id", "text")
_SUFFIXES = (".txt", ".md")
_FILES = (*_SUFFIXES, ".json", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_text(request: LoadRequest) -> LoadedExamples:
    """Return one example a text; a row of the hub without one is skipped and counted.

    Raises:
        DataError: The request, the hub or a file is at fault.
    """
    path = request.data
    is_hub = path is not None and _is_hub_name(path)
    check_request("text", replace(request, revision=None) if is_hub else request, SPLITS)
    if path is None:
        raise DataError(
            "task text has no data of its own; give --data a folder of .txt files, a file or a hub data set"
        )
    if is_hub:
        rows = _hub_rows(str(path), request)
    elif require_path(path).is_dir() or path.suffix in _SUFFIXES:
        return _load_files(path, request)
    else:
        rows = record_rows(path, COLUMNS)
    return collect(request, rows, partial(_read_row, rows, request.split))


def _is_hub_name(path: Path) -> bool:
    return not path.exists() and _HUB_ID.fullmatch(str(path)) is not None and path.suffix not in _FILES


def _hub_rows(repo: str, request: LoadRequest) -> Rows[Row]:
    files = (f"**/*{request.split}*.parquet", f"**/{request.split}/*.parquet")
    return hub_rows(repo, files, request=request, columns=COLUMNS)


def _read_row(rows: Rows[Row], split: str, row: Row) -> Iterator[Example]:
    text = row.text("text", may_be_empty=rows.provenance["kind"] == "hub")
    if not text:
        rows.skip()
        return
    example_id = row.name(split)
    yield Example(id=example_id, document_id=example_id, context=text, references=())


def _load_files(path: Path, request: LoadRequest) -> LoadedExamples:
    if path.is_dir():
        files: Sequence[Path] = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"{path} holds no {' or '.join(_SUFFIXES)} file; give --data a folder of texts")
        provenance = {"kind": "file", "name": path.resolve().name, "sha256": sha256_of(files)}
        names = [file.relative_to(path).as_posix() for file in files]
    else:
        files, names, provenance = [path], [path.name], file_provenance(path)
    rows = Rows(zip(files, names, strict=True), provenance)

    return collect(request, rows, _read_file)


def _read_file(named: tuple[Path, str]) -> Iterator[Example]:
    file, name = named
    yield Example(id=name, document_id=name, context=read_text_file(file, name), references=())


TEXT = Task(
    name="text",
    version=1,
    description="plain texts, nothing to write about them",
    source="--data takes a folder of .txt and .md files, a file of them, JSON lines or Parquet with `text`, a hub id",
    licence="that of the texts",
    splits=SPLITS,
    default_split="train",
    max_new_tokens=0,
    templates={},
    default_template="",
    needs_hub=False,
    read=load_text,
)
