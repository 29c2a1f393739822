"""Further metrics of a run as tables: a row a value, the model at each length, then floors and ceilings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.metrics.agreement import LEGEND, headline_correlations, mark
from eval.records.schema import Result, Scores, Share, UsedMetric, ValueRecord
from eval.reporting.columns import FURTHER_BESIDE, Column, estimate_in_units, system_name, value_heading
from eval.reporting.tables import Rows, comparison_table, describe_intervals, name_settings, select, table_of
from eval.scoring.metric_files import key_of


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A value of a metric, with its means by length, and those of floors and ceilings at the greatest length."""

    value: ValueRecord
    mark: str
    people: dict[str, str]
    by_length: dict[int, Share]
    beside: dict[str, Share]


def further_tables(scores: Scores, task: str, template: str) -> Iterator[tuple[str, str, Rows]]:
    """Yield title, remark and table of each further metric of a task and template."""
    results = select(scores.results, task=task, template=template, subset="all")
    for one in (scores.further or {}).values():
        if table := _table(results, one):
            yield (
                f"{one.name}, version {one.version}: {task}, template {template}",
                describe_metric(one, results),
                table,
            )


def further_comparisons(scores: Scores, task: str, subset: str) -> Iterator[tuple[str, Rows]]:
    """Yield the title of each further metric, and its table of comparisons within a run."""
    of_task = select(scores.further_comparisons or [], task=task, subset=subset)
    for one in (scores.further or {}).values():
        keys = {key_of(one.name, value) for value in one.values}
        if rows := [row for row in of_task if row.metric in keys]:
            yield f"{one.name}: {task}", comparison_table(rows, "first to second", name_settings)


def describe_metric(one: UsedMetric, results: Sequence[Result]) -> str:
    """Return what a reader must know of a metric's numbers, in sentences."""
    sentences = [f"Shares x 100; {describe_intervals(results)}."]
    if any(_has_values(result, one) for result in select(results, kind="yardstick")):
        sentences.append("Beside them, at the greatest length, what no model wrote.")
    if sets := _rated_sets(one):
        sentences.append(f"r with people: within systems, on {'; '.join(sets)}. {LEGEND}")
    if one.provenance:
        sentences.append(f"Made with {_short(one.provenance)}.")
    if one.num_absent:
        sentences.append(
            f"{one.num_absent} texts are not scored yet: give eval.score the --metrics that made the others."
        )
    return " ".join(sentences)


def _short(provenance: object) -> str:
    text = json.dumps(provenance, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _table(results: Sequence[Result], one: UsedMetric) -> Rows:
    models = sorted(select(results, kind="model"), key=lambda result: result.maxlen)
    if not models:
        return []
    greatest = models[-1]
    beside = select(results, kind="yardstick", maxlen=greatest.maxlen)
    others = {result.system: result for result in beside if _has_values(result, one)}
    rows = [
        _Row(
            value=about,
            mark=mark(one.name, name, one.version),
            people=headline_correlations(one.name, name, one.version),
            by_length={result.maxlen: found for result in models if (found := _mean_of(result, one.name, name))},
            beside={system: found for system, result in others.items() if (found := _mean_of(result, one.name, name))},
        )
        for name, about in one.values.items()
    ]
    rows = [row for row in rows if row.by_length or row.beside]
    people = [_people(sets)] if (sets := _rated_sets(one)) else []
    return table_of([_NAME, *_lengths(models, greatest), *_beside(others), *people], rows) if rows else []


def _rated_sets(one: UsedMetric) -> list[str]:
    """Return the sets on which people's ratings were compared with a metric."""
    names = (name for value in one.values for name in headline_correlations(one.name, value, one.version))
    return list(dict.fromkeys(names))


def _has_values(result: Result, one: UsedMetric) -> bool:
    return any(_mean_of(result, one.name, value) for value in one.values)


def _mean_of(result: Result, metric: str, value: str) -> Share | None:
    return (result.further or {}).get(key_of(metric, value))


_NAME = Column(heading="value", show=lambda row: value_heading(row.value) + row.mark)


def _people(sets: Sequence[str]) -> Column:
    def show(row: _Row) -> str:
        return "; ".join(row.people.get(name, "-").partition(" ")[0] for name in sets) if row.people else "-"

    return Column(heading="r with people", show=show)


def _lengths(models: Sequence[Result], greatest: Result) -> list[Column]:
    def of_length(maxlen: int) -> Column:
        return Column(heading=f"{maxlen:,}", show=lambda row: estimate_in_units(row.by_length.get(maxlen), row.value))

    def count(row: _Row) -> str:
        found = row.by_length.get(greatest.maxlen)
        return "0" if found is None else str(found.num_examples)

    return [*(of_length(result.maxlen) for result in models), Column(heading="n", show=count)]


def _beside(others: dict[str, Result]) -> list[Column]:
    def of_system(system: str) -> Column:
        return Column(
            heading=system_name(others[system]),
            show=lambda row: estimate_in_units(row.beside.get(system), row.value, with_interval=False),
        )

    return [of_system(system) for system in FURTHER_BESIDE if system in others]
