"""Charts of a search."""

from __future__ import annotations

from dataclasses import replace

from eval.records.schema import HeldOutRow, PlanEntry, UnitRecord
from eval.reporting.placement_report import frontier_chart, held_out_chart, unit_chart

COST = {"flops": 0.25, "layers": 1, "cache": 0.2}


def test_charts_hold_each_plan() -> None:
    plans = [PlanEntry(text=f"plan {n}", plan=[], units=[], loss=2.2, perplexity=9.0 + n, cost=COST) for n in range(3)]
    assert [row["plan"] for row in frontier_chart(plans, plans[:1])["layer"][1]["data"]["values"]] == [
        "plan 0",
        "plan 1",
        "plan 2",
    ]
    rows = [
        HeldOutRow(name=name, plan=name, num_documents=9, perplexity=9.0, low=None, high=None, to_full=None, cost=COST)
        for name in ("full", "random 1")
    ]
    layers = held_out_chart(rows)["layer"]
    assert [row["name"] for row in layers[0]["data"]["values"]] == ["random 1"]
    assert [row["name"] for row in layers[2]["data"]["values"]] == ["full"]
    head = UnitRecord(unit="0.1", layer=0, head=1, only_full=0.01, only_local=None)
    (cells,) = unit_chart([head], "scan")["layer"]
    assert cells["data"]["values"] == [{"layer": 0, "head": 1, "gain": 10.0}]
    assert cells["encoding"]["color"]["title"] == "Loss saved (0.001 nats)"
    # What gates say is a slope, not a loss that was measured.
    assert unit_chart([head], "gates")["layer"][0]["encoding"]["color"]["title"] == "Slope (0.001 nats)"
    layers = unit_chart([replace(head, unit="0", head=None)], "gates")["layer"][0]["data"]["values"]
    assert [row["way"] for row in layers] == ["slope of the loss by the layer's gate, halfway"]
