"""LongBench's English sets that are scored by F1 of words, ROUGE, numbers or lines of code, as `longbench_NAME`.

    accelerate launch eval/run.py --task longbench_hotpotqa --template longbench --maxlen 3600
    accelerate launch eval/run.py --task longbench_hotpotqa,longbench_samsum --truncation middle --maxlen 8192

The hub has one zip file with `data/NAME.jsonl`:

    {"input": "Which ...?", "context": "Passage 1:\\n...", "answers": ["..."], "length": 9151, "dataset": "hotpotqa",
     "language": "en", "all_classes": null, "_id": "..."}

`input` is the question, or empty. Texts are used as they are, white space at their ends included.

**The template `longbench` makes LongBench's own prompts**, and keeps both halves of one that is too long, as its code
does. Lengths of answers, metrics, the first line that is scored in few-shot sets and few-shot prompts without a chat
template are LongBench's under all templates. Its `max_length` counts the prompt alone, without chat markup; `--maxlen`
counts chat markup and the room for the answer too. The other templates are our own words, which `--truncation` cuts in
the context alone; their scores are not those that LongBench publishes.

Left out: `trec` and `lsht`, whose metric needs the list of classes that a row carries; Chinese sets, whose words need a
segmenter; and the evenly distributed LongBench-E.

Source: THUDM/LongBench on GitHub at 2e00731, in LongBench/: config/dataset2prompt.json, config/dataset2maxlen.json,
pred.py and eval.py. The published prompts are LongBench's (MIT licence, Copyright (c) 2023 THU-KEG & Zhipu AI).
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


# The published prompts, with {query} for {input}. A space that seems to be missing is missing there.
_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the "
    "answer and do not output any other words.\n\nQuestion: {query}\nAnswer:"
)
PUBLISHED = {
    "narrativeqa": "You are given a story, which can be either a novel or a movie script, and a question. Answer the "
    "question asconcisely as you can, using a single phrase if possible. Do not provide any explanation.\n\n"
    "Story: {context}\n\nNow, answer the question based on the story asconcisely as you can, using a single phrase if "
    "possible. Do not provide any explanation.\n\nQuestion: {query}\n\nAnswer:",
    "qasper": "You are given a scientific article and a question. Answer the question as concisely as you can, using a "
    "single phrase or sentence if possible. If the question cannot be answered based on the information in the "
    'article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do '
    "not provide any explanation.\n\nArticle: {context}\n\n Answer the question based on the above article as "
    "concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based on "
    'the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", "no", '
    'or "unanswerable". Do not provide any explanation.\n\nQuestion: {query}\n\nAnswer:',
    "multifieldqa_en": "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the following question "
    "based on the above text, only give me the answer and do not output any other words.\n\nQuestion: {query}\n"
    "Answer:",
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), _PASSAGES),
    "gov_report": "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n"
    "{context}\n\nNow, write a one-page summary of the report.\n\nSummary:",
    "qmsum": "You are given a meeting transcript and a query containing a question or instruction. Answer the query in "
    "one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript "
    "in one or more sentences.\n\nQuery: {query}\nAnswer:",
    "multi_news": "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
    "Now, write a one-page summary of all the news.\n\nSummary:",
    "triviaqa": "Answer the question based on the given passage. Only give me the answer and do not output any other "
    "words. The following are some examples.\n\n{context}\n\n{query}",
    "samsum": "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n"
    "{query}",
    "passage_count": "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
    "carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. In "
    "other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count "
    "of unique paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, "
    "3, and so on.\n\nThe final answer is: ",
    "passage_retrieval_en": "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
    "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{query}\n\nPlease enter the "
    'number of the paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", '
    "etc.\n\nThe answer is: ",
    "lcc": "Please complete the code given below. \n{context}Next line of code:\n",
    "repobench-p": "Please complete the code given below. \n{context}{query}Next line of code:\n",
}
# Sets whose prompts get no chat template there.
_WITHOUT_CHAT = ("triviaqa", "samsum", "lcc", "repobench-p")


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
        row.text("context"), row.text("input", may_be_empty=not asks), row.references("answers")  # checks
        context, query = row.fields["context"], row.fields["input"]
        if query.strip() and not asks:
            raise DataError(f"{row.where}: field 'input' is {query[:80]!r}; {name} asks nothing, and it is empty there")
        yield Example(
            id=row.text("_id"),
            document_id=name_document(context),
            context=context,
            references=tuple(dict.fromkeys(row.texts("answers"))),
            query=query if asks else None,
        )

    return collect(request, rows, read)


ANSWERS = {"passage_count": ["7"], "passage_retrieval_en": ["Paragraph 2"], "lcc": ["    return bridge"]}
ANSWERS["repobench-p"] = ANSWERS["lcc"]


def _sample(name: str, asks: bool) -> dict[str, list[dict[str, object]]]:
    text = "It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."
    records: list[dict[str, object]] = [
        {
            "input": "Question: What was closed?\nAnswer: " if asks else "",
            "context": f"Passage {i}:\n{text}",
            "answers": ANSWERS.get(name, ["the bridge", "a bridge"]),
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
    published = Template(text=PUBLISHED[name], chat=name not in _WITHOUT_CHAT, truncation="halves")
    asks = "{query}" in published.text
    return Task(
        name=f"longbench_{name}",
        version=2,
        description=f"LongBench: {description}",
        source=f"hub {HUB_ID} data.zip; --data takes that file, its data/ folder or {name}.jsonl",
        licence="MIT (LongBench); that of each set is not stated there",
        splits={"test": num_examples},
        read=partial(load_longbench, name, asks),
        templates={**templates, "longbench": published},
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


def _published(name: str, description: str, max_new_tokens: int, profile: str, num_examples: int = 200) -> Task:
    return _task(name, description, {}, max_new_tokens, profile, num_examples, default_template="longbench")


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
    _published("passage_count", "paragraphs, some of them twice -> number of different ones", 32, "longbench_number"),
    _published("passage_retrieval_en", "30 paragraphs and abstract of one -> its number", 32, "longbench_number"),
    _published("lcc", "code -> next line", 64, "longbench_code", 500),
    _published("repobench-p", "code of several files -> next line", 64, "longbench_code", 500),
)

LONGBENCH_TASKS = {task.name: task for task in _TASKS}
