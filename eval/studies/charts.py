"""Charts of a study's report: ratios of perplexities against cost, plans in a row each, losses of trainings.

Each states in its title what it shows, made from its numbers, and names what is drawn beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.charts import Layer, Spec, direct_labels, layer, quantity, spec_of

Point = Mapping[str, Any]  # "name", "share" of attention, "ratio", and "low" and "high", None without an interval

_TOOLTIP = [
    {"field": "name"},
    *({"field": field, "format": ".4f"} for field in ("ratio", "low", "high")),
    {"field": "share", "title": "attention", "format": ".1%"},
]

_INTERVAL = {"type": "rule", "style": "model", "strokeWidth": 2, "opacity": 0.55}


def ratio_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities against the share of attention, with intervals, each part named at its point.

    The reference is the first point.
    """
    x = _axis("share", "Attention operations (share of the reference)")
    x["axis"] = {"format": "%", "grid": False, "values": [place / 4 for place in range(9)]}
    x["scale"] = {"zero": False, "nice": False, "padding": 90}  # room for names
    y = _axis("ratio", title)
    layers = _ratios(points, {"x": x, "y": y}, "y", size=70, opacity=1, style="model")
    name = {"type": "text", "align": "left", "dx": 9, "style": "value"}
    layers.append(layer(points, name, x=x, y=y, text={"field": "name"}))
    reference, *others = points
    found = [f"{one['name']}: {_percent(one)} perplexity for {one['share']:.0%} of the attention" for one in others]
    described = f"{title} against the share of attention operations, a point a part."
    return spec_of(layer=layers, title=_title(found[:2], f"beside {reference['name']}"), description=described)


def strip_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities along a line for each name, with intervals; several points of a name share it."""
    order = list(dict.fromkeys(point["name"] for point in points))
    y = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    layers = _ratios(points, {"x": _axis("ratio", title), "y": y}, "x", style="histogram", size=50, opacity=0.7)
    groups = {name: [point for point in points if point["name"] == name] for name in order}
    single = [some[0] for some in groups.values() if len(some) == 1 and some[0]["ratio"] != 1]
    found = [f"{best['name']}: {_percent(best)} perplexity" for best in sorted(single, key=_ratio)[:1]]
    for name, some in groups.items():
        if len(some) > 1:
            ends = sorted(some, key=_ratio)
            found.append(f"{name}: {_percent(ends[0])} to {_percent(ends[-1])}")
    described = f"{title}, a line a plan: {', '.join(order)}."
    return spec_of(layer=layers, height=26 * len(order), title=_title(found), description=described)


def loss_chart(
    losses: Mapping[str, Mapping[int, float]], reference: str | None = None, incomparable: Sequence[str] = ()
) -> Spec:
    """Return held-out losses by step, a line a part, each named at its end.

    The title has gaps to the reference, but for those `incomparable`, which are of other documents.
    """
    lines = {name: some for name, some in losses.items() if some}
    rows = {
        name: [{"name": name, "step": step, "mean": one} for step, one in some.items()] for name, some in lines.items()
    }
    values = [one for some in lines.values() for one in some.values()]
    room = max(0.08 * (max(values) - min(values)), 1e-3)
    low, high = min(values) - room, max(values) + room
    part = _part(list(lines))
    x = quantity("step", "Step", axis={"grid": False})
    y = quantity("mean", "Held-out loss (nats a token)", scale={"domain": [low, high], "nice": False})
    points = [row for some in rows.values() for row in some]
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    layers = [
        layer(points, {"type": "line", "strokeWidth": 2.5}, x=x, y=y, color=part),
        layer(points, dot, x=x, y=y, color=part, shape=part),
        direct_labels(rows, low, high, y),
    ]
    layers[-1]["mark"]["dx"] = 9  # beside the last point
    found = []
    of = lines.get(reference or "", {})
    for name, some in lines.items():
        both = sorted(some.keys() & of.keys())
        if name not in (reference, *incomparable) and len(both) > 1:
            first, last = (some[step] - of[step] for step in (both[0], both[-1]))
            found.append(f"{name}: {first:+.4f} nats at step {both[0]:,}, {last:+.4f} at step {both[-1]:,}")
    title = _title(found, f"beside {reference}" if found else "")
    return spec_of(layer=layers, title=title, description=f"Held-out loss: {', '.join(lines)}.")


def length_title(scores: Mapping[str, Mapping[int, float | None]]) -> Layer:
    """Return the title of scores over length: what each system has at the shortest and at the longest."""
    found: list[str] = []
    for name, of_one in scores.items():
        first, last = of_one[min(of_one)], of_one[max(of_one)]
        if len(of_one) > 1 and first is not None and last is not None:
            lengths = f" from {min(of_one):,} to {max(of_one):,} tokens" if not found else ""
            found.append(f"{name}: {100 * first:.1f} to {100 * last:.1f}{lengths}")
    return _title(found, aim="Higher is better")


def _title(found: Sequence[str], beside: str = "", aim: str = "Lower is better") -> Layer:
    """Return a title of several lines, what was found first."""
    lines = [line[:1].upper() + line[1:] for line in found]
    return {"text": lines, "subtitle": f"{aim}{f'; {beside}' if beside else ''}", "anchor": "start", "frame": "group"}


def _ratio(point: Point) -> float:
    ratio: float = point["ratio"]
    return ratio


def _percent(point: Point) -> str:
    return f"{_ratio(point) - 1:+.1%}"


def _axis(field: str, title: str) -> Layer:
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 10}}


def _part(names: Sequence[str]) -> Layer:
    return {"field": "name", "type": "nominal", "scale": {"domain": names}, "legend": None}


def _ratios(points: Sequence[Point], channels: Layer, axis: str, **mark: Any) -> list[Layer]:
    """Return a line at 1, intervals and points, ratios along one axis; `mark` is of points."""
    ratio = channels[axis]
    intervals = channels | {axis: ratio | {"field": "low"}, f"{axis}2": {"field": "high"}}
    known = [point for point in points if point["low"] is not None]
    layers: list[Layer] = [
        {
            "data": {"values": [{"one": 1}]},
            "mark": {"type": "rule", "style": "yardstick", "strokeDash": [4, 4]},
            "encoding": {axis: ratio | {"field": "one"}},
        },
        {"data": {"values": known}, "mark": _INTERVAL, "encoding": intervals},
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "filled": True, **mark},
            "encoding": channels | {"tooltip": _TOOLTIP},
        },
    ]
    # A layer without data has no extent, of which browsers complain.
    return [layer for layer in layers if layer["data"]["values"]]
