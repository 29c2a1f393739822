"""HELMET's settings of NarrativeQA and Multi-LexSum, as `helmet_narrativeqa` and `helmet_multi_lexsum`.

    accelerate launch eval/run.py --task helmet_narrativeqa --sample 100 --min-words 95000 --maxlen 8192 65536
    accelerate launch eval/run.py --task helmet_multi_lexsum --data lexsum/ --on-bad-row skip --maxlen 16384

NarrativeQA is read from the Parquet files of the hub, or from such a file or JSON lines of a question each:

    {"document": {"id": "...", "text": "..."}, "question": {"text": "..."}, "answers": [{"text": "..."}, ...]}

Multi-LexSum is read from JSON lines, or a folder with `train.jsonl` and `validation.jsonl`, which docs/tasks.md says
how to write: the hub has it as a program that joins its files. Cases without a short summary are left out, as there.

    {"id": "...", "sources": ["...", "..."], "summary/short": "..."}

The template `helmet` makes HELMET's prompts, `helmet-plain` those for models without a chat template: two solved
examples of the training split without their documents, the document, which alone is cut and keeps its beginning, and
what to do. Here all prompts of a run have the same two, drawn by `--shots-seed`. Texts are used as they are, white
space at their ends included.

HELMET ranks by judgements of GPT-4. The scores here are those that its code computes beside them.

Source: `load_narrativeqa` and `load_multi_lexsum` in data.py, configs/longqa.yaml and configs/summ.yaml of
princeton-nlp/HELMET at 4526dfb. Its prompts are used here (MIT licence, Copyright (c) 2024 Princeton Natural Language
Processing).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.rows import Row, collect, document_names

HUB_ID = "deepmind/narrativeqa"
REVISION = "2e643e7363944af1c33a652d1c87320d0871c4e4"
_NOTE = " ... [the rest of the text is omitted]"
_FIELDS = ("document", "question", "answers")


def load_narrativeqa(request: LoadRequest) -> LoadedExamples:
    """Return one example a question; the questions about one story share `document_id`."""
    if request.data is None:
        rows = hub_rows(HUB_ID, (f"data/{request.split}-*.parquet",), request=request, columns=_FIELDS)
    else:
        rows = data_rows(request.data, request.split, columns=_FIELDS)

    def read(row: Row) -> Iterator[Example]:
        document, answers = row.row("document"), row.rows("answers")
        if not answers:
            raise DataError(f"{row.where}: field 'answers' is empty; give it an answer or take the row out")
        yield Example(
            id=row.name(request.split),
            document_id=document.name_of("id"),
            context=_as_it_is(document, "text"),
            references=tuple(dict.fromkeys(_as_it_is(answer, "text") for answer in answers)),
            query=_as_it_is(row.row("question"), "text"),
        )

    return collect(request, rows, read)


def load_multi_lexsum(request: LoadRequest) -> LoadedExamples:
    """Return one example a case that has a short summary."""
    if request.data is None:
        raise DataError(
            "task helmet_multi_lexsum has no data of its own, and allenai/multi_lexsum on the hub is a program that is "
            "not run here; give --data JSON lines with id, sources and summary/short, which docs/tasks.md says how to "
            "write from its files"
        )
    rows = data_rows(request.data, request.split)
    name_document = document_names(f"{request.split}-case")

    def read(row: Row) -> Iterator[Example]:
        if row.fields.get("summary/short", "") is None:
            rows.num_skipped += 1
            return
        context = "\n\n".join(row.texts("sources"))
        if not context.strip():
            raise DataError(f"{row.where}: field 'sources' has no text; give it documents or take the row out")
        yield Example(
            id=row.name(request.split),
            document_id=name_document(context),
            context=context,
            references=(_as_it_is(row, "summary/short"),),
        )

    return collect(request, rows, read)


def _as_it_is(row: Row, field: str) -> str:
    """Return a text with the white space at its ends. Raises `DataError` as `Row.text`."""
    row.text(field)
    return str(row.fields[field])


def helmet_templates(text: str, cue: str, shot: str, shots: str, aside: int = 200) -> dict[str, Template]:
    """Return HELMET's prompts, with a chat template and without.

    Args:
        text: Text of the prompt.
        cue: What follows it without a chat template.
        shot: A solved example without its document.
        shots: What stands around all of them.
        aside: Tokens that HELMET's configs leave free beside document and answer.
    """
    # HELMET counts the token that begins a document too.
    published = Template(text=text, shot=shot, shots=shots, note=_NOTE, aside=aside + 1)
    return {"helmet": published, "helmet-plain": replace(published, text=text + cue, chat=False)}


_STORIES = ("the bridge", "the mill", "the gate", "the road")

HELMET_NARRATIVEQA = Task(
    name="helmet_narrativeqa",
    description="HELMET: book or film script and question -> short answer",
    source=f"hub {HUB_ID}; --data takes its records as Parquet or JSON lines, or a folder with a file for each split",
    licence="Apache-2.0 (its card); stories of Project Gutenberg, scripts of several sites",
    splits={"train": 32_747, "validation": 3_461, "test": 10_557},
    read=load_narrativeqa,
    templates=helmet_templates(
        "You are given a story, which can be either a novel or a movie script, and a question. Answer the question as "
        "concisely as you can, using a single phrase if possible.\n\n{shots}{context}\n\nQuestion: {query}",
        "\nAnswer:",
        "Question: {query}\nAnswer: {answer}",
        "For example:\n\n{shots}\n\nNow, use the following story to answer the question:\n\n",
    ),
    default_template="helmet",
    max_new_tokens=100,
    profile="helmet_answer",
    revision=REVISION,
    shots=2,
    sample={
        "test.jsonl": [
            {
                "document": {"id": f"{index:040x}", "text": f"It rained. The river rose, and {place} was closed."},
                "question": {"text": "What was closed?"},
                "answers": [{"text": place}, {"text": f"{place} of the town"}],
            }
            for index, place in enumerate(_STORIES)
        ]
    },
)

HELMET_MULTI_LEXSUM = Task(
    name="helmet_multi_lexsum",
    description="HELMET: documents of a lawsuit -> summary of one paragraph",
    source="--data takes JSON lines with id, sources and summary/short of allenai/multi_lexsum, or a folder of them",
    licence="ODC-By; summaries CC BY-NC 4.0; documents in the public domain",
    splits={"train": None, "validation": None, "test": None},
    needs_data=True,
    read=load_multi_lexsum,
    templates=helmet_templates(
        "You are given the legal documents in a civil rights lawsuit, and you are tasked to summarize the case. Write "
        "a concise summary of one paragraph (200 to 250 words). The summary should contain a short description of the "
        "background, the parties involved, and the outcomes of the case.\n\n{shots}Legal documents:\n{context}\n\nNow "
        "please summarize the case.",
        "\n\nSummary:",
        "Summary: {answer}",
        "Example summaries:\n\n{shots}\n\nNow, write a summary of the following legal documents.\n",
        aside=300,
    ),
    default_template="helmet",
    default_split="validation",
    max_new_tokens=400,
    profile="helmet_summary",
    shots=2,
    sample={
        "validation.jsonl": [
            {
                "id": f"XX-{index:04}",
                "sources": [f"COMPLAINT. It rained, and {place} was closed.", f"ORDER. The town opens {place}."],
                "summary/short": f"A town closed {place}, and the court opened it.",
            }
            for index, place in enumerate(_STORIES)
        ]
    },
)

HELMET_TASKS = {task.name: task for task in (HELMET_NARRATIVEQA, HELMET_MULTI_LEXSUM)}
