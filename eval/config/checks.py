"""Checks of one value, which is the text of a flag or what YAML makes of a text.

A check returns the setting, or raises the error that argparse reports together with the flag.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.base import DataError
from tasks.command import named_path
from tasks.readers.yaml_file import parse_yaml, shown

Value = str | int | float

_LARGEST = 2**31 - 1


def path(value: Value) -> Path:
    return named_path(str(value))


def switch(value: bool) -> bool:
    """Return a setting that the command line writes as `--name` or `--no-name`."""
    return value


def mapping(value: Value | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping that is written as JSON or YAML."""
    try:
        found = parse_yaml(value, shown(value)) if isinstance(value, str) else value
    except DataError as error:
        raise ArgumentTypeError(str(error)) from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ArgumentTypeError(f"{shown(value)} is no mapping of names; write '{{\"enable_thinking\": false}}'")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ArgumentTypeError(f"{shown(value)} holds what JSON has not, such as a date; put it in quotes") from None
    return found


def whole_number(value: Value, at_least: int) -> int:
    try:
        number = int(str(value))  # int(1.5) would be 1
    except ValueError:
        raise ArgumentTypeError(f"{shown(str(value))} is not a whole number") from None
    if number < at_least:
        raise ArgumentTypeError(f"{number} must be at least {at_least}")
    if number > _LARGEST:
        raise ArgumentTypeError(f"{number} must be at most {_LARGEST}")
    return number


def positive(value: Value) -> int:
    return whole_number(value, at_least=1)


def two_or_more(value: Value) -> int:
    return whole_number(value, at_least=2)


def natural(value: Value) -> int:
    return whole_number(value, at_least=0)


def _number(is_right: Callable[[float], bool], problem: str) -> Callable[[Value], float]:
    def check(value: Value) -> float:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ArgumentTypeError(f"{shown(str(value))} is not a number") from None
        if not is_right(number):
            raise ArgumentTypeError(f"{value} {problem}")
        return number

    return check


fraction = _number(lambda number: 0 <= number < 1, "must be at least 0 and below 1")
share = _number(lambda number: 0 < number <= 1, "must be above 0 and at most 1")
positive_number = _number(lambda number: 0 < number < math.inf, "must be above 0, and finite")
finite_number = _number(math.isfinite, "is not finite")


def names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return names that stand alone or between commas."""
    return tuple(name.strip() for part in texts for name in part.split(",") if name.strip())


def distinct_names(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names(texts)))


def ascending(numbers: Sequence[int]) -> tuple[int, ...]:
    """Return each number once, the smallest first."""
    return tuple(sorted(set(numbers)))
