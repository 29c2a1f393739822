"""Charts and tables of a search for placements hold what was measured."""

from __future__ import annotations

from dataclasses import replace

from eval.records.schema import HeldOutRow, PlacementResult, PlanEntry, UnitRecord
from eval.reporting.placement_report import describe, frontier_chart, held_out_chart, unit_chart

COST = {"flops": 0.25, "layers": 1.0, "cache": 0.2}
PLANS = [PlanEntry(text=f"plan {n}", plan=[], units=[], loss=2.0, perplexity=9.0 + n, cost=COST) for n in range(3)]
ROWS = [
    HeldOutRow(name=name, plan=name, num_documents=8, perplexity=9.0, low=None, high=None, to_full=None, cost=COST)
    for name in ("full", "random 1")
]
HEAD = UnitRecord(unit="0.1", layer=0, head=1, only_full=0.01, only_local=None)


def test_charts_hold_each_plan() -> None:
    points = frontier_chart(PLANS, PLANS[:1])["layer"][1]["data"]["values"]
    assert [row["plan"] for row in points] == ["plan 0", "plan 1", "plan 2"]
    random, _, labels = held_out_chart(ROWS)["layer"]
    assert [row["name"] for row in random["data"]["values"]] == ["random 1"]
    assert [row["name"] for row in labels["data"]["values"]] == ["full"]
    (cells,) = unit_chart([HEAD], "scan")["layer"]
    assert cells["data"]["values"] == [{"layer": 0, "head": 1, "gain": 10.0}]
    assert cells["encoding"]["color"]["title"] == "Loss saved (0.001 nats)"
    # What gates say is a slope, not a loss that was measured.
    assert unit_chart([HEAD], "gates")["layer"][0]["encoding"]["color"]["title"] == "Slope (0.001 nats)"
    bars = unit_chart([replace(HEAD, unit="0", head=None)], "gates")["layer"][0]["data"]["values"]
    assert [row["way"] for row in bars] == ["slope of the loss by the layer's gate, halfway"]


def test_tables_show_a_dash_for_what_was_not_measured() -> None:
    result = PlacementResult(rank="scan", scores=[HEAD], found=PLANS, frontier=PLANS[:1], held_out=ROWS)
    lines = describe(replace(result, held_out_cost_at=4096)).splitlines()
    assert ["0.1", "0.0100", "-"] in [line.split() for line in lines]
    assert "On held-out documents, costs at 4,096 tokens" in lines
    assert [line.split() for line in lines if "random" in line] == [
        ["random", "1", "8", "9.000", "-", "25.0%", "20.0%", "random", "1"]
    ]
