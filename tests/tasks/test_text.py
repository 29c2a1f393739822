"""Texts alone: a folder, a file, rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tasks import DataError, LoadedExamples, LoadRequest
from tasks.text import TEXT


def load(path: Path | None, limit: int | None = None) -> LoadedExamples:
    return TEXT.load(LoadRequest(split="train", data=path, limit=limit))


def test_a_folder_gives_each_text_under_its_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b.md").write_text("second\n")
    (tmp_path / "a" / "x.txt").write_text("\ufefffirst\n", encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    loaded = load(tmp_path)
    assert [(example.id, example.context) for example in loaded.examples] == [("a/x.txt", "first"), ("b.md", "second")]
    assert all(example.references == () for example in loaded.examples)
    assert loaded.provenance["num_rows"] == 2
    assert [example.id for example in load(tmp_path, limit=1).examples] == ["a/x.txt"]


def test_one_file_json_lines_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("words")
    assert load(tmp_path / "one.txt").examples[0].id == "one.txt"
    rows = [{"id": "x", "text": "first"}, {"text": "second"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(e.id, e.context) for e in load(tmp_path / "rows.jsonl").examples] == [
        ("x", "first"),
        ("train-1", "second"),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "first"}]), tmp_path / "rows.parquet")
    assert [e.context for e in load(tmp_path / "rows.parquet").examples] == ["first"]


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task text has no data of its own; give --data"):
        load(None)
    with pytest.raises(DataError, match=r"holds no \.txt or \.md file"):
        load(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"bad\.txt: not UTF-8 text"):
        load(tmp_path)
    (tmp_path / "bad.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"bad\.txt is empty"):
        load(tmp_path / "bad.txt")
    (tmp_path / "rows.jsonl").write_text('{"article": "a"}\n')
    with pytest.raises(DataError, match="field 'text' is missing"):
        load(tmp_path / "rows.jsonl")


def test_short_documents_are_left_out_before_the_limit_counts(tmp_path: Path) -> None:
    rows = ["one two", "one two  three\nfour", "one", "five six seven"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    request = LoadRequest(split="train", data=tmp_path / "rows.jsonl", min_words=3)
    loaded = TEXT.load(request)
    assert [example.id for example in loaded.examples] == ["train-1", "train-3"]
    assert loaded.provenance["num_short"] == 2
    first = TEXT.load(replace(request, limit=1))
    assert ([example.id for example in first.examples], first.provenance["num_short"]) == (["train-1"], 1)
    assert "num_short" not in load(tmp_path / "rows.jsonl").provenance
    with pytest.raises(DataError) as caught:
        TEXT.load(replace(request, min_words=5))
    assert str(caught.value).endswith(
        "has no example of 5 words or more in split train: 4 were read, the longest of 4; lower --min-words"
    )
