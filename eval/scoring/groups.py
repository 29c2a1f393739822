"""Scores of the groups of examples that the publishers of a task report apart, such as LongBench-E's three lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from eval.records.schema import ExampleRecord, GroupScore
from eval.scoring.examples import Scored, Setting, values_of
from eval.scoring.profiles import metric_columns, metric_range
from eval.scoring.significance import mean_interval


def scores_by_group(scored: Sequence[Scored], examples: Iterable[ExampleRecord]) -> list[GroupScore]:
    """Return the model's means by task, template, length and group, with groups in the order of their names."""
    groups_of = {(one.task, one.id): one.groups for one in examples if one.groups}
    members: dict[tuple[Setting, str], list[Scored]] = defaultdict(list)
    for one in scored:
        for group in (one.is_model and groups_of.get((one.line.task, one.line.id))) or ():
            members[one.setting, group].append(one)
    return [_score(*key, members[key]) for key in sorted(members)]


def _score(setting: Setting, group: str, scored: Sequence[Scored]) -> GroupScore:
    profile, lines = scored[0].profile, [one.line for one in scored]
    task, template, maxlen = setting
    return GroupScore(
        task=task,
        template=template,
        maxlen=maxlen,
        group=group,
        metrics={
            metric: mean_interval(
                values_of(lines, columns), [line.unit for line in lines], within=metric_range(profile, metric)
            )
            for metric, columns in metric_columns(profile).items()
        },
        num_examples=len(lines),
    )
