"""Records: they come back as they were written, and what is damaged is named down to the field and its value."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.records import rules, schema
from eval.records.typed import describe_fields, entry, from_json, to_json
from tests.helpers.properties import tries
from tests.helpers.run_folders import run_record

RECORDS = [kind for kind in vars(schema).values() if isinstance(kind, type) and is_dataclass(kind)]
NUMBERS = st.integers(-(2**63), 2**63 - 1)
# Any value of `dict[str, Any]` and `list[Any]`.
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: float = entry("a number")
    kind: Literal["a", "b"] = entry("one of two", default="a")


@dataclass(frozen=True, kw_only=True)
class Outer:
    id: str = entry("name")
    parts: list[Inner] = entry("some", default=[])
    by_name: dict[str, Inner] = entry("by name", default={})
    pair: tuple[int, float] | None = entry("two numbers", default=None, is_left_out=True)
    is_new: bool | None = entry("whether it is new", default=None)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of the type of a field; a record has fields that may be absent now and then."""
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        strategies = {one.name: ruled(one, hints[one.name]) for one in fields(hint)}
        absent = [one.name for one in fields(hint) if one.default is not MISSING or one.default_factory is not MISSING]
        needed = {name: values for name, values in strategies.items() if name not in absent}
        some = st.fixed_dictionaries(needed, optional={name: strategies[name] for name in absent})
        return some.map(lambda found: cast(type, hint)(**found))
    if origin in (Union, UnionType):
        return st.one_of(*map(values_of, parts))
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is list:
        return st.lists(values_of(parts[0]), max_size=2)
    if origin is tuple:
        return st.tuples(*map(values_of, parts))
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), values_of(parts[1]), max_size=2)
    simple = {
        str: st.text(max_size=5),
        int: NUMBERS,
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }
    return simple[hint] if hint in simple else st.none() if hint is type(None) else PLAIN


