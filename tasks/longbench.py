"""LongBench's English sets that are scored by F1 of words or by ROUGE, as tasks `longbench_NAME`.

    accelerate launch eval/run.py --task longbench_hotpotqa,longbench_samsum --truncation middle --maxlen 8192

The hub has one zip file with `data/NAME.jsonl`:

    {"input": "Which ...?", "context": "Passage 1:\\n...", "answers": ["..."], "length": 9151, "dataset": "hotpotqa",
     "language": "en", "all_classes": null, "_id": "..."}

`input` is what is asked, or empty; it is never cut. Lengths of answers, metrics and the first line that is scored in
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
from dataclasses import dataclass
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
from tasks.readers.sources import Row, check_request, collect, document_names

HUB_ID = "zai-org/LongBench"
REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
_BRIEFLY = "in as few words as possible, without an explanation"


def load_longbench(name: str, splits: Mapping[str, int | None], request: LoadRequest) -> LoadedExamples:
    """Return one example a record; records with the same context share `document_id`.

    Args:
        name: Of the set, as LongBench calls it.
        splits: Of the task.
        request: What is asked for.

    Raises:
        DataError: The request, the hub or the file is at fault.
    """
    check_request(f"longbench_{name}", request, splits)
    member = f"data/{name}.jsonl"
    if request.data is None:
        rows = hub_rows(HUB_ID, ("data.zip",), request=request, member=member)
    else:
        rows = data_rows(request.data, request.split, name, member=member)
    name_document = document_names(f"{request.split}-document")

    def read(row: Row) -> Iterator[Example]:
        if (found := row.fields.get("dataset", name)) != name:
            raise DataError(f"{row.where}: field 'dataset' is {found!r}; expected '{name}', whose prompts these are")
        context = row.text("context")
        query = row.text("input", may_be_empty=not SETS[name].asks)
        if query and not SETS[name].asks:
            raise DataError(f"{row.where}: field 'input' is {query[:80]!r}; {name} asks nothing, and it is empty there")
        yield Example(
            id=row.text("_id"),
            document_id=name_document(context),
            context=context,
            references=row.references("answers"),
            query=query or None,
        )

    return collect(request, rows, read)


@dataclass(frozen=True, kw_only=True)
class _Set:
    """What one of the sets has of its own; the attributes are those of `Task`."""

    description: str
    templates: Mapping[str, Template]
    max_new_tokens: int
    profile: str
    num_examples: int = 200
    default_template: str = "context_first"
    scores_first_line: bool = False

    @property
    def asks(self) -> bool:
        """Return whether the records ask something about their context."""
        return any("{query}" in template.text for template in self.templates.values())

    def task(self, name: str) -> Task:
        splits = {"test": self.num_examples}
        return Task(
            name=f"longbench_{name}",
            version=1,
            description=f"LongBench: {self.description}; prompts of our own",
            source=f"hub {HUB_ID} data.zip; --data takes that file, its data/ folder or {name}.jsonl",
            licence="MIT (LongBench); that of each set is not stated there",
            splits=splits,
            default_split="test",
            max_new_tokens=self.max_new_tokens,
            templates=self.templates,
            default_template=self.default_template,
            needs_hub=True,
            read=partial(load_longbench, name, splits),
            profile=self.profile,
            revision=REVISION,
            scores_first_line=self.scores_first_line,
        )


def _question(document: str, told: str, max_new_tokens: int, description: str, num_examples: int = 200) -> _Set:
    return _Set(
        description=description,
        templates=question_templates(document, told),
        max_new_tokens=max_new_tokens,
        profile="f1",
        num_examples=num_examples,
    )


def _passages() -> _Set:
    return _question(
        "a collection of passages",
        f"Answer the following question from the passages {_BRIEFLY}.",
        32,
        "passages of Wikipedia and question -> short answer",
    )


def _summary(before: str, after: str, description: str) -> _Set:
    return _Set(
        description=description,
        templates=template_variants("instruct", before, after, "\n\nSummary:"),
        max_new_tokens=512,
        profile="longbench",
        default_template="instruct",
    )


def _few_shot(told: str, max_new_tokens: int, profile: str, description: str) -> _Set:
    # Records end with what introduces the answer, so a plain prompt needs no cue.
    return _Set(
        description=description,
        templates=template_variants("context_first", told, "\n\n{query}", "", once=False),
        max_new_tokens=max_new_tokens,
        profile=profile,
        default_template="context_first-plain",
        scores_first_line=True,
    )


SETS = {
    "narrativeqa": _question(
        "a book or a film script",
        f"Answer the following question about the story {_BRIEFLY}.",
        128,
        "book or film script and question -> short answer",
    ),
    "qasper": _question(
        "a research paper",
        f"Answer the following question from the paper {_BRIEFLY}. Say only Yes or No where that answers it, and "
        "only Unanswerable where the paper does not.",
        128,
        "research paper and question -> short answer, Yes, No or Unanswerable",
    ),
    "multifieldqa_en": _question(
        "a document",
        f"Answer the following question from the document {_BRIEFLY}.",
        64,
        "document and question -> short answer",
        num_examples=150,
    ),
    "hotpotqa": _passages(),
    "2wikimqa": _passages(),
    "musique": _passages(),
    "gov_report": _summary(
        "Summarize the following government report.\n\n",
        "\n\nSummarize the report above on about one page.",
        "government report -> summary",
    ),
    "qmsum": _Set(
        description="meeting transcript and query -> summary that answers the query",
        templates=query_templates(
            "Here is the transcript of a meeting.\n\n",
            "\n\nUsing the transcript above, answer in one paragraph: {query}",
            "\n\nAnswer:",
        ),
        max_new_tokens=512,
        profile="longbench",
    ),
    "multi_news": _summary(
        "Summarize the following news articles, which are about one event.\n\n",
        "\n\nSummarize the articles above together, on about one page.",
        "news articles about one event -> summary",
    ),
    "triviaqa": _few_shot(
        "Answer the question from the passage, as the examples do.\n\n",
        32,
        "f1",
        "examples, then passage and question -> short answer",
    ),
    "samsum": _few_shot(
        "Summarize the dialogue in a few short sentences, as the examples do.\n\n",
        128,
        "longbench",
        "examples, then dialogue -> summary",
    ),
}

LONGBENCH_TASKS = {f"longbench_{name}": about.task(name) for name, about in SETS.items()}
