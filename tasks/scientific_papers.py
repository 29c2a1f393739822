"""Article -> abstract on the arXiv and PubMed sets of Cohan et al. (2018), as the hub and as the authors give them.

The hub's `document` configuration has one row a paper, lines of the article separated by newlines:

    {"article": "additive models ...\\nin this paper ...", "abstract": "additive models play ..."}

The authors' own files keep the sentences apart:

    {"article_id": "1009.3123", "article_text": ["...", "..."], "abstract_text": ["<S> ... </S>"], "labels": null,
     "section_names": ["introduction"], "sections": [["...", "..."]]}
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, template_variants
from tasks.readers.articles import without_abstract
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.sources import Row, Rows, check_request, collect

CONFIG = "document"
COLUMNS = ("id", "article", "abstract")
_BEFORE = "Summarize the following scientific paper.\n\n"
_CUE = "\n\nAbstract:"
# All begin alike, so that what is not plain shares the prefill of a paper.
TEMPLATES = template_variants(
    "instruct", _BEFORE, "\n\nSummarize the paper above in one paragraph.", _CUE
) | template_variants("abstract", _BEFORE, "\n\nWrite the abstract of the paper above.", _CUE, once=False)


def load_scientific_papers(task: str, repo: str, splits: Collection[str], request: LoadRequest) -> LoadedExamples:
    """Return papers with their abstracts as references.

    A line that copies the abstract is taken out of the context (see `without_abstract`). Rows of the hub without an
    article or an abstract are skipped and counted in the provenance; in a local file they are an error.

    Raises:
        DataError: The request, the hub or the file is at fault.
    """
    check_request(task, request, splits)
    rows = _hub_rows(repo, request) if request.data is None else data_rows(request.data, request.split, columns=COLUMNS)
    return collect(request, rows, partial(_read_paper, rows, request.split))


def _hub_rows(repo: str, request: LoadRequest) -> Rows[Row]:
    files = (f"{CONFIG}/{request.split}-*.parquet", f"{CONFIG}/{request.split}/*.parquet")
    return hub_rows(repo, files, request=request, columns=COLUMNS, config=CONFIG)


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
        rows.skip()
        return
    if not abstract or not article:
        field = "article_text" if abstract else "abstract_text"
        raise DataError(f"{row.where}: field '{field}' is empty; give it a text or take the row out")
    example_id = source_id or f"{split}-{row.index}"
    context = "\n".join(without_abstract(article.split("\n"), abstract))
    if not context:
        raise DataError(f"{row.where}: the article holds nothing besides its abstract; take the row out")
    yield Example(id=example_id, document_id=example_id, context=context, references=(abstract,))
