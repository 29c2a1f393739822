"""The charts of a board: small multiples with shared axes, a panel a run over length, and a panel a cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eval.records.engines import clocks_apart
from eval.records.schema import Board, BoardRow, Estimate
from eval.reporting.board_labels import Key, key_of, labels_of
from eval.reporting.charts import FRONTIER, PANEL_WIDTH, SCHEMA, Chart, Layer, layer, panels_of, quantity, score_tooltip
from eval.reporting.columns import BASELINE_STYLES, charted_costs
from eval.reporting.tables import describe_intervals
from eval.scoring.baselines import ORACLES
from eval.scoring.board import clocks_of, frontier
from eval.scoring.profiles import metric_name, metric_title

_LEFT_SHARE = 0.45  # of an axis: where a name has no room to the left of its point
_NAME_SHARE = 0.09  # of the range of scores: how far apart two names stand
_NUM_PANELS = 12  # runs that have a panel
_SHORT = "datum.value % 1024 == 0 ? datum.value / 1024 + 'K' : format(datum.value, ',d')"


def charts_of(board: Board, cost: str) -> dict[str, Chart]:
    """Return a board's charts: scores over length where there are several, then against each cost that is known."""
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", board.task)
    found = {"length": _over_length(board), "cost": _against_cost(board, cost)}
    return {f"{slug}-{name}": chart for name, chart in found.items() if chart is not None}


def _over_length(board: Board) -> Chart | None:
    """Return a panel a run, best first: its scores over length, those of the others in grey."""
    if len({row.maxlen for row in board.rows}) == 1:
        return None
    labels, metric = labels_of(board.rows), board.metric
    keys = list(dict.fromkeys(key_of(row) for row in board.rows))
    shown = keys[:_NUM_PANELS]
    oracle = next((name for name in ORACLES if any(name in row.yardsticks for row in board.rows)), None)
    rows: list[dict[str, Any]] = []
    for row in sorted(board.rows, key=lambda row: row.maxlen):
        if key_of(row) in shown:
            about = {"panel": labels[key_of(row)].name, "maxlen": row.maxlen, "n": row.num_examples}
            rows.append({**about, "kind": "model", **_percent(row.metrics[metric])})
            if oracle in row.yardsticks:
                rows.append({**about, "kind": "oracle", **_percent(row.yardsticks[oracle][metric])})
    lengths = sorted({row.maxlen for row in board.rows})
    x = quantity(
        "maxlen",
        "tokens",
        scale={"type": "log", "base": 2, "nice": False, "domain": [lengths[0] / 2**0.25, lengths[-1] * 2**0.25]},
        axis={"values": lengths, "labelExpr": _SHORT, "grid": False},
    )
    y = _score_axis(board)
    others = layer(_curves(board, labels), {"type": "line", "style": "context"}, x=x, y=y, detail={"field": "run"})
    name = metric_name(metric)
    caption = f"A panel a run, best first, the others in grey; {describe_intervals(board.rows)}."
    if oracle:
        caption += f" Dashed: {BASELINE_STYLES[oracle].heading} of the run."
    if len(keys) > len(shown):
        caption += f" The first {len(shown)} of {len(keys)} runs have a panel."
    layers = [
        others,
        *([_only("oracle", {"type": "line", "style": "yardstick", "strokeDash": [4, 3]}, x, y)] if oracle else []),
        *_model_layers(x, y, has_intervals=any(row["low"] is not None for row in rows if row["kind"] == "model")),
    ]
    return Chart(
        title=f"{name} over length",
        caption=caption,
        spec=panels_of(rows, layers, [labels[key].name for key in shown], f"{name} over length, a panel a run."),
    )


def _against_cost(board: Board, cost: str) -> Chart | None:
    """Return a panel a cost, that of the frontier first: all rows, those of the frontier named."""
    known = charted_costs()
    columns = [known[key] for key in dict.fromkeys((cost, *known))]
    apart = clocks_apart(clocks_of(board.rows))
    views = []
    for column in columns:
        points = [(row, value / column.unit) for row in board.rows if (value := column.value(row.cost)) is not None]
        if points:
            views.append(_cost_panel(board, column.axis, points, has_frontier=column.key != "seconds" or not apart))
    if not views:
        return None
    name = metric_name(board.metric)
    caption = (
        "A panel a cost. Coloured points on the shaded steps are the frontier: no other point costs no more and is no "
        "worse. They are named where there is room."
    )
    if any(row.cost is not None and row.cost.seconds is not None for row in board.rows):
        caption += f" {apart} So there is no frontier over seconds." if apart else ""
        caption += "" if board.is_one_machine else " Times were measured in different places."
    spec = {
        "$schema": SCHEMA,
        "description": f"{name} against cost, a panel a cost.",
        "usermeta": {"panels": len(views)},
        "columns": len(views),
        "spacing": 24,
        "resolve": {"scale": {"y": "shared"}},
        "concat": views,
    }
    return Chart(title=f"{name} against cost", caption=caption, spec=spec)


