"""What values of the records must be besides their type, each rule once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from eval.records.typed import Rule
from tasks.base import NAME

_MAX_LENGTH = 2**31 - 1  # as for flags
_MAX_SECONDS = 1e9  # thirty years
_MAX_COST = 1e30


def _is_span(span: Any) -> bool:
    return len(span) == 2 and 0 <= span[0] <= span[1]


def _are_ordered(spans: Any) -> bool:
    edges = [edge for span in spans for edge in span]
    return all(map(_is_span, spans)) and edges == sorted(edges)


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return False
    return True


def _is_template(name: str) -> bool:
    return all(map(NAME.fullmatch, name.split("@", 1)))


def _are_rows(rows: Any) -> bool:
    counts = [value for name, value in rows.items() if name.startswith("num_")]
    bad = rows.get("bad", [])
    strata = rows.get("strata", {})
    if not isinstance(strata, dict) or not all(isinstance(one, list) and len(one) == 2 for one in strata.values()):
        return False
    counts += [count for one in strata.values() for count in one]
    return all(type(count) is int and count >= 0 for count in counts) and _are_texts(bad)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _has_shard(config: Any) -> bool:
    shard = config.get("shard")
    return shard is None or (isinstance(shard, list) and len(shard) == 2 and all(type(one) is int for one in shard))


COUNT = Rule("at least 0", lambda value: value >= 0)
POSITIVE = Rule("at least 1", lambda value: value >= 1)
LENGTH = Rule(f"from 1 to {_MAX_LENGTH}", lambda value: 1 <= value <= _MAX_LENGTH)
LENGTHS = Rule(
    f"at least one number from 1 to {_MAX_LENGTH}",
    lambda values: bool(values) and all(1 <= one <= _MAX_LENGTH for one in values),
)
SECONDS = Rule(f"from 0 to {_MAX_SECONDS:g}", lambda value: 0 <= value <= _MAX_SECONDS)
COST = Rule(f"from 0 to {_MAX_COST:g}", lambda value: 0 <= value <= _MAX_COST)
SHARE = Rule("from 0 to 1", lambda value: 0 <= value <= 1)
TRUNCATION = Rule("head, middle or tail", lambda value: value in ("head", "middle", "tail"))
NOT_EMPTY = Rule("at least one entry", bool)
TIME = Rule("a date and time in ISO 8601", _is_time)
# Names become parts of the names of files.
NAMES = Rule(
    "names of at most 100 letters, digits, '.', '-' and '_', the first no '.'",
    lambda values: bool(values) and all(map(NAME.fullmatch, values)),
)
# A template may be shown through a window, whose name then follows.
TEMPLATES = Rule(
    f"{NAMES.what}; a window's may follow behind an '@'", lambda values: bool(values) and all(map(_is_template, values))
)
SPAN = Rule("pairs of a start and an end", lambda spans: all(map(_is_span, spans)))
OUTCOMES = Rule(
    "three counts each",
    lambda values: values is None or all(len(one) == 3 and min(one) >= 0 for one in values.values()),
)
SAMPLES = Rule("at least two samples", lambda values: values is None or len(values) > 1)
SPANS_IN_ORDER = Rule("pairs of a start and an end, in order", _are_ordered)
# Objects without fixed fields, as far as they are read.
SOURCE = Rule("an object with texts as kind and name", lambda value: _are_texts([value.get("kind"), value.get("name")]))
SHOTS = Rule(
    "an object with a text as split and a list of texts as ids",
    lambda value: value is None or (isinstance(value.get("split"), str) and _are_texts(value.get("ids"))),
)
ROWS = Rule("an object with counts, texts of bad rows, and pairs of counts of strata", _are_rows)
CONFIG = Rule("an object whose shard is null or a pair of numbers", _has_shard)
GENERATION = Rule(
    "an object whose stop is null or a list of texts",
    lambda value: value.get("stop") is None or _are_texts(value["stop"]),
)
