"""The page is one file that runs no script but its own, whatever the texts say, and works in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.records.schema import Result
from eval.reporting.charts import length_curves
from eval.reporting.columns import ANSWERS
from eval.reporting.page import (
    PAGE_BYTES,
    Cell,
    Chart,
    Finding,
    Fold,
    Header,
    Heading,
    Prose,
    Table,
    document_budget,
    fit_documents,
    render_page,
)
from eval.reporting.position_chart import oracle_positions
from eval.reporting.samples import describe_columns
from tests.helpers import records
from tests.helpers.browser import OpenPage, chromium, open_page

EVIL = '</script><img src=x onerror=alert(1)><script>alert(2)</script><!--<script>\' onmouseover="alert(3)" {{ 7*7 }}'
METRICS = {"rouge1": "R1", "rougeLsum": "RLsum"}
LENGTHS = (1024, 2048, 4096)


class Elements(HTMLParser):
    """Start tags with their attributes, and the contents of scripts with theirs."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def answer(maxlen: int, text: str | None, score: float, length: int) -> dict[str, Any]:
    kept = min(maxlen // 100 * 10, length)
    return {
        "template": "instruct",
        "maxlen": maxlen,
        "text": text,
        "scores": {"rouge1": score, "rougeLsum": score / 2},
        "kept": [[0, kept]],
        "context_tokens_kept": kept // 4,
        "context_tokens_dropped": (length - kept) // 4,
        "seconds": 1.5,
        "cache_bytes": 2**20,
        "finish_reason": "stop",
    }


def example(name: str, scores: tuple[float, float, float], **changes: Any) -> dict[str, Any]:
    return {
        "task": "plos",
        "id": name,
        "document": "paper",
        "query": None,
        "references": ["Spans of attention help long documents."],
        "evidence": None,
        "oracle": [[120, 180], [350, 390]],
        "answers": [
            answer(maxlen, f"The spans of attention were {name}.", score, 1000)
            for maxlen, score in zip(LENGTHS, scores, strict=True)
        ],
    } | changes


def evil_example() -> dict[str, Any]:
    answers = [answer(maxlen, EVIL + " answer", 0.1, 1000) for maxlen in LENGTHS]
    spans = {"evidence": [[210, 230]], "oracle": [[0, 30]]}
    return example(EVIL, (0, 0, 0), document=EVIL, query=EVIL, references=[EVIL, EVIL], answers=answers, **spans)


def samples() -> dict[str, Any]:
    # The first letters take two units of UTF-16 each, so that offsets in code points and in units differ.
    document = "𝒜𝒷" + "".join(f"{index:03d} " for index in range(250))[:998]
    texts = {"paper": document, EVIL: (EVIL * 20)[:1000]}
    return {
        "metrics": METRICS,
        "columns": describe_columns(ANSWERS),
        "documents": fit_documents(texts, {}, 10_000),
        "examples": [
            example("alpha", (0.5, 0.4, 0.3)),
            example("beta", (0.1, 0.2, 0.9)),
            example("gamma", (0.3, 0.3, 0.2), query="Which spans?"),
            evil_example(),
        ],
    }


def result(system: str, kind: str, maxlen: int, mean: float) -> Result:
    return records.result(system, maxlen, mean, kind=kind, cost=None)


def sections() -> list[Any]:
    curves = [
        result(system, kind, maxlen, 0.2 + maxlen / 1e5)
        for system, kind in ((EVIL, "model"), ("visible_oracle", "yardstick"))
        for maxlen in LENGTHS
    ]
    position = oracle_positions([{"maxlen": 64, "position": 1.0}], [{"maxlen": 64, "position": 0.5, "share": 1.0}])
    values = [("lead", 20.0), ("tail", 3.0), ("tiny, full", None), ("tiny, top:1", 100.0), (EVIL, 7.0), ("a", 1.0)]
    rows = [
        [Cell(text=name, is_strong=name == "lead"), Cell(text="–" if value is None else f"{value} [1, 2]", sort=value)]
        for name, value in [*values, ("b", 2.0)]
    ]
    columns = [Header(name="system"), Header(name="R1", is_number=True, note="ROUGE-1")]
    return [
        Heading(text="Results & more"),
        Prose(text=f"Profile `hf`.\n\n{EVIL}"),
        Chart(title="Quality over length", caption="With intervals.", spec=length_curves(curves, "rougeLsum")),
        Chart(title="Positions", caption="Of the oracle.", spec=position),
        Table(caption=EVIL, columns=columns, rows=rows),
        Table(caption="Few rows", columns=columns, rows=rows[:2]),
    ]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(EVIL, [("model", f"`{EVIL}`")], sections(), samples())


def test_texts_make_no_elements(page: str) -> None:
    elements = Elements(page)
    assert not [tag for tag, _ in elements.tags if tag == "img"]
    assert not [(tag, name) for tag, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert len(elements.scripts) == 4
    assert "{{ 7*7 }}" in page


def test_data_survives_its_escaping(page: str) -> None:
    data = {attributes["id"]: text for attributes, text in Elements(page).scripts if "id" in attributes}
    assert json.loads(data["sample-data"]) == samples()
    assert json.loads(data["plot-data"])["specs"] == [part.spec for part in sections() if isinstance(part, Chart)]
    assert not any("<" in text for text in data.values())


def test_policy_names_exactly_the_scripts_of_the_page(page: str) -> None:
    elements = Elements(page)
    (policy,) = [
        attributes["content"] or ""
        for tag, attributes in elements.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    scripts = [text for attributes, text in elements.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(digests) == 2
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_page_links_to_nothing_outside(page: str) -> None:
    for tag, attributes in Elements(page).tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), attributes


def test_tables_say_what_they_hold_to_all_readers(page: str) -> None:
    headers = [attributes for tag, attributes in Elements(page).tags if tag == "th"]
    assert headers
    assert all(attributes["scope"] == "col" and attributes["aria-sort"] == "none" for attributes in headers)
    assert page.count('<input type="search"') == 1, "only the long table has a filter"


def test_page_without_charts_or_samples_carries_neither() -> None:
    page = render_page("Small", [], [Prose(text="Nothing to draw.")])
    assert len(page) < 60_000
    assert "sample-data" not in page.split("<script>")[0]


def test_ragged_table_is_refused() -> None:
    table = Table(caption="Scores", columns=[Header(name="a"), Header(name="b")], rows=[[Cell(text="1")]])
    with pytest.raises(ValueError, match="'Scores' has 1 cells for 2 columns"):
        render_page("T", [], [table])


def test_half_of_a_surrogate_pair_does_not_break_the_file() -> None:
    broken = samples()
    broken["examples"][0]["answers"][0]["text"] = "half \ud83d here"
    assert b"half ? here" in render_page("T", [], [], broken).encode()


def test_documents_that_fit_are_whole() -> None:
    documents = {"a": "text " * 100, "b": "", "c": "é" * 50}
    fitted = fit_documents(documents, {"a": [(10, 20)]}, 2_000)
    assert {key: part["text"] for key, part in fitted.items()} == documents
    assert fitted["c"] == {"text": "é" * 50, "length": 50, "pieces": []}


def test_long_documents_keep_the_text_around_what_is_of_interest() -> None:
    text = "".join(f"{index:06d} " for index in range(4000))
    spans = [(7000, 7070), (14000, 14000)]
    fitted = fit_documents({"a": text, "short": "brief"}, {"a": spans}, 4_000)
    pieces = fitted["a"]["pieces"]
    assert fitted["a"]["text"] is None
    assert fitted["a"]["length"] == len(text)
    assert fitted["short"]["text"] == "brief"
    assert all(text[start : start + len(piece)] == piece for start, piece in pieces)
    shown = [(start, start + len(piece)) for start, piece in pieces]
    for edge in (0, 7000, 7070, 14000, len(text)):
        assert any(start <= max(edge - 200, 0) and min(edge + 200, len(text)) <= end for start, end in shown), edge
    size = len(json.dumps(fitted, separators=(",", ":")))
    assert 3_900 < size <= 4_000, "the windows are as wide as the budget allows"


def test_budget_of_nothing_leaves_lengths_only() -> None:
    assert fit_documents({"a": "text"}, {}, 0) == {"a": {"text": None, "length": 4, "pieces": []}}


# What follows needs a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def path(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("page") / "report.html"
    written.write_text(page, encoding="utf-8")
    return written


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[OpenPage]:
    opened = open_page(browser, path, viewport={"width": 1200, "height": 900})
    yield opened
    # Whatever a test did on the page, it asked for nothing else and complained of nothing.
    assert opened.requests == [path.as_uri()]
    assert opened.complaints == []
    opened.page.context.close()


def ids(page: Any) -> list[str]:
    found: list[str] = page.locator(".item .id").all_text_contents()
    return found


def choose(page: Any, label: str, value: str) -> None:
    page.locator(".controls label").filter(has_text=label).first.locator("select").select_option(value)


def test_charts_are_drawn_and_can_be_saved(opened: OpenPage) -> None:
    page = opened.page
    assert page.locator(".plot .light svg").count() == 2
    assert page.locator(".plot .light svg").first.get_by_text("Maximum length (tokens)").count() == 1
    assert EVIL.split("'")[0] in page.locator(".plot .light svg").first.inner_html().replace("&lt;", "<").replace(
        "&gt;", ">"
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Save Quality over length as SVG").click()
    assert download.value.suggested_filename == "Quality over length.svg"
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith("<svg")


def test_evil_texts_stay_text(opened: OpenPage) -> None:
    page = opened.page
    assert page.title() == EVIL
    assert page.locator("h1").text_content() == EVIL
    page.locator(".item").nth(3).click()
    assert page.locator(".sample h3").text_content() == EVIL
    assert page.locator(".query").text_content() == f"Query {EVIL}"
    assert page.locator(".texts p").all_text_contents() == [EVIL, EVIL, f"{EVIL} answer", f"{EVIL} answer"]
    assert EVIL in page.locator(".document").text_content()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4


def test_scripts_from_elsewhere_are_stopped_by_the_policy(browser: Any, path: Path) -> None:
    opened = open_page(browser, path)
    opened.page.evaluate(
        "const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script)"
    )
    assert opened.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    opened.page.context.close()


def test_table_sorts_by_numbers_and_words_and_filters(opened: OpenPage) -> None:
    page = opened.page
    table = page.locator("div.table").first
    names = table.locator("tbody tr:visible td:first-child")
    by_score = table.get_by_role("button", name="R1")
    by_score.click()
    assert names.all_text_contents() == ["tiny, top:1", "lead", EVIL, "tail", "b", "a", "tiny, full"]
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    by_score.press("Enter")
    assert names.all_text_contents() == ["a", "b", "tail", EVIL, "lead", "tiny, top:1", "tiny, full"]
    table.get_by_role("button", name="system").click()
    assert table.locator("th").nth(0).get_attribute("aria-sort") == "ascending"
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "none"
    table.get_by_role("searchbox").fill("TINY full")
    assert names.all_text_contents() == ["tiny, full"]
    assert table.get_by_role("status").text_content() == "1 of 7 rows"


def test_samples_are_found_and_ordered(opened: OpenPage) -> None:
    page = opened.page
    # From 1,024 to 4,096: +40, -10, -5 and nothing.
    assert ids(page) == ["beta", "alpha", "gamma", EVIL], "what changed most is first"
    choose(page, "Order", "run")
    assert ids(page) == ["alpha", "beta", "gamma", EVIL]
    choose(page, "Score", "rouge1")
    choose(page, "Order", "highest")
    assert ids(page) == ["beta", "alpha", "gamma", EVIL]
    choose(page, "Length", "1024")
    assert ids(page) == ["alpha", "gamma", "beta", EVIL]
    choose(page, "Length", "4096")
    choose(page, "Compared with", "2048")
    choose(page, "Order", "loss")
    # From 2,048 to 4,096: both lose 0.1, the evil one nothing, beta gains 0.7.
    assert ids(page) == ["alpha", "gamma", EVIL, "beta"]
    assert page.locator(".item .change").all_text_contents() == ["−10.0", "−10.0", "+0.0", "+70.0"]
    for text, found in (("which SPANS", ["gamma"]), ("were beta", ["beta"]), ("nowhere", []), ("onerror", [EVIL])):
        page.get_by_role("searchbox", name="Search").fill(text)
        assert ids(page) == found


def test_samples_are_chosen_by_keys(opened: OpenPage) -> None:
    page = opened.page
    choose(page, "Order", "run")
    chosen = page.locator(".item[aria-selected=true] .id")
    page.get_by_role("listbox").focus()
    for key, name in (("ArrowDown", "beta"), ("j", "gamma"), ("k", "beta"), ("End", EVIL), ("ArrowUp", "gamma")):
        page.keyboard.press(key)
        assert chosen.text_content() == name
        assert page.locator(".sample h3").text_content() == name
        active = page.get_by_role("listbox").get_attribute("aria-activedescendant")
        assert page.locator(f"#{active} .id").text_content() == name
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "gamma"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "listbox"
    page.locator(".sample").get_by_role("button", name="2,048").first.press("Enter")
    assert page.locator(".texts h4").nth(1).text_content() == "At 2,048 RLsum 15.0"
    assert page.evaluate("document.activeElement.textContent") == "2,048", "the focus is kept"


def test_everything_is_reached_by_tab_and_focus_is_seen(opened: OpenPage) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('role') ?? document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
    assert {"listbox", "INPUT", "SELECT", "BUTTON", "region"} <= reached


def test_shared_words_are_marked_on_both_sides(opened: OpenPage) -> None:
    page = opened.page
    choose(page, "Order", "run")
    texts = page.locator(".texts .text")
    # "Spans of attention help long documents." against "The spans of attention were alpha."
    assert texts.nth(0).locator("mark.phrase").all_text_contents() == ["Spans of attention"]
    assert texts.nth(1).locator("mark.phrase").all_text_contents() == ["spans of attention"]
    assert page.locator(".texts h4").all_text_contents()[1:] == ["At 4,096 RLsum 15.0", "At 1,024 RLsum 25.0"]


def test_what_was_cut_is_marked_at_the_chosen_length(opened: OpenPage) -> None:
    page = opened.page
    choose(page, "Order", "run")
    choose(page, "Length", "2048")
    document = samples()["documents"]["paper"]["text"]
    cut = "".join(page.locator(".document .cut").all_text_contents())
    assert cut == document[200:], "offsets count characters, not units of UTF-16"
    # The second sentence was cut, the first was not.
    assert page.locator(".document .oracle").all_text_contents() == [document[120:180], document[350:390]]
    assert page.locator(".document .cut.oracle").all_text_contents() == [document[350:390]]
    marks = page.locator(".document .cut-mark").all_text_contents()
    assert [re.sub(r"[^\d,]", "", mark) for mark in marks] == ["1,024", "2,048", "4,096"]
    assert page.locator(".bar-row .share").all_text_contents() == ["10% kept", "20% kept", "40% kept"]
    row = page.locator(".sample tbody tr").nth(1)
    assert row.locator("td").all_text_contents() == ["40.00", "20.00", "50", "200", "1.5", "1.0", "stop"]


def test_left_out_parts_are_counted(browser: Any, tmp_path: Path) -> None:
    data = samples()
    text = "word " * 5000
    data["documents"] = fit_documents({"paper": text, EVIL: text}, {"paper": [(0, 200)]}, 2_000)
    shown = sum(len(piece) for _, piece in data["documents"]["paper"]["pieces"])
    path = tmp_path / "report.html"
    path.write_text(render_page("T", [], [], data), encoding="utf-8")
    page = open_page(browser, path).page
    gaps = [int(re.sub(r"\D", "", gap)) for gap in page.locator(".document .gap").all_text_contents()]
    assert gaps
    assert sum(gaps) + shown == len(text)
    page.context.close()


def test_samples_without_texts_show_scores_and_costs(browser: Any, tmp_path: Path) -> None:
    data = samples()
    data["documents"] = {key: part | {"text": None} for key, part in data["documents"].items()}
    for one in data["examples"]:
        one |= {"query": None, "references": None}
        one["answers"] = [given | {"text": None} for given in one["answers"]]
    path = tmp_path / "report.html"
    path.write_text(render_page("T", [], [], data), encoding="utf-8")
    opened = open_page(browser, path)
    assert opened.page.locator(".sample tbody tr").count() == 3
    assert opened.page.locator(".bar-row").count() == 3
    assert opened.page.locator(".document, .texts").count() == 0
    assert opened.complaints == []
    opened.page.context.close()


def test_phone_scrolls_down_only(browser: Any, path: Path) -> None:
    opened = open_page(browser, path, viewport={"width": 390, "height": 844}, has_touch=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    widths = opened.page.locator(".plot .light svg").evaluate_all("all => all.map((svg) => svg.clientWidth)")
    assert all(200 < width <= 390 for width in widths)
    captions = [caption.bounding_box() for caption in opened.page.locator("caption").all() if caption.is_visible()]
    assert captions
    assert all(box["x"] + box["width"] <= 390 for box in captions)
    opened.page.context.close()


def test_dark_is_followed_and_toggled(browser: Any, path: Path) -> None:
    opened = open_page(browser, path, color_scheme="dark")
    page = opened.page
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    assert page.evaluate(brightness) < 60
    assert page.locator(".plot .dark svg").first.is_visible()
    assert not page.locator(".plot .light").first.is_visible()
    page.get_by_role("button", name="Light colours").click()
    assert page.evaluate(brightness) > 240
    assert page.locator(".plot .light svg").first.is_visible()
    assert opened.complaints == []
    page.context.close()


def test_print_is_light_with_charts_and_without_controls(browser: Any, path: Path) -> None:
    opened = open_page(browser, path, color_scheme="dark")
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".plot .light svg").first.is_visible()
    assert not page.locator(".plot .dark").first.is_visible()
    assert page.locator("input:visible, select:visible, .list:visible, #theme:visible").count() == 0
    assert page.locator("table").first.is_visible()
    page.context.close()


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.nightly)])
def test_hundreds_of_long_documents_stay_small_and_usable(count: int, browser: Any, tmp_path: Path) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 9))) for _ in range(3000)]

    def text(characters: int) -> str:
        return " ".join(chance.choices(words, k=characters // 5))[:characters]

    long = [text(40_000) for _ in range(20)]  # a thousand take seconds to make, and are no harder to fit
    documents = {f"paper-{index}": long[index % 20] for index in range(count)}
    examples = [
        example(
            f"example-{index:04d}",
            (0, 0, 0),
            document=f"paper-{index}",
            references=[text(1000)],
            answers=[answer(maxlen, text(800), chance.random(), 40_000) for maxlen in LENGTHS],
        )
        for index in range(count)
    ]
    spans = {one["document"]: [span for given in one["answers"] for span in given["kept"]] for one in examples}
    fitted = fit_documents(documents, spans, document_budget(examples))
    page = render_page("Many", [], sections(), samples() | {"documents": fitted, "examples": examples})
    assert 9_000_000 < len(page.encode()) < PAGE_BYTES
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    opened = open_page(browser, path)
    assert opened.page.locator(".item").count() == 50
    choose(opened.page, "Order", "run")
    opened.page.get_by_role("button", name="Next", exact=True).click()
    assert ids(opened.page)[0] == "example-0050"
    assert opened.page.locator(".pager span").text_content() == "51–100"
    opened.page.get_by_role("listbox").press("End")
    assert opened.page.locator(".sample h3").text_content() == f"example-{count - 1:04d}"
    opened.page.get_by_role("searchbox", name="Search").fill("example-0123")
    assert ids(opened.page) == ["example-0123"]
    choose(opened.page, "Order", "gain")
    assert opened.complaints == []
    opened.page.context.close()


def test_links_to_sections_of_a_page_of_two_tasks_are_told_apart() -> None:
    def finding(task: str) -> Finding:
        return Finding(heading=task, before="", claim="Better", after=".", numbers=[], checks=[])

    folded = Fold(title="Tables", sections=[Heading(text="\u6cb3\u6d41", level=3), Heading(text="\u5c71", level=3)])
    titles = ["\u6cb3\u6d41", "\u5c71", "a_b 2", "a_b", "a_b", "Tables", "Tables"]
    sections = [
        *map(finding, titles[:2]),
        *(Heading(text=text) for text in titles[2:5]),
        folded,
        Heading(text="Tables"),
    ]
    page = Elements(render_page("Title", [], sections))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = [(attributes.get("href") or "")[1:] for tag, attributes in page.tags if tag == "a"]
    linked = [link for link in links if link.startswith("section-")]
    assert linked == [
        *("section-\u6cb3\u6d41", "section-\u5c71", "section-a_b-2", "section-a_b", "section-a_b-3"),
        *("section-tables", "section-tables-2"),
    ]
    assert set(linked) <= set(names)
