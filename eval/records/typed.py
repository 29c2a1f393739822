"""JSON -> documented dataclasses and back, with errors that name the file, the line, the field and the value.

    @dataclass(frozen=True, kw_only=True)
    class Example:
        id: str = entry("name of the example within its task")
        maxlen: int = entry("length in tokens", rule=POSITIVE)

    example = from_json(Example, {"id": "a", "maxlen": 1}, "examples.jsonl, line 1")
    to_json(example)  # {"id": "a", "maxlen": 1}

A rule says what a value of the right type must be: a count, a share, a name. All numbers are finite, and whole ones fit
into 64 bits. The function that reads a type is built once, since a journal has many lines.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from eval.errors import UserError

Record = TypeVar("Record")

REMEDY = "restore the file, or make the run again with --overwrite"
_MAX_DEPTH = 50  # of values without fixed fields
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


class Rule(NamedTuple):
    """What values of a field must be.

    Attributes:
        what: The rule in words, for errors: `expected ...`.
        holds: Returns whether a value, which has the type of its field and is not null, keeps it.
    """

    what: str
    holds: Callable[[Any], bool]


def entry(
    doc: str, *, default: Any = MISSING, is_left_out: bool = False, rule: Rule | None = None, former: str | None = None
) -> Any:
    """Return a dataclass field that documents itself.

    Args:
        doc: What the field holds, with its unit.
        default: Value for lines that lack the field, as those of earlier versions do; without one it is required.
        is_left_out: Write no such field where it is None.
        rule: What values must be besides their type; null keeps every rule.
        former: Name of the field in folders of earlier versions.
    """
    metadata = {"doc": doc, "is_left_out": is_left_out, "rule": rule, "former": former}
    if isinstance(default, (list, dict)):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def to_json(value: Any) -> Any:
    """Return a record as JSON-ready values, fields in the order of their declaration."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(part) for name, part in _written(value)}
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(part) for part in value]
    return value


def _written(record: Any) -> list[tuple[str, Any]]:
    pairs = [(one, getattr(record, one.name)) for one in _fields(cast(Any, type(record)))]
    return [(one.name, value) for one, value in pairs if value is not None or not one.metadata.get("is_left_out")]


def from_json(kind: type[Record], value: Any, where: str, *, remedy: str = REMEDY) -> Record:
    """Return a record; fields that the dataclass does not have are ignored.

    Args:
        kind: Dataclass of the record.
        value: Parsed JSON.
        where: File, and line where it has several, for errors.
        remedy: What to do about a damaged file.

    Raises:
        UserError: A field is absent or has another type; the error names it and its value.
    """
    try:
        record: Record = _reader(cast(Any, kind))(value)
    except _Mismatch as error:
        path = error.path.removeprefix(".")
        if error.problem == "absent":
            raise UserError(f"{where} has no field '{path}', as in folders of earlier versions; {remedy}") from None
        field_or_all = f"field '{path}' " if path else ""
        raise UserError(f"{where}: {field_or_all}{error.problem}; {remedy}") from None
    return record


class _Mismatch(Exception):
    """A value that is not what its field holds; each level on the way out puts its name before the path."""

    def __init__(self, problem: str) -> None:
        self.problem, self.path = problem, ""


def _expected(value: Any, what: str) -> _Mismatch:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = "nested deeply"
    return _Mismatch(f"is {text if len(text) <= 60 else text[:57] + '...'}, expected {what}")


Reader = Callable[[Any], Any]


@cache
def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


@cache
def _reader(hint: Any) -> Reader:
    """Return the function that reads values of one type; made once a type, so that a line costs little."""
    if hint is Any:
        return _read_any
    if is_dataclass(hint):
        return _record_reader(cast(type, hint))
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union_reader(parts)
    if origin is Literal:
        return _literal_reader(parts)
    if origin in (list, tuple):
        return _list_reader(origin, parts)
    if origin is dict:
        return _dict_reader(_reader(parts[1]))
    return _plain_reader(hint)


def _read_any(value: Any, depth: int = 0) -> Any:
    """Return a value without fixed fields, which no writer nests deeply."""
    if depth > _MAX_DEPTH:
        raise _Mismatch("is nested too deeply")
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            _read_any(part, depth + 1)
    elif isinstance(value, (int, float)):
        _check_number(value)
    return value


