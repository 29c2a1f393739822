"""Predictions -> scores of each example, means with intervals, and comparisons. Needs no model and no data set.

    scores = score_examples(predictions, examples, documents, {"plos": "hf", "qasper": "f1"}, "smollm2-135m")
    results = summarize(scores.scored)

Beside each prediction stand baselines that need no model (`eval.scoring.baselines`). Intervals and tests resample
documents (`eval.scoring.significance`).
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.metrics.answers import first_line
from eval.records.read_run import answer_of
from eval.records.schema import (
    Baselines,
    Cost,
    DocumentRecord,
    Estimate,
    ExampleRecord,
    ExampleScore,
    Key,
    Noise,
    Prediction,
    Result,
    RunRecord,
    Share,
    Subset,
    ValueRecord,
)
from eval.scoring.baselines import CommonAnswers, describe_baselines, num_words, visible_share
from eval.scoring.beside import BaselinesOfDocument, ForeignTexts
from eval.scoring.floors import Floor, Floors
from eval.scoring.noise import noise_of
from eval.scoring.profiles import PROFILES, metric_columns, metric_range, score_prediction
from eval.scoring.significance import mean_interval

# Raised by hand when the code changes what a score is: runs that are compared were scored alike.
SCORING_VERSION = 2

Setting = tuple[str, str, int]  # task, template, maxlen


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One text beside its references, or the samples of one, with the prediction that it is or stands beside.

    The share of the evidence that was shown is None where the source names none. Words are those of the text, or of the
    samples in the mean.
    """

    line: ExampleScore
    profile: str
    prediction: Prediction
    texts: Sequence[str]
    references: Sequence[str]
    evidence_visible: float | None
    num_words: int

    @property
    def is_model(self) -> bool:
        return self.line.is_model

    @property
    def setting(self) -> Setting:
        return setting_of(self.line)


@dataclass(frozen=True, kw_only=True)
class ScoredExamples:
    """Predictions in order, each followed by its baselines, and what the baselines of each task are made with."""

    scored: Sequence[Scored]
    baselines: dict[str, Baselines]


def setting_of(line: ExampleScore | Prediction | Result) -> Setting:
    """Return task, template and maxlen."""
    return line.task, line.template, line.maxlen


def values_of(lines: Iterable[ExampleScore], columns: Sequence[str]) -> NDArray[np.float64]:
    """Return (N, k) scores."""
    return np.array([[line.metrics[column] for column in columns] for line in lines], dtype=np.float64)


def count_clusters(lines: Iterable[ExampleScore]) -> int | None:
    """Return how many units documents make up; None where each is by itself."""
    lines = list(lines)
    return len({line.unit for line in lines}) if any(line.cluster_id is not None for line in lines) else None


def scored_text(prediction: Prediction, record: RunRecord) -> str:
    """Return the text that is scored of a prediction, of several samples the first."""
    return scored_texts(prediction, record)[0]


def scored_texts(prediction: Prediction, record: RunRecord) -> list[str]:
    """Return the texts that are scored of a prediction: no thoughts, and of some tasks the first lines alone."""
    texts = [one.text for one in answer_of(prediction, record.think_end_token).answers]
    return list(map(first_line, texts)) if record.tasks[prediction.task].scores_first_line else texts


def score_line(
    prediction: Prediction, example: ExampleRecord, system: str, each: Sequence[dict[str, float]], **about: Any
) -> ExampleScore:
    """Return the scores of a prediction, or of a baseline beside it: the mean of those of its texts."""
    return ExampleScore(
        **{name: getattr(prediction, name) for name in ("task", "template", "id", "maxlen")},
        document_id=example.document_id,
        cluster_id=example.cluster_id,
        system=system,
        is_truncated=prediction.context_tokens_dropped > 0,
        metrics={metric: statistics.fmean(one[metric] for one in each) for metric in each[0]},
        samples=list(each) if len(each) > 1 else None,
        **about,
    )


