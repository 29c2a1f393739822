"""Charts and tables of a search for placements hold what was measured."""

from __future__ import annotations

from dataclasses import replace

from eval.records.schema import PlacementResult, UnitCount
from eval.reporting.charts import draw_svg
from eval.reporting.placement_report import describe, frontier_chart, held_out_chart, unit_chart
from eval.reporting.stability_report import describe_stability, stability_chart
from tests.helpers.placements import HEAD, PLANS, ROWS, STABILITY


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


def test_folds_are_told_in_words_tables_and_a_chart() -> None:
    lines = describe(PlacementResult(rank="scan", scores=[HEAD], stability=STABILITY)).splitlines()
    words = (
        "both chose a share (Jaccard index) of 0.50 in the median over 3 pairs (0.25 to 1.00); random choices of the"
    )
    assert any(words in line and "have 0.12 in the mean" in line for line in lines)
    assert any("1 unit was chosen by at least half of the folds" in line for line in lines)
    at = lines.index("Units by the number of folds that chose them, of 3")
    assert [line.split() for line in lines[at + 2 : at + 4]] == [["3", "0.1"], ["1", "2.0"]]
    heads = [HEAD, replace(HEAD, unit="1.0", layer=1, head=0)]
    (cells,) = stability_chart(STABILITY, heads)["layer"]
    expected = [{"layer": 0, "head": 1, "folds": 3}, {"layer": 1, "head": 0, "folds": 0}]
    assert cells["data"]["values"] == expected
    layers = replace(STABILITY, units=[UnitCount(unit="4", num_folds=2)])
    (bars,) = stability_chart(layers, [replace(HEAD, unit="4", layer=4, head=None)])["layer"]
    assert bars["data"]["values"] == [{"layer": 4, "head": None, "folds": 2}]
    for spec in (stability_chart(STABILITY, heads), stability_chart(layers, [replace(HEAD, unit="4", head=None)])):
        assert draw_svg(spec).count("<path") > 3


def test_a_majority_may_be_beyond_the_budget_or_none() -> None:
    assert "beyond the budget" in describe_stability(replace(STABILITY, is_within_budget=False))
    none = replace(STABILITY, majority=None, is_within_budget=None)
    assert "No unit was chosen by half of the folds" in describe_stability(none)