def _cost_panel(board: Board, title: str, points: Sequence[tuple[BoardRow, float]], *, has_frontier: bool) -> Layer:
    """Return the panel of a cost: points of the frontier coloured and named, the others in grey."""
    labels, metric = labels_of(board.rows), board.metric
    best = frontier([(value, round(row.metrics[metric].value, 12)) for row, value in points]) if has_frontier else []
    named = _apart([points[index][0].metrics[metric].value for index in best], board)
    is_cheap = _is_cheap([value for _, value in points])
    rows = [
        {
            "x": value,
            "run": labels[key_of(row)].name,
            "maxlen": row.maxlen,
            "n": row.num_examples,
            "label": f"{labels[key_of(row)].name} {row.maxlen:,}",
            **_percent(row.metrics[metric]),
        }
        for row, value in points
    ]
    scale = {"type": "log", "nice": False, "padding": 20} if min(row["x"] for row in rows) > 0 else {"padding": 20}
    x = quantity("x", "", scale=scale, axis={"format": "~r", "tickCount": 4, "grid": False})
    y = _score_axis(board) | {"scale": {"domain": _with_room(board), "nice": False, "zero": False}}
    others = [row for index, row in enumerate(rows) if index not in best]
    on_it = [rows[index] for index in best]
    layers = [layer(on_it, FRONTIER, x=x, y=y)] if on_it else []
    for members, style, size in ((others, "context", 30), (on_it, "own", 70)):
        mark = {"type": "point", "filled": True, "style": style, "size": size}
        layers += [layer(members, mark, x=x, y=y, tooltip=_TOOLTIP)] if members else []
    # A name stands clear of the steps: above and left of its point, or, near the vertical axis, below and right.
    above = {"align": "right", "baseline": "bottom", "dx": -2, "dy": -6}
    below = {"align": "left", "baseline": "top", "dx": 7, "dy": 6}
    for place, is_left in ((above, False), (below, True)):
        chosen = [rows[index] for index in (best[one] for one in named) if is_cheap(rows[index]["x"]) == is_left]
        mark = {"type": "text", "style": "label", "limit": 150, **place}
        layers += [layer(chosen, mark, x=x, y=y, text={"field": "label"})] if chosen else []
    heading = {"text": title, "anchor": "start", "fontSize": 12.5, "offset": 6}
    return {"title": heading, "width": PANEL_WIDTH, "height": 170, "layer": layers}


def _is_cheap(values: Sequence[float]) -> Callable[[float], bool]:
    """Return whether a cost is in the left part of its axis, which is logarithmic where all are above 0."""
    place = math.log if min(values) > 0 else float
    low, high = place(min(values)), place(max(values))
    return lambda value: place(value) - low < _LEFT_SHARE * (high - low)


def _with_room(board: Board) -> list[float]:
    """Return the range of a board's scores x 100, with room for the name of the best."""
    values = [100 * row.metrics[board.metric].value for row in board.rows]
    size = max(max(values) - min(values), 0.5)
    return [min(values) - 0.08 * size, max(values) + 0.14 * size]


def _apart(means: Sequence[float], board: Board) -> list[int]:
    """Return which of these means, in ascending order, have room for a name; the highest comes first."""
    values = [row.metrics[board.metric].value for row in board.rows]
    gap = _NAME_SHARE * (max(values) - min(values))
    named: list[int] = []
    for place in reversed(range(len(means))):
        if not named or means[named[-1]] - means[place] >= gap:
            named.append(place)
    return named


def _percent(estimate: Estimate) -> dict[str, Any]:
    return {
        name: None if (value := getattr(estimate, name)) is None else 100 * value for name in ("mean", "low", "high")
    }


def _curves(board: Board, labels: Mapping[Key, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scores of all runs, for lines in grey."""
    for row in sorted(board.rows, key=lambda row: row.maxlen):
        yield {
            "run": labels[key_of(row)].name,
            "maxlen": row.maxlen,
            "mean": _percent(row.metrics[board.metric])["mean"],
        }


def _score_axis(board: Board) -> Layer:
    title = metric_title(board.metric, [board.profile])
    return quantity("mean", title, scale={"zero": False, "nice": True}, axis={"tickCount": 4})


def _only(kind: str, mark: Layer, x: Layer, y: Layer, **encoding: Any) -> Layer:
    """Return a layer of the rows of one kind, of the panel that it is drawn in."""
    return {
        "transform": [{"filter": f"datum.kind == '{kind}'"}],
        "mark": mark,
        "encoding": {"x": x, "y": y, **encoding},
    }


def _model_layers(x: Layer, y: Layer, *, has_intervals: bool) -> list[Layer]:
    rule = _only(
        "model", {"type": "rule", "style": "own", "opacity": 0.55}, x, y | {"field": "low"}, y2={"field": "high"}
    )
    rule["transform"].append({"filter": "datum.low != null"})
    return [
        *([rule] if has_intervals else []),
        _only("model", {"type": "line", "style": "own"}, x, y),
        _only("model", {"type": "point", "filled": True, "size": 60, "style": "own"}, x, y, tooltip=_TOOLTIP),
    ]


_TOOLTIP = score_tooltip("run")
