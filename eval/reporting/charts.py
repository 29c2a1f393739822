"""Results -> Vega-Lite specs: the charts of the page, and the same ones as PNG or SVG for papers.

A spec is a plain dict that carries its data and no colours but those of a theme, so that one spec serves light, dark
and paper. Scores are drawn x 100.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import vl_convert

from eval.records.disk import disk_errors, make_folder, remove_partials, write_whole
from eval.records.schema import Result
from eval.reporting.columns import BASELINE_STYLES, charted_costs
from eval.scoring.profiles import metric_name, metric_title

VEGA_LITE_VERSION = "6.4"
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name that tools know the version by; nothing loads it

Spec = dict[str, Any]
Layer = dict[str, Any]

WIDTH, _HEIGHT = 460, 300
PANEL_WIDTH, _PANEL_COLUMNS = 240, 3  # of a picture; the page takes as many columns as have room
_LABEL_GAP = 14  # pixels between direct labels, which are 11 pixels high
_DODGE = 0.07  # of a doubling: how far systems at one length stand apart, so that their intervals do not overlap

# Okabe and Ito's colours, distinct under the common kinds of colour blindness; shapes tell systems apart as well.
_LIGHT_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#AA4499", "#B07D00", "#4A5560"]
_DARK_PAGE = "#14171b"
_DARK_COLOURS = ["#56B4E9", "#FF9052", "#2EC4A0", "#E08BC0", "#E6C04A", "#B8C2CC"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Vega-Lite spec with its data inside; charts that follow each other stand side by side where there is room.

    The source says what is drawn and what made it; it stands with the title on a chart that leaves its page.
    """

    title: str
    caption: str
    spec: Mapping[str, Any]
    source: str = ""
    kind: Literal["chart"] = "chart"


def titled(chart: Chart) -> Spec:
    """Return the spec of a chart that stands alone, with its title and source."""
    source = {"subtitle": chart.source} if chart.source else {}
    return {**chart.spec, "title": {"text": chart.title, "anchor": "start", **source}}


def length_chart(results: Sequence[Result], metric: str, intervals: str, aim: str = "") -> Chart:
    """Return `length_curves` with a caption, which says what the intervals are and what the oracle aims at."""
    caption = f"{intervals[0].upper()}{intervals[1:]}. Dashed: what needs no model{aim}."
    return Chart(title=f"{metric_name(metric)} over length", caption=caption, spec=length_curves(results, metric))


def cost_charts(results: Sequence[Result], metric: str, caption: str) -> dict[str, Chart]:
    """Return `quality_cost` for each cost that is known of a result, by its key."""
    return {
        key: Chart(
            title=f"{metric_name(metric)} against {column.axis[0].lower()}{column.axis[1:]}",
            caption=caption,
            spec=quality_cost(results, metric, key),
        )
        for key, column in charted_costs().items()
        if any(column.value(result.cost) is not None for result in results)
    }


def length_curves(results: Sequence[Result], metric: str) -> Spec:
    """Return one metric over maxlen: a line a system, models with 95% intervals, baselines dashed and named.

    The results are those of one task, template and subset.
    """
    series = _by_system([line for line in results if line.kind == "model" or _is_charted(line.system)])
    models = [name for name, lines in series.items() if lines[0].kind == "model"]
    rows = {
        name: [
            _row(line, metric) | {"x": line.maxlen * _dodge(models, name)}
            for line in sorted(lines, key=lambda line: line.maxlen)
        ]
        for name, lines in series.items()
    }
    low, high = _padded(value for line in rows.values() for row in line for value in _extent(row))
    lengths = sorted({line.maxlen for line in results})
    ends = [lengths[0] / 2**0.2, lengths[-1] * 2**0.2]
    x = quantity(
        "x",
        "Maximum length (tokens)",
        scale={"type": "log", "base": 2, "nice": False, "domain": ends},
        axis={"values": lengths, "format": ",d", "grid": False},
    )
    y = _score_axis(results, metric, low, high)
    baselines = {name: line for name, line in rows.items() if name not in models}
    if len(lengths) == 1:  # a line needs two ends
        baselines = {name: [line[0] | {"x": end} for end in ends] for name, line in baselines.items()}
    layers = [_baseline_line(name, line, x, y) for name, line in baselines.items()]
    layers += [direct_labels(baselines, low, high, y)] if baselines else []
    layers += _model_layers([row for name in models for row in rows[name]], models, x, y)
    described = f"{y['title']} against maximum length, a line a system: {', '.join(map(str, rows))}."
    return spec_of(layer=layers, description=described)


