"""BookSum: chapter of a book -> summary, the summaries of several study guides being references of one chapter.

    accelerate launch eval/run.py --task book_sum --maxlen 8192 --limit 50
    accelerate launch eval/run.py --task book_sum --data test.csv --maxlen 8192

A CSV file a split, one summary a row, as `SAMPLE` shows; two columns are read, and rows with the same `chapter` are one
example. A file is always read to its end, because the summaries of a chapter are spread over it.

The paper (arXiv 2105.08209) reports ROUGE-1, ROUGE-2 and ROUGE-L, against one summary at a time; no scorer is settled.
The profile here is `hf`, that of the summarization script of transformers, and the best of the references counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tasks.base import SPLIT_NAMES, DataError, Example, LoadedExamples, LoadRequest, Task, template_variants
from tasks.readers.files import data_rows, split_names
from tasks.readers.hub import hub_rows
from tasks.readers.rows import BadRow, Row, Rows, collect, text_pair

HUB_ID = "kmfoda/booksum"
FIELDS = ("chapter", "summary_text")
_COLUMNS = (*FIELDS, "bid")  # the book, where a file names it
_OTHERS = {"bid": "27681", "is_aggregate": "True", "chapter_path": "a/b.txt", "summary_id": "chapters 1-2"}
SAMPLE = [
    _OTHERS | {"source": source, "chapter": chapter, "chapter_length": "9", "summary_text": summary}
    for source, chapter, summary in (
        ("cliffnotes", 'CHAPTER I\n\nIt rained, "all" day.', "Rain."),
        ("cliffnotes", "CHAPTER II\n\nThe sun, then.", "Sun."),
        ("sparknotes", 'CHAPTER I\n\nIt rained, "all" day.', "It rains."),
    )
]


@dataclass(frozen=True)
class _Chapter:
    """A chapter with its summaries, and `where` the first of them is, for messages."""

    where: str
    index: int
    text: str
    summaries: list[str]
    book: str | None


def load_book_sum(request: LoadRequest) -> LoadedExamples:
    """Return one example a chapter; rows of the hub without a chapter or a summary are left out and counted."""
    if request.data is None:
        files = [f"{name}.csv" for name in split_names(request.split)] + [f"default/{request.split}/*.parquet"]
        whole = replace(request, limit=None)
        rows = hub_rows(HUB_ID, files, request=whole, columns=_COLUMNS)
    else:
        rows = data_rows(request.data, request.split, columns=_COLUMNS)

    def read(chapter: _Chapter) -> Iterator[Example]:
        name = f"{request.split}-{chapter.index}"
        references = tuple(dict.fromkeys(chapter.summaries))
        yield Example(id=name, document_id=name, cluster_id=chapter.book, context=chapter.text, references=references)

    return collect(request, Rows(_chapters(rows), rows.provenance, source=rows), read)


def _chapters(rows: Rows[Row]) -> Iterator[_Chapter | BadRow]:
    chapters: dict[str, _Chapter] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            pair = text_pair(rows, row, FIELDS)
        except DataError as error:
            yield BadRow(str(error))
            continue
        if pair:
            text, summary = pair
            chapter = _Chapter(row.where, len(chapters), text, [], row.label("bid"))
            chapters.setdefault(text, chapter).summaries.append(summary)
    yield from chapters.values()


BOOK_SUM = Task(
    name="book_sum",
    description="chapter of a book -> summary, with those of several study guides as references",
    source=f"hub {HUB_ID}; --data takes CSV, Parquet or JSON lines with chapter, summary_text, or a folder of them",
    licence="BSD-3-Clause (its card); for research by the authors' terms",
    # The numbers of chapters in the paper are those of other files.
    splits=dict.fromkeys(SPLIT_NAMES),
    read=load_book_sum,
    templates=template_variants(
        "instruct",
        "Summarize the following chapter of a book.\n\n",
        "\n\nSummarize the chapter above in a few paragraphs.",
        "\n\nSummary:",
    ),
    max_new_tokens=512,
    revision="main",
    sample={"test.csv": SAMPLE},
)
