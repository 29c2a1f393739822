"""arXiv and PubMed from local files, in both published formats."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tasks import TASKS, DataError, LoadRequest

SHARED = Path(__file__).parents[3] / "shared" / "data" / "arxiv" / "test.jsonl"
HUB_ROW = {"article": "first line\nsecond line", "abstract": "what it says"}
COHAN_ROW: dict[str, Any] = {
    "article_id": "1009.3123",
    "article_text": ["additive models @xcite are used .", "they are fast ."],
    "abstract_text": ["<S> additive models matter . </S>", "<S> we show rates . </S>"],
    "labels": None,
    "section_names": ["introduction"],
    "sections": [["additive models @xcite are used .", "they are fast ."]],
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, limit: int | None = None) -> Any:
    return TASKS["arxiv"].load(LoadRequest(split="test", data=path, limit=limit))


def test_the_hubs_schema_as_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", HUB_ROW, {**HUB_ROW, "id": "0704.0001"})
    loaded = load(path)
    assert [(e.id, e.context, e.references, e.query) for e in loaded.examples] == [
        ("test-0", "first line\nsecond line", ("what it says",), None),
        ("0704.0001", "first line\nsecond line", ("what it says",), None),
    ]
    assert loaded.provenance == {
        "kind": "file",
        "name": "mine.jsonl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_rows": 2,
        "num_skipped": 0,
        "num_bad": 0,
    }
    json.dumps(loaded.provenance)


def test_the_hubs_schema_as_parquet(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([HUB_ROW, HUB_ROW]), path)
    assert [(e.id, e.references) for e in load(path).examples] == [
        ("test-0", ("what it says",)),
        ("test-1", ("what it says",)),
    ]


def test_cohans_original_lines_lose_their_sentence_marks(tmp_path: Path) -> None:
    (example,) = load(write(tmp_path / "test.txt", COHAN_ROW)).examples
    assert example.id == example.document_id == "1009.3123"
    assert example.references == ("additive models matter . we show rates .",)
    assert example.context == "additive models @xcite are used .\nthey are fast ."


def test_a_copied_abstract_leaves_the_context(tmp_path: Path) -> None:
    abstract = "we prove that every finite span of attention can be found by a search over layers and sinks"
    path = write(tmp_path / "a.jsonl", {"article": f"intro line\n{abstract.upper()}\nlast line", "abstract": abstract})
    assert load(path).examples[0].context == "intro line\nlast line"


def test_pubmed_reads_the_same_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", HUB_ROW)
    loaded = TASKS["pubmed"].load(LoadRequest(split="train", data=path))
    assert loaded.examples[0].id == "train-0"


def test_a_limit_stops_before_a_broken_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", HUB_ROW, HUB_ROW)
    path.write_text(path.read_text() + "{broken\n")
    assert len(load(path, limit=2).examples) == 2
    with pytest.raises(DataError, match=r"^a\.jsonl line 3: not valid JSON"):
        load(path, limit=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"article": "a"}', r"^a\.jsonl line 2: field 'abstract' is missing.*found: article$"),
        ('{"article": "a", "abstract": 3}', r"line 2: field 'abstract' is a number; expected text"),
        ('{"article": "a", "abstract": null}', r"line 2: field 'abstract' is null; expected text"),
        ('{"article": "a", "abstract": " "}', r"line 2: field 'abstract' is empty"),
        ('{"article": "", "abstract": "b"}', r"line 2: field 'article' is empty"),
        ('{"article": "b c d", "abstract": "B, c. D"}', r"line 2: the article holds nothing besides its abstract"),
        ('["a"]', r"line 2: holds a list; expected a JSON object"),
        ('{"text": "a"}', r"line 2: format not recognized, fields found: text; expected `article, abstract` or"),
        ('{"article_id": "x", "article_text": ["a"], "abstract_text": ["<S> </S>"]}', r"'abstract_text' is empty"),
        (
            '{"article_id": "x", "article_text": "a", "abstract_text": ["b"]}',
            r"'article_text' is text; expected a list",
        ),
        ('{"article_id": "x", "article_text": ["a", 1], "abstract_text": ["b"]}', r"'article_text\[1\]' is a number"),
        ('{"article": "a", "abstract": "b", "id": "same"}', r"^a\.jsonl line 2: id 'same' occurs twice"),
    ],
)
def test_a_malformed_row_is_named_with_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", {**HUB_ROW, "id": "same"})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*missing\.jsonl; check"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"holds no file named test; give --data a file, or a folder"):
        load(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"^empty\.jsonl has no examples for split test \(0 rows read"):
        load(empty)
    binary = tmp_path / "data.zip"
    binary.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(DataError, match=r"^data\.zip: not a readable zip file"):
        load(binary)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"^bad\.parquet: not a readable Parquet file"):
        load(bad)
    other = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}]), other)
    with pytest.raises(DataError, match=r"^other\.parquet: columns are text; expected id, article, abstract"):
        load(other)


def test_real_papers_from_arxiv() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    loaded = load(SHARED)
    assert len(loaded.examples) == 10
    assert loaded.examples[0].id == "c39bb88cdf"
    assert all(len(e.context.split()) > 3_000 for e in loaded.examples)
