"""The chart of a finding: a metric over length with the oracle's gap, and what each length costs below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from eval.records.schema import Result
from eval.reporting.charts import SCHEMA, WIDTH, Layer, Spec, direct_labels, layer, quantity, tooltip
from eval.reporting.columns import percent_mean
from eval.reporting.tables import select
from eval.scoring.baselines import ORACLES
from eval.scoring.profiles import metric_name, metric_title

_HEIGHT, _STRIP = 260, 30
_AXIS = 64  # pixels of the vertical axes, alike so that all views have the same horizontal one
_ROOM = 150  # pixels beside a view: its axis, and the names of its lines
_STRIPS = {
    "seconds": ("time (s)", 1.0),
    "cache_bytes": ("cache (MiB)", 2.0**20),
}
_LINES = {
    "matched_oracle": "dashed: the oracle, the best that sentences of the window say in as many words as the answer",
    "visible_oracle": "dashed: the oracle, the best that sentences of the window could say",
    "matched_lead": "dotted: the lead, as long as the answer",
    "lead": "dotted: the lead",
    "common_answer": "dotted: the most common answer",
}
# Share of the height that the gap takes where it has a label.
_GAP = 0.15


def finding_chart(results: Sequence[Result], metric: str) -> Spec:
    """Return one metric of a model over maxlen: oracle, lead and the gap to the oracle, and below it the cost.

    The results are those of one task, template and subset.
    """
    models = sorted(select(results, kind="model"), key=lambda one: one.maxlen)
    lengths = [one.maxlen for one in models]
    x = quantity(
        "maxlen",
        "Maximum length (tokens)",
        scale={"type": "log", "base": 2, "nice": False, "domain": [lengths[0] / 2**0.3, lengths[-1] * 2**0.3]},
        axis={"values": lengths, "format": ",d", "grid": False, "labelFontWeight": 600},
    )
    views = [_scores(results, models, metric, x), *_strips(models, x)]
    described = f"{metric_name(metric)} over maximum length beside the oracle and the lead, and what each length costs."
    return {
        "$schema": SCHEMA,
        "description": described,
        "spacing": 12,
        "vconcat": [{"width": WIDTH, **view} for view in views],
        "usermeta": {"room": _ROOM},
    }


def describe_baselines(results: Sequence[Result], metric: str) -> str:
    """Return what the dashed and dotted lines of a `finding_chart` are, in a sentence; empty where there are none."""
    drawn = [_LINES[system] for _, system, _ in _baselines(results, select(results, kind="model"), metric)]
    text = "; ".join(drawn)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _scores(results: Sequence[Result], models: Sequence[Result], metric: str, x: Layer) -> Layer:
    """Return the view of the scores."""
    rows = [_row(one, metric) for one in models]
    baselines = {name: rows for name, _, rows in _baselines(results, models, metric)}
    shown = [*rows, *(row for of_one in baselines.values() for row in of_one)]
    low = 1.12 * min(0.0, *(row["mean"] for row in shown), *(row["low"] or 0.0 for row in shown))
    high = 1.12 * max(0.0, *(row["mean"] for row in shown), *(row["high"] or 0.0 for row in shown)) or 1.0
    y = quantity(
        "mean",
        metric_title(metric, (one.profile for one in models)),
        scale={"domain": [low, high], "nice": False},
        axis={"minExtent": _AXIS, "maxExtent": _AXIS},
    )
    layers: list[Layer] = []
    if oracle := baselines.get("oracle"):
        between = [
            {"maxlen": one["maxlen"], "mean": one["mean"], "model": min(row["mean"], one["mean"])}
            for one, row in zip(oracle, rows, strict=True)
        ]
        gap = {"type": "area", "style": "gap"}
        layers += [layer(between, gap, x=x, y=y, y2={"field": "model"}), *_name_of_gap(between, high, x, y)]
    for name, of_one in baselines.items():
        dash = [6, 3] if name == "oracle" else [2, 2]
        line = {"type": "line", "style": "oracle" if name == "oracle" else "yardstick", "strokeDash": dash}
        layers.append(layer(of_one, line, x=x, y=y, tooltip=_TIPS))
    with_interval = [row for row in rows if row["low"] is not None and row["high"] is not None]
    if with_interval:  # a layer without data has no extent, of which browsers complain
        rule = {"type": "rule", "style": "model", "strokeWidth": 2, "opacity": 0.55}
        layers.append(layer(with_interval, rule, x=x, y=y | {"field": "low"}, y2={"field": "high"}))
    layers.append(layer(rows, {"type": "line", "style": "model", "strokeWidth": 2.5}, x=x, y=y))
    layers.append(layer(rows, {"type": "point", "filled": True, "size": 80, "style": "model"}, x=x, y=y, tooltip=_TIPS))
    # Above its point where the line comes from below or goes there, so that it is not on it.
    for above in (True, False):
        of_side = [row for index, row in enumerate(rows) if _is_peak(rows, index) == above]
        for style in ("halo", "value"):
            mark: Layer = {"type": "text", "style": style, "dy": -15 if above else 17}
            layers += [layer(of_side, mark, x=x, y=y, text={"field": "label"})] if of_side else []
    ends = {f"{name} {of_one[-1]['label']}": of_one for name, of_one in baselines.items()}
    layers.append(direct_labels({**ends, f"model {rows[-1]['label']}": rows}, low, high, y, _HEIGHT))
    return {"height": _HEIGHT, "layer": layers}


def _row(one: Result, metric: str) -> dict[str, Any]:
    found = one.metrics[metric]
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    percent = 100 * (found.mean or 0.0)
    row = {"maxlen": one.maxlen, "mean": percent, "low": low, "high": high, "n": one.num_examples}
    label = percent_mean(found, 1)
    interval = "" if low is None or high is None else f"{low:.1f} to {high:.1f}"
    return {**row, "label": label, "interval": interval, "system": "model"}


def _baselines(
    results: Sequence[Result], models: Sequence[Result], metric: str
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield name, system and rows of oracle and lead, with as many words as the answers where there are such.

    Those that are not there at all lengths of the model are left out.
    """
    for name, systems in {"oracle": ORACLES, "lead": ("matched_lead", "lead"), "common": ("common_answer",)}.items():
        for system in systems:
            found = {one.maxlen: one for one in select(results, system=system, kind="yardstick")}
            if all(one.maxlen in found for one in models):
                rows = [_row(found[one.maxlen], metric) for one in models]
                about = {"system": name, "low": None, "high": None, "interval": ""}
                yield name, system, [row | about for row in rows]
                break