def score_examples(
    predictions: Sequence[Prediction],
    examples: Iterable[ExampleRecord],
    documents: Iterable[DocumentRecord],
    profiles: Mapping[str, str],
    system: str,
    first_line_tasks: Collection[str] = (),
    *,
    with_floors: bool = False,
) -> ScoredExamples:
    """Return the scores of each prediction of one system and of the baselines beside it.

    Answers of `first_line_tasks` are scored by their first line, baselines whole. Of several samples of an answer the
    mean score counts. With floors, what `eval.scoring.floors` makes of references stands beside each prediction too.
    """
    known = {(one.task, one.id): one for one in examples}
    by_document: dict[tuple[str, str], dict[str, list[Prediction]]] = {}
    references: dict[str, list[Sequence[str]]] = defaultdict(list)
    lengths: dict[str, set[int]] = defaultdict(set)
    for prediction in predictions:
        lengths[prediction.task].add(prediction.maxlen)
        example = known[prediction.task, prediction.id]
        of_document = by_document.setdefault((prediction.task, example.document_id), {})
        if prediction.id not in of_document:
            references[prediction.task].append(example.references)
        of_document.setdefault(prediction.id, []).append(prediction)
    baselines = {task: describe_baselines(profiles[task], of_task) for task, of_task in references.items()}
    common = {
        task: CommonAnswers(references[task], PROFILES[profiles[task]].words)
        for task, made in baselines.items()
        if made.common_answer is not None
    }
    floors: dict[str, Floors] = {}
    if with_floors:
        answered = dict.fromkeys((one.task, one.id) for one in predictions)
        floors = {task: Floors(known[key] for key in answered if key[0] == task) for task in references}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for document in documents:
        if (document.task, document.document_id) in by_document:
            texts[document.task][document.document_id] = document.text
    clusters: dict[str, dict[str, str | None]] = defaultdict(dict)
    for example in known.values():
        clusters[example.task][example.document_id] = example.cluster_id
    # At the smallest length it is the visible oracle itself.
    foreign = {task: ForeignTexts(of_task, clusters[task]) for task, of_task in texts.items() if len(lengths[task]) > 1}
    found: dict[Key, list[Scored]] = defaultdict(list)
    # By document, so that only one at a time is in memory in its prepared form.
    for (task, name), by_example in tqdm(by_document.items(), desc="scoring", delay=2, leave=False, disable=None):
        beside = BaselinesOfDocument(
            texts[task][name],
            foreign[task].instead_of(name) if task in foreign else None,
            itertools.chain.from_iterable(by_example.values()),
            profiles[task],
            baselines[task],
            common.get(task),
        )
        for example_id, answers in by_example.items():
            example = known[task, example_id]
            others = floors[task].beside(example) if floors else []
            by_first_line = task in first_line_tasks
            for one in _score_answers(answers, example, profiles[task], system, by_first_line, beside, others):
                found[one.prediction.key].append(one)
    return ScoredExamples(
        scored=[scored for prediction in predictions for scored in found[prediction.key]], baselines=baselines
    )


def _score_answers(
    predictions: Sequence[Prediction],
    example: ExampleRecord,
    profile: str,
    system: str,
    by_first_line: bool,
    baselines_of: BaselinesOfDocument,
    floors: Sequence[Floor],
) -> Iterator[Scored]:
    """Yield each prediction about one example, followed by its baselines and floors."""
    metrics_of = cache(lambda text, references: score_prediction(profile, text, references, example.classes or ()))
    all_references = tuple(example.references)

    def score(
        prediction: Prediction,
        system: str,
        texts: Sequence[str],
        references: tuple[str, ...] = all_references,
        **about: Any,
    ) -> Scored:
        each = [metrics_of(text, references) for text in texts]  # once a text: many windows give the same baselines
        share = visible_share(example.evidence, prediction.context_spans)
        return Scored(
            line=score_line(prediction, example, system, each, **about),
            profile=profile,
            prediction=prediction,
            texts=texts,
            references=references,
            evidence_visible=share,
            num_words=_mean_words(texts),
        )

    by_template: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        by_template[prediction.template].append(prediction)
    for of_template in by_template.values():
        answers = {
            prediction.maxlen: [first_line(one.text) if by_first_line else one.text for one in prediction.answers]
            for prediction in of_template
        }
        budgets = {maxlen: _mean_words(texts) for maxlen, texts in answers.items()}
        baselines = baselines_of.beside(of_template, budgets, example)
        for prediction in of_template:
            yield score(prediction, system, answers[prediction.maxlen], is_model=True)
            for one in baselines[prediction.maxlen]:
                spans = None if one.objective is None else [list(span) for span in one.sentences]
                yield score(prediction, one.system, [one.text], is_model=False, sentences=spans)
            for floor in floors:
                yield score(prediction, floor.system, [floor.text], tuple(floor.references), is_model=False)


