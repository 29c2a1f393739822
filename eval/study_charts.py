"""Charts of a study's report: ratios of perplexities against cost, plans in a row each, losses of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.charts import Layer, Spec, spec_of

Row = Mapping[str, Any]

_CLOSE = 0.12  # of the width: labels of points that are nearer to each other must not stand on one line
_GAP = 0.05  # of the height
_ONE: Layer = {
    "data": {"values": [{"one": 1}]},
    "mark": {"type": "rule", "style": "yardstick", "strokeDash": [4, 4]},
}
_TOOLTIP = [
    {"field": "name"},
    *({"field": field, "format": ".4f"} for field in ("ratio", "low", "high")),
    {"field": "share", "title": "attention", "format": ".1%"},
]


def ratio_chart(rows: Sequence[Row], title: str) -> Spec:
    """Return ratios of perplexities against the share of attention, with intervals and names beside the points.

    Args:
        rows: {"name", "share", "ratio", "low", "high"}; the last two None without an interval.
        title: Of the ratio.
    """
    x = {
        "field": "share",
        "type": "quantitative",
        "title": "Attention operations (share of the reference)",
        "scale": {"zero": False, "nice": False, "padding": 60},
        "axis": {"format": "%", "grid": False},
    }
    ends = [row[key] for row in rows for key in ("ratio", "low", "high") if row[key] is not None] + [1.0]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    domain = [min(ends) - room, max(ends) + room]
    y = {"field": "ratio", "type": "quantitative", "title": title, "scale": {"domain": domain, "nice": False}}
    layers: list[Layer] = [
        _ONE | {"encoding": {"y": y | {"field": "one"}}},
        *_intervals(rows, {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}),
        {
            "data": {"values": list(rows)},
            "mark": {"type": "point", "style": "histogram", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
        },
        {
            "data": {"values": _apart(rows, domain[1] - domain[0])},
            "mark": {"type": "text", "align": "left", "dx": 8, "dy": -7, "style": "label"},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        },
    ]
    return spec_of(layer=layers, description=f"{title} against the share of attention operations, a point a part.")


def _apart(rows: Sequence[Row], height: float) -> list[dict[str, Any]]:
    """Return rows whose labels are moved up where they would stand on one another."""
    shares = [row["share"] for row in rows]
    near = _CLOSE * ((max(shares) - min(shares)) or 1)
    placed: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: float(row["ratio"])):
        below = [one["ratio"] for one in placed if abs(one["share"] - row["share"]) <= near]
        placed.append({**row, "ratio": max([row["ratio"], *(other + _GAP * height for other in below)])})
    return placed


def strip_chart(rows: Sequence[Row], title: str) -> Spec:
    """Return ratios of perplexities along a line for each name, with intervals; several points of a name share it.

    Args:
        rows: As of `ratio_chart`.
        title: Of the ratio.
    """
    order = list(dict.fromkeys(row["name"] for row in rows))
    x = {"field": "ratio", "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 10}}
    y = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    layers: list[Layer] = [
        _ONE | {"encoding": {"x": x | {"field": "one"}}},
        *_intervals(rows, {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y}),
        {
            "data": {"values": list(rows)},
            "mark": {"type": "point", "style": "histogram", "filled": True, "size": 50, "opacity": 0.7},
            "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
        },
    ]
    return spec_of(layer=layers, height=26 * len(order), description=f"{title}, a line a plan: {', '.join(order)}.")


def _intervals(rows: Sequence[Row], encoding: Layer) -> list[Layer]:
    # A layer without data has no extent, of which browsers complain.
    known = [row for row in rows if row["low"] is not None]
    mark = {"type": "rule", "strokeWidth": 2, "opacity": 0.55}
    return [{"data": {"values": known}, "mark": mark, "encoding": encoding}] if known else []


def loss_chart(rows: Sequence[Row]) -> Spec:
    """Return held-out losses over steps, a line a part.

    Args:
        rows: {"name", "step", "loss"}.
    """
    names = list(dict.fromkeys(row["name"] for row in rows))
    colour = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": names},
        "legend": {"title": None, "orient": "bottom", "columns": 2},
    }
    encoding = {
        "x": {"field": "step", "type": "quantitative", "title": "Step", "axis": {"grid": False}},
        "y": {
            "field": "loss",
            "type": "quantitative",
            "title": "Held-out loss (nats a token)",
            "scale": {"zero": False, "padding": 8},
        },
        "color": colour,
        "shape": {"field": "name", "type": "nominal", "scale": {"domain": names}, "legend": colour["legend"]},
    }
    line = {name: channel for name, channel in encoding.items() if name != "shape"}
    layers: list[Layer] = [
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": line},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}, "encoding": encoding},
    ]
    return spec_of(data={"values": list(rows)}, layer=layers, description=f"Held-out loss: {', '.join(names)}.")