def quality_cost(results: Sequence[Result], metric: str, cost: str) -> Spec:
    """Return one metric against a cost: points labelled by length, a line a system, intervals as rules.

    The results are those of one task, template and subset; baselines and results whose cost is not known have no point.
    """
    column = charted_costs()[cost]
    rows = [
        _row(line, metric) | {"x": value / column.unit, "label": f"{line.maxlen:,}"}
        for lines in _by_system(results).values()
        for line in lines
        if line.kind == "model" and (value := column.value(line.cost)) is not None
    ]
    models = list(dict.fromkeys(row["system"] for row in rows))
    is_positive = bool(rows) and min(row["x"] for row in rows) > 0
    scale = {"type": "log", "nice": False, "padding": 28} if is_positive else {"padding": 28}
    # Numbers of a logarithmic axis crowd on a phone.
    axis = {"format": "~r", "tickCount": 6, "grid": False, "labelSeparation": 6}
    x = quantity("x", column.axis, scale=scale, axis=axis)
    low, high = _padded(value for row in rows for value in _extent(row))
    y = _score_axis(results, metric, low, high)
    layers = _model_layers(rows, models, x, y, order="maxlen")
    mark = {"type": "text", "align": "left", "dx": 6, "dy": 11, "style": "label"}
    labels = layer(rows, mark, x=x, y=y, text={"field": "label"})
    return spec_of(layer=[*layers, labels], description=f"{y['title']} against {column.axis.lower()}.")


def panels_of(
    rows: Sequence[Mapping[str, Any]],
    layers: Sequence[Layer],
    panels: Sequence[str],
    description: str,
    *,
    height: int = 170,
) -> Spec:
    """Return small multiples: a panel for each value of `panel` in the rows, in this order.

    Layers with data of their own are drawn in each panel. Panels share their scales.
    """
    return {
        "$schema": SCHEMA,
        "description": description,
        "usermeta": {"panels": len(panels)},
        "data": {"values": list(rows)},
        "facet": {
            "field": "panel",
            "type": "nominal",
            "sort": list(panels),
            "header": {"title": None, "labelAnchor": "start", "labelLimit": PANEL_WIDTH},
        },
        "columns": min(_PANEL_COLUMNS, len(panels)),
        "spacing": 24,
        "resolve": {"axis": {"x": "independent"}},
        "spec": {"width": PANEL_WIDTH, "height": height, "layer": list(layers)},
    }


def draw_chart(spec: Mapping[str, Any], suffix: Literal[".png", ".svg"]) -> bytes:
    """Return a spec as PNG, twice as dense as a screen, on white, or as SVG, which is dark on dark screens."""
    if suffix == ".svg":
        return _with_dark(draw_svg(spec)).encode()
    drawn: bytes = vl_convert.vegalite_to_png(_drawable(spec), vl_version=VEGA_LITE_VERSION, scale=2, config=_paper())
    return drawn


def draw_svg(spec: Mapping[str, Any]) -> str:
    """Return a spec as SVG, in the light theme on white."""
    return str(vl_convert.vegalite_to_svg(_drawable(spec), vl_version=VEGA_LITE_VERSION, config=_paper()))


def _with_dark(svg: str) -> str:
    """Return an SVG that takes the colours of the dark theme where a browser's page is dark; paper stays white."""
    pairs = dict(zip(_colours(theme(dark=False)), _colours(theme(dark=True)), strict=True)) | {"white": _DARK_PAGE}
    rules = "".join(
        f'[{what}="{light}"]{{{what}:{dark}}}' for light, dark in pairs.items() for what in ("fill", "stroke")
    )
    start = svg.index(">") + 1
    return f"{svg[:start]}<style>@media screen and (prefers-color-scheme:dark){{{rules}}}</style>{svg[start:]}"


