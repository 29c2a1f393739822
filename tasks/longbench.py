"""LongBench's English sets and two of its Chinese sets, as `longbench_NAME`, and LongBench-E, as `longbench_e_NAME`.

    accelerate launch eval/run.py --task longbench_hotpotqa --template longbench --maxlen 3600
    accelerate launch eval/run.py --task longbench_hotpotqa,longbench_samsum --truncation middle --maxlen 8192
    accelerate launch eval/run.py --config configs/longbench-e.yaml

The hub has one zip file with `data/NAME.jsonl`, and `data/NAME_e.jsonl` of LongBench-E:

    {"input": "Which ...?", "context": "Passage 1:\\n...", "answers": ["..."], "length": 9151, "dataset": "hotpotqa",
     "language": "en", "all_classes": null, "_id": "..."}

`input` is the question, or empty. Texts are used as they are, white space at their ends included. `all_classes` lists
the classes of `trec` and `lsht`, whose answers are one of them.

LongBench-E has records of all lengths, and its scores are those of the records below 4,000, below 8,000 and above, by
`length`: the groups `0-4k`, `4-8k` and `8k+`. Prompts and metrics are LongBench's.

**The template `longbench` makes LongBench's own prompts**, and keeps both halves of one that is too long, as its code
does. Lengths of answers, metrics, the first line that is scored in few-shot sets and few-shot prompts without a chat
template are LongBench's under all templates. Its `max_length` counts the prompt alone, without chat markup; `--maxlen`
counts chat markup and the room for the answer too. The other templates are our own words, which `--truncation` cuts in
the context alone; their scores are not those that LongBench publishes.

Left out: the other Chinese sets, whose metrics need a segmenter of words.

Source: THUDM/LongBench on GitHub at 2e00731, in LongBench/: config/dataset2prompt.json, config/dataset2maxlen.json,
pred.py and eval.py. The published prompts are LongBench's (MIT licence, Copyright (c) 2023 THU-KEG & Zhipu AI).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from tasks.readers.rows import Row, collect, document_names, kind_of

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
    "trec": "Please determine the type of the question below. Here are some examples of questions.\n\n"
    "{context}\n{query}",
    "triviaqa": "Answer the question based on the given passage. Only give me the answer and do not output any other "
    "words. The following are some examples.\n\n{context}\n\n{query}",
    "samsum": "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n"
    "{query}",
    "lsht": "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{query}",
    "passage_count": "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
    "carefully read these paragraphs and determine how many unique paragraphs there are after removing duplicates. In "
    "other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\nPlease enter the final count "
    "of unique paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, "
    "3, and so on.\n\nThe final answer is: ",
    "passage_retrieval_en": "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which "
    "paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{query}\n\nPlease enter the "
    'number of the paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", '
    "etc.\n\nThe answer is: ",
    "passage_retrieval_zh": "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n"
    '下面是一个摘要\n\n{query}\n\n请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
    "lcc": "Please complete the code given below. \n{context}Next line of code:\n",
    "repobench-p": "Please complete the code given below. \n{context}{query}Next line of code:\n",
}
# Sets whose prompts get no chat template there.
_WITHOUT_CHAT = ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
_OF_CLASSES = ("trec", "lsht")
_OF_CHINESE = ("lsht", "passage_retrieval_zh")
# Examples of each set of LongBench-E.
_EVEN = {
    **dict.fromkeys(("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec"), 300),
    **dict.fromkeys(("triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"), 300),
    "qasper": 224,
    "multifieldqa_en": 150,
    "multi_news": 294,
}


def load_longbench(name: str, asks: bool, is_even: bool, request: LoadRequest) -> LoadedExamples:
    """Return one example a record of a set of LongBench; records with the same context share `document_id`.

    Args:
        name: Name of the set.
        asks: Its records have a question.
        is_even: Read the records of LongBench-E.
        request: What to load.
    """
    file = f"{name}_e" if is_even else name
    member = f"data/{file}.jsonl"
    if request.data is None:
        rows = hub_rows(HUB_ID, ("data.zip",), request=request, member=member)
    else:
        rows = data_rows(request.data, request.split, file, member=member)
    name_document = document_names(f"{request.split}-document")

    def read(row: Row) -> Iterator[Example]:
        if (other := row.fields.get("dataset", name)) not in (name, file):
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
            classes=tuple(row.texts("all_classes")) if name in _OF_CLASSES else (),
            groups=(_length_group(row),) if is_even else (),
        )

    return collect(request, rows, read)


def _length_group(row: Row) -> str:
    """Return the group of a record of LongBench-E. Source: `scorer_e` in eval.py."""
    length = row.fields.get("length")
    if not isinstance(length, int):
        raise DataError(f"{row.where}: field 'length' is {kind_of(length)}; expected the number of words")
    return "0-4k" if length < 4_000 else "4-8k" if length < 8_000 else "8k+"


ANSWERS = {"passage_count": ["7"], "passage_retrieval_en": ["Paragraph 2"], "lcc": ["    return bridge"]}
ANSWERS |= {"repobench-p": ANSWERS["lcc"], "trec": ["Place"], "lsht": ["体育"], "passage_retrieval_zh": ["段落2"]}
CLASSES = {"trec": ["Date", "Place", "Place to stay"], "lsht": ["体育", "财经"]}


def _sample(name: str, asks: bool, file: str) -> dict[str, list[dict[str, object]]]:
    text = "It rained for a week. The river rose, and the bridge was closed.\n\nNobody was hurt."
    records: list[dict[str, object]] = [
        {
            "input": "Question: What was closed?\nAnswer: " if asks else "",
            "context": f"Passage {i}:\n{text}",
            "answers": ANSWERS.get(name, ["the bridge", "a bridge"]),
            "length": 3_000 * (i + 1),
            "dataset": name,
            "language": "zh" if name in _OF_CHINESE else "en",
            "all_classes": CLASSES.get(name),
            "_id": f"{i:048x}",
        }
        for i in range(3)
    ]
    return {f"data.zip/data/{file}.jsonl": records}


def _task(
    name: str,
    description: str,
    templates: Mapping[str, Template],
    max_new_tokens: int,
    profile: str,
    num_examples: int = 200,
    default_template: str = "context_first",
    scores_first_line: bool = False,
    version: int = 2,
) -> Task:
    published = Template(text=PUBLISHED[name], chat=name not in _WITHOUT_CHAT, truncation="halves")
    asks = "{query}" in published.text
    return Task(
        name=f"longbench_{name}",
        version=version,
        description=f"LongBench: {description}",
        source=f"hub {HUB_ID} data.zip; --data takes that file, its data/ folder or {name}.jsonl",
        licence="MIT (LongBench); that of each set is not stated there",
        splits={"test": num_examples},
        read=partial(load_longbench, name, asks, False),
        templates={**templates, "longbench": published},
        default_template=default_template,
        max_new_tokens=max_new_tokens,
        profile=profile,
        revision=REVISION,
        scores_first_line=scores_first_line,
        sample=_sample(name, asks, name),
    )


def _even(name: str, num_examples: int) -> Task:
    task = LONGBENCH_TASKS[f"longbench_{name}"]
    asks = "{query}" in PUBLISHED[name]
    return replace(
        task,
        name=f"longbench_e_{name}",
        version=1,
        description=task.description.replace("LongBench", "LongBench-E", 1),
        source=task.source.replace(f"{name}.jsonl", f"{name}_e.jsonl"),
        splits={"test": num_examples},
        read=partial(load_longbench, name, asks, True),
        sample=_sample(name, asks, f"{name}_e"),
    )


def _question(
    name: str, document: str, instruction: str, max_new_tokens: int, description: str, num_examples: int = 200
) -> Task:
    return _task(name, description, question_templates(document, instruction), max_new_tokens, "f1", num_examples)


def _summary(name: str, before: str, after: str, description: str) -> Task:
    templates = template_variants("instruct", before, after, "\n\nSummary:")
    return _task(name, description, templates, 512, "longbench", default_template="instruct")


def _few_shot(
    name: str, instruction: str, max_new_tokens: int, profile: str, description: str, version: int = 2
) -> Task:
    # Records end with what introduces the answer, so a plain prompt needs no cue.
    return _task(
        name,
        description,
        template_variants("context_first", instruction, "\n\n{query}", "", once=False),
        max_new_tokens,
        profile,
        default_template="context_first-plain",
        scores_first_line=True,
        version=version,
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
        "trec",
        "Name the type of the last question, as the examples do.\n\n",
        64,
        "longbench_class",
        "examples, then question -> its type, one of 50",
        version=1,
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
LONGBENCH_E_TASKS = {task.name: task for task in (_even(name, count) for name, count in _EVEN.items())}
_CHINESE = (
    _task(
        "lsht",
        "Chinese examples, then news -> its class, one of 24",
        {},
        64,
        "longbench_class",
        default_template="longbench",
        scores_first_line=True,
        version=1,
    ),
    _task(
        "passage_retrieval_zh",
        "Chinese paragraphs and abstract of one -> its number",
        {},
        32,
        "longbench_number",
        default_template="longbench",
        version=1,
    ),
)
LONGBENCH_ZH_TASKS = {task.name: task for task in _CHINESE}
