"""LongBench's English sets that are scored by F1 of words or by ROUGE, as tasks `longbench_NAME`.

    accelerate launch eval/run.py --task longbench_hotpotqa,longbench_samsum --truncation middle --maxlen 8192

The hub has one zip file with `data/NAME.jsonl`:

    {"input": "Which ...?", "context": "Passage 1:\\n...", "answers": ["..."], "length": 9151, "dataset": "hotpotqa",
     "language": "en", "all_classes": null, "_id": "..."}

`input` is the question, or empty; it is never cut. Lengths of answers, metrics and the first line that is scored in
few-shot sets are LongBench's, and so is that few-shot prompts get no chat template. **Prompts are our own words, so
that scores are not those that LongBench publishes.** It drops the middle of a prompt; `--truncation middle` drops that
of the context alone.

Left out: `trec` and `lsht` (classes, by accuracy), `passage_count` and `passage_retrieval_en` (numbers), `lcc` and
`repobench-p` (code, by edit distance), whose metrics are not here; Chinese sets, whose words need a segmenter; and
the evenly distributed LongBench-E.

Source: THUDM/LongBench on GitHub, config/dataset2maxlen.json at f6227eb, and its pred.py and eval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from tasks.base import (
    DataError,
    Example,
    LoadedExamples,
    LoadRequest,
    Task,
    Template,
    query_templates,
    question_templates,
    template_variants,
)
from tasks.readers.files import data_rows
from tasks.readers.hub import hub_rows
from tasks.readers.rows import Row, collect, document_names

HUB_ID = "zai-org/LongBench"
REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
_BRIEFLY = "in as few words as possible, without an explanation"


def load_longbench(name: str, asks: bool, request: LoadRequest) -> LoadedExamples:
    """Return one example a record of LongBench's set `name`; records with the same context share `document_id`."""
    member = f"data/{name}.jsonl"
    if request.data is None:
        rows = hub_rows(HUB_ID, ("data.zip",), request=request, member=member)
    else:
        rows = data_rows(request.data, request.split, name, member=member)
    name_document = document_names(f"{request.split}-document")

    def read(row: Row) -> Iterator[Example]:
        if (other := row.fields.get("dataset", name)) != name:
            raise DataError(f"{row.where}: field 'dataset' is {other!r}; expected '{name}', whose prompts these are")
        context = row.text("context")
        query = row.text("input", may_be_empty=not asks)
        if query and not asks:
            raise DataError(f"{row.where}: field 'input' is {query[:80]!r}; {name} asks nothing, and it is empty there")
        yield Example(
            id=row.text("_id"),
            document_id=name_document(context),
            context=context,
            references=row.references("answers"),
            query=query or None,
        )

    return collect(request, rows, read)


def _sample(name: str, asks: bool) -> dict[str, list[dict[str, object]]]:
    text = "It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."
    records: list[dict[str, object]] = [
        {
            "input": "Question: What was closed?\nAnswer: " if asks else "",
            "context": f"Passage {i}:\n{text}",
            "answers": ["the bridge", "a bridge"],
            "length": 14,
            "dataset": name,
            "language": "en",
            "all_classes": None,
            "_id": f"{i:048x}",
        }
        for i in range(3)
    ]
    return {f"data.zip/data/{name}.jsonl": records}


def _task(
    name: str,
    description: str,
    templates: Mapping[str, Template],
    max_new_tokens: int,
    profile: str,
    num_examples: int = 200,
    default_template: str = "context_first",
    scores_first_line: bool = False,
) -> Task:
    asks = any("{query}" in template.text for template in templates.values())
    return Task(
        name=f"longbench_{name}",
        description=f"LongBench: {description}; prompts of our own",
        source=f"hub {HUB_ID} data.zip; --data takes that file, its data/ folder or {name}.jsonl",
        licence="MIT (LongBench); that of each set is not stated there",
        splits={"test": num_examples},
        read=partial(load_longbench, name, asks),
        templates=templates,
        default_template=default_template,
        max_new_tokens=max_new_tokens,
        profile=profile,
        revision=REVISION,
        scores_first_line=scores_first_line,
        sample=_sample(name, asks),
    )


def _question(
    name: str, document: str, instruction: str, max_new_tokens: int, description: str, num_examples: int = 200
) -> Task:
    return _task(name, description, question_templates(document, instruction), max_new_tokens, "f1", num_examples)


def _summary(name: str, before: str, after: str, description: str) -> Task:
    templates = template_variants("instruct", before, after, "\n\nSummary:")
    return _task(name, description, templates, 512, "longbench", default_template="instruct")


def _few_shot(name: str, instruction: str, max_new_tokens: int, profile: str, description: str) -> Task:
    # Records end with what introduces the answer, so a plain prompt needs no cue.
    return _task(
        name,
        description,
        template_variants("context_first", instruction, "\n\n{query}", "", once=False),
        max_new_tokens,
        profile,
        default_template="context_first-plain",
        scores_first_line=True,
    )


_TASKS = (
    _question(
        "narrativeqa",
        "a book or a film script",
        f"Answer the following question about the story {_BRIEFLY}.",
        128,
        "book or film script and question -> short answer",
    ),
    _question(
        "qasper",
        "a research paper",
        f"Answer the following question from the paper {_BRIEFLY}. Say only Yes or No where that answers it, and "
        "only Unanswerable where the paper does not.",
        128,
        "research paper and question -> short answer, Yes, No or Unanswerable",
    ),
    _question(
        "multifieldqa_en",
        "a document",
        f"Answer the following question from the document {_BRIEFLY}.",
        64,
        "document and question -> short answer",
        num_examples=150,
    ),
    *(
        _question(
            name,
            "a collection of passages",
            f"Answer the following question from the passages {_BRIEFLY}.",
            32,
            "passages of Wikipedia and question -> short answer",
        )
        for name in ("hotpotqa", "2wikimqa", "musique")
    ),
    _summary(
        "gov_report",
        "Summarize the following government report.\n\n",
        "\n\nSummarize the report above on about one page.",
        "government report -> summary",
    ),
    _task(
        "qmsum",
        "meeting transcript and query -> summary that answers the query",
        query_templates(
            "Here is the transcript of a meeting.\n\n",
            "\n\nUsing the transcript above, answer in one paragraph: {query}",
            "\n\nAnswer:",
        ),
        512,
        "longbench",
    ),
    _summary(
        "multi_news",
        "Summarize the following news articles, which are about one event.\n\n",
        "\n\nSummarize the articles above together, on about one page.",
        "news articles about one event -> summary",
    ),
    _few_shot(
        "triviaqa",
        "Answer the question from the passage, as the examples do.\n\n",
        32,
        "f1",
        "examples, then passage and question -> short answer",
    ),
    _few_shot(
        "samsum",
        "Summarize the dialogue in a few short sentences, as the examples do.\n\n",
        128,
        "longbench",
        "examples, then dialogue -> summary",
    ),
)

LONGBENCH_TASKS = {task.name: task for task in _TASKS}
