"""Whether the parts of a scored run belong together, so that nothing that reads them meets a name it does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from eval.records.schema import Estimate, ExampleRecord, ExampleScore, Result, RunRecord, Scores, ValueRecord
from eval.scoring.examples import Setting, setting_of
from eval.scoring.metric_files import values_by_key, wrong_values
from eval.scoring.profiles import PROFILES, metric_columns, metric_range
from eval.scoring.significance import describe_range

# Room for the rounding of means.
_ROUNDING = 1e-6


def find_contradiction(
    record: RunRecord, scores: Scores, lines: Sequence[ExampleScore], examples: Iterable[ExampleRecord]
) -> str | None:
    """Return what does not belong together, in words; None where everything does."""
    known = {(one.task, one.id): one.document_id for one in examples}
    values = values_by_key(scores.further or {})
    for line in lines:
        if (line.task, line.id) not in known or line.document_id != known[line.task, line.id]:
            return f"the example '{line.id}' of task '{line.task}' or its document is not that of examples.jsonl"
        problem = _unknown_setting(record, scores, setting_of(line))
        if problem or (problem := _wrong_columns(scores.profiles[line.task], line.metrics)):
            return problem
        if problem := _wrong_further(values, line.further or {}):
            return problem
    for result in scores.results:
        problem = _unknown_setting(record, scores, setting_of(result))
        if problem or (problem := _wrong_means(scores.profiles[result.task], result)):
            return problem
        means = {} if result.further is None else {key: one.mean for key, one in result.further.items()}
        if problem := _wrong_further(values, means):
            return problem
    scored = {setting_of(line) for line in lines if line.is_model}
    return _wrong_number_of_results(scored, scores.results)


def _unknown_setting(record: RunRecord, scores: Scores, setting: Setting) -> str | None:
    task, template, maxlen = setting
    about = record.tasks.get(task)
    if about is None or template not in about.templates or maxlen not in about.maxlen:
        return f"there is no task '{task}' with template '{template}' and length {maxlen}"
    if scores.profiles.get(task) not in PROFILES:
        return f"the profile of task '{task}' is not one of {', '.join(PROFILES)}"
    return None


def _wrong_columns(profile: str, metrics: Mapping[str, float]) -> str | None:
    about = PROFILES[profile].metrics
    if metrics.keys() != about.keys():
        return _other_metrics(profile, metrics)
    for name, value in metrics.items():
        if not about[name].low - _ROUNDING <= value <= about[name].high + _ROUNDING:
            expected = describe_range((about[name].low, about[name].high))
            return f"{name} is {value}, and a number {expected} under profile {profile}"
    return None


def _wrong_further(known: Mapping[str, ValueRecord], values: Mapping[str, float | None]) -> str | None:
    if unknown := values.keys() - known.keys():
        return f"there is no further metric with the value {min(unknown)}"
    return wrong_values({key: known[key] for key in values}, values)


def _other_metrics(profile: str, metrics: Collection[str]) -> str:
    return f"the metrics are {', '.join(metrics) or 'none'}, which are not those of profile {profile}"


def _wrong_means(profile: str, result: Result) -> str | None:
    if result.profile != profile or result.metrics.keys() != metric_columns(profile).keys():
        return _other_metrics(profile, result.metrics)
    for name, estimate in result.metrics.items():
        low, high = metric_range(profile, name)
        if estimate.mean is None or not _is_within(estimate, low, high):
            return f"{name} of {result.system} at length {result.maxlen} is no number {describe_range((low, high))}"
    if result.evidence_visible is not None and not _is_within(result.evidence_visible, 0, 1):
        return f"the share of visible evidence at length {result.maxlen} is no share"
    return None


def _is_within(estimate: Estimate, low: float, high: float) -> bool:
    values = [one for one in (estimate.mean, estimate.low, estimate.high) if one is not None]
    return all(low - _ROUNDING <= one <= high + _ROUNDING for one in values)


def _wrong_number_of_results(scored: Collection[Setting], results: Iterable[Result]) -> str | None:
    counts = Counter(setting_of(one) for one in results if (one.kind, one.subset) == ("model", "all"))
    for setting in {*scored, *counts}:
        if setting not in scored or counts[setting] != 1:
            task, template, maxlen = setting
            return f"{task} with template {template} at length {maxlen} has {counts[setting]} results of a model"
    return None
