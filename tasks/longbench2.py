"""LongBench v2: long text, question and four choices -> the letter of the right one.

    accelerate launch eval/run.py --task longbench2 --on-bad-row skip --maxlen 32768
    accelerate launch eval/run.py --task longbench2 --data test.jsonl --on-bad-row skip --maxlen 32768

The hub has one array of JSON, `data.json`, and its own Parquet conversion of it, which is read here. `--data` takes the
same records as JSON lines or Parquet:

    {"_id": "...", "difficulty": "easy", "length": "short", "question": "...", "choice_A": "...", "choice_B": "...",
     "choice_C": "...", "choice_D": "...", "answer": "A", "context": "..."}

Records whose text is longer than 4 MiB are bad rows. Prompt, truncation, room for the answer and scoring are those of
LongBench v2 without chain of thought, so accuracy is comparable with the column of that name in arXiv 2412.15204, Table
2, but for two things: it samples at temperature 0.1, greedy decoding here does not; and its length counts the prompt
without chat markup. The groups are those of its table: easy and hard questions; short, medium and long texts.

Source: pred.py and prompts/0shot.txt of THUDM/LongBench at 2e00731 (MIT licence, Copyright (c) 2023 THU-KEG & Zhipu
AI).
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.readers.files import data_rows
from tasks.readers.hub import CONVERTED_REVISION, hub_rows
from tasks.readers.rows import Row, collect, document_names

HUB_ID = "zai-org/LongBench-v2"
LETTERS = ("A", "B", "C", "D")
FIELDS = ("_id", "difficulty", "length", "question", *(f"choice_{one}" for one in LETTERS), "answer", "context")


def load_longbench2(request: LoadRequest) -> LoadedExamples:
    """Return one example a question; questions about the same text share `document_id`."""
    if request.data is None:  # the one split that is published is called `train` there
        rows = hub_rows(HUB_ID, ("default/train/*.parquet",), request=request, columns=FIELDS)
    else:
        rows = data_rows(request.data, request.split)
    name_document = document_names(f"{request.split}-document")

    def read(row: Row) -> Iterator[Example]:
        context, answer = row.text("context"), row.text("answer")
        if answer not in LETTERS:
            raise DataError(f"{row.where}: field 'answer' is {answer[:40]!r}; expected {', '.join(LETTERS)}")
        difficulty, length = row.text("difficulty"), row.text("length")
        choices = [f"({letter}) {row.text(f'choice_{letter}')}" for letter in LETTERS]
        yield Example(
            id=row.text("_id"),
            document_id=name_document(context),
            context=context,
            references=(answer,),
            query="\n".join([row.text("question"), "Choices:", *choices]),
            stratum=f"{difficulty}, {length}",
            groups=(difficulty, length),
        )

    return collect(request, rows, read)


LONGBENCH2 = Task(
    name="longbench2",
    description="LongBench v2: long text, question and four choices -> letter",
    source=f"hub {HUB_ID}; --data takes its records as JSON lines or Parquet",
    licence="Apache-2.0 (its card); that of each text is not stated there",
    splits={"test": 503},
    read=load_longbench2,
    templates={
        "longbench": Template(
            text="Please read the following text and answer the question below.\n\n<text>\n{context}\n</text>\n\nWhat "
            "is the correct answer to this question: {query}\n\nFormat your response as follows: "
            '"The correct answer is (insert answer here)".',
            truncation="halves",
        )
    },
    default_template="longbench",
    max_new_tokens=128,
    profile="longbench_choice",
    revision=CONVERTED_REVISION,
    sample={
        "test.jsonl": [
            {
                "_id": f"{index:024x}",
                "difficulty": "easy",
                "length": "short",
                "question": "What was closed?",
                "choice_A": "the gate",
                "choice_B": "the bridge",
                "choice_C": "the mill",
                "choice_D": "nothing",
                "answer": "B",
                "context": f"It rained for {index} days. The river rose, and the bridge was closed.",
            }
            for index in (2, 3)
        ]
    },
)
