"""ACLSum: ACL paper -> abstract, and ACL paper and aspect -> one-sentence summary of that aspect.

    pip install --no-deps aclsum==0.1.2
    accelerate launch eval/run.py --task aclsum_aspects

The package's `dataset/` folder holds `train.jsonl`, `val.jsonl`, `test.jsonl`, and the parsed papers in `paper_jsons/`,
as `SAMPLE` shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from functools import partial

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Sample, Task, query_templates
from tasks.readers.articles import Section, article_text
from tasks.readers.files import read_json, record_rows, require_path
from tasks.readers.rows import Row, collect, file_provenance, package_folder, package_provenance
from tasks.scientific_papers import TEMPLATES

PACKAGE = "aclsum"
PIP_REQUIREMENT = "aclsum==0.1.2"
FILES = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}
SPLITS = {"train": 100, "validation": 50, "test": 100}
QUERIES = {
    "challenge": "What problem or gap in earlier work does the paper address?",
    "approach": "What do the authors do or propose to address it?",
    "outcome": "What do the authors find, or what does the paper contribute?",
}
SAMPLE: Sample = {
    "test.jsonl": [
        {
            "id": "P06-1112",
            "summary": {"challenge": "It rained.", "approach": "They waited.", "outcome": "It stopped."},
        }
    ],
    "paper_jsons/P06-1112.json": """{"abstract": "We study rain.", "pdf_parse": {"body_text": [
        {"section": "Introduction", "text": "It rained for a week, so they waited."}]}}""",
}


def load_aclsum(queries: Mapping[str, str], request: LoadRequest) -> LoadedExamples:
    """Return an example for each paper and query; without queries, one for each paper and its abstract."""
    if request.data is None:
        folder = package_folder(PACKAGE, "dataset", PIP_REQUIREMENT)
    elif not require_path(request.data).is_dir():
        raise DataError(f"{request.data} is a file; give --data a folder with {FILES[request.split]} and paper_jsons/")
    else:
        folder = request.data
    papers = folder / "paper_jsons"
    split_file = folder / FILES[request.split]
    rows = record_rows(split_file)
    files = [split_file, *sorted(papers.glob("*.json"))]
    is_package = request.data is None
    rows.provenance = package_provenance(PACKAGE, files) if is_package else file_provenance(folder, files)

    def read(row: Row) -> Iterator[Example]:
        paper = read_json(papers / f"{row.text('id')}.json")
        abstract = paper.text("abstract")
        context = article_text(_sections(paper.row("pdf_parse")), abstract)
        if not context:
            raise DataError(f"{paper.where}: field 'pdf_parse.body_text' has no text besides the abstract")
        name, summary = row.text("id"), row.row("summary")
        asked: list[tuple[str, str, str | None]] = [
            (f"{name}-{aspect}", summary.text(aspect), query) for aspect, query in queries.items()
        ]
        for id, reference, query in asked or [(name, abstract, None)]:
            yield Example(
                id=id,
                document_id=name,
                context=context,
                references=(reference,),
                query=query,
                stratum=_year(name),
            )

    return collect(request, rows, read)


def _year(paper: str) -> str | None:
    """Return the year of a paper from its name in the ACL Anthology, such as P18-1001 or 2020.acl-main.33."""
    found = re.match(r"(\d{4})\.|[A-Z](\d\d)-", paper)
    if found is None:
        return None
    return found[1] or f"{19 if int(found[2]) > 50 else 20}{found[2]}"


def _sections(pdf_parse: Row) -> Iterator[Section]:
    paragraphs = pdf_parse.rows("body_text")
    for title, group in itertools.groupby(paragraphs, key=lambda row: str(row.fields.get("section") or "")):
        yield Section(title=title, paragraphs=[row.text("text", may_be_empty=True) for row in group])


_SOURCE = f"package {PIP_REQUIREMENT}; --data takes a folder with the split's .jsonl and paper_jsons/"

ACLSUM = Task(
    name="aclsum",
    description="ACL paper -> abstract",
    source=_SOURCE,
    licence="MIT",
    splits=SPLITS,
    read=partial(load_aclsum, {}),
    templates=TEMPLATES,
    sample=SAMPLE,
)

ACLSUM_ASPECTS = Task(
    name="aclsum_aspects",
    version=2,
    description="ACL paper and aspect (challenge, approach, outcome) -> summary of that aspect",
    source=_SOURCE,
    licence="MIT",
    splits={split: len(QUERIES) * size for split, size in SPLITS.items()},
    read=partial(load_aclsum, QUERIES),
    templates=query_templates(
        "Here is a scientific paper.\n\n",
        "\n\nUsing the paper above, answer in one sentence: {query}",
        "\n\nAnswer:",
    ),
    default_template="context_first",
    max_new_tokens=64,
    sample=SAMPLE,
)
