"""HELMET's settings of the English books of InfiniteBench: questions, choices and summaries, as `helmet_infbench_NAME`.

    accelerate launch eval/run.py --task helmet_infbench_choice --maxlen 8192 16384
    accelerate launch eval/run.py --task helmet_infbench_qa --data longbook_qa_eng.jsonl --maxlen 65536 --limit 100

Files `longbook_NAME_eng.jsonl` of the hub's data set, with a text in `answer` or a list:

    {"id": 0, "context": "...", "input": "Where ...?", "answer": ["the mill"], "options": ["the mill", ...]}

Texts are used as they are, white space at their ends included.

The template `helmet` makes HELMET's prompts, `helmet-plain` those for models without a chat template: two solved
examples whose stories are not shown, the story, which alone is cut and keeps its beginning, and the question. Here all
prompts of a run have the same two, drawn by `--shots-seed`, and questions about their stories are not scored.

Source: `load_infbench` in data.py, configs/longqa.yaml and configs/summ.yaml of princeton-nlp/HELMET at 4526dfb. Its
prompts are used here (MIT licence, Copyright (c) 2024 Princeton Natural Language Processing).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.helmet import helmet_templates
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.rows import Row, collect, document_names

HUB_ID = "xinrongzhang2022/InfiniteBench"
REVISION = "90f0394333616266d9fe85824ceaf505093cbaa5"
LETTERS = ("A", "B", "C", "D")
_AROUND = "For example:\n\n{shots}\n\nNow, read the following story:\n\n"


def load_infinite_bench(name: str, request: LoadRequest) -> LoadedExamples:
    """Return one example a record of `longbook_NAME_eng.jsonl`; records with the same book share `document_id`."""
    file = f"longbook_{name}_eng"
    if request.data is None:
        rows = hub_rows(HUB_ID, (f"{file}.jsonl",), request=request)
    else:
        rows = data_rows(request.data, request.split, file)
    name_document = document_names(f"{request.split}-book")

    def read(row: Row) -> Iterator[Example]:
        row.text("context")  # checks
        context, references, query = row.fields["context"], row.references("answer"), None
        if name != "sum":
            row.text("input")
            query = row.fields["input"]
        if name == "qa":  # of the other two HELMET shows no answer with blanks at its ends
            answer = row.fields["answer"]
            references = tuple(dict.fromkeys(answer if isinstance(answer, list) else (answer,)))
        if name == "choice":
            options = row.texts("options")
            if len(options) != len(LETTERS) or references[0] not in [option.strip() for option in options]:
                raise DataError(
                    f"{row.where}: field 'answer' is {references[0][:80]!r}; expected one of the four of 'options', "
                    f"which are {len(options)}"
                )
            listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
            right = [option.strip() for option in options].index(references[0])
            query, references = "\n".join([query or "", "Options:", *listed]), (LETTERS[right], listed[right])
        yield Example(
            id=row.name(request.split),
            document_id=name_document(context),
            context=context,
            references=references,
            query=query,
        )

    return collect(request, rows, read)


def _templates(text: str, cue: str, shot: str) -> dict[str, Template]:
    return helmet_templates(text, f"\n\n{cue}", f"[story text]\n{shot}", _AROUND)


def _questions(instruction: str) -> dict[str, Template]:
    text = f"You are given a story and a question{instruction}\n\n{{shots}}{{context}}\n\nQuestion: {{query}}"
    return _templates(text, "Answer:", "Question: {query}\nAnswer: {answer}")


def _sample(name: str, answers: Sequence[str]) -> dict[str, list[dict[str, object]]]:
    records: list[dict[str, object]] = [
        {
            "id": index,
            "context": f"It rained for {index + 2} days. The river rose, and {answer} was closed.",
            "input": "" if name == "sum" else "What was closed?",
            "answer": [answer],
            "options": ["the gate", "the bridge", "the mill", "the road"] if name == "choice" else [],
        }
        for index, answer in enumerate(answers)
    ]
    return {f"longbook_{name}_eng.jsonl": records}


def _task(
    name: str,
    description: str,
    templates: dict[str, Template],
    num_examples: int,
    max_new_tokens: int,
    profile: str,
) -> Task:
    return Task(
        name=f"helmet_infbench_{name}",
        version=2,
        description=f"HELMET: {description}",
        source=f"hub {HUB_ID}; --data takes longbook_{name}_eng.jsonl, or a folder with it",
        licence="not stated for the books; names in them are changed",
        splits={"test": num_examples},
        read=partial(load_infinite_bench, name),
        templates=templates,
        default_template="helmet",
        max_new_tokens=max_new_tokens,
        profile=profile,
        revision=REVISION,
        shots=2,
        shots_split="test",
        sample=_sample(name, ("the bridge", "the mill", "the gate", "the road")),
    )


_TASKS = (
    _task(
        "qa",
        "book and question -> short answer",
        _questions(". Answer the question as concisely as you can, using a single phrase if possible."),
        351,
        10,
        "helmet_qa",
    ),
    _task(
        "choice",
        "book, question and four options -> letter of the right one",
        _questions(
            " with multiple choices. Choose the best answer from the options provided. Only one of the following "
            "options is correct, output the answer using one single letter (A, B, C, or D). Don't say anything else."
        ),
        229,
        10,
        "helmet_choice",
    ),
    _task(
        "sum",
        "book -> summary of 1,000 to 1,200 words",
        _templates(
            "You are given a book and you are tasked to summarize it. Write a summary of about 1000 to 1200 words. "
            "Only write about the plot and characters of the story. Do not discuss the themes or background of the "
            "book. Do not provide any analysis or commentary.\n\n{shots}{context}\n\nNow summarize the book.",
            "Summary:",
            "Summary: {answer}",
        ),
        103,
        1_200,
        "hf",
    ),
)

INFINITE_BENCH_TASKS = {task.name: task for task in _TASKS}
