"""A field of an example: a column by its name, or a text in Jinja that is made of columns.

title = Field("{{ title }}\n\n{{ sections | join('\n') }}")
title.columns        # ("sections", "title")
title.fill(row)      # the row with this text beside its columns, under the name that is the template itself

A single expression may be a list, such as the references `{{ answers.text }}`. A null that would be printed makes a
bad row; `{{ title or '' }}` leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateRuntimeError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.base import DataError
from tasks.readers.rows import Row, one_line


def _no_null(value: Any) -> Any:
    if value is None:
        raise TemplateRuntimeError("a value is null, which `{{ NAME or '' }}` leaves out")
    return value


# Task files come from others: a sandbox, in which an unknown name is an error and not an empty text.
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_no_null)
_SINGLE = re.compile(r"\s*\{\{((?:(?!\}\}|\{\{).)*)\}\}\s*", re.DOTALL)


def is_jinja(text: str) -> bool:
    """Return whether a text has marks of Jinja."""
    return "{{" in text or "{%" in text


def render_jinja(text: str, where: str, values: Mapping[str, Any]) -> Any:
    """Return a rendered text, or the list that a single expression is.

    Raises:
        DataError: It is no Jinja, has unknown names, or prints a null; the message begins with `where`.
    """
    try:
        if found := _SINGLE.fullmatch(text):
            value = _JINJA.compile_expression(found[1], undefined_to_none=False)(values)
            if isinstance(value, list):
                return value
        return _JINJA.from_string(text).render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"{where}: {one_line(error)}; correct the template, or name other fields") from error


@dataclass(frozen=True)
class Field:
    """A field as a task names it."""

    name: str

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that it is made of. Raises `DataError` if it is no Jinja, or names a column `self`."""
        if not is_jinja(self.name):
            return (self.name,)
        try:
            tree = _JINJA.parse(self.name)
            names = meta.find_undeclared_variables(tree)
        except TemplateError as error:
            raise DataError(f"field {self.name!r} is no template in Jinja: {one_line(error)}; correct it") from error
        if any(one.name == "self" for one in tree.find_all(nodes.Name)):
            raise DataError(
                f"field {self.name!r} names a column 'self', which is the template in Jinja; rename the column"
            )
        return tuple(sorted(names))

    def fill(self, row: Row) -> Row:
        """Return the row with the field among its columns.

        Raises:
            DataError: A column of a template is missing, or null where it is printed.
        """
        if not is_jinja(self.name):
            return row
        found = ", ".join(row.fields) or "none"
        text = render_jinja(self.name, f"{row.where}: field {self.name!r}, columns found: {found}", row.fields)
        return replace(row, fields={**row.fields, self.name: text})
