"""People's labels of some answers of a scored run -> what they would give all, with each metric's help.

labels = read_labels(Path("labels.csv"), "rating")
label_rows(read_scored(path), texts, labels)
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.errors import UserError
from eval.records.schema import ExampleScore, Key
from eval.scoring.powered import PoweredMean, powered_mean
from eval.scoring.scored_run import ScoredRun
from tasks.readers.files import read_records, require_file
from tasks.readers.rows import BadRow, Row

# Name of an example, and the text of an answer with single spaces.
Labels = Mapping[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What people would give all answers of a setting, with the help of one metric."""

    task: str
    template: str
    maxlen: int
    metric: str
    found: PoweredMean


def read_labels(file: Path, rating: str) -> Labels:
    """Return the labels of a table or JSON lines; of several rows about one answer, as of several people, the mean.

    Args:
        file: Has `id`, the name of the example, `prediction`, the answer, and the rating.
        rating: Column of the rating; a row in which it is empty is left out.

    Raises:
        UserError: There is no label, or one is no number.
        DataError: The file cannot be read, or a row lacks a column.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_records(require_file(file)):
        if isinstance(row, BadRow):
            raise UserError(row.problem)
        value = _number(row, rating)
        if value is not None:
            name = row.label("id")
            if name is None:
                raise UserError(f"{row.where}: no id; give the name of the example")
            found[name, _words(row.text("prediction", may_be_empty=True))].append(value)
    if not found:
        raise UserError(f"{file} has no label in '{rating}'; give each labelled answer a number there")
    return {key: statistics.fmean(values) for key, values in found.items()}


def label_rows(run: ScoredRun, texts: Mapping[Key, str], labels: Labels) -> list[LabelRow]:
    """Return a row for each setting that has a label, and each metric.

    Args:
        run: The run.
        texts: What was scored of each prediction.
        labels: What `read_labels` returns; those of other answers are left out.

    Raises:
        UserError: No answer of the run has a label.
    """
    rows = []
    for (task, template, maxlen), lines in sorted(run.lines.items()):
        given = {name: labels.get((name, _words(texts[task, template, name, maxlen]))) for name in lines}
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


def _words(text: str) -> str:
    return " ".join(text.split())


def _number(row: Row, field: str) -> float | None:
    if field not in row.fields:
        raise UserError(f"{row.where}: no column '{field}'; name that of the rating with --rating")
    value = row.fields[field]
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UserError(f"{row.where}: {field} is {value!r}, and no number")
    return number
