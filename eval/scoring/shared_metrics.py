"""Which further metrics of several scored runs were made alike, so that their values may stand beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from eval.errors import UserError
from eval.records.schema import MetricRecord, UsedMetric, ValueRecord
from eval.scoring.ladder import LIKELIHOOD
from eval.scoring.metric_files import AGAIN, difference, metric_of, values_by_key
from eval.scoring.scored_run import ScoredRun


@dataclass(frozen=True, kw_only=True)
class SharedMetrics:
    """Metrics that were made alike, by name, and why others are left out."""

    metrics: dict[str, UsedMetric]
    left_out: dict[str, str]

    @property
    def values(self) -> dict[str, ValueRecord]:
        """Return what their values can be, by `NAME.VALUE`."""
        return values_by_key(self.metrics)

    def named(self, name: str) -> list[str]:
        """Return the values that a name is of, by `NAME.VALUE`: one, or all of a metric; none for another name.

        Raises:
            UserError: They are left out.
        """
        if name in self.metrics:
            return list(values_by_key({name: self.metrics[name]}))
        if name in self.values:
            return [name]
        for metric, reason in self.left_out.items():
            if metric in (name, metric_of(name)):
                raise UserError(reason)
        return []


def shared_metrics(first: ScoredRun, second: ScoredRun) -> SharedMetrics:
    """Return the further metrics of two runs."""
    tasks = [task for task in first.record.tasks if task in second.record.tasks]
    one, other = (
        with_rooms(run.scores.further or {}, {task: run.record.tasks[task].max_new_tokens for task in tasks})
        for run in (first, second)
    )
    shared, left_out = {}, {}
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            lacking = (second if name in one else first).path
            left_out[name] = f"{name} is not in {lacking}; score it with the --metrics that made it in the other run"
        elif what := what_differs(one[name], other[name], (f"in {first.path}", f"in {second.path}")):
            left_out[name] = (
                f"{name} was not made in the same way: {what}; score both with the same --metrics, and {AGAIN}"
            )
        else:
            shared[name] = other[name]
    return SharedMetrics(metrics=shared, left_out=left_out)


def with_rooms(used: Mapping[str, UsedMetric], rooms: Mapping[str, int]) -> dict[str, UsedMetric]:
    """Return metrics with the tasks' room for answers in the provenance of likelihoods, as these are of so many tokens.

    A metric's file does not say it, since a folder may grow by tasks.
    """
    found = dict(used)
    if LIKELIHOOD in found:
        about = found[LIKELIHOOD]
        found[LIKELIHOOD] = replace(about, provenance={**about.provenance, "max_new_tokens": dict(rooms)})
    return found


def what_differs(one: UsedMetric, other: UsedMetric, names: tuple[str, str]) -> str | None:
    """Return in what the metrics of two places differ, None where they were made alike."""
    parts = [part.name for part in fields(MetricRecord)]
    first, second = (MetricRecord(**{name: getattr(used, name) for name in parts}) for used in (one, other))
    return difference(first, second, names)


def made_alike(
    runs: Mapping[str, Mapping[str, UsedMetric]],
) -> tuple[dict[str, UsedMetric], dict[tuple[str, str], str]]:
    """Return each further metric as most runs have it, and how those of others differ.

    Args:
        runs: Metrics by name, of each run by its name.

    Returns:
        Metrics by name, and sentences by run and metric.
    """

    def apart(one: str, other: str, metric: str) -> str | None:
        return what_differs(runs[one][metric], runs[other][metric], (f"in {one}", f"in {other}"))

    shared: dict[str, UsedMetric] = {}
    others: dict[tuple[str, str], str] = {}
    for metric in dict.fromkeys(metric for of_run in runs.values() for metric in of_run):
        having = [run for run in runs if metric in runs[run]]
        most = max(having, key=lambda run: sum(not apart(run, other, metric) for other in having))
        shared[metric] = runs[most][metric]
        for run in having:
            if what := apart(most, run, metric):
                others[run, metric] = f"{metric} of {run} is left out, because it was made in another way: {what}."
    return shared, others