def _name_of_gap(between: Sequence[Mapping[str, float]], high: float, x: Layer, y: Layer) -> Iterator[Layer]:
    """Yield what the gap is, where it is wide enough to be written on."""
    for first, second in reversed(list(pairwise(between))):
        ends = [(one["mean"], one["model"]) for one in (first, second)]
        if min(mean - model for mean, model in ends) > _GAP * high:
            place = {
                "maxlen": math.sqrt(first["maxlen"] * second["maxlen"]),
                "mean": sum(map(sum, ends)) / 4,
                "label": "shown, not used",
            }
            yield layer([place], {"type": "text", "style": "label"}, x=x, y=y, text={"field": "label"})
            return


def _is_peak(rows: Sequence[Mapping[str, Any]], index: int) -> bool:
    """Return whether a point lies above the middle of its neighbours."""
    beside = [rows[place]["mean"] for place in (index - 1, index + 1) if 0 <= place < len(rows)]
    return not beside or rows[index]["mean"] >= sum(beside) / len(beside)


def _strips(models: Sequence[Result], x: Layer) -> Iterator[Layer]:
    """Yield a row of bars for each cost that is known at all lengths, the horizontal axis below the last."""
    for key, (name, unit) in _STRIPS.items():
        values = [value for one in models if one.cost is not None and (value := getattr(one.cost, key)) is not None]
        if len(values) < len(models) or not any(values):
            continue
        rows = [
            {
                "maxlen": one.maxlen,
                "cost": value / unit,
                "label": f"{value / unit:,.{0 if value >= 100 * unit else 1}f}",
            }
            for one, value in zip(models, values, strict=True)
        ]
        axis = {
            "labels": False,
            "ticks": False,
            "grid": False,
            "domain": False,
            "minExtent": _AXIS,
            "maxExtent": _AXIS,
            "titleAngle": 0,
            "titleAlign": "right",
            "titleBaseline": "middle",
            "titleX": -8,
            "titleY": _STRIP / 2,
        }
        scale = {"domain": [0, 1.7 * max(values) / unit], "nice": False}
        y = quantity("cost", name, scale=scale, axis=axis)
        along = x | {"axis": None}
        bar = layer(rows, {"type": "bar", "style": "cost", "width": 26}, x=along, y=y)
        text = layer(rows, {"type": "text", "style": "label", "dy": -7}, x=along, y=y, text={"field": "label"})
        yield {"height": _STRIP, "layer": [bar, text]}


_TIPS = tooltip(
    system=("", ""),
    maxlen=("maximum length", ","),
    mean=("score", ".2f"),
    interval=("95%", ""),
    n=("examples", ","),
)
