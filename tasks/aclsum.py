"""ACLSum: ACL paper -> abstract, and ACL paper and aspect -> one-sentence summary of that aspect.

    pip install --no-deps aclsum==0.1.2
    accelerate launch eval/run.py --task aclsum_aspects

The package's `dataset/` folder holds `train.jsonl`, `val.jsonl`, `test.jsonl`, and the parsed papers:

    {"id": "P06-1112", "summary": {"challenge": "...", "approach": "...", "outcome": "..."}, ...}
    paper_jsons/P06-1112.json: {"abstract": "...", "pdf_parse": {"body_text": [{"text": "...", "section": "..."}]}}
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

from tasks.articles import Section, article_text
from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task
from tasks.scientific_papers import TEMPLATES
from tasks.sources import (
    Row,
    Rows,
    check_request,
    collect,
    json_line_rows,
    package_folder,
    package_provenance,
    read_json,
    require_path,
    sha256_of,
)

PACKAGE = "aclsum"
PIP_REQUIREMENT = "aclsum==0.1.2"
FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
QUERIES = {
    "challenge": "What problem or gap in earlier work does the paper address?",
    "approach": "What do the authors do or propose to address it?",
    "outcome": "What do the authors find, or what does the paper contribute?",
}


def load_aclsum(
    task: str, read_paper: Callable[[str, Row, str, str], Iterator[Example]], request: LoadRequest
) -> LoadedExamples:
    """Return the examples that `read_paper` makes of each paper's id, summary, context and abstract.

    Raises:
        DataError: The request, the package or a file is at fault.
    """
    check_request(task, request, tuple(FILES))
    if request.data is None:
        folder = package_folder(PACKAGE, "dataset", PIP_REQUIREMENT)
    elif not require_path(request.data).is_dir():
        raise DataError(f"{request.data} is a file; give --data a folder with {FILES[request.split]} and paper_jsons/")
    else:
        folder = request.data
    split_file = folder / FILES[request.split]
    split_rows = list(json_line_rows(split_file))
    papers = [folder / "paper_jsons" / f"{row.text('id')}.json" for row in split_rows]
    if request.data is None:
        provenance = package_provenance(PACKAGE, [split_file, *papers])
    else:
        provenance = {"kind": "file", "name": folder.resolve().name, "sha256": sha256_of([split_file, *papers])}
    rows = Rows(zip(split_rows, papers, strict=True), provenance)

    def read() -> Iterator[Example]:
        for row, paper_file in rows:
            paper = read_json(paper_file)
            abstract = paper.text("abstract")
            context = article_text(_sections(paper.row("pdf_parse")), abstract)
            if not context:
                raise DataError(f"{paper.where}: field 'pdf_parse.body_text' has no text besides the abstract")
            yield from read_paper(row.text("id"), row.row("summary"), context, abstract)

    return collect(request, rows, read())


def _sections(pdf_parse: Row) -> Iterator[Section]:
    paragraphs = pdf_parse.rows("body_text")
    for title, group in itertools.groupby(paragraphs, key=lambda row: str(row.fields.get("section") or "")):
        yield Section(title=title, paragraphs=[row.text("text", may_be_empty=True) for row in group])


def _read_abstract(paper_id: str, summary: Row, context: str, abstract: str) -> Iterator[Example]:
    yield Example(id=paper_id, document_id=paper_id, context=context, references=(abstract,))


def _read_aspects(paper_id: str, summary: Row, context: str, abstract: str) -> Iterator[Example]:
    for aspect, query in QUERIES.items():
        yield Example(
            id=f"{paper_id}-{aspect}",
            document_id=paper_id,
            context=context,
            references=(summary.text(aspect),),
            query=query,
        )


_SOURCE = f"package {PIP_REQUIREMENT}; --data takes a folder with the split's .jsonl and paper_jsons/"

ACLSUM = Task(
    name="aclsum",
    version=1,
    description="ACL paper -> abstract",
    source=_SOURCE,
    licence="MIT",
    splits=tuple(FILES),
    default_split="test",
    max_new_tokens=256,
    templates=TEMPLATES,
    default_template="instruct",
    needs_hub=False,
    load=partial(load_aclsum, "aclsum", _read_abstract),
)

ACLSUM_ASPECTS = Task(
    name="aclsum_aspects",
    version=2,
    description="ACL paper and aspect (challenge, approach, outcome) -> summary of that aspect",
    source=_SOURCE,
    licence="MIT",
    splits=tuple(FILES),
    default_split="test",
    max_new_tokens=64,
    templates={
        # The query comes after the paper alone, so that the three aspects of a paper share one prefill.
        "context_first": (
            "Here is a scientific paper.\n\n{context}\n\nUsing the paper above, answer in one sentence: {query}"
        ),
        # What to look for is known while reading, and each query pays for its own reading.
        "query_first": (
            "{query}\n\nHere is a scientific paper.\n\n{context}\n\nUsing the paper above, answer in one sentence: "
            "{query}"
        ),
    },
    default_template="context_first",
    needs_hub=False,
    load=partial(load_aclsum, "aclsum_aspects", _read_aspects),
)
