"""Facts, charts, tables and samples -> one HTML file that opens offline, in any browser of 2024 or later.

Everything is inside: Vega's libraries from the installed `vl_convert`, the data as JSON, styles and scripts from
`page_assets/`. Texts are untrusted. The template escapes what it writes, the scripts build text nodes only, and the
page's own policy lets no script run but the two whose digests it names, and no request leave.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.metrics.agreement import MARK
from eval.reporting.charts import VEGA_LITE_VERSION, Chart, theme, titled
from eval.reporting.finding import Number

PAGE_BYTES = 10_000_000
_ASSETS = Path(__file__).parent / "page_assets"
_SCRIPTS = (
    *("dom.js", "tables.js", "plots.js", "switch.js", "copy.js", "overlap.js", "document.js", "sample.js", "link.js"),
    *("samples.js", "page.js"),
)
PAPER = "https://arxiv.org/abs/2310.12442"
_MIN_GAP = 100  # characters: less is shown rather than replaced by a note of how much is missing
RESERVE_BYTES = 1_500_000  # libraries, charts and tables of a page


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title, which the list of contents leads to; level 2 or 3."""

    text: str
    level: Literal[2, 3] = 2
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True, kw_only=True)
class Prose:
    """Paragraphs, separated by empty lines; `code` between backquotes. Captions, facts and cells read the same way.

    What leads says in a sentence what was found.
    """

    text: str
    is_lead: bool = False
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True, kw_only=True)
class Header:
    """The head of a table's column; numbers stand to the right and sort from the largest first.

    The note says what the name means, and is shown when a pointer rests on it. What is grey is in doubt. The column of
    the label stays in view; extra columns are shown when they are asked for.
    """

    name: str
    is_number: bool = False
    note: str = ""
    is_grey: bool = False
    is_label: bool = False
    is_extra: bool = False


