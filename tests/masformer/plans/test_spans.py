"""Plans: the text form, the JSON form, presets, and what is wrong with a malformed one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masformer import read_plan
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, PlanError, SpanPlan, layer_of_heads
from masformer.plans.written import check_written
from tests.helpers.attention_cases import SPANS
from tests.helpers.properties import tries
from tests.helpers.tiny_models import tiny_model

LAYERS = 30
HEADS = 3
LOCAL = LayerSpan(span=512, sinks=4)


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


def test_heads_are_named_beside_layers() -> None:
    plan = SpanPlan.parse("full@1,2.0,4.2 span=512 sinks=4", 5, HEADS)
    assert plan.layers == (LOCAL, FULL, HeadSpans((FULL, LOCAL, LOCAL)), LOCAL, HeadSpans((LOCAL, LOCAL, FULL)))
    assert plan.num_heads == HEADS
    assert not plan.is_full
    mixed = SpanPlan.parse("full@3.0; span=512@0-2,3.1,3.2; block=64@4", 5, HEADS)
    block = LayerSpan(block=64, previous=1, sinks=4)
    assert mixed.layers == (LOCAL, LOCAL, LOCAL, HeadSpans((FULL, LOCAL, LOCAL)), block)
    assert str(plan) == "full@1,2.0,4.2 span=512 sinks=4"
    assert str(mixed) == "full@3.0; span=512 sinks=4@0-2,3.1,3.2; block=64 previous=1 sinks=4@4"
    assert str(plan[2]) == "head 0 full, heads 1,2 span=512 sinks=4"
    assert plan[2].to_json() == {"heads": [{}, {"span": 512, "sinks": 4}, {"span": 512, "sinks": 4}]}


def test_heads_that_see_alike_are_a_layer() -> None:
    assert SpanPlan.parse("full@0,1.2,1.0,1.1 span=512", 3, HEADS) == SpanPlan.parse("full@0,1 span=512", 3)
    assert SpanPlan.parse("full@0.0,0.1,0.2,1", 2, HEADS).is_full
    assert SpanPlan.parse("full@0; span=512@1.0,1.1,1.2,2", 3, HEADS) == SpanPlan.parse("full@0 span=512", 3)
    assert SpanPlan.from_json([{"heads": [{"span": 8}, {"span": 8}]}]) == SpanPlan((LayerSpan(span=8),))
    assert SpanPlan.parse("full@0 span=512", 3, HEADS).num_heads is None
    for heads in ((), (FULL,), (LOCAL, LOCAL)):
        with pytest.raises(PlanError, match="spans of heads differ, but"):
            HeadSpans(heads)


@given(st.data())
def test_any_plan_comes_back_from_its_text_and_json_forms(data: st.DataObject) -> None:
    kinds, heads = data.draw(st.lists(SPANS, min_size=1, max_size=3)), data.draw(st.integers(1, 4))
    of_layers = data.draw(st.lists(st.lists(st.sampled_from(kinds), min_size=heads, max_size=heads), min_size=1))
    plan = SpanPlan(tuple(layer_of_heads(spans) for spans in of_layers))
    check_written(str(plan))
    assert SpanPlan.parse(str(plan), len(plan), heads) == plan
    assert SpanPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    if plan.num_heads is None:
        assert SpanPlan.parse(str(plan), len(plan)) == plan


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


@pytest.mark.parametrize(
    ("text", "num_heads", "character", "message"),
    [
        ("full@3.3 span=8", HEADS, 8, "head 3 does not exist, the model has key/value heads 0 to 2"),
        ("full@3,30.0 span=8", HEADS, 8, "layer 30 does not exist"),
        ("full@3,4.1 span=8", None, 8, "'4.1' names a head, and how many key/value heads there are is not known"),
        ("full@3.0-2 span=8", HEADS, 6, "'3.0-2' is no layer"),
        ("full@3. span=8", HEADS, 6, "'3.' is no layer"),
        ("full@0.1; span=8@0.1,1-29", HEADS, 18, "head 1 of layer 0 is named twice"),
        ("full@0.1; span=8@0-29", HEADS, 18, "layer 0 is named twice"),
        ("full@0; span=8@1-28,29.1", HEADS, 25, "no clause names layers 29.0,29.2"),
        ("full@0.0,0.1,0.2,1-29 span=8", HEADS, 23, "'span=8' has no layer to apply to"),
    ],
)
def test_malformed_heads_name_the_character(text: str, num_heads: int | None, character: int, message: str) -> None:
    with pytest.raises(PlanError) as error:
        SpanPlan.parse(text, LAYERS, num_heads)
    assert str(error.value).startswith(f"plan '{text}', character {character}: {message}")


def test_what_is_a_plan_of_no_model_is_told_without_one() -> None:
    of_models = ("top:31", "full@3,30", "full@9999.9 span=8", "full@0; span=3@2-29", "none@0; full")
    for text in of_models:
        check_written(text)
    malformed = ("  ", "half", "every:0", "full@3-1", "full@3. span=8", "local spam=3", "local span=3 span=4")
    malformed += (
        ";",
        "full span=3",
        "local span=4 block=4",
        "span=512",
        "full@0; span=3",
        "full span=3@0; local@1",
        "none@x; full",
    )
    for text in malformed:
        with pytest.raises(PlanError) as told:
            SpanPlan.parse(text, LAYERS, HEADS)
        with pytest.raises(PlanError, match=f"^{re.escape(str(told.value))}$"):
            check_written(text)


@pytest.mark.parametrize("as_object", [False, True])
def test_a_file_holds_a_plan(as_object: bool, tmp_path: Path) -> None:
    config = tiny_model("llama").config
    plan = read_plan("full@0,1.1 span=8", config)
    assert plan == SpanPlan.parse("full@0,1.1 span=8", 3, 2)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"plan": plan.to_json(), "note": "best"} if as_object else plan.to_json()))
    assert read_plan(str(file), config) == plan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is no JSON: Expecting property name"),
        ("\xff", "is no JSON: 'utf-8' codec"),
        ('{"layers": []}', "it holds an object without 'plan'"),
        ('"full"', "a stored plan is a list"),
        ('[{"spam": 1}]', "layer 0 of the stored plan has unknown settings spam"),
        ('[{"heads": []}]', "'heads' stands alone, and is a list with one object a head"),
        ('[{"heads": "ab"}]', "'heads' stands alone"),
        ('[{"heads": [{}, {"span": 4}], "span": 4}]', "'heads' stands alone"),
        ('[{"heads": [{}, 4]}]', "head 1 of layer 0 of the stored plan is 4; an object was expected"),
        ('[{"heads": [{}, {"span": 0}]}]', "head 1 of layer 0 of the stored plan: span=0 must be at least 1"),
        ("[{}]", "span plan has 1 layers, llama has 3"),
        ('[{}, {}, {"heads": [{}, {}, {"span": 4}]}]', "span plan has 3 key/value heads in layer 2, llama has 2"),
    ],
)
def test_a_malformed_file_is_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    with pytest.raises(PlanError) as error:
        read_plan(str(file), tiny_model("llama").config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stored", ["full", [], [3], [{"spam": 1}], [{"span": "8"}], [{"span": 0}], [{"sinks": 4}]])
def test_a_malformed_stored_plan_is_refused(stored: object) -> None:
    with pytest.raises(PlanError, match="stored plan"):
        SpanPlan.from_json(stored)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [{"span": 10**18}, {"span": 10**40}, {"block": 4, "previous": 10**9}, {"span": 4, "sinks": None}, {"block": 2**63}],
)
def test_stored_numbers_have_the_bounds_of_the_text_form(layer: dict[str, int | None]) -> None:
    with pytest.raises(PlanError, match="layer 0 of the stored plan"):
        SpanPlan.from_json([layer])


def test_a_stored_plan_of_a_million_layers_is_not_read() -> None:
    with pytest.raises(PlanError, match="at most 10000") as error:
        SpanPlan.from_json([{"span": 1}] * 10**6)
    assert len(str(error.value)) < 300


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.sampled_from([10**9 - 1, 10**9, 10**18, 10**40, -(10**40)]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
)
ODD_LAYER = st.dictionaries(st.sampled_from(["span", "block", "previous", "sinks", "spam"]), ODD, max_size=3)
ODD_PLAN = st.lists(
    ODD_LAYER | st.fixed_dictionaries({"heads": st.lists(ODD_LAYER, max_size=3) | ODD}) | ODD, min_size=1, max_size=4
)


@tries(300)
@given(plan=ODD_PLAN | ODD)
def test_a_stored_plan_is_refused_or_reads_back_from_its_text_and_json(plan: object) -> None:
    try:
        read = SpanPlan.from_json(plan)  # type: ignore[arg-type]
    except PlanError:
        return
    assert SpanPlan.from_json(json.loads(json.dumps(read.to_json()))) == read
    counts = {len(layer.heads) for layer in read.layers if isinstance(layer, HeadSpans)}
    if len(counts) <= 1:  # the text form has one number of heads
        assert SpanPlan.parse(str(read), len(read), read.num_heads) == read


PIECES = ["full", "local", "bottom:", "middle:", "every:", "span=", "sinks=", "block=", "previous=", "@", ",", ".", "-"]


@tries(300)
@given(pieces=st.lists(st.sampled_from([*PIECES, " ", ";", "0", "1", "4", "2.1", "512", str(10**9), str(10**40)])))
def test_a_typed_plan_is_refused_or_reads_back(pieces: list[str]) -> None:
    try:
        read = SpanPlan.parse("".join(pieces), 5, HEADS)
    except PlanError:
        return
    check_written("".join(pieces))
    assert SpanPlan.parse(str(read), 5, HEADS) == read
    assert SpanPlan.from_json(read.to_json()) == read


@pytest.mark.parametrize("layer", [{"sinks": False}, {"span": True}, {"previous": False}, {"span": 8, "block": False}])
def test_a_truth_value_is_no_number(layer: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        SpanPlan.from_json([layer])


def test_layers_of_unlike_numbers_of_heads_fit_no_model() -> None:
    plan = SpanPlan.from_json([{"heads": [{}, {"span": 8}]}, {"heads": [{}, {"span": 8}, {"span": 8}]}])
    for num_heads in (2, 3):
        with pytest.raises(PlanError, match="key/value heads in layer"):
            plan.check_fits(2, "this model", num_heads)


HYBRID = (0, 1, 2, 4, 5)  # layers without attention of eight


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("full", "full; none@0-2,4,5"),
        ("local span=512", "local span=512 sinks=4; none@0-2,4,5"),
        ("bottom:1 span=512", "full@3 span=512 sinks=4; none@0-2,4,5"),
        ("every:2 span=8 sinks=0", "full@6 span=8 sinks=0; none@0-2,4,5"),
        ("full@4-7 span=8 sinks=0", "full@6,7 span=8 sinks=0; none@0-2,4,5"),
        ("full@3; span=8 sinks=0@6; block=4@7", "full@3; span=8 sinks=0@6; block=4 previous=1 sinks=4@7; none@0-2,4,5"),
        ("full@3,6.1 span=8 sinks=0", "full@3,6.1 span=8 sinks=0; none@0-2,4,5"),
    ],
)
def test_layers_without_attention_take_no_span_and_are_named(text: str, canonical: str) -> None:
    plan = SpanPlan.parse(text, 8, HEADS, HYBRID)
    assert str(plan) == canonical
    assert plan.attending == (3, 6, 7)
    assert SpanPlan.parse(canonical, 8, HEADS) == SpanPlan.parse(canonical, 8, HEADS, HYBRID) == plan
    assert SpanPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.is_full == (text == "full")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full@4 span=8", "character 6: '4' has no attention in this model"),
        ("full@0-2 span=8", "'0-2' has no attention in this model"),
        ("bottom:4 span=8", "4 layers asked for, the model has 3 with attention"),
        ("full@3 span=8; none@0-2", "these are not the layers without attention: those of the model are 0-2,4,5"),
        ("full; none@0-2; none@4", "'none' is given twice"),
        ("none@0-2,4,5", "no layer has attention that could have a span"),
        ("full@3; span=8@6", "no clause names layers 7"),
        ("full@3; span=8@6,7; none@9", "layer 9 does not exist"),
    ],
)
def test_a_plan_that_gives_spans_to_layers_without_attention_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        SpanPlan.parse(text, 8, HEADS, HYBRID)


def test_a_plan_for_a_model_without_such_layers_names_none() -> None:
    with pytest.raises(PlanError, match="these are not the layers without attention: all have; leave the clause out"):
        SpanPlan.parse("full; none@0", 8, HEADS, ())
    with pytest.raises(PlanError, match="layer 0 of the stored plan is"):
        SpanPlan.from_json(["none"])  # type: ignore[list-item]