def _colours(value: Any) -> Iterator[str]:
    """Yield the colours of a theme in order."""
    if isinstance(value, str) and value.startswith("#"):
        yield value
    elif isinstance(value, (Mapping, list)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _colours(one)


# Characters that XML forbids, at which the library ends the whole process.
_UNDRAWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _drawable(value: Any) -> Any:
    """Return a spec whose texts, which may be names of folders and models, can stand in an SVG."""
    if isinstance(value, Mapping):
        return {_drawable(name): _drawable(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_drawable(one) for one in value]
    return _UNDRAWABLE.sub("\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


def _paper() -> dict[str, Any]:
    return theme(dark=False) | {"background": "white", "font": "Helvetica, Arial, Liberation Sans, sans-serif"}


def save_charts(folder: Path, specs: Mapping[str, Mapping[str, Any]], own: str) -> list[Path]:
    """Write charts as PNG and SVG, each whole or not at all, and return the PNG files.

    Charts of earlier calls, whose names match the expression `own`, are deleted where no spec replaces them.

    Raises:
        UserError: The disk refuses.
    """
    suffixes: tuple[Literal[".png"], Literal[".svg"]] = (".png", ".svg")
    make_folder(folder.parent)
    make_folder(folder.parent, folder.name)
    with disk_errors(folder):
        remove_partials(folder)
        for file in folder.iterdir():
            if file.suffix in suffixes and re.fullmatch(own, file.stem) and file.stem not in specs:
                file.unlink()
        for name, spec in specs.items():
            for suffix in suffixes:
                write_whole(folder, f"{name}{suffix}", draw_chart(spec, suffix))
    return [folder / f"{name}.png" for name in specs]


def theme(*, dark: bool) -> dict[str, Any]:
    """Return the Vega-Lite config of colours, fonts and sizes."""
    ink, soft, line = ("#e3e8ee", "#98a3af", "#323a43") if dark else ("#1c2329", "#5c6670", "#dde2e7")
    colours = _DARK_COLOURS if dark else _LIGHT_COLOURS
    page = _DARK_PAGE if dark else "#ffffff"
    ordinal = {"scheme": "viridis", "extent": [0.4, 1.0] if dark else [0.8, 0.05]}
    return {
        "background": "transparent",
        "font": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "domainColor": soft,
            "tickColor": soft,
            "gridColor": line,
            "labelFontSize": 12,
            "titleFontSize": 12.5,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "tickSize": 4,
        },
        "title": {
            "anchor": "start",
            "color": ink,
            "subtitleColor": soft,
            "fontSize": 15,
            "subtitleFontSize": 12,
            "offset": 14,
            "fontWeight": 600,
            "subtitlePadding": 5,
        },
        "header": {"labelColor": ink, "labelFontSize": 12.5, "labelFontWeight": 600},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6, "tickCount": 6},
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 400,
            "labelLimit": 430,
            "symbolSize": 90,
            "symbolOpacity": 1,
            "symbolStrokeWidth": 2.5,
            "rowPadding": 4,
            "padding": 6,
        },
        "range": {"category": colours, "ordinal": ordinal},
        "style": {
            "yardstick": {"color": soft, "strokeWidth": 1.4},
            "label": {"color": soft, "fontSize": 11},
            "histogram": {"color": colours[0], "opacity": 0.75},
            "frontier": {"color": soft, "strokeWidth": 7, "opacity": 0.25},
            "model": {"color": colours[0]},
            "oracle": {"color": colours[2], "strokeWidth": 1.8},
            "gap": {"color": colours[2], "opacity": 0.12},
            "cost": {"color": soft, "opacity": 0.45},
            "value": {"color": colours[0], "fontSize": 12.5, "fontWeight": 600},
            "halo": {"color": page, "stroke": page, "strokeWidth": 3, "fontSize": 12.5, "fontWeight": 600},
            "own": {"color": colours[0], "strokeWidth": 2.5},
            "context": {"color": soft, "strokeWidth": 1.2, "opacity": 0.45},
        },
    }


def _by_system(results: Iterable[Result]) -> dict[str, list[Result]]:
    systems: dict[str, list[Result]] = {}
    for line in results:
        systems.setdefault(line.system, []).append(line)
    return systems


def _row(line: Result, metric: str) -> dict[str, Any]:
    score = line.metrics[metric]
    percent = {name: None if value is None else 100 * value for name, value in vars(score).items()}
    return {"system": line.system, "maxlen": line.maxlen, "n": line.num_examples, **percent}


def _dodge(models: Sequence[str], name: str) -> float:
    if name not in models:
        return 1.0
    step = min(_DODGE, 0.4 / len(models))
    return float(2 ** (step * (models.index(name) - (len(models) - 1) / 2)))


def _extent(row: Mapping[str, Any]) -> list[float]:
    return [row[key] for key in ("mean", "low", "high") if row[key] is not None]