def ruled(field: Any, hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a field that keep its rule."""
    rule, parts = field.metadata["rule"], get_args(hint)
    some = {
        rules.TIME: st.just("2026-01-01T00:00:00+00:00"),
        rules.TRUNCATION: st.just("middle"),
        rules.SOURCE: st.just({"kind": "file", "name": "a", "more": [1]}),
        rules.SHOTS: st.sampled_from([None, {"split": "train", "seed": 0, "ids": ["a"]}]),
        rules.LENGTHS: st.lists(st.integers(1, 9), min_size=1, max_size=2),
        rules.SPAN: st.just([[0, 3], [1, 2]]),
        rules.SPANS_IN_ORDER: st.just([[0, 1], [2, 2]]),
    }
    if rule is rules.NAMES:
        return st.dictionaries(st.sampled_from(["a", "b.c"]), values_of(parts[1]), min_size=1, max_size=2)
    if rule is rules.TEMPLATES:
        return st.dictionaries(st.sampled_from(["a", "a@evidence"]), values_of(parts[1]), min_size=1, max_size=2)
    if rule is rules.NOT_EMPTY:
        return st.lists(values_of(parts[0]), min_size=1, max_size=2)
    if rule in (rules.COUNT, rules.POSITIVE, rules.LENGTH):
        return st.integers(1, 9)
    if rule in (rules.SECONDS, rules.COST, rules.SHARE):
        return st.sampled_from([0, 1] if "int" in str(field.type) else [0.0, 0.5])
    return some[rule] if rule in some else values_of(hint) if rule is None else values_of(hint).filter(rule.holds)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_comes_back_as_it_was_written(kind: type) -> None:
    @tries(15)
    @given(values_of(kind))
    def check(record: Any) -> None:
        assert from_json(kind, json.loads(json.dumps(to_json(record))), "a file") == record

    check()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_holds(kind: type) -> None:
    rows = describe_fields(kind)
    assert {name for name, _, _ in rows} >= {one.name for one in fields(kind)}
    assert all(doc and not doc.endswith(".") for _, _, doc in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "f.json has no field 'id', as in folders of earlier versions; restore the file"),
        ({"id": 3}, "f.json: field 'id' is 3, expected a text; restore the file"),
        ([], "f.json: is [], expected an object"),
        ({"id": "x", "parts": {}}, "field 'parts' is {}, expected a list"),
        ({"id": "x", "parts": [{"number": 1}, {}]}, "f.json has no field 'parts[1].number'"),
        ({"id": "x", "parts": [{"number": "1"}]}, "field 'parts[0].number' is \"1\", expected a number"),
        ({"id": "x", "parts": [{"number": True}]}, "field 'parts[0].number' is true, expected a number"),
        ({"id": "x", "by_name": {"y": {"number": None}}}, "field 'by_name.y.number' is null, expected a number"),
        ({"id": "x", "by_name": {"y": {"number": 1, "kind": "c"}}}, "'by_name.y.kind' is \"c\", expected 'a' or 'b'"),
        ({"id": "x", "by_name": []}, "field 'by_name' is [], expected an object"),
        ({"id": "x", "pair": [1, 2, 3]}, "field 'pair' is [1, 2, 3], expected a list of 2"),
        ({"id": "x", "pair": [1.5, 2]}, "field 'pair[0]' is 1.5, expected a whole number"),
        ({"id": "x", "pair": [True, 2]}, "field 'pair[0]' is true, expected a whole number"),
        ({"id": "x", "is_new": 1}, "field 'is_new' is 1, expected true or false"),
        ({"id": ["long"] * 30}, '"long", "long", ..., expected a text'),
    ],
)
def test_what_is_damaged_is_named_with_its_value(content: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_json(Outer, content, "f.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_value_at_depth_in_a_record_of_a_run_is_named() -> None:
    content = to_json(run_record())
    content["sessions"][0]["machine"]["cores"] = "8"
    with pytest.raises(UserError, match=r"^run\.json: field 'sessions\[0\]\.machine\.cores' is \"8\", expected a"):
        from_json(schema.RunRecord, content, "run.json")
    content["sessions"][0]["machine"]["cores"] = 8
    del content["tasks"]["plos"]["templates"]["instruct"]["text"]
    with pytest.raises(UserError, match=r"^run\.json has no field 'tasks\.plos\.templates\.instruct\.text'"):
        from_json(schema.RunRecord, content, "run.json")


def test_unknown_fields_are_ignored_and_absent_ones_have_their_default() -> None:
    record = from_json(Outer, {"id": "x", "colour": 1, "parts": [{"number": 1, "more": {}}]}, "f.json")
    assert record == Outer(id="x", parts=[Inner(number=1)])
    written = {"id": "x", "parts": [{"number": 1, "kind": "a"}], "by_name": {}, "is_new": None}
    assert to_json(record) == written, "a field that is left out is not written where it is null"
    assert list(to_json(record)) == list(written)


def test_defaults_are_not_shared() -> None:
    assert Outer(id="x").parts is not Outer(id="x").parts


def test_fields_are_described_with_those_of_records_within() -> None:
    assert describe_fields(Outer) == [
        ("id", "text", "name"),
        ("parts", "list of object", "some"),
        ("parts[].number", "number", "a number"),
        ("parts[].kind", "`a` or `b`", "one of two"),
        ("by_name", "object of object", "by name"),
        ("by_name.*.number", "number", "a number"),
        ("by_name.*.kind", "`a` or `b`", "one of two"),
        ("pair", "list of integer or null", "two numbers"),
        ("is_new", "boolean or null", "whether it is new"),
    ]


def test_a_field_is_read_under_the_name_that_it_had() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Now:
        p_corrected: float = entry("a p value", former="p_holm")

    assert from_json(Now, {"p_holm": 0.5}, "a file") == from_json(Now, {"p_corrected": 0.5}, "a file")
