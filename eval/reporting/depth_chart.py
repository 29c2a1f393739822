"""What was found of needles over depth and length: a table, and a heat map as a Vega-Lite spec."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records.schema import DepthCell
from eval.reporting.charts import SCHEMA, WIDTH, Layer, Spec, layer, quantity, tooltip
from eval.scoring.depths import NUM_DEPTHS

DEPTH_REMARK = "Needles found (%), by how much of the text that is shown stands before them; in brackets, their number."


def depth_table(cells: Sequence[DepthCell]) -> list[list[str]]:
    """Return a header of lengths and a row a fifth of the context; cells are those of one task and template."""
    lengths = sorted({cell.maxlen for cell in cells})
    known = {(cell.depth, cell.maxlen): f"{100 * cell.found:.0f} ({cell.num_needles})" for cell in cells}
    return [
        ["depth", *(f"{length:,}" for length in lengths)],
        *(
            [_name(depth), *(known.get((depth, length), "") for length in lengths)]
            for depth in sorted({cell.depth for cell in cells})
        ),
    ]


def depth_map(cells: Sequence[DepthCell]) -> Spec:
    """Return a heat map: lengths across, the beginning of the text above, the share found as colour and number."""
    rows = [
        {
            "length": f"{cell.maxlen:,}",
            "depth": _name(cell.depth),
            "found": 100 * cell.found,
            "n": cell.num_needles,
        }
        for cell in cells
    ]
    lengths = [f"{length:,}" for length in sorted({cell.maxlen for cell in cells})]
    x: Layer = {
        "field": "length",
        "type": "ordinal",
        "sort": lengths,
        "title": "Maximum length (tokens)",
        "axis": {"labelAngle": 0},
    }
    y: Layer = {
        "field": "depth",
        "type": "ordinal",
        "sort": [_name(index / NUM_DEPTHS) for index in range(NUM_DEPTHS)],
        "title": "Depth of the needle",
    }
    scale = {"scheme": "viridis", "domain": [0, 100]}
    colour = quantity("found", "Found (%)", scale=scale, legend={"title": "Found (%)"})
    tips = tooltip(length=("maximum length", ""), depth=("depth", ""), found=("found (%)", ".0f"), n=("needles", ""))
    ink = {"condition": {"test": "datum.found > 55", "value": "#1c2329"}, "value": "#ffffff"}
    number = {"field": "found", "type": "quantitative", "format": ".0f"}
    return {
        "$schema": SCHEMA,
        "description": "Share of needles found, by depth and length.",
        "width": WIDTH,
        "height": 220,
        "layer": [
            layer(rows, {"type": "rect"}, x=x, y=y, color=colour, tooltip=tips),
            layer(rows, {"type": "text", "fontSize": 13}, x=x, y=y, text=number, color=ink),
        ],
    }


def _name(depth: float) -> str:
    """Return a fifth of the context, such as "20-40%"."""
    first = round(100 * depth)
    return f"{first}-{first + 100 // NUM_DEPTHS}%"
