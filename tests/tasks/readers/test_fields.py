"""Fields that are texts in Jinja: a null is told wherever it would become a text."""

from __future__ import annotations

from typing import Any

import pytest

from tasks import DataError
from tasks.readers.fields import render_jinja

VALUES = {"a": "x", "nothing": None, "some": ["p", None], "all": ["p", "q"], "rows": [{"t": "1"}, {"t": None}]}


@pytest.mark.parametrize(
    "text",
    [
        "{{ a ~ nothing }}",
        "- {{ a ~ nothing }}",
        "{{ (nothing ~ a) | upper }}",
        "{% set both = a ~ nothing %}{{ both }}",
        "{{ some | join(' ') }}",
        "{{ rows | join(', ', attribute='t') }}",
        "{{ rows | map(attribute='t') | join }}",
    ],
)
def test_a_null_is_not_printed(text: str) -> None:
    with pytest.raises(DataError, match=r"^row 1: a value is null, which `\{\{ NAME or '' \}\}` leaves out"):
        render_jinja(text, "row 1", VALUES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ a ~ 1 ~ 'z' }}", "x1z"),
        ("{{ a ~ (nothing or '') }}", "x"),
        ("{{ all | join(' and ') }}", "p and q"),
        ("{{ rows[:1] | join(', ', attribute='t') }}", "1"),
        ("{{ some | select | join }}", "p"),
        ("{{ all }}", ["p", "q"]),
    ],
)
def test_other_values_are(text: str, expected: Any) -> None:
    assert render_jinja(text, "row 1", VALUES) == expected
