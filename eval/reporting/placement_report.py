"""What a search for a placement found -> its files, tables and plots. Needs no model and no data set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from eval.errors import UserError
from eval.records.disk import inside, read_json
from eval.records.run_folder import RunFolder
from eval.records.schema import (
    DocumentLoss,
    HeldOutRow,
    PlacementRecord,
    PlacementResult,
    PlanEntry,
    PlanMeasurement,
    Unit,
    UnitRecord,
    unit_of,
)
from eval.records.typed import from_json
from eval.reporting.charts import FRONTIER, Layer, Spec, layer, quantity, save_charts, spec_of, tooltip
from eval.reporting.columns import Column, interval, text
from eval.reporting.perplexity_report import Units, perplexity_of, summed
from eval.reporting.stability_report import HEAD, LAYER, MAJORITY, describe_stability, stability_chart, stability_tables
from eval.reporting.tables import Rows, as_columns, as_markdown, code, describe_model, markdown, table_of
from eval.scoring.significance import ratios_of_perplexities

LEGEND = (
    "ppl: perplexity of the tokens that count. attention, cache: of this plan relative to full attention, in closed "
    "form at the length that is named. to full: perplexity relative to that of the plan `full`, paired; these "
    "intervals hold for all rows at once (max-T). Intervals: 95%, bootstrap over documents, or clusters of them, "
    "within their tasks."
)
_PLOTS = r"units|frontier|folds|held-out"
_BEST_UNITS = 12

_SHARES = [
    Column(heading="attention", show=lambda entry: f"{entry.cost['flops']:.1%}"),
    Column(heading="cache", show=lambda entry: f"{entry.cost['cache']:.1%}"),
]
_FOUND = [
    Column(heading="layers", show=lambda entry: f"{entry.cost['layers']:.3g}"),
    Column(key="perplexity", heading="ppl", digits=3),
    *_SHARES,
    replace(text("text"), heading="plan"),
]


def held_out_rows(
    plans: Mapping[str, tuple[str, Mapping[str, float]]], lines: Sequence[PlanMeasurement], units: Units
) -> list[HeldOutRow]:
    """Return the perplexity and cost of each plan on the held-out documents.

    Args:
        plans: Text form and cost of each plan by name.
        lines: Losses of documents.
        units: What each document is resampled as; those that it lacks are by themselves.
    """
    rows: list[HeldOutRow] = []
    full: dict[tuple[str, str], float] = {}
    beside_full: list[Mapping[Hashable, Sequence[float]]] = []
    for name, (plan, cost) in sorted(plans.items(), key=lambda item: item[0] != "full"):
        own = [line for line in lines if line.plan == plan]
        if not own:
            continue
        names = [unit_in_task(units, line) for line in own]
        losses = [(line.negative_log_likelihood, line.num_tokens) for line in own]
        perplexity = perplexity_of(list(summed(zip(names, losses, strict=True)).values()))
        if name == "full":
            full = {(line.task, line.id): line.negative_log_likelihood for line in own}
        if full and name != "full":
            pairs = [(full[line.task, line.id], *of_line) for line, of_line in zip(own, losses, strict=True)]
            beside_full.append(summed(zip(names, pairs, strict=True)))
        rows.append(
            HeldOutRow(
                name=name,
                plan=plan,
                num_documents=len(own),
                perplexity=perplexity.value,
                low=perplexity.low,
                high=perplexity.high,
                to_full=None,
                cost=dict(cost),
            )
        )
    if not full:
        return rows
    # The plan `full` comes first. All others stand beside it at once, so their intervals hold together.
    ratios = ratios_of_perplexities(beside_full, task_of)
    return [rows[0], *(replace(row, to_full=ratio) for row, ratio in zip(rows[1:], ratios, strict=True))]


def unit_in_task(units: Units, line: PlanMeasurement | DocumentLoss) -> tuple[str, Unit]:
    """Return task and unit of a document: no document of one task is resampled with one of another."""
    return line.task, units.get((line.task, line.id)) or unit_of(line.id, None)


def task_of(unit: Hashable) -> Hashable:
    """Return the task of a unit that `unit_in_task` named: units are resampled within tasks."""
    assert isinstance(unit, tuple)
    return str(unit[0])


def read_placement(folder: RunFolder) -> PlacementResult:
    """Return the result of an earlier search in the folder; an empty one where there was none.

    Raises:
        UserError: It cannot be read, or a field of it is damaged.
    """
    file = folder.path / "placement.json"
    if not file.exists():
        return PlacementResult()
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; take it away, and search again") from error
    return from_json(PlacementResult, content, str(file))


def write_placement(folder: RunFolder, record: PlacementRecord, result: PlacementResult) -> None:
    """Write `placement.json`, the plans as files that `--plan` takes, the report and its plots."""
    folder.write_json("placement.json", result)
    for file in inside(folder.path, "plans").glob("frontier-*.json"):
        file.unlink()
    for index, entry in enumerate(result.frontier):
        folder.write_json(f"plans/frontier-{index:02}.json", entry)
    if result.chosen is not None:
        folder.write_json("plan.json", result.chosen)
    majority = None if result.stability is None else result.stability.majority
    if majority is not None:
        folder.write_json(MAJORITY, majority)
    else:
        inside(folder.path, MAJORITY).unlink(missing_ok=True)
    charts = {}
    if result.scores:
        charts["units"] = unit_chart(result.scores, result.rank)
        charts["frontier"] = frontier_chart(result.found, result.frontier)
    if result.stability is not None:
        charts["folds"] = stability_chart(result.stability, result.scores)
    if result.held_out:
        charts["held-out"] = held_out_chart(result.held_out)
    save_charts(folder.path / "plots", charts, _PLOTS)
    folder.write_text("report.md", _report(record, result, list(charts)))


def describe(result: PlacementResult) -> str:
    """Return the tables for a terminal."""
    blocks = [f"{title}\n{as_columns(rows)}" for title, rows in _tables(result)]
    stability = [] if result.stability is None else [describe_stability(result.stability)]
    return "\n\n".join([*blocks, *stability, LEGEND])


def _report(record: PlacementRecord, result: PlacementResult, charts: Sequence[str]) -> str:
    identity, session = record.identity, record.sessions[-1]
    parts = [
        f"# Placement of full attention: {markdown(identity.model.label)}",
        "",
        f"- model: {markdown(describe_model(identity.model, identity.dtype, session))}",
        f"- documents of {identity.maxlen:,} tokens; losses count from token {identity.score_from:,}",
        f"- machine: {markdown(session.machine.device)}, {session.world_size} x {session.threads} threads",
        f"- last session: {session.seconds or 0:,.0f} s of measuring, {session.num_layers_run or 0:,} layers computed",
        f"- code: commit {markdown(session.commit or 'unknown')}{', with uncommitted changes' * bool(session.dirty)}",
    ]
    if result.chosen is not None:
        cost_at = "-" if result.cost_at is None else f"{result.cost_at:,}"
        parts += [
            f"- placed: {markdown(f'{result.units}; the others {code(str(result.local))}')}",
            f"- {markdown(f'budget {code(str(result.budget))}, costs at {cost_at} tokens; ranked by {result.rank}')}",
            "",
            markdown(f"Found: {code(result.chosen.text)} (`plan.json`, which `--plan` takes)"),
        ]
    if result.stability is not None:
        parts += ["", markdown(describe_stability(result.stability))]
    for title, rows in _tables(result):
        parts += ["", f"## {title}", "", as_markdown(rows)]
    parts += ["", *(f"![{name}](plots/{name}.svg)" for name in charts), "", LEGEND, ""]
    return "\n".join(parts)


def _tables(result: PlacementResult) -> list[tuple[str, Rows]]:
    tables = []
    if result.scores:
        title = "What each is worth alone" if result.rank == "scan" else "Slope of the loss by each gate, halfway"
        best = sorted(result.scores, key=lambda unit: -unit.only_full)[:_BEST_UNITS]
        tables.append((f"{title} (best first)", table_of(_unit_columns(result.rank), best)))
        frontier = table_of(_FOUND, result.frontier)
        tables.append(("On the frontier of loss and attention, calibration documents", frontier))
    if result.stability is not None:
        tables += stability_tables(result.stability)
    if result.held_out:
        rows = table_of(_HELD_OUT, sorted(result.held_out, key=lambda row: row.perplexity))
        tables.append((f"On held-out documents, costs at {result.held_out_cost_at:,} tokens", rows))
    return tables


def _unit_columns(rank: str) -> list[Column]:
    unit = text("unit")
    if rank == "gates":
        return [unit, Column(key="only_full", heading="nats a unit of the gate", digits=4)]
    return [
        unit,
        Column(key="only_full", heading="only this full: nats gained", digits=4),
        Column(key="only_local", heading="only this local: nats lost", digits=4),
    ]


def _to_full(row: HeldOutRow) -> str:
    ratio = row.to_full
    if ratio is None:
        return "-"
    low, high = (None if end is None else end - 1 for end in (ratio.low, ratio.high))
    return f"{ratio.ratio - 1:+.2%}" + interval(low, high, "+.2%")


_HELD_OUT = [
    text("name"),
    Column(key="num_documents", heading="n"),
    Column(heading="ppl", show=lambda row: f"{row.perplexity:.3f}" + interval(row.low, row.high, ".2f")),
    Column(heading="to full", show=_to_full),
    *_SHARES,
    text("plan"),
]

# ---------------------------------------------------------------------------------------------------------------------
# Charts

_ATTENTION = quantity(
    "attention",
    "Attention (% of the operations of full attention)",
    scale={"zero": False, "padding": 24},
    axis={"grid": False},
)
_TOOLTIP = tooltip(plan=("", ""), perplexity=("", ".3f"))


def unit_chart(units: Sequence[UnitRecord], rank: str) -> Spec:
    """Return what each layer is worth alone as bars, or each head of each layer as the cells of a grid.

    The values are differences of losses for the rank "scan", and slopes of the loss for "gates".
    """
    if any(unit.head is not None for unit in units):
        return _head_chart(units, "Loss saved (0.001 nats)" if rank == "scan" else "Slope (0.001 nats)")
    names = {"only_full": "only this layer full: loss saved", "only_local": "only this layer local: loss added"}
    if rank == "gates":
        names = {"only_full": "slope of the loss by the layer's gate, halfway"}
    values = [
        {"layer": unit.layer, "way": names[way], "nats": 1000 * value}
        for unit in units
        for way, value in (("only_full", unit.only_full), ("only_local", unit.only_local))
        if way in names and value is not None
    ]
    ways: Layer = {"field": "way", "sort": list(names.values())}
    bars = layer(
        values,
        {"type": "bar"},
        x=LAYER,
        xOffset=ways,
        y=quantity("nats", "0.001 nats a token"),
        color=ways | {"legend": {"title": None, "orient": "top"}},
    )
    return spec_of(layer=[bars], description="What each layer is worth alone, both ways.", width=640, height=220)


def _head_chart(units: Sequence[UnitRecord], title: str) -> Spec:
    values = [{"layer": unit.layer, "head": unit.head, "gain": 1000 * unit.only_full} for unit in units]
    most = max(abs(1000 * unit.only_full) for unit in units)
    scale = {"scheme": "blueorange", "domain": [-most, most], "reverse": True}
    cells = layer(values, {"type": "rect"}, x=LAYER, y=HEAD, color=quantity("gain", title, scale=scale))
    described = "What each head saves of the loss by seeing everything."
    return spec_of(layer=[cells], description=described, width=640, height=90)


def frontier_chart(found: Sequence[PlanEntry], best: Sequence[PlanEntry]) -> Spec:
    """Return plans by attention and perplexity on the calibration documents, with the steps of the frontier."""
    axes = {"x": _ATTENTION, "y": _perplexity_axis("calibration")}
    points, steps = ([_point(entry.text, entry) for entry in entries] for entries in (found, best))
    dot = {"type": "point", "filled": True, "size": 36, "opacity": 0.75}
    return spec_of(
        layer=[layer(steps, FRONTIER, **axes), layer(points, dot, **axes, tooltip=_TOOLTIP)],
        title=_title(steps),
        description="Measured plans: perplexity against attention, and those that no other beats.",
    )


def _title(steps: Sequence[Mapping[str, Any]]) -> Layer:
    """Return what the frontier gains from its cheapest plan to its dearest."""
    first, last = (f(steps, key=lambda step: step["attention"]) for f in (min, max))
    gain = "Perplexity {:.2f} at {:.0f}% of the attention, {:.2f} at {:.0f}%"
    ends = [step[key] for step in (first, last) for key in ("perplexity", "attention")]
    return {"text": gain.format(*ends), "subtitle": "Lower is better; documents of the search itself", "frame": "group"}


def held_out_chart(rows: Sequence[HeldOutRow]) -> Spec:
    """Return plans by attention and perplexity on held-out documents: random placements small, the others named."""
    axes = {"x": _ATTENTION, "y": _perplexity_axis("held-out")}
    points = [_point(row.plan, row) | {"name": row.name} for row in rows]
    random = [point for point in points if point["name"].startswith("random ")]
    named = [point for point in points if not point["name"].startswith("random ")]
    circle = {"type": "point", "size": 30, "opacity": 0.6, "style": "yardstick"}
    text = {"type": "text", "align": "left", "dx": 7, "style": "label"}
    return spec_of(
        layer=[
            layer(random, circle, **axes, tooltip=_TOOLTIP),
            layer(named, {"type": "point", "filled": True, "size": 70}, **axes, tooltip=_TOOLTIP),
            layer(named, text, **axes, text={"field": "name"}),
        ],
        description="Plans on held-out documents: perplexity against attention; hollow: random placements.",
    )


def _perplexity_axis(documents: str) -> Layer:
    return quantity("perplexity", f"Perplexity, {documents} documents", scale={"zero": False, "padding": 10})


def _point(plan: str, entry: PlanEntry | HeldOutRow) -> dict[str, Any]:
    return {"attention": 100 * entry.cost["flops"], "perplexity": entry.perplexity, "plan": plan}
