"""Tiny files in the official format of each task, for tests without the data sets.

    data = write_official("quality", folder)  # folder/quality.zip
    TASKS["quality"].load(LoadRequest(split="validation", data=data))

What is written for a task is named for it, so that a folder of all serves a run of all.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import LONGBENCH, SCROLLS, TASKS

Rows = Sequence[Mapping[str, Any]]
DOCUMENT = "It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."
OPTIONS = " (A) The bridge\n (B) The road\n (C) The school\n (D) Nothing"


def as_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_lines(path: Path, content: bytes) -> Path:
    file = path.with_suffix(".jsonl")
    file.write_bytes(content)
    return file


def zip_writer(member: str) -> Callable[[Path, bytes], Path]:
    def write(path: Path, content: bytes) -> Path:
        file = path.with_suffix(".zip")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return file

    return write


def write_patents(path: Path, content: bytes) -> Path:
    (path / "test" / "a").mkdir(parents=True)
    (path / "test" / "a" / "data-test-a-0.gz").write_bytes(gzip.compress(content))
    return path


@dataclass(frozen=True, kw_only=True)
class Official:
    """A task whose official file is made of JSON lines.

    Attributes:
        write: Writes JSON lines to a path without a suffix, in the official container, and returns what `--data` takes.
        rows: Three of them, each an example.
        context: Field of the document.
        target: Field of the reference.
        file: What messages call the lines' file.
    """

    write: Callable[[Path, bytes], Path]
    rows: tuple[Mapping[str, Any], ...]
    context: str
    target: str
    file: str


def _scrolls(name: str, query: str | None, *targets: str) -> Official:
    start = "" if query is None else f"{query}\n\n"
    rows = [
        {"id": f"{name}-{i}", "pid": f"{name}-{i}_0", "input": f"{start}Report {i}. {DOCUMENT}", "output": target}
        for i, target in enumerate(targets)
    ]
    member = f"{name}/{TASKS[name].default_split}.jsonl"
    return Official(write=zip_writer(member), rows=tuple(rows), context="input", target="output", file=member)


def _longbench(task: str) -> Official:
    name = task.removeprefix("longbench_")
    asks = "{query}" in TASKS[task].templates[TASKS[task].default_template].text
    rows = [
        {
            "input": "Question: What was closed?\nAnswer: " if asks else "",
            "context": f"Passage {i}:\n{DOCUMENT}",
            "answers": ["the bridge", "a bridge"],
            "length": 14,
            "dataset": name,
            "language": "en",
            "all_classes": None,
            "_id": f"{i:048x}",
        }
        for i in range(3)
    ]
    member = f"data/{name}.jsonl"
    return Official(write=zip_writer(member), rows=tuple(rows), context="context", target="answers", file=member)


def _papers(task: str) -> Official:
    rows = [
        {
            "article_id": f"0704.000{i}",
            "article_text": [f"paper {i} says much .", "it rained for a week ."],
            "abstract_text": ["<S> rain is wet . </S>"],
            "labels": None,
            "section_names": ["introduction"],
            "sections": [["it rained for a week ."]],
        }
        for i in range(3)
    ]
    return Official(
        write=write_lines, rows=tuple(rows), context="article_text", target="abstract_text", file=f"{task}.jsonl"
    )


def _patents(task: str) -> Official:
    rows = [
        {
            "publication_number": f"US-{i}-A1",
            "abstract": "a bridge that floats .",
            "application_number": f"US-{i}",
            "description": f"field {i} . {DOCUMENT}",
        }
        for i in range(3)
    ]
    return Official(
        write=write_patents, rows=tuple(rows), context="description", target="abstract", file="data-test-a-0"
    )


LINES: dict[str, Official] = {
    **{task: _papers(task) for task in ("arxiv", "pubmed")},
    "gov_report": _scrolls("gov_report", None, "It rained.", "The bridge closed.", "Nobody was hurt."),
    "summ_screen_fd": _scrolls("summ_screen_fd", None, "It rains.", "A bridge is closed.", "All are well."),
    "qmsum": _scrolls("qmsum", "What was closed?", "The bridge.", "A bridge.", "It was a bridge."),
    "qasper": _scrolls("qasper", "Was it closed?", "Yes", "Unanswerable", "the bridge"),
    "narrative_qa": _scrolls("narrative_qa", "What was closed?", "The bridge", "A bridge.", "bridge"),
    "quality": _scrolls("quality", f"What was closed?\n\n{OPTIONS}", "The bridge", "The  road", "Nothing"),
    "contract_nli": _scrolls("contract_nli", "A bridge stays open.", "Entailment", "Contradiction", "Not mentioned"),
    **{task: _patents(task) for task in ("big_patent", "big_patent_a")},
    **{task: _longbench(task) for task in LONGBENCH},
}
assert set(SCROLLS) <= set(LINES)


def _write_news(path: Path) -> Path:
    path.mkdir()
    (path / "test.src.cleaned").write_text(
        "A first article. NEWLINE_CHAR NEWLINE_CHAR More of it. ||||| A second one. |||||\nOne alone.\nAnd one more.\n"
    )
    (path / "test.tgt").write_text("– Two articles.\n– One.\n– Another.\n")
    return path


def chapters(*rows: tuple[str, str, str]) -> list[dict[str, str]]:
    """Return rows of BookSum with source, chapter and summary, and its other columns."""
    others = {"bid": "27681", "is_aggregate": "True", "chapter_path": "a/b.txt", "summary_id": "chapters 1-2"}
    return [
        others | {"source": source, "chapter": text, "chapter_length": "9", "summary_text": summary}
        for source, text, summary in rows
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    file = path.with_suffix(".csv")
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def _write_books(path: Path) -> Path:
    first, second = 'CHAPTER I\n\nIt rained, "all" day.', "CHAPTER II\n\nThe sun, then."
    rows = [("cliffnotes", first, "Rain."), ("cliffnotes", second, "Sun."), ("sparknotes", first, "It rains.")]
    return write_csv(path, chapters(*rows))


def _write_plos(path: Path) -> Path:
    path.mkdir()
    abstract, body = " ".join(f"word{i}" for i in range(90)), " ".join(f"term{i}" for i in range(2_100))
    (path / "journal.pone.0000001.xml").write_text(
        '<article article-type="research-article"><front><article-meta>'
        '<article-id pub-id-type="doi">10.1371/x</article-id>'
        f"<abstract><p>{abstract}</p></abstract></article-meta></front><body><sec><title>Results</title><p>{body}</p></sec>"
        "</body></article>"
    )
    return path


def _write_aclsum(path: Path) -> Path:
    (path / "paper_jsons").mkdir(parents=True)
    summary = {"challenge": "It rained.", "approach": "They waited.", "outcome": "It stopped."}
    (path / "test.jsonl").write_bytes(as_lines([{"id": "P06-1112", "summary": summary}]))
    body = [{"text": "It rained for a week, so they waited.", "section": "Introduction"}]
    paper = {"abstract": "We study rain.", "pdf_parse": {"body_text": body}}
    (path / "paper_jsons" / "P06-1112.json").write_text(json.dumps(paper))
    return path


OTHERS: dict[str, Callable[[Path], Path]] = {
    "multi_news": _write_news,
    "book_sum": _write_books,
    "plos": _write_plos,
    "aclsum": _write_aclsum,
    "aclsum_aspects": _write_aclsum,
}


def write_official(task: str, folder: Path) -> Path:
    """Write the task's file or folder into a folder, named for the task, and return it."""
    path = folder / task
    return OTHERS[task](path) if task in OTHERS else LINES[task].write(path, as_lines(LINES[task].rows))
