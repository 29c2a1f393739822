"""Multi-News: news articles about one event -> summary of them all.

    accelerate launch eval/run.py --task multi_news --maxlen 4096
    accelerate launch eval/run.py --task multi_news --data test.src.cleaned --maxlen 4096

Rows of the hub's Parquet conversion, articles separated by five bars:

    {"document": "first article \\n more of it ||||| second article", "summary": "– What happened ..."}

The authors' files have one example a line, `SPLIT.src.cleaned` the articles, with NEWLINE_CHAR for a line break, and
`SPLIT.tgt` the summaries. In a context the bars stand on a line of their own.

Scores are usually ROUGE of the package rouge_score with its stemmer (profile `hf`), as in PEGASUS.

Source: files, line breaks and sizes as in tensorflow_datasets' multi_news builder 2.1.0; ROUGE as in
pegasus/eval/text_eval.py of google-research/pegasus at 13fcf2b.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, template_variants
from tasks.readers.files import record_rows, require_path, split_file, split_names
from tasks.readers.hub import CONVERTED_REVISION, hub_rows
from tasks.readers.rows import MAX_LINE_BYTES, BadRow, Row, Rows, collect, file_provenance, text_pair

HUB_ID = "alexfabbri/multi_news"
FIELDS = ("document", "summary")
SEPARATOR = "|||||"
_SOURCES = (".src.cleaned", ".src")


def load_multi_news(request: LoadRequest) -> LoadedExamples:
    """Return one example a summary; rows of the hub without an article or a summary are left out and counted."""
    if request.data is None:
        files = (f"default/{request.split}/*.parquet",)
        rows = hub_rows(HUB_ID, files, request=request, columns=FIELDS)
    else:
        rows = _file_rows(require_path(request.data), request.split)

    def read(row: Row) -> Iterator[Example]:
        if (pair := text_pair(rows, row, FIELDS)) is None:
            return
        articles = [article.strip() for article in pair[0].split(SEPARATOR)]
        context = f"\n\n{SEPARATOR}\n\n".join(article for article in articles if article)
        if context:
            name = f"{request.split}-{row.index}"
            yield Example(id=name, document_id=name, context=context, references=(pair[1],))
        elif rows.provenance["kind"] == "hub":
            rows.num_skipped += 1
        else:
            raise DataError(f"{row.where}: field 'document' holds no article; take the row out")

    return collect(request, rows, read)


def _file_rows(path: Path, split: str) -> Rows[Row]:
    if path.is_dir():
        lines = [path / f"{name}{end}" for end in _SOURCES for name in split_names(split)]
        path = next((file for file in lines if file.exists()), path)
    if path.is_dir():
        path = split_file(path, split)
    for end in _SOURCES:
        if path.name.endswith(end):
            targets = path.with_name(path.name.removesuffix(end) + ".tgt")
            if not targets.exists():
                raise DataError(f"{path} has no {targets.name} beside it, with the summaries; put it there")
            return Rows(_pairs_of_lines(path, targets), file_provenance(path, [path, targets]))
    return record_rows(path, FIELDS)


def _pairs_of_lines(sources: Path, targets: Path) -> Iterator[Row | BadRow]:
    with sources.open("rb") as first, targets.open("rb") as second:
        # Lines as bytes: in a text, Python ends lines at more characters than a line feed.
        for index, (source, target) in enumerate(zip_longest(first, second)):
            where = f"{sources.name} line {index + 1}"
            if source is None or target is None:
                short = sources.name if source is None else targets.name
                raise DataError(f"{short} ends before line {index + 1}, where the other file goes on; fetch both again")
            if max(len(source), len(target)) > MAX_LINE_BYTES:
                yield BadRow(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB; take it out of both files")
                continue
            # Bytes that are no UTF-8 become surrogates, so that the row that has them can be named.
            texts = [line.decode("utf-8", "surrogateescape").replace("NEWLINE_CHAR", "\n") for line in (source, target)]
            yield Row(where, dict(zip(FIELDS, texts, strict=True)))


MULTI_NEWS = Task(
    name="multi_news",
    description="news articles about one event -> summary of them all",
    source=f"hub {HUB_ID}; --data takes SPLIT.src.cleaned with SPLIT.tgt, Parquet, JSON lines, or a folder of them",
    licence="of the publishers' own: for non-commercial research",
    splits={"train": 44_972, "validation": 5_622, "test": 5_622},
    read=load_multi_news,
    templates=template_variants(
        "instruct",
        f"Summarize the following news articles, which are about one event and separated by {SEPARATOR}\n\n",
        "\n\nSummarize the articles above together in a few paragraphs.",
        "\n\nSummary:",
    ),
    max_new_tokens=512,
    revision=CONVERTED_REVISION,
    sample={
        "test.src.cleaned": "A first article. NEWLINE_CHAR NEWLINE_CHAR More of it. ||||| A second one. |||||\n"
        "One alone.\nAnd one more.\n",
        "test.tgt": "– Two articles.\n– One.\n– Another.\n",
    },
)
