"""Charts of a study's report: ratios of perplexities against cost, plans in a row each, losses of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.charts import Layer, Spec, spec_of

Point = Mapping[str, Any]  # "name", "share" of attention, "ratio", and "low" and "high", None without an interval
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_WIDTH, _HEIGHT = 460, 300  # of `ratio_chart`, in pixels
_MARGIN = 75  # beside the points that lie farthest to the left and to the right
_LETTER = (6.0, 12.0)  # of a label, wide and high, in pixels
# From a point to the edge of its label and to the middle of its height, best first.
_PLACES = [(x, y) for y in (-7, 8, -20, 21, -33, 34) for x in (8, -8)]
_TOOLTIP = [
    {"field": "name"},
    *({"field": field, "format": ".4f"} for field in ("ratio", "low", "high")),
    {"field": "share", "title": "attention", "format": ".1%"},
]


def ratio_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities against the share of attention, with intervals and names beside the points."""
    shares = [point["share"] for point in points]
    beside = _MARGIN / (_WIDTH - 2 * _MARGIN) * (max(shares) - min(shares)) or 0.1
    across = [min(shares) - beside, max(shares) + beside]
    ends = [end for point in points for end in _ends(point)] + [1.0]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    up = [min(ends) - room, max(ends) + room]
    x = {
        "field": "share",
        "type": "quantitative",
        "title": "Attention operations (share of the reference)",
        "scale": {"domain": across, "nice": False},
        "axis": {"format": "%", "grid": False},
    }
    y = {"field": "ratio", "type": "quantitative", "title": title, "scale": {"domain": up, "nice": False}}
    labels = _labels(points, across, up)
    texts: list[Layer] = [
        {
            "data": {"values": some},
            "mark": {"type": "text", "align": align, "baseline": "middle", "style": "label"},
            "encoding": {"x": x, "y": y, "text": {"field": "name"}},
        }
        for align in ("left", "right")
        if (some := [label for label in labels if label["align"] == align])
    ]
    described = f"{title} against the share of attention operations, a point a part."
    layers = [*_ratios(points, x, y, "y", size=70, opacity=1), *texts]
    return spec_of(layer=layers, width=_WIDTH, height=_HEIGHT, description=described)


def strip_chart(points: Sequence[Point], title: str) -> Spec:
    """Return ratios of perplexities along a line for each name, with intervals; several points of a name share it."""
    order = list(dict.fromkeys(point["name"] for point in points))
    x = {"field": "ratio", "type": "quantitative", "title": title, "scale": {"zero": False, "padding": 10}}
    y = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": {"labelLimit": 260}}
    layers = _ratios(points, x, y, "x", size=50, opacity=0.7)
    return spec_of(layer=layers, height=26 * len(order), description=f"{title}, a line a plan: {', '.join(order)}.")


def _ratios(points: Sequence[Point], x: Layer, y: Layer, ratio: str, **mark: Any) -> list[Layer]:
    """Return a line at 1, intervals and points; `ratio` is the axis of ratios, `x` or `y`."""
    axes = {"x": x, "y": y}
    interval = axes | {ratio: axes[ratio] | {"field": "low"}, f"{ratio}2": {"field": "high"}}
    known = [point for point in points if point["low"] is not None]
    layers: list[Layer] = [
        {
            "data": {"values": [{"one": 1}]},
            "mark": {"type": "rule", "style": "yardstick", "strokeDash": [4, 4]},
            "encoding": {ratio: axes[ratio] | {"field": "one"}},
        },
        {"data": {"values": known}, "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55}, "encoding": interval},
        {
            "data": {"values": list(points)},
            "mark": {"type": "point", "style": "histogram", "filled": True, **mark},
            "encoding": axes | {"tooltip": _TOOLTIP},
        },
    ]
    # A layer without data has no extent, of which browsers complain.
    return [layer for layer in layers if layer["data"]["values"]]


def _ends(point: Point) -> list[float]:
    return [point[key] for key in ("ratio", "low", "high") if point[key] is not None]


def _labels(points: Sequence[Point], across: Sequence[float], up: Sequence[float]) -> list[dict[str, Any]]:
    """Return names where they stand on no point, interval or other name, as {"name", "share", "ratio", "align"}.

    Args:
        points: Points of the chart.
        across: Ends of the horizontal axis.
        up: Ends of the vertical axis.
    """
    a_pixel, a_pixel_up = (across[1] - across[0]) / _WIDTH, (up[1] - up[0]) / _HEIGHT

    def place(point: Point, ratio: float) -> tuple[float, float]:
        return (point["share"] - across[0]) / a_pixel, (up[1] - ratio) / a_pixel_up

    taken: list[Box] = []
    for point in points:
        (left, top), (right, bottom) = place(point, max(_ends(point))), place(point, min(_ends(point)))
        taken.append((left - 6, top - 6, right + 6, bottom + 6))
    labels = []
    for point in points:
        at, down = place(point, point["ratio"])
        wide, half = _LETTER[0] * len(point["name"]), _LETTER[1] / 2
        boxes = {}
        for x, y in _PLACES:
            left = at + x - wide * (x < 0)
            boxes[x, y] = left, down + y - half, left + wide, down + y + half
        # Where all are taken, the one that is taken least.
        x, y = min(boxes, key=lambda xy: _num_overlaps(boxes[xy], taken))
        taken.append(boxes[x, y])
        where = {"share": point["share"] + x * a_pixel, "ratio": point["ratio"] - y * a_pixel_up}
        labels.append({"name": point["name"], **where, "align": "left" if x > 0 else "right"})
    return labels


def _num_overlaps(box: Box, taken: Sequence[Box]) -> int:
    """Return on how many boxes one stands, the frame of the chart among them."""
    left, top, right, bottom = box
    is_outside = left < 0 or top < 0 or right > _WIDTH + _MARGIN or bottom > _HEIGHT
    return is_outside + sum(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)


def loss_chart(points: Sequence[Mapping[str, Any]]) -> Spec:
    """Return held-out losses over steps, a line a part, from points of {"name", "step", "loss"}."""
    names = list(dict.fromkeys(point["name"] for point in points))
    legend = {"title": None, "orient": "bottom", "columns": 2}
    part = {"field": "name", "type": "nominal", "scale": {"domain": names}, "legend": legend}
    scale, title = {"zero": False, "padding": 8}, "Held-out loss (nats a token)"
    encoding = {
        "x": {"field": "step", "type": "quantitative", "title": "Step", "axis": {"grid": False}},
        "y": {"field": "loss", "type": "quantitative", "title": title, "scale": scale},
        "color": part,
    }
    layers: list[Layer] = [
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": encoding},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}, "encoding": encoding | {"shape": part}},
    ]
    return spec_of(data={"values": list(points)}, layer=layers, description=f"Held-out loss: {', '.join(names)}.")
