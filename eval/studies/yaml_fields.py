"""Mappings of a study's file: their keys and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from eval.errors import UserError
from tasks.readers.yaml_file import shown

Kind: TypeAlias = type | tuple[type, ...]
_TYPE_NAMES = {str: "text", list: "list", dict: "mapping", int: "whole number", float: "number", bool: "yes or no"}


def fields_of(where: str, content: Any, required: Mapping[str, Kind], optional: Mapping[str, Kind]) -> dict[str, Any]:
    """Return a mapping after a check of its keys and of the types of its values.

    Raises:
        UserError: A key is unknown or missing, or a value of another type, or a required text is empty.
    """
    if not isinstance(content, dict):
        what = "empty" if content is None else shown(content)
        raise UserError(f"{where} is {what}; write 'name: value' lines")
    known = {**required, **optional}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}; known: {', '.join(known)}")
        kind = known[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        accepted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            expected = " or a ".join(_TYPE_NAMES[one] for one in kinds)
            raise UserError(f"{where}: {key} is {shown(value)}; a {expected} was expected")
    for key in required:
        if key not in content:
            raise UserError(f"{where}: {key} is missing")
        if isinstance(value := content[key], str) and not value.strip():
            raise UserError(f"{where}: {key} is empty; write a text")
    return dict(content)
