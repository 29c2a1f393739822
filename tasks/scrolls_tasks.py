"""SCROLLS without QMSum, which has a file of its own: summaries, answers and choices over long documents.

    accelerate launch eval/run.py --task gov_report,qasper --maxlen 4096 8192 --limit 50
    accelerate launch eval/run.py --task quality --data quality.zip --maxlen 8192

One line a reference; what is asked about comes first, then a blank line, then the document (`readers.scrolls_lines`):

    {"id": "1", "pid": "1_0", "input": "DOCUMENT", "output": "SUMMARY"}                       gov_report, summ_screen_fd
    {"id": "1", "pid": "1_0", "input": "QUESTION\\n\\nDOCUMENT", "output": "ANSWER"}           qasper, narrative_qa
    {..., "input": "STATEMENT\\n\\nDOCUMENT", "output": "Entailment"}                         contract_nli
    {..., "input": "QUESTION\\n\\n (A) ...\\n (B) ... (D) ...\\n\\nDOCUMENT", "output": "TEXT OF (B)"}    quality

Question and options are the query, which truncation never cuts. Prompts are our own words.

Source: shapes as read by `tasks/scrolls/task.py` of lm-evaluation-harness 0.4; sizes and metrics of arXiv 2201.03533.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from tasks.base import (
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    Template,
    question_templates,
    template_variants,
)
from tasks.readers.scrolls_lines import HUB_ID, REVISION, ScrollsRow, scrolls_rows
from tasks.readers.sources import Row, check_request, collect, document_names

LABELS = ("Entailment", "Contradiction", "Not mentioned")
_OPTION = re.compile(r"(?:^|\s)\([A-D]\)\s*")


def read_document(row: ScrollsRow) -> tuple[None, str]:
    """Return the document, which nothing is asked about."""
    return None, row.input.strip()


def read_options(row: ScrollsRow) -> tuple[str, str]:
    """Return question and options, and the document; the references are options, word for word."""
    question, rest = row.query_and_document()
    last = rest.find("(D)")
    end = rest.find("\n\n", last)
    if last < 0 or end < 0 or not rest[end:].strip():
        raise DataError(
            f"{row.where}: field 'input' has no options (A) to (D) between the question and the document, each part "
            "ended by a blank line"
        )
    options = {" ".join(option.split()) for option in _OPTION.split(rest[:end])[1:]}
    for reference in row.references:
        if " ".join(reference.split()) not in options:
            raise DataError(f"{row.where}: field 'output' is {reference[:80]!r}, which is none of the options")
    return f"{question}\n\n{rest[:end].strip()}", rest[end:].strip()


def read_statement(row: ScrollsRow) -> tuple[str, str]:
    """Return statement and contract; the references are labels."""
    for reference in row.references:
        if reference not in LABELS:
            raise DataError(f"{row.where}: field 'output' is {reference[:80]!r}; expected {', '.join(LABELS)}")
    return row.query_and_document()


def load_scrolls(
    task: str,
    splits: Mapping[str, int | None],
    read_input: Callable[[ScrollsRow], tuple[str | None, str]],
    request: LoadRequest,
) -> LoadedExamples:
    """Return one example an id; examples with the same document share `document_id`.

    Args:
        task: Its name, which is that of the set.
        splits: Of the task.
        read_input: Returns query and document of a row, or raises `DataError`.
        request: What is asked for.

    Raises:
        DataError: The request, the hub or the file is at fault.
    """
    check_request(task, request, splits)
    name_document = document_names(f"{request.split}-document")

    def read(row: Row | ScrollsRow) -> Iterator[Example]:
        if isinstance(row, Row):
            row.text("input")  # raises: rows that have one were put together
            raise AssertionError(row.where)
        query, context = read_input(row)
        yield Example(
            id=row.id,
            document_id=name_document(context),
            context=context,
            references=row.references,
            query=query,
        )

    return collect(request, scrolls_rows(task, request), read)


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What one of the sets has of its own; the attributes are those of `Task`."""

    description: str
    licence: str
    sizes: tuple[int, int, int]
    read_input: Callable[[ScrollsRow], tuple[str | None, str]]
    templates: Mapping[str, Template]
    default_template: str
    max_new_tokens: int
    profile: str

    def task(self, name: str) -> Task:
        splits = dict(zip(("train", "validation", "test"), self.sizes, strict=True))
        return Task(
            name=name,
            version=1,
            description=self.description,
            source=f"hub {HUB_ID} {name}.zip; --data takes that file, JSON lines, or a folder with one of them",
            licence=self.licence,
            splits=splits,
            default_split="validation",
            max_new_tokens=self.max_new_tokens,
            templates=self.templates,
            default_template=self.default_template,
            needs_hub=True,
            read=partial(load_scrolls, name, splits, self.read_input),
            profile=self.profile,
            revision=REVISION,
        )


