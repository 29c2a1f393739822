"""arXiv and PubMed: paper -> abstract, on the sets of Cohan et al. (2018).

    accelerate launch eval/run.py --task arxiv
    accelerate launch eval/run.py --task pubmed --data test.jsonl

The hub's `document` configuration has one row a paper, lines of the article separated by newlines:

    {"article": "additive models ...\\nin this paper ...", "abstract": "additive models play ..."}

The authors' own files keep the sentences apart, as `SAMPLE` shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from tasks.base import SPLIT_NAMES, DataError, Example, LoadedExamples, LoadRequest, Task, template_variants
from tasks.readers.articles import without_abstract
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.rows import Row, Rows, collect

CONFIG = "document"
COLUMNS = ("id", "article", "abstract")
_BEFORE = "Summarize the following scientific paper.\n\n"
_CUE = "\n\nAbstract:"
# All begin alike, so that templates with a chat template share the prefill of a paper.
TEMPLATES = template_variants(
    "instruct", _BEFORE, "\n\nSummarize the paper above in one paragraph.", _CUE
) | template_variants("abstract", _BEFORE, "\n\nWrite the abstract of the paper above.", _CUE, once=False)
SAMPLE = [
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


def load_papers(repo: str, request: LoadRequest) -> LoadedExamples:
    """Return papers with their abstracts as references.

    A line that copies the abstract is taken out of the context (see `without_abstract`). Rows of the hub without an
    article or an abstract are skipped and counted in the provenance; in a local file they are an error.
    """
    if request.data is None:
        files = (f"{CONFIG}/{request.split}-*.parquet", f"{CONFIG}/{request.split}/*.parquet")
        rows = hub_rows(repo, files, request=request, columns=COLUMNS, config=CONFIG)
    else:
        rows = data_rows(request.data, request.split, columns=COLUMNS)
    return collect(request, rows, partial(_read_paper, rows, request.split))


def _read_paper(rows: Rows[Row], split: str, row: Row) -> Iterator[Example]:
    from_hub = rows.provenance["kind"] == "hub"
    if "article" in row.fields or "abstract" in row.fields:
        source_id = row.text("id") if row.fields.get("id") is not None else None
        article = row.text("article", may_be_empty=from_hub)
        abstract = row.text("abstract", may_be_empty=from_hub)
    elif "article_text" in row.fields or "abstract_text" in row.fields:
        source_id = row.text("article_id")
        article = "\n".join(row.texts("article_text")).strip()
        sentences = row.texts("abstract_text")
        abstract = " ".join(text.replace("<S>", "").replace("</S>", "").strip() for text in sentences).strip()
    else:
        raise DataError(
            f"{row.where}: format not recognized, fields found: {', '.join(row.fields) or 'none'}; "
            "expected `article, abstract` or `article_id, article_text, abstract_text`"
        )
    if from_hub and not (article and abstract):
        rows.num_skipped += 1
        return
    if not abstract or not article:
        field = "article_text" if abstract else "abstract_text"
        raise DataError(f"{row.where}: field '{field}' is empty; give it a text or take the row out")
    example_id = source_id or f"{split}-{row.index}"
    context = "\n".join(without_abstract(article.split("\n"), abstract))
    if not context:
        raise DataError(f"{row.where}: the article holds nothing besides its abstract; take the row out")
    yield Example(
        id=example_id, document_id=example_id, context=context, references=(abstract,), stratum=_year(example_id)
    )


def _year(name: str) -> str | None:
    """Return the year in an id of arXiv, such as 1009.3123 or hep-ph/9905221; None for other ids."""
    found = re.fullmatch(r"(?:[a-z-]+(?:\.[A-Z]{2})?/?)?(\d\d)(?:0[1-9]|1[0-2])(?:\.\d{4,5}|\d{3})(?:v\d+)?", name)
    return f"{19 if int(found[1]) > 90 else 20}{found[1]}" if found else None


def _task(name: str, title: str, sizes: tuple[int, int, int], revision: str) -> Task:
    repo = f"ccdv/{name}-summarization"
    return Task(
        name=name,
        description=f"{title} paper -> abstract",
        source=f"hub {repo}; --data takes JSON lines or Parquet with article, abstract, or Cohan's original JSON lines",
        licence="not stated by the publishers; for research",
        splits=dict(zip(SPLIT_NAMES, sizes, strict=True)),
        read=partial(load_papers, repo),
        templates=TEMPLATES,
        revision=revision,
        sample={"test.jsonl": SAMPLE},
    )


# The Parquet files of arXiv are those of this commit.
ARXIV = _task("arxiv", "arXiv", (203_037, 6_436, 6_440), "240aaf1a969b3f8cd0ade6986bfad0cd730ee288")
PUBMED = _task("pubmed", "PubMed", (119_924, 6_633, 6_658), "main")
