"""People's labels of some answers of a scored run -> what they would give all, with each metric's help.

rows = label_rows(read_scored(path), texts, {("test-0", "The Elbe rose."): 4.0})
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from eval.errors import UserError
from eval.records.schema import ExampleScore, Key
from eval.scoring.powered import PoweredMean, powered_mean
from eval.scoring.scored_run import ScoredRun

# By the name of an example, `ID` or `TASK/ID`, and the text of an answer as `words_of` has it.
Labels = Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What people would give all answers of a setting, with the help of one metric."""

    task: str
    template: str
    maxlen: int
    metric: str
    found: PoweredMean


def label_rows(run: ScoredRun, texts: Mapping[Key, str], labels: Labels) -> list[LabelRow]:
    """Return a row for each setting that has a label, and each metric.

    Args:
        run: The run.
        texts: What was scored of each prediction.
        labels: What people gave; labels of other answers are left out.

    Raises:
        UserError: No answer of the run has a label.
    """
    rows = []
    for (task, template, maxlen), lines in sorted(run.lines.items()):
        given: dict[str, float | None] = {}
        for name in lines:
            text = words_of(texts[task, template, name, maxlen])
            given[name] = labels.get((name, text), labels.get((f"{task}/{name}", text)))
        if all(value is None for value in given.values()):
            continue
        units = [line.unit for line in lines.values()]
        for metric in dict.fromkeys(name for line in lines.values() for name in _values(line)):
            values = [_values(line).get(metric) for line in lines.values()]
            known = [value for value in values if value is not None]
            if not known:
                continue
            # Any number may stand for what a metric does not tell: the labels put its mean right.
            filled = [statistics.fmean(known) if value is None else value for value in values]
            found = powered_mean(filled, list(given.values()), units)
            rows.append(LabelRow(task=task, template=template, maxlen=maxlen, metric=metric, found=found))
    if not rows:
        raise UserError(
            f"no answer of {run.path} has a label: id and prediction must be those of an answer, such as "
            f"'{next(iter(labels))[0]}'"
        )
    return rows


def _values(line: ExampleScore) -> dict[str, float | None]:
    return {**line.metrics, **(line.further or {})}


def words_of(text: str) -> str:
    """Return a text with single spaces."""
    return " ".join(text.split())
