"""A field of an example: a column by its name, or a text in Jinja that is made of columns.

title = Field("{{ title }}\n\n{{ sections | join('\n') }}")
title.columns        # ("sections", "title")
title.fill(row)      # the row with this text beside its columns, under the name that is the template itself

A single expression may be a list, such as the references `{{ answers.text }}`. A null that would be printed, also by
`a ~ b` or `join`, makes a bad row; `{{ title or '' }}` leaves it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateRuntimeError, meta, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.filters import do_join, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.base import DataError
from tasks.readers.rows import Row, one_line


def _no_null(value: Any) -> Any:
    if value is None:
        raise TemplateRuntimeError("a value is null, which `{{ NAME or '' }}` leaves out")
    return value


class _Generator(CodeGenerator):
    """Looks for nulls in `a ~ b` too: Jinja calls `finalize` for what is printed as it is."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        finalize = nodes.EnvironmentAttribute("finalize")
        parts: list[nodes.Expr] = [nodes.Call(finalize, [part], [], None, None) for part in node.nodes]
        super().visit_Concat(nodes.Concat(parts, lineno=node.lineno, environment=self.environment), frame)


@pass_eval_context
def _join(context: nodes.EvalContext, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    return str(do_join(context, map(_no_null, values), d))


# Task files come from others: a sandbox, in which an unknown name is an error and not an empty text.
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_no_null)
_JINJA.code_generator_class = _Generator
_JINJA.filters["join"] = _join
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
            raise DataError(f"field {self.name!r} names a column 'self', the template in Jinja; rename the column")
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
