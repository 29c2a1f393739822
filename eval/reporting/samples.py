"""What the sample browser of a page shows: examples with their answers, and as much of the documents as fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.records.read_run import RunInputs
from eval.records.schema import ExampleScore, Prediction, Sample
from eval.reporting.columns import ANSWERS, THOUGHT_OF_ANSWER, Column
from eval.reporting.page import PAGE_BYTES, RESERVE_BYTES, document_budget, fit_documents, num_json_bytes
from eval.scoring.profiles import PROFILES, metric_name

# Least room for a document in a page that does not hold all: its ends, cuts and the oracle's sentences.
_DOCUMENT_BYTES = 2_000


def gather_samples(
    lines: Sequence[ExampleScore], inputs: RunInputs, profiles: Mapping[str, str], *, with_texts: bool
) -> dict[str, Any]:
    """Return the samples of `render_page`; without texts, only scores and costs.

    Where a page does not hold all, some are left out, evenly, and it says so.
    """
    of_answers = {(line.task, line.template, line.id, line.maxlen): line for line in lines if line.is_model}
    has_thoughts = any(one.num_thought_tokens is not None for one in inputs.predictions)
    columns = [*ANSWERS, *([THOUGHT_OF_ANSWER] if has_thoughts else [])]
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in inputs.predictions:
        answer = _answer(one, of_answers[one.key], columns, with_texts=with_texts)
        answers.setdefault((one.task, one.id), []).append(answer)
    # The last line of an example is that of the greatest length.
    with_oracle = sorted((line for line in lines if line.sentences is not None), key=lambda line: line.maxlen)
    oracles = {(line.task, line.id): line.sentences for line in with_oracle}
    shown = [
        {
            "task": one.task,
            "id": one.id,
            "document": f"{one.task}/{one.document_id}",
            "query": one.query if with_texts else None,
            "references": one.references if with_texts else None,
            "evidence": one.evidence,
            "oracle": oracles.get((one.task, one.id), []),
            "answers": answers[one.task, one.id],
        }
        for one in inputs.examples
        if (one.task, one.id) in answers
    ]
    kept = that_fit(shown)
    note = ""
    if len(kept) < len(shown):
        note = f"{len(kept):,} of {len(shown):,} examples, evenly spaced: a page of 10 MB holds no more."
    return {
        "metrics": {metric: metric_name(metric) for line in of_answers.values() for metric in line.metrics},
        "columns": describe_columns(columns),
        "headlines": {task: PROFILES[name].headline[-1] for task, name in profiles.items()},
        "documents": _documents(kept, inputs, with_texts=with_texts),
        "examples": kept,
        "note": note,
    }


def describe_columns(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return columns as the scripts of the page read them."""
    return [
        {"key": column.key, "heading": column.heading, "digits": column.digits, "unit": column.unit}
        for column in columns
    ]


def _answer(one: Prediction, line: ExampleScore, columns: Sequence[Column], *, with_texts: bool) -> dict[str, Any]:
    flaws = ["length"] if any(answer.finish_reason == "length" for answer in one.answers) else []
    flaws += line.flaws or {}
    costs = {column.key: getattr(one, column.key) for column in columns}
    has_thought = any(answer.thought is not None for answer in one.answers)
    thought = joined_texts(one, lambda answer: answer.thought or "") if with_texts and has_thought else None
    return {
        "template": one.template,
        "maxlen": one.maxlen,
        "text": joined_texts(one, lambda answer: answer.text) if with_texts else None,
        **({} if thought is None else {"thought": thought}),
        "scores": line.metrics,
        **({"flaws": flaws} if flaws else {}),
        "kept": one.context_spans,
        **{key: round(value, 3) if isinstance(value, float) else value for key, value in costs.items()},
    }


def joined_texts(one: Prediction, text_of: Callable[[Sample], str]) -> str:
    """Return a text of an answer, or those of all samples of it under their numbers."""
    texts = list(map(text_of, one.answers))
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[sample {n} of {len(texts)}]\n{text}" for n, text in enumerate(texts, start=1))


def _documents(examples: Sequence[Mapping[str, Any]], inputs: RunInputs, *, with_texts: bool) -> dict[str, Any]:
    """Return the documents of these examples, in full or around the spans that matter."""
    texts = {f"{one.task}/{one.document_id}": one.text for one in inputs.documents}
    texts = {name: texts[name] for name in dict.fromkeys(example["document"] for example in examples)}
    if not with_texts:
        return {name: {"text": None, "length": len(text), "pieces": []} for name, text in texts.items()}
    spans: dict[str, list[tuple[int, int]]] = {}
    for example in examples:
        kept = [span for answer in example["answers"] for span in answer["kept"]]
        of_document = spans.setdefault(example["document"], [])
        of_document += [(start, end) for start, end in [*kept, *example["oracle"], *(example["evidence"] or [])]]
    return fit_documents(texts, spans, document_budget(examples))


def that_fit(examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return as many examples as a page holds beside some text of their documents, evenly spaced, at least one."""
    kept, room = list(examples), PAGE_BYTES - RESERVE_BYTES
    while len(kept) > 1:
        num_bytes = num_json_bytes(kept) + _DOCUMENT_BYTES * len({example["document"] for example in kept})
        if num_bytes <= room:
            break
        count = max(1, min(len(kept) - 1, int(len(kept) * room / num_bytes)))
        kept = [examples[index * len(examples) // count] for index in range(count)]
    return kept