def _mean_words(texts: Sequence[str]) -> int:
    return round(statistics.fmean(map(num_words, texts)))


def summarize(scored: Sequence[Scored], further: Mapping[str, ValueRecord] | None = None) -> list[Result]:
    """Return one result a task, template, length, subset and system: means with intervals, counts, cost.

    `further` is what values of further metrics can be, by `NAME.VALUE`.

    The subset `always_truncated` holds the examples that even the greatest length truncates: short documents, which all
    lengths show alike, dilute what length does. It is left out for a task and template where it is empty or everything.
    """
    results = []
    for subset, members in subsets_of(scored):
        groups: dict[tuple[Setting, bool, str], list[Scored]] = defaultdict(list)
        for one in members:
            groups[one.setting, one.is_model, one.line.system].append(one)
        results += [_result(group, subset, further or {}) for group in groups.values()]
    return results


def _result(group: Sequence[Scored], subset: Subset, further: Mapping[str, ValueRecord]) -> Result:
    """Return the result of one setting and system."""
    lines, first = [one.line for one in group], group[0]
    metrics = means_of(lines, first.profile)
    answers = [answer for one in group for answer in one.prediction.answers]
    has_samples = first.is_model and len(answers) > len(group)
    return Result(
        task=first.line.task,
        template=first.line.template,
        profile=first.profile,
        system=first.line.system,
        kind="model" if first.is_model else "yardstick",
        subset=subset,
        maxlen=first.line.maxlen,
        num_examples=len(lines),
        num_documents=len({line.document_id for line in lines}),
        num_clusters=count_clusters(lines),
        num_truncated=sum(line.is_truncated for line in lines),
        words=float(np.median([one.num_words for one in group])),
        num_ended_by_length=sum(one.finish_reason == "length" for one in answers) if first.is_model else None,
        num_samples=len(first.prediction.answers) if has_samples else None,
        flaws=dict(sum((Counter(line.flaws) for line in lines), Counter())) if first.is_model else None,
        metrics=metrics,
        noise={name: _noise(lines, columns, metrics[name]) for name, columns in metric_columns(first.profile).items()}
        if has_samples
        else None,
        further=further_means(((line.further, line.unit) for line in lines), further),
        evidence_visible=_mean_share(group) if first.is_model else None,
        cost=cost([one.prediction for one in group]) if first.is_model else None,
    )


def means_of(lines: Sequence[ExampleScore], profile: str) -> dict[str, Estimate]:
    """Return the mean of each reported metric of a profile, with its interval over documents."""
    units = [line.unit for line in lines]
    return {
        metric: mean_interval(values_of(lines, columns), units, within=metric_range(profile, metric))
        for metric, columns in metric_columns(profile).items()
    }


def further_means(
    rows: Iterable[tuple[Mapping[str, float | None] | None, Hashable]], known: Mapping[str, ValueRecord]
) -> dict[str, Share] | None:
    """Return means with intervals over the documents of the examples that have each value; None where none has one.

    Args:
        rows: Values of each example, by `NAME.VALUE`, and its document or cluster.
        known: What the values can be.
    """
    rows, found = list(rows), {}
    for key, about in known.items():
        pairs = [(value, unit) for values, unit in rows if values and (value := values.get(key)) is not None]
        if pairs:
            values, units = zip(*pairs, strict=True)
            estimate = mean_interval(np.array(values), units, within=about.within)
            found[key] = Share(**vars(estimate), num_examples=len(pairs))
    return found or None


