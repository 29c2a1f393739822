"""Further metrics of predictions from files, where the files have what a metric needs. No value is kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from eval.errors import UserError
from eval.metrics.base import Item, Metric, Scores, checked_scores
from eval.scoring.metric_files import key_of

# What an item of a file has beside prediction and references, by what a metric calls it.
FIELDS = {"document": "document", "window": "document or window", "query": "query"}


def score_items(metrics: Sequence[Metric], texts: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Return the values of each item by `NAME.VALUE`; those of a metric are None where an item lacks what it needs.

    Args:
        metrics: What scores.
        texts: Of each item `prediction`, `references` and what else `Item` has, where the files have it.

    Raises:
        UserError: No item has what a metric needs, or a metric gives what it may not give.
    """
    items = {metric.name: [Item.of(metric, **one) for one in texts] for metric in metrics}
    for metric in metrics:
        lacking = [one.lacks(metric.needs) for one in items[metric.name]]
        if all(lacking):
            fields = " and ".join(dict.fromkeys(FIELDS.get(need, need) for need in lacking[0]))
            raise UserError(
                f"metric {metric.name} needs the {' and '.join(lacking[0])} of an item, and no item has it; add the "
                f"field {fields} to either file, or leave the metric out"
            )
    rows: list[dict[str, float | None]] = [{} for _ in texts]
    for metric in metrics:
        for row, values in zip(rows, _score(metric, items[metric.name]), strict=True):
            row |= {key_of(metric.name, name): value for name, value in values.items()}
    return rows


def _score(metric: Metric, items: Sequence[Item]) -> list[Scores]:
    able = [index for index, item in enumerate(items) if not item.lacks(metric.needs)]
    rows: list[Scores] = [dict.fromkeys(metric.values) for _ in items]
    starts = range(0, len(able), metric.batch_size)
    for start in tqdm(starts, desc=f"scoring {metric.name}", delay=2, leave=False, disable=None):
        batch = able[start : start + metric.batch_size]
        for index, values in zip(batch, checked_scores(metric, [items[index] for index in batch]), strict=True):
            rows[index] = values
    return rows
