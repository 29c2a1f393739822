"""LongBench v2: long text, question and four choices -> the letter of the right one.

    python -c 'from datasets import load_dataset as load; load("zai-org/LongBench-v2")["train"].to_json("test.jsonl")'
    accelerate launch eval/run.py --task longbench2 --data test.jsonl --on-bad-row skip --maxlen 32768

    {"_id": "...", "difficulty": "easy", "length": "short", "question": "...", "choice_A": "...", "choice_B": "...",
     "choice_C": "...", "choice_D": "...", "answer": "A", "context": "..."}

Records whose text is longer than 4 MiB are bad rows. Prompt, truncation, room for the answer and scoring are those of
LongBench v2 without chain of thought, so accuracy is comparable with the column of that name in arXiv 2412.15204, Table
2, but for two things: it samples at temperature 0.1, greedy decoding here does not; and its length counts the prompt
without chat markup. `stratum` is difficulty and length, by which it reports accuracy too.

Source: pred.py and prompts/0shot.txt of THUDM/LongBench at 2e00731 (MIT licence, Copyright (c) 2023 THU-KEG & Zhipu
AI).
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template
from tasks.readers.files import data_rows
from tasks.readers.rows import Row, collect, document_names

LETTERS = ("A", "B", "C", "D")


def load_longbench2(request: LoadRequest) -> LoadedExamples:
    """Return one example a question; questions about the same text share `document_id`."""
    if request.data is None:
        raise DataError(
            "task longbench2 has no data of its own; give --data the records of zai-org/LongBench-v2 as JSON lines or "
            "Parquet (python -m tasks show longbench2)"
        )
    name_document = document_names(f"{request.split}-document")

    def read(row: Row) -> Iterator[Example]:
        context, answer = row.text("context"), row.text("answer")
        if answer not in LETTERS:
            raise DataError(f"{row.where}: field 'answer' is {answer[:40]!r}; expected {', '.join(LETTERS)}")
        choices = [f"({letter}) {row.text(f'choice_{letter}')}" for letter in LETTERS]
        yield Example(
            id=row.text("_id"),
            document_id=name_document(context),
            context=context,
            references=(answer,),
            query="\n".join([row.text("question"), "Choices:", *choices]),
            stratum=f"{row.text('difficulty')}, {row.text('length')}",
        )

    return collect(request, data_rows(request.data, request.split), read)


LONGBENCH2 = Task(
    name="longbench2",
    description="LongBench v2: long text, question and four choices -> letter",
    source="--data takes the records of zai-org/LongBench-v2 as JSON lines or Parquet",
    licence="Apache-2.0 (its card); that of each text is not stated there",
    splits={"test": 503},
    needs_data=True,
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
