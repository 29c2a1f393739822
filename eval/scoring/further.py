"""Further metrics of scored predictions and of the texts beside them, over the interface of `eval.metrics`.

    lines, used = add_metrics(folder, scored, examples, documents, [open_metric("diagnostics")])

Each value has the name `NAME.VALUE`. Beside the model's answers stand floors and ceilings, so that an unfamiliar value
can be read: another document's reference, the reference with its sentences in another order, the lead and the oracle
with as many words as the answer, and the reference itself.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from eval.metrics.base import EXTRACTS, Item, Metric
from eval.records.schema import DocumentRecord, ExampleRecord, ExampleScore, UsedMetric
from eval.records.windows import shown_of
from eval.scoring.baselines import ORACLES, merge_spans
from eval.scoring.examples import Scored
from eval.scoring.floors import FLOORS
from eval.scoring.metric_files import MetricFile, key_of, read_metric_files, score_missing

# What is scored beside a model's answer, with an oracle.
_LEADS = ("matched_lead",)


def add_metrics(
    folder: Path,
    scored: Sequence[Scored],
    examples: Iterable[ExampleRecord],
    documents: Iterable[DocumentRecord],
    metrics: Sequence[Metric] = (),
    *,
    again: bool = False,
    answers_alone: bool = False,
) -> tuple[list[Scored], dict[str, UsedMetric]]:
    """Return predictions and baselines with values of further metrics, and what these are.

    Metrics that the folder has values of already are added as they are.

    Args:
        folder: The run folder, which is locked.
        scored: What `score_examples` returns, floors included.
        examples: Lines of `examples.jsonl`.
        documents: Lines of `documents.jsonl.gz`.
        metrics: Metrics that score what they did not yet.
        again: Forget what these metrics have scored.
        answers_alone: Score no floors and ceilings, only the model's answers.

    Raises:
        UserError: Values were made in another way, or changed.
    """
    texts = _Texts(scored, examples, documents)
    for metric in metrics:
        items = texts.items(metric.reads, f"scoring {metric.name}", answers_alone=answers_alone)
        score_missing(folder, metric, items, again=again)
    files = read_metric_files(folder)
    values: list[dict[str, float | None]] = [{} for _ in scored]
    used = {}
    for name, file in files.items():
        found, num_absent = _values_of(file, texts)
        used[name] = file.used(num_absent)
        for index, of_one in found.items():
            values[index] |= {key_of(name, value): number for value, number in of_one.items()}
    return [
        replace(one, line=replace(one.line, further=found or None)) for one, found in zip(scored, values, strict=True)
    ], used


def _values_of(file: MetricFile, texts: _Texts) -> tuple[dict[int, dict[str, float | None]], int]:
    """Return the values of each text that is scored, by its index, and how many are not scored yet.

    Where no floor or ceiling has values, the metric is of the answers alone, and none is missing.
    """
    needs = frozenset(file.record.needs)
    # Without the items, whose windows would fill the memory.
    known = [(index, one.fingerprint, not one.lacks(needs)) for index, one in texts.indexed(file.record.reads)]
    answers = {fingerprint for index, fingerprint, _ in known if texts.is_model(index)}
    # A perfect answer is its reference, which tells nothing.
    has_floors = any(fingerprint in file.values and fingerprint not in answers for _, fingerprint, _ in known)
    each: dict[int, list[Mapping[str, float | None]]] = defaultdict(list)
    num_absent = 0
    for index, fingerprint, is_able in known:
        if has_floors or texts.is_model(index):
            found = file.values.get(fingerprint)
            num_absent += found is None and is_able
            each[index].append(found or dict.fromkeys(file.record.values))
    return {
        index: {name: _mean(one[name] for one in of_one) for name in file.record.values}
        for index, of_one in each.items()
    }, num_absent


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


class _Texts:
    """All texts that are scored, as items, a document after the other."""

    def __init__(
        self, scored: Sequence[Scored], examples: Iterable[ExampleRecord], documents: Iterable[DocumentRecord]
    ) -> None:
        self._scored = scored
        self._examples = {(one.task, one.id): one for one in examples}
        self._documents = {(one.task, one.document_id): one.text for one in documents}
        systems = {(one.line.task, one.line.system) for one in scored if not one.is_model}
        kept: set[tuple[str, str]] = set()
        for task in {task for task, _ in systems}:
            for among in (_LEADS, ORACLES, *((floor,) for floor in FLOORS)):
                kept |= {(task, name) for name in [one for one in among if (task, one) in systems][:1]}
        self._order = sorted(
            (index for index, one in enumerate(scored) if one.is_model or (one.line.task, one.line.system) in kept),
            key=lambda index: (scored[index].line.task, scored[index].line.document_id),
        )
        self._shorter = _next_shorter(scored)
        self._windows: dict[tuple[str, str, tuple[tuple[int, int], ...]], str] = {}

    def is_model(self, index: int) -> bool:
        """Return whether a text is a model's answer, and not a floor or ceiling."""
        return self._scored[index].is_model

    def items(self, reads: Iterable[str], title: str, *, answers_alone: bool) -> Iterator[tuple[ExampleScore, Item]]:
        """Yield what is read of each text, or of the model's answers alone, with its line."""
        for index, item in tqdm(self.indexed(reads), desc=title, delay=2, leave=False, disable=None):
            if self.is_model(index) or not answers_alone:
                yield self._scored[index].line, item

    def indexed(self, reads: Iterable[str]) -> Iterator[tuple[int, Item]]:
        """Yield what is read of each text, with its index among all that are scored."""
        reads = frozenset(reads)
        for index in self._order:
            one = self._scored[index]
            if EXTRACTS not in reads and one.line.system in (*_LEADS, *ORACLES):
                continue
            example = self._examples[one.line.task, one.line.id]
            prediction, shorter = one.prediction, self._shorter.get(index)
            shared = {
                "references": tuple(one.references),
                "window": self._window(example.task, *shown_of(prediction, example.document_id)),
                "document": self._documents[example.task, example.document_id],
                "query": example.query,
                "classes": tuple(example.classes or ()),
                "shorter_window": None if shorter is None else self._window(example.task, *shorter),
            }
            for text, answer in zip(one.texts, prediction.answers if one.is_model else [None], strict=True):
                of_answer = (
                    {}
                    if answer is None
                    else {
                        "finish_reason": answer.finish_reason,
                        "num_tokens": answer.num_generated_tokens,
                        "request": prediction.fingerprint,
                    }
                )
                yield index, Item.read(reads, prediction=text, **shared, **of_answer)

    def _window(self, task: str, document_id: str, spans: Iterable[Sequence[int]]) -> str:
        merged = tuple(merge_spans(spans))
        key = task, document_id, merged
        if key not in self._windows:
            if len(self._windows) >= _MAX_WINDOWS:
                self._windows.clear()
            text = self._documents[task, document_id]
            self._windows[key] = "\n".join(text[start:end] for start, end in merged)
        return self._windows[key]


# They come document after document, so more would be kept for nothing.
_MAX_WINDOWS = 256


def _next_shorter(scored: Sequence[Scored]) -> dict[int, tuple[str, Sequence[Sequence[int]]]]:
    """Return document and spans of what the next shorter length of the same example and template showed, by index."""
    shown: dict[tuple[str, str, str], dict[int, tuple[str, Sequence[Sequence[int]]]]] = defaultdict(dict)
    for one in scored:
        if one.is_model:
            line = one.line
            shown[line.task, line.template, line.id][line.maxlen] = shown_of(one.prediction, line.document_id)
    found = {}
    for index, one in enumerate(scored):
        of_example = shown[one.line.task, one.line.template, one.line.id]
        if shorter := [maxlen for maxlen in of_example if maxlen < one.line.maxlen]:
            found[index] = of_example[max(shorter)]
    return found