def _noise(lines: Sequence[ExampleScore], columns: Sequence[str], mean: Estimate) -> Noise:
    samples = [[[of_one[column] for column in columns] for of_one in line.samples or ()] for line in lines]
    return noise_of(samples, [line.unit for line in lines], mean.error)


def subsets_of(scored: Sequence[Scored]) -> Iterator[tuple[Subset, list[Scored]]]:
    """Yield all, then those that the greatest length of their task and template truncates, unless none or all of it."""
    yield "all", list(scored)
    groups: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for one in scored:
        groups[one.line.task, one.line.template].append(one)
    longest: list[Scored] = []
    for group in groups.values():
        greatest = max(one.line.maxlen for one in group)
        truncated = {one.line.id for one in group if one.line.maxlen == greatest and one.line.is_truncated}
        members = [one for one in group if one.line.id in truncated]
        longest += members if len(members) < len(group) else []
    if longest:
        yield "always_truncated", longest


def _mean_share(group: Sequence[Scored]) -> Share | None:
    known = [(one.evidence_visible, one.line.unit) for one in group if one.evidence_visible is not None]
    if not known:
        return None
    estimate = mean_interval([share for share, _ in known], [document for _, document in known])
    return Share(**vars(estimate), num_examples=len(known))


def cost(predictions: Sequence[Prediction]) -> Cost:
    """Return what the predictions cost; a mean or rate over predictions of which one is not known is None.

    Speeds are tokens of all predictions over seconds of all, of one process.
    """
    flops = _all_known(one.attention_flops for one in predictions)
    seconds = _all_known(one.seconds for one in predictions)
    prefill_seconds = _all_known(one.prefill_seconds for one in predictions)
    decode_seconds = _all_known(one.decode_seconds for one in predictions)
    thought = _all_known(one.num_thought_tokens for one in predictions)
    return Cost(
        prefill_tokens_per_second=_rate(sum(one.prompt_tokens for one in predictions), prefill_seconds),
        decode_tokens_per_second=_rate(sum(one.num_generated_tokens for one in predictions), decode_seconds),
        seconds=float(np.mean(seconds)) if seconds else None,
        peak_memory_bytes=max((one.peak_bytes for one in predictions if one.peak_bytes is not None), default=None),
        cache_bytes=max((one.cache_bytes for one in predictions if one.cache_bytes is not None), default=None),
        attention_flops=float(np.mean(flops)) if flops else None,
        thought_tokens=float(np.mean(thought)) if thought else None,
        **_served_cost(predictions),
    )


def _served_cost(predictions: Sequence[Prediction]) -> dict[str, float | None]:
    """Return what servers alone tell. An answer of one token has no further ones, and so counts in no pace."""
    first = _all_known(one.first_token_seconds for one in predictions)
    further = [one for one in predictions if one.num_generated_tokens > 1]
    paces = _all_known(one.token_seconds for one in further)
    cached = _all_known(one.cached_tokens for one in predictions)
    # Servers count the tokens of a prompt themselves where it went as text.
    prompts = [one.reported_prompt_tokens or one.prompt_tokens for one in predictions]
    counts = [one.num_generated_tokens - 1 for one in further]
    return {
        "first_token_seconds": float(np.mean(first)) if first else None,
        "token_seconds": float(np.average(paces, weights=counts)) if paces else None,
        "cached_share": sum(cached) / sum(prompts) if cached and sum(prompts) else None,
    }


def _all_known(values: Iterable[float | None]) -> list[float]:
    """Return the values; none at all where one is not known."""
    values = list(values)
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def _rate(tokens: int, seconds: Sequence[float]) -> float | None:
    total = sum(seconds)
    return tokens / total if total > 0 else None