@dataclass(frozen=True, kw_only=True)
class Span:
    """An interval and its middle, in percent of the width of a cell; without an interval both ends are the middle."""

    middle: float
    start: float
    end: float

    @classmethod
    def of(cls, mean: float, low: float | None, high: float | None, ends: Sequence[float]) -> Span:
        """Return the place of an estimate among all that a column shows."""
        lowest, size = min(ends), max(ends) - min(ends)
        places = (
            100 * (value - lowest) / size if size else 50.0
            for value in (mean, mean if low is None else low, mean if high is None else high)
        )
        middle, start, end = (round(place, 2) for place in places)
        return cls(middle=middle, start=start, end=end)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell shows, and the value that it sorts by: None sorts last, either way.

    Below the text stands a detail, or an interval is drawn. The link leads to a page, relative to this one. The title
    is shown when a pointer rests on the cell.
    """

    text: str
    sort: float | str | None = None
    is_strong: bool = False
    is_grey: bool = False
    detail: str = ""
    title: str = ""
    link: str = ""
    span: Span | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that sorts by its headers; one of more than six rows also has a filter.

    With a column of labels it is a board, whose rows are cards on a phone.
    """

    caption: str
    columns: Sequence[Header]
    rows: Sequence[Sequence[Cell]]
    kind: Literal["table"] = "table"

    @property
    def is_board(self) -> bool:
        return any(column.is_label for column in self.columns)

    @property
    def num_extra(self) -> int:
        """Return how many columns are shown only when they are asked for."""
        return sum(column.is_extra for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found: sentences of which the claim is set off, numbers, and what to check before trusting them.

    The heading names what it is of where a page has several; checks are sentences, each with the link to the samples
    that it is about, which may be empty.
    """

    heading: str
    before: str
    claim: str
    after: str
    numbers: Sequence[Number]
    checks: Sequence[tuple[str, str]]
    kind: Literal["finding"] = "finding"


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Charts of which one is shown, chosen by its name; the first one to begin with."""

    label: str
    charts: Mapping[str, Chart]
    kind: Literal["switch"] = "switch"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and what they stand for."""

    facts: Mapping[str, str]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text to copy, as a command or a prompt, with a button that does."""

    caption: str
    text: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Sections that open by a click on their title, which the list of contents leads to."""

    title: str
    sections: Sequence[Section]
    kind: Literal["fold"] = "fold"


Section = Heading | Prose | Chart | Table | Finding | Switch | Facts | Code | Fold


def _charts_of(sections: Sequence[Section]) -> Iterator[Chart]:
    """Yield all charts in the order of the page."""
    for section in _all_of(sections):
        if isinstance(section, Chart):
            yield section
        elif isinstance(section, Switch):
            yield from section.charts.values()


def _all_of(sections: Sequence[Section]) -> Iterator[Section]:
    """Yield sections and those that are folded in them."""
    for section in sections:
        yield section
        if isinstance(section, Fold):
            yield from _all_of(section.sections)


def as_table(caption: str, rows: Sequence[Sequence[str]], notes: Mapping[str, str] | None = None) -> Table:
    """Return a table of a report for the page; cells sort by their first number, notes explain names of columns.

    Columns and rows whose names have the mark of `eval.metrics.agreement` are grey.
    """
    header, *body = rows
    are_numbers = [
        any(row[column] for row in body)
        and all(_number(row[column]) is not None or row[column] in ("", "-") for row in body)
        for column in range(len(header))
    ]
    heads = [
        Header(name=name, is_number=is_number, note=(notes or {}).get(name, ""), is_grey=name.endswith(MARK))
        for name, is_number in zip(header, are_numbers, strict=True)
    ]
    cells = [
        [
            Cell(
                text=text,
                sort=_number(text) if is_number else text or None,
                is_grey=head.is_grey or row[0].endswith(MARK),
            )
            for text, is_number, head in zip(row, are_numbers, heads, strict=True)
        ]
        for row in body
    ]
    return Table(caption=caption, columns=heads, rows=cells)


def _number(text: str) -> float | None:
    first = text.split(" ")[0].replace(",", "").lstrip("<")
    try:
        return float(first)
    except ValueError:
        return None


def render_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    samples: Mapping[str, Any] | None = None,
    *,
    subtitle: str = "",
    footer: str = "",
) -> str:
    """Return the page.

    Args:
        title: Heading of the page.
        facts: What stands below it, by name.
        sections: What the page shows in order.
        samples: For the sample browser: `{"metrics": {metric: heading}, "columns": [{"key", "heading", "digits",
            "unit"}], "documents", "examples"}`. A document, under its key, is as `fit_documents` returns it. An example
            is `{"task", "id", "document": key, "query", "references", "evidence", "oracle", "answers"}`, and an answer
            `{"template", "maxlen", "text", "scores": {metric: fraction}, "kept": spans}` with a value for the key of
            each column. Spans are characters of the document, `oracle` those of the visible oracle's sentences. Texts
            that are None are left out of the browser. A `note` stands above it. `headlines` may name a metric of each
            task, by which its examples are shown until another is chosen. `names` are of two runs that are compared:
            their answers stand at the lengths 1 and 2, each with its `name`.
        subtitle: A line below the title.
        footer: What made the page; a link to the paper of MASFormer follows.
    """
    for table in (section for section in _all_of(sections) if isinstance(section, Table)):
        for row in table.rows:
            if len(row) != len(table.columns):
                name, expected = table.caption, len(table.columns)
                raise ValueError(f"a row of the table {name!r} has {len(row)} cells for {expected} columns")
    charts = list(_charts_of(sections))
    findings = [section for section in sections if isinstance(section, Finding)]
    about = " ".join(" ".join(part for part in (one.before, one.claim + one.after) if part) for one in findings)
    anchors = _anchors(sections)
    library = _vega() if charts else ""
    # As one function, so that the names of the scripts meet no others.
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in _SCRIPTS) + "\n})();"
    return (
        template_in(_ASSETS)
        .get_template("page.html")
        .render(
            title=title,
            facts=facts,
            subtitle=subtitle,
            footer=footer,
            about=about,
            paper=PAPER,
            sections=sections,
            anchor_of=lambda section: anchors[id(section)],
            contents=[(anchors[id(one)], _title_of(one)) for one in sections if id(one) in anchors],
            samples=None if samples is None else as_json(samples),
            samples_note=(samples or {}).get("note", ""),
            plots=as_json(
                {
                    "specs": [chart.spec for chart in charts],
                    "titles": [titled(chart)["title"] for chart in charts],
                    "themes": {"light": theme(dark=False), "dark": theme(dark=True)},
                }
            ),
            style=Markup(asset("page.css")),
            library=Markup(library),
            script=Markup(script),
            policy=policy_of([library, script]),
        )
    )


def as_json(value: Any) -> Markup:
    """Return JSON that may stand in a script element, whatever text it holds: no `<` is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    # Half of a pair has no UTF-8; a question mark keeps the offsets of what follows.
    return Markup(text.encode("utf-8", "replace").decode())


def document_budget(examples: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes that are left for documents in a page of `PAGE_BYTES` with these examples, 0 where none are."""
    return max(PAGE_BYTES - RESERVE_BYTES - num_json_bytes(examples), 0)


def fit_documents(
    documents: Mapping[str, str], spans_of_interest: Mapping[str, Sequence[tuple[int, int]]], budget_bytes: int
) -> dict[str, dict[str, Any]]:
    """Return the documents for a page: whole if all fit, otherwise windows of text around what is of interest.

    Windows stand around both ends of each document and of each span (what was kept, the oracle's sentences, evidence)
    and are all of one size, the largest that fits the budget. Documents that they cover are whole again.
    """
    edges = {
        key: sorted({0, len(text), *(edge for span in spans_of_interest.get(key, ()) for edge in span)})
        for key, text in documents.items()
    }

    def fit(window: int) -> dict[str, dict[str, Any]]:
        return {key: _windows(text, edges[key], window) for key, text in documents.items()}

    longest = max((len(text) for text in documents.values()), default=0)
    fitted = fit(longest + 1)
    if num_json_bytes(fitted) <= budget_bytes:
        return fitted
    windows = range(1, longest + 1)
    return fit(bisect_left(windows, True, key=lambda window: num_json_bytes(fit(window)) > budget_bytes))


def _windows(text: str, edges: Sequence[int], window: int) -> dict[str, Any]:
    spans: list[list[int]] = []
    for edge in edges if window else ():
        start, end = max(edge - window, 0), min(edge + window, len(text))
        if spans and start - spans[-1][1] < _MIN_GAP:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([start, end])
    if spans == [[0, len(text)]]:
        return {"text": text, "length": len(text), "pieces": []}
    return {"text": None, "length": len(text), "pieces": [[start, text[start:end]] for start, end in spans]}


def num_json_bytes(value: Any) -> int:
    """Return how much room a value takes in a page."""
    return len(as_json(value).encode())


def asset(name: str) -> str:
    """Return a style or script of pages."""
    return (_ASSETS / name).read_text(encoding="utf-8")


@cache
def _vega() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, of which only `vegaEmbed` is visible."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE_VERSION)
    return "(() => {" + bundle.replace("\r\n", "\n") + "})();"


def policy_of(scripts: Sequence[str], connect: str = "'none'") -> str:
    """Return a Content-Security-Policy that runs exactly these inline scripts and requests nothing else.

    Args:
        connect: Where the scripts may send to.
    """
    digests = [
        "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
        for script in scripts
        if script
    ]
    return (
        f"default-src 'none'; script-src {' '.join(digests)}; connect-src {connect}; style-src 'unsafe-inline'; "
        "img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def served_page(folder: Path, name: str, shared: Sequence[str], **content: Any) -> tuple[str, str]:
    """Return a page that asks its own server for more, and its Content-Security-Policy.

    Args:
        folder: Holds template, style and script, each called `name`.
        name: Of the page.
        shared: Scripts of reports that come before its own.
        content: What the template writes.
    """
    script = "".join(map(asset, shared)) + (folder / f"{name}.js").read_text(encoding="utf-8")
    script = f"(() => {{\n'use strict';\n{script}\n}})();"
    policy = policy_of([script], connect="'self'")
    style = asset("page.css") + (folder / f"{name}.css").read_text(encoding="utf-8")
    page = (
        template_in(folder)
        .get_template(f"{name}.html")
        .render(policy=policy, style=Markup(style), script=Markup(script), **content)
    )
    return page, policy


def template_in(folder: Path) -> Environment:
    """Return the templates of a folder, which escape what they write."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _anchors(sections: Sequence[Section]) -> dict[int, str]:
    """Return the name that a link to a section has, by the `id` of each that has a title for the list of contents."""
    found: dict[int, str] = {}
    for section in _all_of(sections):
        if title := _title_of(section):
            name = "section-" + re.sub(r"\W+", "-", title.lower()).strip("-")
            numbered = (name if count == 1 else f"{name}-{count}" for count in itertools.count(1))
            taken = set(found.values())
            found[id(section)] = next(one for one in numbered if one not in taken)
    return found


def _title_of(section: Section) -> str:
    """Return what the list of contents calls a section; empty where it does not."""
    match section:
        case Heading(level=2):
            return section.text
        case Fold():
            return section.title
        case Finding():
            return section.heading
    return ""
