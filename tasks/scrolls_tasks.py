"""SCROLLS without QMSum, which has a file of its own: summaries, answers and choices over long documents.

    accelerate launch eval/run.py --task gov_report,qasper --maxlen 4096 8192 --limit 50
    accelerate launch eval/run.py --task quality --data quality.zip --maxlen 8192

One line a reference: the question, a blank line, and the document (`readers.scrolls_lines`):

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
from functools import partial

from tasks.base import (
    SPLIT_NAMES,
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    Template,
    question_templates,
    template_variants,
)
from tasks.readers.rows import Row, collect, document_names
from tasks.readers.scrolls_lines import HUB_ID, REVISION, ScrollsItem, sample_lines, scrolls_rows

LABELS = ("Entailment", "Contradiction", "Not mentioned")
_OPTION = re.compile(r"(?:^|\s)\([A-D]\)\s*")
SAMPLE_OPTIONS = " (A) The bridge\n (B) The road\n (C) The school\n (D) Nothing"

ReadInput = Callable[[ScrollsItem], tuple[str | None, str]]
"""Returns the query and the document of an item, or raises `DataError`."""


def read_document(item: ScrollsItem) -> tuple[None, str]:
    """Return no query, and the document."""
    return None, item.input.strip()


def read_options(item: ScrollsItem) -> tuple[str, str]:
    """Return question and options, and the document; the references are options, word for word."""
    question, rest = item.query_and_document()
    last = rest.find("(D)")
    end = rest.find("\n\n", last)
    if last < 0 or end < 0 or not rest[end:].strip():
        raise DataError(
            f"{item.where}: field 'input' has no options (A) to (D) between the question and the document, each part "
            "ended by a blank line"
        )
    options = {" ".join(option.split()) for option in _OPTION.split(rest[:end])[1:]}
    for reference in item.references:
        if " ".join(reference.split()) not in options:
            raise DataError(f"{item.where}: field 'output' is {reference[:80]!r}, which is none of the options")
    return f"{question}\n\n{rest[:end].strip()}", rest[end:].strip()


def read_statement(item: ScrollsItem) -> tuple[str, str]:
    """Return statement and contract; the references are labels."""
    for reference in item.references:
        if reference not in LABELS:
            raise DataError(f"{item.where}: field 'output' is {reference[:80]!r}; expected {', '.join(LABELS)}")
    return item.query_and_document()


# fd_Charmed_01x18: the show, its season, and the episode.
_EPISODE = re.compile(r"(?:fd_)?(.+?)[_-]\d+x\d+.*")


def _show_of(name: str) -> str | None:
    """Return the show of an episode, which its id names before season and number; None where it does not."""
    found = _EPISODE.fullmatch(name)
    return found and found[1]


def load_scrolls(task: str, read_input: ReadInput, request: LoadRequest) -> LoadedExamples:
    """Return one example an id; examples with the same document share `document_id`."""
    name_document = document_names(f"{request.split}-document")

    def read(item: Row | ScrollsItem) -> Iterator[Example]:
        if isinstance(item, Row):
            item.text("input")  # raises: rows that have one were merged
            raise AssertionError(item.where)
        query, context = read_input(item)
        yield Example(
            id=item.id,
            document_id=name_document(context),
            cluster_id=_show_of(item.id) if task == "summ_screen_fd" else None,
            context=context,
            references=item.references,
            query=query,
        )

    return collect(request, scrolls_rows(task, request), read)


def _task(
    name: str,
    description: str,
    *,
    sizes: tuple[int, int, int],
    templates: Mapping[str, Template],
    max_new_tokens: int,
    profile: str,
    outputs: tuple[str, str, str],
    query: str | None = None,
    read_input: ReadInput = ScrollsItem.query_and_document,
    licence: str = "not stated by SCROLLS",
) -> Task:
    """Return a task on the set of that name; `query` and `outputs` make its sample."""
    return Task(
        name=name,
        description=description,
        source=f"hub {HUB_ID} {name}.zip; --data takes that file, JSON lines, or a folder with one of them",
        licence=licence,
        splits=dict(zip(SPLIT_NAMES, sizes, strict=True)),
        read=partial(load_scrolls, name, read_input),
        templates=templates,
        default_template=next(iter(templates)),
        default_split="validation",
        max_new_tokens=max_new_tokens,
        profile=profile,
        revision=REVISION,
        sample=sample_lines(name, query, *outputs),
    )


_TASKS = (
    _task(
        "gov_report",
        "government report -> summary",
        licence="CC BY 4.0",
        sizes=(17_457, 972, 973),
        read_input=read_document,
        templates=template_variants(
            "instruct",
            "Summarize the following government report.\n\n",
            "\n\nSummarize the report above in several paragraphs.",
            "\n\nSummary:",
        ),
        max_new_tokens=512,
        profile="scrolls",
        outputs=("It rained.", "The bridge closed.", "Nobody was hurt."),
    ),
    _task(
        "summ_screen_fd",
        "transcript of a TV episode -> recap",
        sizes=(3_673, 338, 337),
        read_input=read_document,
        templates=template_variants(
            "instruct",
            "Write a recap of the following TV episode.\n\n",
            "\n\nWrite a recap of the episode above in one paragraph.",
            "\n\nRecap:",
        ),
        max_new_tokens=256,
        profile="scrolls",
        outputs=("It rains.", "A bridge is closed.", "All are well."),
    ),
    _task(
        "qasper",
        "research paper and question -> short answer, Yes, No or Unanswerable",
        licence="CC BY 4.0",
        sizes=(2_567, 1_726, 1_399),
        templates=question_templates(
            "a research paper",
            "Answer the following question from the paper as briefly as you can, with words of the paper where "
            "possible. Say only Yes or No where that answers it, and only Unanswerable where the paper does not.",
        ),
        max_new_tokens=128,
        profile="f1",
        query="Was it closed?",
        outputs=("Yes", "Unanswerable", "the bridge"),
    ),
    _task(
        "narrative_qa",
        "book or film script and question -> short answer",
        sizes=(55_003, 5_878, 10_306),
        templates=question_templates(
            "a book or a film script",
            "Answer the following question about the story in a few words, without an explanation.",
        ),
        max_new_tokens=128,
        profile="f1",
        query="What was closed?",
        outputs=("The bridge", "A bridge.", "bridge"),
    ),
    _task(
        "quality",
        "article or story, question and four options -> text of the right option",
        sizes=(2_523, 2_086, 2_128),
        read_input=read_options,
        templates=question_templates(
            "an article or a story",
            "Answer the following question about the text. Write down the right option word for word, without its "
            "letter and with nothing else.",
        ),
        max_new_tokens=64,
        profile="exact_match",
        query=f"What was closed?\n\n{SAMPLE_OPTIONS}",
        outputs=("The bridge", "The  road", "Nothing"),
    ),
    _task(
        "contract_nli",
        f"contract and statement -> {', '.join(LABELS)}",
        licence="CC BY 4.0",
        sizes=(7_191, 1_037, 2_091),
        read_input=read_statement,
        templates=question_templates(
            "a contract",
            "Does the contract entail the following statement, contradict it, or not mention it? Answer with one of "
            "these and nothing else: Entailment, Contradiction, Not mentioned.",
            "Statement: {query}",
        ),
        max_new_tokens=16,
        profile="exact_match",
        query="A bridge stays open.",
        outputs=LABELS,
    ),
)

SCROLLS_TASKS = {task.name: task for task in _TASKS}
