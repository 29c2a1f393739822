"""What folds of the calibration documents find -> a paragraph, tables and a chart of a placement's report."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records.schema import StabilityRecord, UnitRecord
from eval.reporting.charts import Layer, Spec, layer, quantity, spec_of
from eval.reporting.columns import Column
from eval.reporting.tables import Rows, table_of

MAJORITY = "plan-majority.json"
LAYER: Layer = {"field": "layer", "type": "ordinal", "title": "Layer", "axis": {"labelAngle": 0, "grid": False}}
HEAD: Layer = {"field": "head", "type": "ordinal", "title": "Key/value head"}
_FOLDS = [
    Column(heading="fold", show=lambda row: str(row[0])),
    Column(heading="n", show=lambda row: str(row[1].num_documents)),
    Column(heading="units", show=lambda row: str(len(row[1].chosen.units))),
    Column(heading="ppl", show=lambda row: f"{row[1].chosen.perplexity:.3f}"),
    Column(heading="attention", show=lambda row: f"{row[1].chosen.cost['flops']:.1%}"),
    Column(heading="cache", show=lambda row: f"{row[1].chosen.cost['cache']:.1%}"),
    Column(heading="plan", show=lambda row: row[1].chosen.text),
]
_UNITS = [
    Column(heading="folds", show=lambda row: str(row[0])),
    Column(heading="units", show=lambda row: ", ".join(row[1])),
]


def describe_stability(stability: StabilityRecord) -> str:
    """Return how alike the choices of the folds are, in words."""
    low, high = min(stability.jaccard), max(stability.jaccard)
    pairs = len(stability.jaccard)
    return (
        f"Of the units that either of two folds chose, both chose a share (Jaccard index) of "
        f"{stability.median_jaccard:.2f} in the median over {pairs} {'pair' if pairs == 1 else 'pairs'} ({low:.2f} to "
        f"{high:.2f}); random choices of the same sizes have {stability.chance_jaccard:.2f} in the mean. "
        f"{_describe_majority(stability)}"
    )


def _describe_majority(stability: StabilityRecord) -> str:
    majority = stability.majority
    if majority is None:
        return "No unit was chosen by half of the folds."
    budget = "within the budget" if stability.is_within_budget else "beyond the budget"
    number = len(majority.units)
    return (
        f"{number} {'unit was' if number == 1 else 'units were'} chosen by at least half of the folds: their plan "
        f"({MAJORITY}) takes {majority.cost['flops']:.1%} of the attention, {budget}, and has a perplexity of "
        f"{majority.perplexity:.3f} on all calibration documents."
    )


def stability_tables(stability: StabilityRecord) -> list[tuple[str, Rows]]:
    """Return titles and rows: what each fold found, and how often each unit was chosen."""
    count = len(stability.folds)
    by_count = {
        number: [one.unit for one in stability.units if one.num_folds == number] for number in range(count, 0, -1)
    }
    chosen = [(str(number), units) for number, units in by_count.items() if units]
    return [
        (f"What {count} folds find, each on its own documents", table_of(_FOLDS, list(enumerate(stability.folds, 1)))),
        (f"Units by the number of folds that chose them, of {count}", table_of(_UNITS, chosen)),
    ]


def stability_chart(stability: StabilityRecord, units: Sequence[UnitRecord]) -> Spec:
    """Return in how many folds each unit was chosen: layers as bars, or heads of each layer as cells."""
    counts = {unit.unit: unit.num_folds for unit in stability.units}
    values = [{"layer": one.layer, "head": one.head, "folds": counts.get(one.unit, 0)} for one in units]
    most = len(stability.folds)
    described = f"In how many of {most} folds each unit was chosen."
    if any(one.head is None for one in units):
        folds = quantity("folds", "Folds", scale={"domain": [0, most]}, axis={"tickMinStep": 1})
        return spec_of(
            layer=[layer(values, {"type": "bar"}, x=LAYER, y=folds)], description=described, width=640, height=120
        )
    color = quantity("folds", "Folds", scale={"scheme": "blues", "domain": [0, most]}, legend={"tickMinStep": 1})
    cells = layer(values, {"type": "rect"}, x=LAYER, y=HEAD, color=color)
    return spec_of(layer=[cells], description=described, width=640, height=90)
