"""A search for a placement -> Vega-Lite specs: what units are worth, plans by loss and cost, held-out documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.charts import Layer, Spec, spec_of

_ATTENTION = {
    "field": "attention",
    "type": "quantitative",
    "title": "Attention (% of the operations of full attention)",
    "scale": {"zero": False, "padding": 24},
    "axis": {"grid": False},
}
_TOOLTIP = [{"field": "plan"}, {"field": "perplexity", "format": ".3f"}]


def unit_chart(scores: Sequence[Mapping[str, Any]], rank: str) -> Spec:
    """Return what each layer is worth alone as bars, or each head of each layer as the cells of a grid.

    Args:
        scores: {"unit", "layer", "head", "only_full", "only_local"}.
        rank: "scan", where they are differences of losses, or "gates", where they are slopes of the loss.
    """
    layer = {"field": "layer", "type": "ordinal", "title": "Layer", "axis": {"labelAngle": 0, "grid": False}}
    if any(score["head"] is not None for score in scores):
        values = [{"layer": s["layer"], "head": s["head"], "gain": 1000 * s["only_full"]} for s in scores]
        most = max(abs(value["gain"]) for value in values)
        cells: Layer = {
            "data": {"values": values},
            "mark": {"type": "rect"},
            "encoding": {
                "x": layer,
                "y": {"field": "head", "type": "ordinal", "title": "Key/value head"},
                "color": {
                    "field": "gain",
                    "type": "quantitative",
                    "title": "Loss saved (0.001 nats)" if rank == "scan" else "Slope (0.001 nats)",
                    "scale": {"scheme": "blueorange", "domain": [-most, most], "reverse": True},
                },
            },
        }
        return spec_of(
            layer=[cells], description="What each head saves of the loss by seeing everything.", width=640, height=90
        )
    names = {"only_full": "only this layer full: loss saved", "only_local": "only this layer local: loss added"}
    if rank == "gates":
        names = {"only_full": "slope of the loss by the layer's gate, halfway"}
    values = [
        {"layer": s["layer"], "way": names[way], "nats": 1000 * s[way]}
        for s in scores
        for way in names
        if s[way] is not None
    ]
    bars: Layer = {
        "data": {"values": values},
        "mark": {"type": "bar"},
        "encoding": {
            "x": layer,
            "xOffset": {"field": "way", "sort": list(names.values())},
            "y": {"field": "nats", "type": "quantitative", "title": "0.001 nats a token"},
            "color": {"field": "way", "sort": list(names.values()), "legend": {"title": None, "orient": "top"}},
        },
    }
    return spec_of(layer=[bars], description="What each layer is worth alone, both ways.", width=640, height=220)


def frontier_chart(found: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> Spec:
    """Return plans by attention and perplexity on the calibration documents, with the steps of the frontier."""
    x = _ATTENTION
    y = {
        "field": "perplexity",
        "type": "quantitative",
        "title": "Perplexity, calibration documents",
        "scale": {"zero": False, "padding": 10},
    }
    rows, steps = ([_point(entry) for entry in entries] for entries in (found, best))
    line: Layer = {
        "data": {"values": steps},
        "mark": {"type": "line", "interpolate": "step-after", "style": "frontier"},
        "encoding": {"x": x, "y": y},
    }
    points: Layer = {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.75},
        "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
    }
    return spec_of(
        layer=[line, points], description="Measured plans: perplexity against attention, and those that no other beats."
    )


def held_out_chart(lines: Sequence[Mapping[str, Any]]) -> Spec:
    """Return plans by attention and perplexity on held-out documents: random placements small, the others named."""
    x = _ATTENTION
    y = {
        "field": "perplexity",
        "type": "quantitative",
        "title": "Perplexity, held-out documents",
        "scale": {"zero": False, "padding": 10},
    }
    rows = [_point(line) | {"name": line["name"], "random": line["name"].startswith("random ")} for line in lines]
    dots: Layer = {
        "data": {"values": [row for row in rows if row["random"]]},
        "mark": {"type": "point", "size": 30, "opacity": 0.6, "style": "yardstick"},
        "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
    }
    named = {"values": [row for row in rows if not row["random"]]}
    points: Layer = {
        "data": named,
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {"x": x, "y": y, "tooltip": _TOOLTIP},
    }
    labels: Layer = {
        "data": named,
        "mark": {"type": "text", "align": "left", "dx": 7, "style": "label"},
        "encoding": {"x": x, "y": y, "text": {"field": "name"}},
    }
    return spec_of(
        layer=[dots, points, labels],
        description="Plans on held-out documents: perplexity against attention; hollow: random placements.",
    )


def _point(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention": 100 * entry["cost"]["flops"],
        "perplexity": entry["perplexity"],
        "plan": entry.get("text") or entry["plan"],
    }
