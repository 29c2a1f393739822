"""Scores of the groups of examples that the publishers of a task report apart, such as LongBench-E's three lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from eval.records.schema import ExampleRecord, GroupScore
from eval.scoring.examples import Scored, Setting, means_of


def scores_by_group(scored: Sequence[Scored], examples: Iterable[ExampleRecord]) -> list[GroupScore]:
    """Return the model's means by task, template, length and group, with groups in the order of their names."""
    groups_of = {(one.task, one.id): one.groups for one in examples if one.groups}
    members: dict[tuple[Setting, str], list[Scored]] = defaultdict(list)
    for one in scored:
        for group in (one.is_model and groups_of.get((one.line.task, one.line.id))) or ():
            members[one.setting, group].append(one)
    return [
        GroupScore(
            task=task,
            template=template,
            maxlen=maxlen,
            group=group,
            metrics=means_of([one.line for one in of_group], of_group[0].profile),
            num_examples=len(of_group),
        )
        for ((task, template, maxlen), group), of_group in sorted(members.items(), key=lambda item: item[0])
    ]