def _padded(values: Iterable[float]) -> tuple[float, float]:
    """Return the range of values with some room around it, never below 0."""
    known = list(values) or [0.0]
    room = max(0.08 * (max(known) - min(known)), 0.5)
    return max(min(known) - room, 0.0), max(known) + room


def _is_charted(name: str) -> bool:
    return name not in BASELINE_STYLES or BASELINE_STYLES[name].is_charted


def _baseline_line(name: str, rows: Sequence[Mapping[str, Any]], x: Layer, y: Layer) -> Layer:
    dash = list(BASELINE_STYLES[name].dash) if name in BASELINE_STYLES else [4, 4]
    return layer(rows, {"type": "line", "style": "yardstick", "strokeDash": dash}, x=x, y=y, tooltip=_TOOLTIP)


def direct_labels(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], low: float, high: float, y: Layer, height: int = _HEIGHT
) -> Layer:
    """Return the names of lines at their right ends, moved up where they would overlap."""
    gap = _LABEL_GAP / height * (high - low)
    values: list[dict[str, Any]] = []
    for name, rows in sorted(lines.items(), key=lambda item: item[1][-1]["mean"]):
        lowest = values[-1]["mean"] + gap if values else low
        label = BASELINE_STYLES[name].heading if name in BASELINE_STYLES else name.replace("_", " ")
        values.append({"label": label, "mean": max(rows[-1]["mean"], lowest)})
    mark = {"type": "text", "align": "left", "dx": 4, "style": "label"}
    return layer(values, mark, x={"value": "width"}, y=y, text={"field": "label"})


def _model_layers(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], x: Layer, y: Layer, order: str | None = None
) -> list[Layer]:
    """Return intervals, lines and points of models, which share one legend."""
    legend = {"title": None, "orient": "bottom", "columns": 1, "labelExpr": "split(datum.label, ', ')"}
    system = {"field": "system", "type": "nominal", "scale": {"domain": list(models)}, "legend": legend}
    along = {"order": {"field": order}} if order else {}
    rule = {"type": "rule", "strokeWidth": 2, "opacity": 0.55}
    point = {"type": "point", "filled": True, "size": 70, "opacity": 1}
    with_interval = [row for row in rows if row["low"] is not None]
    intervals = layer(with_interval, rule, x=x, y=y | {"field": "low"}, y2={"field": "high"}, color=system)
    # A layer without data has no extent, of which browsers complain.
    return [
        *([intervals] if with_interval else []),
        layer(rows, {"type": "line", "strokeWidth": 2.5}, x=x, y=y, color=system, **along),
        layer(rows, point, x=x, y=y, color=system, shape=system, tooltip=_TOOLTIP),
    ]


def _score_axis(results: Iterable[Result], metric: str, low: float, high: float) -> Layer:
    title = metric_title(metric, (line.profile for line in results))
    return quantity("mean", title, scale={"domain": [low, high], "nice": False, "zero": False})


def quantity(field: str, title: str | Sequence[str], **options: Any) -> Layer:
    """Return the encoding of a number along an axis; options are those of Vega-Lite."""
    return {"field": field, "type": "quantitative", "title": title, **options}


def layer(values: Iterable[Mapping[str, Any]], mark: Layer, **encoding: Any) -> Layer:
    """Return a layer, or a view, that draws these rows."""
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def tooltip(**fields: tuple[str, str]) -> list[Layer]:
    """Return what is shown beside a pointer: title and format of each field."""
    shown = ({"field": field, "title": title, "format": number} for field, (title, number) in fields.items())
    return [{name: value for name, value in one.items() if value} for one in shown]


def score_tooltip(name: str) -> list[Layer]:
    """Return what is shown of a score beside a pointer; the field of this name says whose it is."""
    ends = {"low": ("95% from", ".2f"), "high": ("95% to", ".2f")}
    return tooltip(
        **{name: ("", "")}, maxlen=("maximum length", ","), mean=("score", ".2f"), **ends, n=("examples", ",")
    )


FRONTIER: Layer = {"type": "line", "interpolate": "step-after", "style": "frontier"}
_TOOLTIP = score_tooltip("system")


def spec_of(**parts: Any) -> Spec:
    """Return a Vega-Lite spec of these parts, in the size of all charts unless they say another."""
    return {"$schema": SCHEMA, "width": WIDTH, "height": _HEIGHT, **parts}
