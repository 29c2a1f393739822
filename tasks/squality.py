"""SQuALITY: story and question -> answer in a paragraph, beside four of people.

    accelerate launch eval/run.py --task squality --data squality/ --maxlen 8192
    accelerate launch eval/run.py --task squality --data squality/ --split test --template zeroscrolls --maxlen 8192

`--data` takes a file of the original release, one story a line, or the folder of its files (`dev.jsonl`):

    {"metadata": {"passage_id": "63833"}, "document": "...",
     "questions": [{"question_text": "What is the plot of the story?", "question_number": 1,
                    "responses": [{"response_text": "..."}, ...]}]}

Each score is that against the best of the four references. The template `zeroscrolls` is the prompt of ZeroSCROLLS,
arXiv 2305.14196, which asks the questions of the test split and ranks by the same geometric mean of ROUGE. It notes in
the prompt that the rest of a story is left out; prompts here do not, so scores are comparable for models whose length
holds the whole story (5,000 words), whose prompts are the same.

Source: nyu-mll/SQuALITY, data/v1-3/txt; paper arXiv 2205.11465.
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.base import DataError, Example, LoadedExamples, LoadRequest, Task, Template, query_templates
from tasks.readers.files import data_rows
from tasks.readers.rows import Row, collect


def load_squality(request: LoadRequest) -> LoadedExamples:
    """Return one example a question; the questions about one story share `document_id`."""
    if request.data is None:
        raise DataError(
            "task squality has no data of its own; give --data the folder of train.jsonl, dev.jsonl and test.jsonl in "
            "github.com/nyu-mll/SQuALITY (data/v1-3/txt)"
        )

    def read(row: Row) -> Iterator[Example]:
        story, context = row.row("metadata").name_of("passage_id"), row.text("document")
        for question in row.rows("questions"):
            answers = [one.text("response_text") for one in question.rows("responses")]
            if not answers:
                raise DataError(
                    f"{question.where}: field 'responses' is empty; the references of this split are hidden"
                )
            yield Example(
                id=f"{story}-{question.name_of('question_number')}",
                document_id=story,
                context=context,
                references=tuple(dict.fromkeys(answers)),
                query=question.text("question_text"),
            )

    return collect(request, data_rows(request.data, request.split), read)


SQUALITY = Task(
    name="squality",
    description="short story and question -> answer in a paragraph, beside four references",
    source="--data takes a file of nyu-mll/SQuALITY (data/v1-3/txt), or their folder",
    licence="CC BY 4.0 (questions and answers); stories of Project Gutenberg",
    splits={"train": 250, "validation": 125, "test": 260},
    needs_data=True,
    read=load_squality,
    templates={
        **query_templates(
            "Here is a story.\n\n",
            "\n\nAnswer the question about the story above in one paragraph: {query}",
            "\n\nAnswer:",
        ),
        "zeroscrolls": Template(
            text="You are given a story and a question. Answer the question in a paragraph.\n\nStory:\n{context}\n\n"
            "Question:\n{query}\n\nAnswer:\n"
        ),
    },
    default_template="context_first",
    default_split="validation",
    max_new_tokens=512,
    profile="scrolls",
    sample={
        "test.jsonl": [
            {
                "metadata": {"passage_id": f"7{index}"},
                "document": f"It rained for {index} days. The river rose, and the bridge was closed.",
                "questions": [
                    {
                        "question_text": question,
                        "question_number": number,
                        "responses": [{"response_text": f"{answer} {person}"} for person in ("one.", "two.")],
                    }
                    for number, (question, answer) in enumerate((("What happens?", "Rain,"), ("Why?", "Water,")), 1)
                ],
            }
            for index in (2, 3)
        ]
    },
)
