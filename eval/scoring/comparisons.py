"""Scores of examples under two settings -> rows of a table of paired comparisons.

    compare_lines([Compare(first=lines, second=others, metric="rougeLsum", profile="hf")], margin=0.01)

Both sides hold the lines of one setting by id. All rows of a table are tested together (`eval.scoring.claims`).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np

from eval.records.schema import Compared, Comparison, ExampleScore, PairedResult, Subset, UsedMetric, ValueRecord
from eval.records.windows import window_of
from eval.scoring.claims import MARGIN, compare_table, count_outcomes
from eval.scoring.examples import Scored, Setting, count_clusters, subsets_of, values_of
from eval.scoring.exchanges import Pair
from eval.scoring.metric_files import key_of
from eval.scoring.profiles import PROFILES, headline, metric_columns, metric_range
from eval.scoring.significance import FRACTIONS, Range


def compare_settings(scored: Sequence[Scored], margin: float = MARGIN) -> list[Comparison]:
    """Return paired comparisons within a run, by the headline metric of each task.

    Each length is compared with the one before, the greatest with the smallest, and each template with the first at
    every length; the examples are those that both have and for which they give other prompts. The comparisons of a
    task, subset and window make one table, at whose level all of its claims hold: windows change no other table, and
    `eval.scoring.windows` compares them with each other.
    """
    return [row for table in _tables(scored, None) for row in compare_lines(table, margin)]


def compare_further(
    scored: Sequence[Scored], metrics: Mapping[str, UsedMetric], margin: float = MARGIN
) -> list[Comparison]:
    """Return the same by further metrics; all values of a metric, of a task, subset and window, make one table."""
    return [
        row
        for name, one in metrics.items()
        for table in _tables(scored, {key_of(name, value): about for value, about in one.values.items()})
        for row in compare_lines(table, margin)
    ]


def _tables(scored: Sequence[Scored], values: Mapping[str, ValueRecord] | None) -> Iterator[list[Compare]]:
    """Yield a table for each task, subset and window: of these values, or of the headline."""
    profiles = {one.line.task: one.profile for one in scored}
    for subset, members in subsets_of([one for one in scored if one.is_model]):
        by_setting: dict[Setting, dict[str, ExampleScore]] = defaultdict(dict)
        for one in members:
            by_setting[one.setting][one.line.id] = one.line
        for task, window in dict.fromkeys((task, window_of(template)) for task, template, _ in by_setting):
            settings = [one for one in by_setting if one[0] == task and window_of(one[1]) == window]
            pairs = [
                (by_setting[first], by_setting[second])
                for first, second in _pairs(settings)
                if by_setting[first].keys() & by_setting[second].keys()
            ]
            profile = profiles[task]
            if values is None:
                metric = headline(profile)
                yield [Compare(*pair, metric, profile, subset, is_same_model=True) for pair in pairs]
            else:
                yield [
                    Compare(*pair, key, None, subset, is_same_model=True, value=about)
                    for key, about in values.items()
                    for pair in pairs
                ]


def _pairs(settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    templates = list(dict.fromkeys(template for _, template, _ in settings))
    for template in templates:
        lengths = sorted(setting for setting in settings if setting[1] == template)
        yield from itertools.pairwise(lengths)
        if len(lengths) > 2:
            yield lengths[0], lengths[-1]
    for template in templates[1:]:
        for task, other, maxlen in sorted(settings):
            if other == template and (task, templates[0], maxlen) in settings:
                yield (task, templates[0], maxlen), (task, template, maxlen)


class Compare(NamedTuple):
    """A row of a table of comparisons: the lines of two settings, which share an example at least.

    Attributes:
        profile: What has the metric; None for a score of its own name, from 0 to 1, and for values of further metrics.
        is_same_model: Whether one model answered both in the same way, so that the same prompt is no evidence.
        value: Of a further metric, what its values can be; `metric` is then `NAME.VALUE`.
    """

    first: Mapping[str, ExampleScore]
    second: Mapping[str, ExampleScore]
    metric: str
    profile: str | None = None
    subset: Subset = "all"
    is_same_model: bool = False
    value: ValueRecord | None = None

    def shared(self) -> list[str]:
        """Return the examples that both settings have, with a value in both."""
        return [name for name in self.first if name in self.second and self.has_values(name)]

    def differing(self) -> list[str]:
        """Return the shared examples without those that have the same prompt in both settings."""
        return [name for name in self.shared() if not self.has_same_prompt(name)]

    def has_values(self, name: str) -> bool:
        """Return whether an example has what is compared on both sides, as not all have values of further metrics."""
        lines = self.first[name], self.second[name]
        return self.value is None or all((line.further or {}).get(self.metric) is not None for line in lines)

    def has_same_prompt(self, name: str) -> bool:
        """Return whether both settings show one model the whole document after the same words."""
        one, other = self.first[name], self.second[name]
        return self.is_same_model and one.template == other.template and not (one.is_truncated or other.is_truncated)


def compare_lines(table: Sequence[Compare], margin: float = MARGIN) -> list[Comparison]:
    """Return the differences in each row of a table, at whose level all claims hold.

    Scores of several columns are joined by a geometric mean. Examples with the same prompt in both settings are left
    out: they cannot differ, and so tell nothing of how far others may. The margin is the loss up to which the second
    counts as no worse.
    """
    table = [row for row in table if row.shared()]
    rows = [(row, row.differing()) for row in table]
    results = iter(compare_table([pair_of(row, names) for row, names in rows if names], margin))
    return [_comparison(row, names, next(results) if names else _nothing(margin)) for row, names in rows]


def _columns(row: Compare) -> Sequence[str]:
    return (row.metric,) if row.profile is None else metric_columns(row.profile)[row.metric]


def pair_of(row: Compare, names: Sequence[str]) -> Pair:
    """Return the scores of some examples, one at least, that both settings have, by what is compared."""
    within = FRACTIONS if row.profile is None else metric_range(row.profile, row.metric)
    if row.value is None:
        before, after = (values_of((lines[name] for name in names), _columns(row)) for lines in (row.first, row.second))
    else:
        within, sign = _oriented(row.value)
        before, after = (
            np.array([[sign * cast(float, (lines[name].further or {})[row.metric])] for name in names])
            for lines in (row.first, row.second)
        )
    lines = [row.first[name] for name in names]
    # A document of one task is none of another's.
    documents = [(line.task, line.unit) for line in lines]
    are_answers = row.profile is not None and PROFILES[row.profile].has_common_answer
    return Pair(first=before, second=after, documents=documents, within=within, are_answers=are_answers)


def _oriented(value: ValueRecord) -> tuple[Range, float]:
    """Return a range in which more is better, and what takes values there."""
    low, high = value.within
    return ((-high, -low), -1.0) if value.better == "lower" else ((low, high), 1.0)


def _as_they_are(result: PairedResult, value: ValueRecord | None) -> PairedResult:
    """Return a result with the sign of the values, and without claims that a value cannot make."""
    if value is None:
        return result
    if value.better is None or math.inf in (-value.within[0], value.within[1]):
        # Without a bound no margin can be guaranteed, and without a better direction there is no loss.
        result = replace(result, non_inferior=False, claim_low=None)
    if value.better != "lower":
        return result
    ends = None if result.high is None else -result.high, None if result.low is None else -result.low
    # 0.0 is written without a sign.
    return replace(result, difference=0.0 - result.difference, low=ends[0], high=ends[1], claim_low=None)


def _nothing(margin: float) -> PairedResult:
    """Return what is known of two settings that give the same prompts."""
    return PairedResult(
        difference=0.0,
        low=None,
        high=None,
        p_value=None,
        wins=0,
        ties=0,
        losses=0,
        num_examples=0,
        num_documents=0,
        detectable=None,
        margin=margin,
        non_inferior=False,
        p_corrected=None,
    )


def _comparison(row: Compare, names: Sequence[str], result: PairedResult) -> Comparison:
    shared = row.shared()
    one, other = row.first[shared[0]], row.second[shared[0]]
    return Comparison(
        task=one.task,
        subset=row.subset,
        metric=row.metric,
        first=Compared(template=one.template, maxlen=one.maxlen),
        second=Compared(template=other.template, maxlen=other.maxlen),
        num_same_prompts=len(shared) - len(names),
        num_clusters=count_clusters(row.first[name] for name in names),
        by_metric=_by_metric(row, names),
        value=row.value,
        **vars(_as_they_are(result, row.value)),
    )


def _by_metric(row: Compare, names: Sequence[str]) -> dict[str, list[int]] | None:
    """Return wins, ties and losses by each metric that the row's joins; None where it is one."""
    columns = _columns(row)
    if len(columns) == 1 or not names or row.value is not None:
        return None
    before, after = (values_of((lines[name] for name in names), columns) for lines in (row.first, row.second))
    return {name: list(count_outcomes(gains)) for name, gains in zip(columns, (after - before).T, strict=True)}