_NOT_STATED = "not stated by SCROLLS"

_SETS = {
    "gov_report": _Set(
        description="government report -> summary",
        licence="CC BY 4.0",
        sizes=(17_457, 972, 973),
        read_input=read_document,
        templates=template_variants(
            "instruct",
            "Summarize the following government report.\n\n",
            "\n\nSummarize the report above in several paragraphs.",
            "\n\nSummary:",
        ),
        default_template="instruct",
        max_new_tokens=512,
        profile="scrolls",
    ),
    "summ_screen_fd": _Set(
        description="transcript of a TV episode -> recap",
        licence=_NOT_STATED,
        sizes=(3_673, 338, 337),
        read_input=read_document,
        templates=template_variants(
            "instruct",
            "Write a recap of the following TV episode.\n\n",
            "\n\nWrite a recap of the episode above in one paragraph.",
            "\n\nRecap:",
        ),
        default_template="instruct",
        max_new_tokens=256,
        profile="scrolls",
    ),
    "qasper": _Set(
        description="research paper and question -> short answer, Yes, No or Unanswerable",
        licence="CC BY 4.0",
        sizes=(2_567, 1_726, 1_399),
        read_input=ScrollsRow.query_and_document,
        templates=question_templates(
            "a research paper",
            "Answer the following question from the paper as briefly as you can, with words of the paper where "
            "possible. Say only Yes or No where that answers it, and only Unanswerable where the paper does not.",
        ),
        default_template="context_first",
        max_new_tokens=128,
        profile="f1",
    ),
    "narrative_qa": _Set(
        description="book or film script and question -> short answer",
        licence=_NOT_STATED,
        sizes=(55_003, 5_878, 10_306),
        read_input=ScrollsRow.query_and_document,
        templates=question_templates(
            "a book or a film script",
            "Answer the following question about the story in a few words, without an explanation.",
        ),
        default_template="context_first",
        max_new_tokens=128,
        profile="f1",
    ),
    "quality": _Set(
        description="article or story, question and four options -> text of the right option",
        licence=_NOT_STATED,
        sizes=(2_523, 2_086, 2_128),
        read_input=read_options,
        templates=question_templates(
            "an article or a story",
            "Answer the following question about the text. Write down the right option word for word, without its "
            "letter and with nothing else.",
        ),
        default_template="context_first",
        max_new_tokens=64,
        profile="exact_match",
    ),
    "contract_nli": _Set(
        description=f"contract and statement -> {', '.join(LABELS)}",
        licence="CC BY 4.0",
        sizes=(7_191, 1_037, 2_091),
        read_input=read_statement,
        templates=question_templates(
            "a contract",
            "Does the contract entail the following statement, contradict it, or not mention it? Answer with one of "
            "these and nothing else: Entailment, Contradiction, Not mentioned.",
            "Statement: {query}",
        ),
        default_template="context_first",
        max_new_tokens=16,
        profile="exact_match",
    ),
}

SCROLLS_TASKS = {name: about.task(name) for name, about in _SETS.items()}
