"""Charts of a study's report: ratios of perplexities against cost, plans in a row each, losses of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.charts import Layer, Spec, spec_of

Row = Mapping[str, Any]

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_WIDTH, _HEIGHT = 460, 300  # of `ratio_chart`, in pixels
_MARGIN = 75  # beside the points that lie farthest to the left and to the right
_LETTER = (6.0, 12.0)  # of a label, wide and high, in pixels
# From a point to the edge of its label and to the middle of its height, best first.
_PLACES = [(x, y) for y in (-7, 8, -20, 21, -33, 34) for x in (8, -8)]
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
    shares = [row["share"] for row in rows]
    beside = _MARGIN / (_WIDTH - 2 * _MARGIN) * (max(shares) - min(shares)) or 0.1
    across = [min(shares) - beside, max(shares) + beside]
    ends = [row[key] for row in rows for key in ("ratio", "low", "high") if row[key] is not None] + [1.0]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    domain = [min(ends) - room, max(ends) + room]
    x = {
        "field": "share",
        "type": "quantitative",
        "title": "Attention operations (share of the reference)",
        "scale": {"domain": across, "nice": False},
        "axis": {"format": "%", "grid": False},
    }
    y = {"field": "ratio", "type": "quantitative", "title": title, "scale": {"domain": domain, "nice": False}}
    labels = _labels(rows, across, domain)
    layers: list[Layer] = [
        _ONE | {"encoding": {"y": y | {"field": "one"}}},
        *_intervals(rows, {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}),
        {
            "data": {"values": list(rows)},
            "mark": {"type": "point", "style": "histogram", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
        },
        *(
            {
                "data": {"values": some},
                "mark": {"type": "text", "align": align, "baseline": "middle", "style": "label"},
                "encoding": {"x": x, "y": y, "text": {"field": "name"}},
            }
            for align in ("left", "right")
            if (some := [label for label in labels if label["align"] == align])
        ),
    ]
    description = f"{title} against the share of attention operations, a point a part."
    return spec_of(layer=layers, width=_WIDTH, height=_HEIGHT, description=description)


def _labels(rows: Sequence[Row], across: Sequence[float], domain: Sequence[float]) -> list[dict[str, Any]]:
    """Return names where they stand on no point, interval or other name, as {"name", "share", "ratio", "align"}.

    Args:
        rows: Of the chart.
        across: Ends of the horizontal axis.
        domain: Ends of the vertical axis.
    """
    a_pixel, a_pixel_up = (across[1] - across[0]) / _WIDTH, (domain[1] - domain[0]) / _HEIGHT

    def down(ratio: float) -> float:
        return (domain[1] - ratio) / a_pixel_up

    points = [(row["share"] - across[0]) / a_pixel for row in rows]
    taken: list[Box] = []
    for row, at in zip(rows, points, strict=True):
        ends = [row[key] for key in ("ratio", "low", "high") if row[key] is not None]
        taken.append((at - 6, down(max(ends)) - 6, at + 6, down(min(ends)) + 6))
    labels = []
    for row, at in zip(rows, points, strict=True):
        places = [(_box(at + x, down(row["ratio"]) + y, row["name"], to_right=x > 0), x, y) for x, y in _PLACES]
        # Where all are taken, the one that is taken least.
        box, x, y = min(places, key=lambda place: _num_overlaps(place[0], taken))
        taken.append(box)
        place = {"share": row["share"] + x * a_pixel, "ratio": row["ratio"] - y * a_pixel_up}
        labels.append({"name": row["name"], **place, "align": "left" if x > 0 else "right"})
    return labels


def _box(x: float, y: float, name: str, *, to_right: bool) -> Box:
    """Return what a label covers."""
    wide, high = _LETTER[0] * len(name), _LETTER[1]
    return (x if to_right else x - wide), y - high / 2, (x + wide if to_right else x), y + high / 2


def _num_overlaps(box: Box, taken: Sequence[Box]) -> int:
    """Return on how many boxes one stands, the frame of the chart among them."""
    left, top, right, bottom = box
    is_outside = left < 0 or top < 0 or right > _WIDTH + _MARGIN or bottom > _HEIGHT
    return is_outside + sum(left < b[2] and b[0] < right and top < b[3] and b[1] < bottom for b in taken)


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
