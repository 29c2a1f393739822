"""Charts of a study's report: ratios of perplexities against cost, plans in a row each, losses of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.charts import Layer, Spec, spec_of

Point = Mapping[str, Any]  # "name", "share" of attention, "ratio", and "low" and "high", None without an interval

_TOOLTIP = [
    {"field": "name"},
    *({"field": field, "format": ".4f"} for field in ("ratio", "low", "high")),
    {"field": "share", "title": "attention", "format": ".1%"},
]


def ratio_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities against the share of attention, with intervals, a colour and a shape a part."""
    x = _axis("share", "Attention operations (share of the reference)") | {"axis": {"format": "%", "grid": False}}
    y, part = _axis("ratio", title), _part(points)
    layers = _ratios(points, {"x": x, "y": y, "color": part}, "y", {"shape": part}, size=70, opacity=1)
    return spec_of(layer=layers, description=f"{title} against the share of attention operations, a point a part.")


def strip_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities along a line for each name, with intervals; several points of a name share it."""
    order = list(dict.fromkeys(point["name"] for point in points))
    y = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    layers = _ratios(points, {"x": _axis("ratio", title), "y": y}, "x", style="histogram", size=50, opacity=0.7)
    return spec_of(layer=layers, height=26 * len(order), description=f"{title}, a line a plan: {', '.join(order)}.")


def loss_chart(losses: Mapping[str, Mapping[int, float]]) -> Spec:
    """Return held-out losses by step, a line a part."""
    points = [{"name": name, "step": step, "loss": one} for name, some in losses.items() for step, one in some.items()]
    part = _part(points)
    x = {"field": "step", "type": "quantitative", "title": "Step", "axis": {"grid": False}}
    encoding = {"x": x, "y": _axis("loss", "Held-out loss (nats a token)"), "color": part}
    layers: list[Layer] = [
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": encoding},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}, "encoding": encoding | {"shape": part}},
    ]
    described = f"Held-out loss: {', '.join(part['scale']['domain'])}."
    return spec_of(data={"values": points}, layer=layers, description=described)


def _axis(field: str, title: str) -> Layer:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 10}}


def _part(points: Sequence[Mapping[str, Any]]) -> Layer:
    names = list(dict.fromkeys(point["name"] for point in points))
    legend = {"title": None, "orient": "bottom", "columns": 2}
    return {"field": "name", "type": "nominal", "scale": {"domain": names}, "legend": legend}


def _ratios(points: Sequence[Point], channels: Layer, axis: str, more: Layer | None = None, **mark: Any) -> list[Layer]:
    """Return a line at 1, intervals and points, ratios along one axis; `more` channels and `mark` are of points."""
    ratio = channels[axis]
    intervals = channels | {axis: ratio | {"field": "low"}, f"{axis}2": {"field": "high"}}
    known = [point for point in points if point["low"] is not None]
    layers: list[Layer] = [
        {
            "data": {"values": [{"one": 1}]},
            "mark": {"type": "rule", "style": "yardstick", "strokeDash": [4, 4]},
            "encoding": {axis: ratio | {"field": "one"}},
        },
        {"data": {"values": known}, "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55}, "encoding": intervals},
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "filled": True, **mark},
            "encoding": channels | {"tooltip": _TOOLTIP} | (more or {}),
        },
    ]
    # A layer without data has no extent, of which browsers complain.
    return [layer for layer in layers if layer["data"]["values"]]
