"""ACLSum: the package's papers, and a folder of the same shape."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks import TASKS, DataError, LoadRequest

ABSTRACT = (
    "We pair every decoder layer with a span of its own and show on five tasks that few layers need the whole text."
)
SUMMARY = {"challenge": "Attention is costly.", "approach": "Short spans.", "outcome": "Few full layers suffice."}
PAPER: dict[str, Any] = {
    "paper_id": "P1",
    "abstract": ABSTRACT,
    "pdf_parse": {
        "body_text": [
            {"text": ABSTRACT, "section": "Abstract"},
            {"text": "Text is long.", "section": "Introduction"},
            {"text": "Memory is short.", "section": "Introduction"},
            {"text": "We measure.", "section": "Method"},
            {"text": ABSTRACT.lower(), "section": "Conclusion"},
        ]
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = tmp_path / "dataset"
    (dataset / "paper_jsons").mkdir(parents=True)
    for paper_id in ("P1", "P2"):
        (dataset / "paper_jsons" / f"{paper_id}.json").write_text(json.dumps(PAPER))
    rows = [{"id": paper_id, "summary": SUMMARY, "title": "T"} for paper_id in ("P1", "P2")]
    (dataset / "val.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return dataset


def plain_words(text: str) -> list[str]:
    return re.sub(r"[\W_]+", " ", text).lower().split()


def load(task: str, folder: Path | None, split: str = "validation", limit: int | None = None) -> Any:
    return TASKS[task].load(LoadRequest(split=split, data=folder, limit=limit))


def test_a_paper_is_summarized_by_its_abstract_which_is_not_in_the_context(folder: Path) -> None:
    loaded = load("aclsum", folder)
    assert [(e.id, e.document_id, e.query) for e in loaded.examples] == [("P1", "P1", None), ("P2", "P2", None)]
    assert loaded.examples[0].references == (ABSTRACT,)
    assert loaded.examples[0].context == "Introduction\nText is long.\nMemory is short.\n\nMethod\nWe measure."
    assert (loaded.provenance["kind"], loaded.provenance["name"]) == ("file", "dataset")


def test_the_provenance_changes_with_a_paper(folder: Path) -> None:
    before = load("aclsum", folder).provenance["sha256"]
    changed = {**PAPER, "title": "new"}
    (folder / "paper_jsons" / "P2.json").write_text(json.dumps(changed))
    assert load("aclsum", folder).provenance["sha256"] != before


def test_each_aspect_is_a_query_about_the_same_paper(folder: Path) -> None:
    loaded = load("aclsum_aspects", folder, limit=4)
    assert [(e.id, e.document_id, e.references) for e in loaded.examples] == [
        ("P1-challenge", "P1", ("Attention is costly.",)),
        ("P1-approach", "P1", ("Short spans.",)),
        ("P1-outcome", "P1", ("Few full layers suffice.",)),
        ("P2-challenge", "P2", ("Attention is costly.",)),
    ]
    assert len({e.query for e in loaded.examples}) == 3
    assert all(ABSTRACT.lower() not in e.context.lower() for e in loaded.examples)


def test_errors_name_the_file_and_the_field(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*train\.jsonl"):
        load("aclsum", folder, split="train")
    with pytest.raises(DataError, match=r"val\.jsonl is a file; give --data a folder with val\.jsonl and paper_jsons/"):
        load("aclsum", folder / "val.jsonl")
    paper = folder / "paper_jsons" / "P2.json"
    paper.write_text(json.dumps({**PAPER, "abstract": ""}))
    with pytest.raises(DataError, match=r"^P2\.json: field 'abstract' is empty"):
        load("aclsum", folder)
    paper.write_text(json.dumps({**PAPER, "pdf_parse": {"body_text": [{"section": "A"}]}}))
    with pytest.raises(DataError, match=r"^P2\.json, pdf_parse, body_text\[0\]: field 'text' is missing"):
        load("aclsum", folder)
    paper.write_text(json.dumps({**PAPER, "pdf_parse": {"body_text": [{"text": ABSTRACT}]}}))
    with pytest.raises(DataError, match=r"^P2\.json: field 'pdf_parse\.body_text' has no text besides the abstract"):
        load("aclsum", folder)
    paper.unlink()
    with pytest.raises(DataError, match=r"P2\.json"):
        load("aclsum", folder)
    shutil.copy(folder / "paper_jsons" / "P1.json", paper)
    (folder / "val.jsonl").write_text('{"id": "P2", "summary": {"challenge": "c", "approach": ""}}')
    with pytest.raises(DataError, match=r"^val\.jsonl line 1, summary: field 'approach' is empty"):
        load("aclsum_aspects", folder)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"aclsum is not installed; run: pip install --no-deps aclsum==0\.1\.2$"):
        load("aclsum", None)


@pytest.mark.skipif(importlib.util.find_spec("aclsum") is None, reason="the package aclsum is not installed")
@pytest.mark.parametrize(
    ("split", "num_papers"), [pytest.param("train", 100, marks=pytest.mark.nightly), ("validation", 50), ("test", 100)]
)
def test_the_packages_papers(split: str, num_papers: int) -> None:
    papers = load("aclsum", None, split=split).examples
    aspects = load("aclsum_aspects", None, split=split)
    assert len(papers) == num_papers
    assert len(aspects.examples) == 3 * num_papers
    assert aspects.provenance["version"] == "0.1.2"
    assert "aclsum" not in sys.modules
    assert [e.context for e in aspects.examples[::3]] == [e.context for e in papers]
    for example in papers:
        context, abstract = plain_words(example.context), plain_words(example.references[0])
        runs = {tuple(abstract[i : i + 25]) for i in range(len(abstract) - 24)}
        assert not any(tuple(context[i : i + 25]) in runs for i in range(len(context))), example.id
        assert len(context) > 1_500, example.id
