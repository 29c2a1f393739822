"""Charts say what the results say, in units that people read, and are drawn without a network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from eval.records.schema import Estimate, Evaluation, ExampleScore, Result, TrainingStep
from eval.reporting.charts import VEGA_LITE_VERSION, draw_svg, length_curves, quality_cost, save_charts, theme
from eval.reporting.position_chart import document_positions, oracle_positions
from eval.reporting.training_report import curves, draw_curves
from tests.helpers.records import cost_of, prediction, result


def yardstick(system: str, maxlen: int, mean: float) -> Result:
    return result(system, maxlen, mean, kind="yardstick", cost=None)


RESULTS = [
    *(result("tiny", maxlen, mean) for maxlen, mean in ((1024, 0.20), (2048, 0.25), (8192, 0.31))),
    *(yardstick("matched_lead", maxlen, 0.18) for maxlen in (1024, 2048, 8192)),
    *(yardstick("matched_oracle", maxlen, 0.181) for maxlen in (1024, 2048, 8192)),
    *(yardstick("lead", maxlen, 0.183) for maxlen in (1024, 2048, 8192)),
    *(yardstick("tail", maxlen, 0.182) for maxlen in (1024, 2048, 8192)),
    *(yardstick("visible_oracle", maxlen, mean) for maxlen, mean in ((1024, 0.3), (2048, 0.4), (8192, 0.5))),
]


def layers(spec: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    return [layer for layer in spec["layer"] if layer["mark"]["type"] == mark]


def compiled(spec: dict[str, Any]) -> dict[str, Any]:
    vega: dict[str, Any] = vl_convert.vegalite_to_vega(spec, vl_version=VEGA_LITE_VERSION, config=theme(dark=False))
    return vega


def test_curves_show_scores_times_100_at_the_lengths_that_were_run() -> None:
    spec = length_curves(RESULTS, "rougeLsum")
    (points,) = layers(spec, "point")
    rows = points["data"]["values"]
    assert [(row["maxlen"], row["mean"]) for row in rows] == [(1024, 20.0), (2048, 25.0), (8192, 31.0)]
    assert rows[0]["low"] == pytest.approx(18)
    assert points["encoding"]["x"]["axis"]["values"] == [1024, 2048, 8192]
    assert points["encoding"]["x"]["scale"]["base"] == 2
    assert points["encoding"]["y"]["title"] == "ROUGE-Lsum F × 100 (hf)"
    low, high = points["encoding"]["y"]["scale"]["domain"]
    assert low < 16
    assert high > 52


def test_yardsticks_are_dashed_and_named_and_not_in_the_legend() -> None:
    spec = length_curves(RESULTS, "rougeLsum")
    dashes = [layer["mark"]["strokeDash"] for layer in layers(spec, "line") if "strokeDash" in layer["mark"]]
    assert len(dashes) == 3
    assert len({tuple(dash) for dash in dashes}) == 3
    (labels,) = layers(spec, "text")
    assert [row["label"] for row in labels["data"]["values"]] == [
        "lead at length",
        "oracle at length",
        "visible oracle",
    ]
    (points,) = layers(spec, "point")
    assert points["encoding"]["color"]["scale"]["domain"] == ["tiny"]


def test_names_of_yardsticks_do_not_overlap() -> None:
    spec = length_curves(RESULTS, "rougeLsum")
    (labels,) = layers(spec, "text")
    low, high = labels["encoding"]["y"]["scale"]["domain"]
    lead, matched, oracle = (row["mean"] for row in labels["data"]["values"])
    assert (matched - lead) / (high - low) * spec["height"] >= 13.9
    assert oracle == 50


def test_systems_at_one_length_stand_apart() -> None:
    results = [result(f"tiny, {plan}", maxlen, 0.2) for plan in ("full", "middle:8") for maxlen in (1024, 2048)]
    (points,) = layers(length_curves(results, "rougeLsum"), "point")
    assert points["encoding"]["color"]["scale"]["domain"] == ["tiny, full", "tiny, middle:8"]
    first = [row["x"] for row in points["data"]["values"] if row["maxlen"] == 1024]
    assert first[0] < 1024 < first[1]


def test_missing_intervals_have_no_rule() -> None:
    lonely = result("tiny", 1024, 0.2, metrics={"rougeLsum": Estimate(mean=0.2, low=None, high=None)})
    spec = length_curves([lonely], "rougeLsum")
    assert layers(spec, "rule") == []
    assert compiled(spec)


def test_one_length_still_shows_the_yardsticks() -> None:
    spec = length_curves([line for line in RESULTS if line.maxlen == 1024], "rougeLsum")
    line = layers(spec, "line")[0]
    ends = [row["x"] for row in line["data"]["values"]]
    assert ends == line["encoding"]["x"]["scale"]["domain"]


@pytest.mark.parametrize(
    ("cost", "at_1024", "title"),
    [
        ("attention_flops", 1.024, "Attention per example (TFLOP)"),
        ("cache_bytes", 1.0, "Key/value cache (MiB)"),
        ("seconds", 0.5, "Time per example (s)"),
    ],
)
def test_costs_are_in_the_units_of_the_axis(cost: str, at_1024: float, title: str) -> None:
    (points,) = layers(quality_cost(RESULTS, "rougeLsum", cost), "point")
    assert points["data"]["values"][0]["x"] == pytest.approx(at_1024)
    assert points["encoding"]["x"]["title"] == title


def test_numbers_of_an_axis_of_costs_stand_apart_on_a_phone() -> None:
    tflops = {256: 0.00165, 512: 0.0091, 1024: 0.0365}
    costs = {maxlen: replace(cost_of(maxlen), attention_flops=value * 1e12) for maxlen, value in tflops.items()}
    results = [result("tiny", maxlen, 0.2, cost=cost) for maxlen, cost in costs.items()]
    svg = draw_svg({**quality_cost(results, "rougeLsum", "attention_flops"), "width": 215})
    found = re.findall(
        r'<text text-anchor="middle" transform="translate\(([\d.]+),[^>]* opacity="1">(0[\d.]*)</text>', svg
    )
    places = [(float(x), 6.1 * len(number)) for x, number in found]  # centre and width, in a font of 12 pixels
    assert len(places) > 3
    assert all(x - before >= (width + other) / 2 + 6 for (before, other), (x, width) in pairwise(places))


def test_points_without_a_known_cost_are_left_out() -> None:
    unknown = result("other", 1024, 0.2, cost=replace(cost_of(1024), attention_flops=None, seconds=0.0))
    (points,) = layers(quality_cost([*RESULTS, unknown], "rougeLsum", "attention_flops"), "point")
    assert {row["system"] for row in points["data"]["values"]} == {"tiny"}
    # A cost of 0 has no logarithm.
    (points,) = layers(quality_cost([unknown], "rougeLsum", "seconds"), "point")
    assert "type" not in points["encoding"]["x"]["scale"]
    assert compiled(quality_cost([unknown], "rougeLsum", "attention_flops"))


def test_positions_are_relative_to_each_document() -> None:
    oracle = ExampleScore(
        task="plos",
        template="instruct",
        id="a",
        document_id="A",
        maxlen=64,
        system="visible_oracle",
        is_truncated=False,
        is_model=False,
        metrics={},
        sentences=[[0, 100], [300, 400]],
    )
    scores = [oracle, replace(oracle, id="b", document_id="B", system="lead", sentences=None)]
    predictions = [
        prediction("a", 64, context_spans=[[0, 200], [300, 400]]),
        prediction("b", 64, context_spans=[[0, 1000]]),
        prediction("b", 32, context_spans=[[0, 500]]),
    ]
    positions, coverage = document_positions(scores, predictions, {"A": 400, "B": 1000})
    assert positions == [{"maxlen": 64, "position": 12.5}, {"maxlen": 64, "position": 87.5}]
    shares = {(line["maxlen"], line["position"]): line["share"] for line in coverage}
    assert len(shares) == 200
    assert (shares[64, 49.5], shares[64, 50.5], shares[64, 74.5], shares[64, 75.5]) == (1, 0.5, 0.5, 1)
    assert (shares[32, 49.5], shares[32, 50.5]) == (1, 0)


def test_oracle_histogram_is_that_of_the_longest_length() -> None:
    positions = [{"maxlen": 64, "position": at} for at in (0.0, 4.9, 5.0, 100.0)] + [{"maxlen": 32, "position": 50.0}]
    spec = oracle_positions(positions, [{"maxlen": 64, "position": 0.5, "share": 1.0}])
    bars = {row["start"]: row["share"] for row in spec["vconcat"][1]["data"]["values"] if row["share"]}
    assert bars == {0: 0.5, 5: 0.25, 95: 0.25}
    assert compiled(oracle_positions([], []))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_charts_become_files_for_papers(suffix: str, tmp_path: Path) -> None:
    assert save_charts(tmp_path / "plots", {"curve": length_curves(RESULTS, "rougeLsum")}, "curve")
    path = tmp_path / "plots" / f"curve{suffix}"
    if suffix == ".png":
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        drawn = path.read_text(encoding="utf-8")
        assert "Maximum length (tokens)" in drawn
        assert "visible oracle" in drawn
        assert "8,192" in drawn


def test_specs_load_nothing() -> None:
    for spec in (
        length_curves(RESULTS, "rougeLsum"),
        quality_cost(RESULTS, "rougeLsum", "seconds"),
        oracle_positions([{"maxlen": 64, "position": 1.0}], [{"maxlen": 64, "position": 0.5, "share": 1.0}]),
    ):
        assert '"url"' not in json.dumps(spec)
        assert '"url"' not in json.dumps(compiled(spec))


def step(number: int, **changes: Any) -> TrainingStep:
    made = TrainingStep(
        step=number, loss=2.0, grad_norm=1.0, learning_rate=1e-4, num_tokens=9, num_targets=3, seconds=1.0
    )
    return replace(made, **changes)


def test_the_curves_of_a_training_show_what_its_files_hold() -> None:
    steps = [step(1, loss=3.0, grad_norm=None), step(2, learning_rate=2e-4), step(3)]
    evals = [Evaluation(step=at, loss=2.5, perplexity=12.0, num_targets=3, seconds=1.0) for at in (0, 3)]
    losses, rates, norms = curves(steps, evals)["vconcat"]
    training, line, points, labels = losses["layer"]
    assert [(row["step"], row["mean"]) for row in training["data"]["values"]] == [(1, 3.0), (2, 2.0), (3, 2.0)]
    assert line["data"] == points["data"] == {"values": [{"step": 0, "mean": 2.5}, {"step": 3, "mean": 2.5}]}
    assert [row["label"] for row in labels["data"]["values"]] == ["training step", "held out"]
    assert [row["value"] for row in rates["data"]["values"]] == [1e-4, 2e-4, 1e-4]
    # A norm that is not finite was not written.
    assert [row["step"] for row in norms["data"]["values"]] == [2, 3]
    drawn = draw_curves(steps, evals)
    assert drawn == draw_curves(steps, evals)
    for text in ("Loss (nats a target)", "Learning rate", "Gradient norm", "Step", "held out", "training step"):
        assert text in drawn


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_the_curves_of_a_training_that_has_just_begun_are_drawn(num_steps: int) -> None:
    assert draw_curves([step(number) for number in range(1, num_steps + 1)], []).startswith("<svg")


def test_a_name_with_a_character_that_xml_forbids_is_drawn() -> None:
    names = ["run\x1b[31m", "nul\x00", "half\ud800", "\uffff"]
    data = {"values": [{"name": name, "score": place} for place, name in enumerate(names)]}
    encoding = {"x": {"field": "score", "type": "quantitative"}, "y": {"field": "name", "type": "nominal"}}
    drawn = draw_svg({"data": data, "mark": "point", "encoding": encoding})
    assert "run\N{REPLACEMENT CHARACTER}[31m" in drawn
    assert not set("\x1b\x00\ud800\uffff") & set(drawn)


def test_a_saved_svg_is_dark_on_dark_screens(tmp_path: Path) -> None:
    spec = {"data": {"values": [{}]}, "mark": {"type": "point", "filled": True, "style": "model"}, "title": "Found"}
    save_charts(tmp_path, {"chart": spec}, "chart")
    before, style, after = re.split("</?style>", (tmp_path / "chart.svg").read_text(encoding="utf-8"))
    assert style.startswith("@media screen and (prefers-color-scheme:dark){")
    dark = dict(re.findall(r'\[fill="(.+?)"\]\{fill:(.+?)\}', style))
    used = set(re.findall(r'fill="(white|#\w+)"', before + after))
    assert used >= {"white", "#1c2329", "#0072B2"}  # page, title, point
    assert used <= set(dark)
    assert (dark["white"], dark["#1c2329"], dark["#0072B2"]) == ("#14171b", "#e3e8ee", "#56B4E9")
