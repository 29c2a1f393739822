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
        UserError: A key is unknown or missing, or a value of another type.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} is {shown(content)}; write 'name: value' lines")
    known = {**required, **optional}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}; known: {', '.join(known)}")
        kind = known[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or a ".join(_TYPE_NAMES[one] for one in kinds)
            raise UserError(f"{where}: {key} is {shown(value)}; a {expected} was expected")
    for key in required:
        if key not in content:
            raise UserError(f"{where}: {key} is missing")
    return dict(content)