def _plain_reader(hint: type) -> Reader:
    # bool is a kind of int, and no number.
    accepted = {int, float} if hint is float else {hint}
    is_number = hint in (int, float)

    def read(value: Any) -> Any:
        if type(value) not in accepted:
            raise _expected(value, _NAMES[hint])
        if is_number:
            _check_number(value)
        return value

    return read


def _check_number(value: float) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _expected(value, "a number that is finite")
    elif not -(2**63) <= value < 2**63:
        raise _Mismatch("has more digits than a whole number of 64 bits")


def _literal_reader(known: tuple[Any, ...]) -> Reader:
    def read(value: Any) -> Any:
        if value not in known:
            raise _expected(value, " or ".join(map(repr, known)))
        return value

    return read


def _union_reader(parts: tuple[Any, ...]) -> Reader:
    *others, last = (_reader(part) for part in parts if part is not type(None))
    is_optional = type(None) in parts

    def read(value: Any) -> Any:
        if value is None and is_optional:
            return None
        for reader in others:
            try:
                return reader(value)
            except _Mismatch:
                continue
        return last(value)

    return read


def _list_reader(origin: type, parts: tuple[Any, ...]) -> Reader:
    readers = [_reader(part) for part in parts if part is not Ellipsis]
    length = len(parts) if origin is tuple and Ellipsis not in parts else None

    def read(value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
            raise _expected(value, "a list" if length is None else f"a list of {length}")
        found: list[Any] = []
        try:
            for index, part in enumerate(value):
                found.append(readers[index if length else 0](part))
        except _Mismatch as error:
            error.path = f"[{len(found)}]{error.path}"
            raise
        return origin(found)

    return read


def _dict_reader(reader: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected(value, "an object")
        found: dict[str, Any] = {}
        name = ""
        try:
            for name, part in value.items():
                found[name] = reader(part)
        except _Mismatch as error:
            error.path = f".{name}{error.path}"
            raise
        return found

    return read


def _record_reader(kind: type) -> Reader:
    hints = get_type_hints(kind)
    known = [
        (
            one.name,
            one.metadata.get("former"),
            _ruled(_reader(hints[one.name]), one.metadata.get("rule")),
            one.default is MISSING and one.default_factory is MISSING,
        )
        for one in _fields(kind)
    ]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected(value, "an object")
        found: dict[str, Any] = {}
        name = ""
        try:
            for name, former, reader, is_required in known:
                if name in value:
                    found[name] = reader(value[name])
                elif former in value:
                    found[name] = reader(value[former])
                elif is_required:
                    raise _Mismatch("absent")
        except _Mismatch as error:
            error.path = f".{name}{error.path}"
            raise
        return kind(**found)

    return read


def _ruled(reader: Reader, rule: Rule | None) -> Reader:
    """Return a reader that also checks the rule of a field."""
    if rule is None:
        return reader

    def read(value: Any) -> Any:
        found = reader(value)
        if found is not None and not rule.holds(found):
            raise _expected(value, rule.what)
        return found

    return read


def describe_fields(kind: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return name, type and documentation of each field of a record, those of records within it included."""
    hints, rows = get_type_hints(kind), []
    for one in fields(kind):
        hint = hints[one.name]
        rows.append((f"{prefix}{one.name}", _type_name(hint), str(one.metadata["doc"])))
        for part, mark in _records_within(hint):
            rows += describe_fields(part, f"{prefix}{one.name}{mark}.")
    return rows


def _records_within(hint: Any) -> list[tuple[type, str]]:
    if is_dataclass(hint):
        return [(cast(type, hint), "")]
    marks: dict[Any, str] = {list: "[]", tuple: "[]", dict: ".*"}
    mark = marks.get(get_origin(hint), "")
    return [(kind, mark + inner) for part in get_args(hint) for kind, inner in _records_within(part)]


def _type_name(hint: Any) -> str:
    if is_dataclass(hint):
        return "object"
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(part) for part in parts))
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple):
        return f"list of {_type_name(parts[0])}"
    if origin is dict:
        return f"object of {_type_name(parts[1])}"
    return {int: "integer", float: "number", str: "text", bool: "boolean", type(None): "null", Any: "any"}[hint]
