"""Plans: the text form, the JSON form, presets, and what is wrong with a malformed one."""

from __future__ import annotations

import json

import pytest

from masformer.spans import FULL, LayerSpan, PlanError, SpanPlan

LAYERS = 30


def full_layers(text: str, num_layers: int = LAYERS) -> list[int]:
    return [layer for layer, span in enumerate(SpanPlan.parse(text, num_layers)) if span.is_full]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("full", list(range(30))),
        ("local", []),
        ("bottom:8", list(range(8))),
        ("top:3", [27, 28, 29]),
        ("middle:8", list(range(11, 19))),
        ("every:6", [5, 11, 17, 23, 29]),
        ("full@17,18,20,23 span=512", [17, 18, 20, 23]),
        ("full@0-2,29", [0, 1, 2, 29]),
    ],
)
def test_placements(text: str, layers: list[int]) -> None:
    assert full_layers(text) == layers


def test_numbers_left_out_take_their_defaults() -> None:
    assert SpanPlan.parse("middle:8", LAYERS)[0] == LayerSpan(span=1024, sinks=4)
    assert SpanPlan.parse("local span=512", LAYERS)[0] == LayerSpan(span=512, sinks=4)
    assert SpanPlan.parse("local sinks=0", LAYERS)[0] == LayerSpan(span=1024)
    assert SpanPlan.parse("bottom:8 block=512", LAYERS)[9] == LayerSpan(block=512, previous=1, sinks=4)
    assert SpanPlan.parse("bottom:8 block=512 previous=3 sinks=0", LAYERS)[9] == LayerSpan(block=512, previous=3)


def test_any_mixture() -> None:
    plan = SpanPlan.parse("full@0; span=512 sinks=2@1-28; block=64 previous=0 sinks=0@29", LAYERS)
    assert plan.layers == (FULL, *[LayerSpan(span=512, sinks=2)] * 28, LayerSpan(block=64))


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "local span=1 sinks=0",
        "middle:8",
        "every:7 span=64 sinks=1",
        "bottom:8 block=512 previous=1",
        "full@0; span=512@1-9; block=64@10-29",
        "span=5@0-10; span=6@11-29",
    ],
)
def test_text_and_json_forms_give_the_plan_again(text: str) -> None:
    plan = SpanPlan.parse(text, LAYERS)
    assert SpanPlan.parse(str(plan), LAYERS) == plan
    assert SpanPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("text", "character", "message"),
    [
        ("  ", 1, "the plan is empty"),
        ("half", 1, "'half' is no placement"),
        ("middle", 7, "middle needs a positive number"),
        ("middle:8,span=3", 8, "middle needs a positive number"),
        ("middle:0", 8, "middle needs a positive number"),
        ("top:31", 5, "31 layers asked for, the model has 30"),
        ("full@3,30", 8, "layer 30 does not exist, the model has layers 0 to 29"),
        ("full@3-1", 6, "'3-1' runs backwards"),
        ("full@x", 6, "'x' is no layer"),
        ("middle:8 spam=3", 10, "'spam=3' is no setting"),
        ("middle:8 span=3 span=4", 17, "span is given twice"),
        ("middle:8 span=-3", 15, "span needs a whole number of at most 9 digits, got '-3'"),
        ("middle:8 span=0", 10, "span=0 must be at least 1"),
        ("middle:8 span=4 block=4", 10, "span=4 and block=4 exclude each other"),
        ("local span=" + "9" * 5000, 12, "span needs a whole number of at most 9 digits"),
        ("local sinks=99999999", 7, "must be at most 65536"),
        ("local previous=2", 7, "previous=2 needs block=N"),
        ("full span=3", 6, "every layer is full"),
        ("span=512", 1, "needs a placement before it"),
        ("full@0; span=3", 8, "names no layers"),
        ("full@0; span=3@2-29", 20, "no clause names layers 1"),
        ("full@0-29; span=3@29", 19, "layer 29 is named twice"),
    ],
)
def test_a_malformed_plan_names_the_place(text: str, character: int, message: str) -> None:
    with pytest.raises(PlanError) as error:
        SpanPlan.parse(text, LAYERS)
    line = str(error.value)
    assert line.startswith(f"plan '{text}', character {character}: ")
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("stored", ["full", [], [3], [{"spam": 1}], [{"span": "8"}], [{"span": 0}], [{"sinks": 4}]])
def test_a_malformed_stored_plan_is_refused(stored: object) -> None:
    with pytest.raises(PlanError, match="stored plan"):
        SpanPlan.from_json(stored)  # type: ignore[arg-type]
