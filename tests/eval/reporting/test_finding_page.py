"""A report says first what was found, then what to check, and can be passed on; garbage is flagged everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.leaderboard import main as leaderboard
from eval.records.schema import ExampleRecord
from eval.score import main as score
from tests.helpers.browser import chromium, open_page
from tests.helpers.run_folders import document, example_line, run_record, with_session, with_task, write_run

EVIL = "<script>alert(1)</script>'\"`&"
FLAGGED = {
    "cut by the limit 100%": "used up their room (100% at every length)",
    "loops 30%": "repeat themselves (30% at every length)",
    "empty 20%": "are empty (20% at every length)",
    "copies 30%": "copy the prompt (30% at every length)",
}


def garbage(line: ExampleRecord, maxlen: int) -> str:
    """Return loops, nothing, copies, and two answers that get better with length."""
    index = int(line.id.rpartition("-")[2])
    if index < 3:
        return "Bayesian inference with " * 12
    if index < 5:
        return ""
    if index < 8:
        return " ".join(document(index, 20).split()[:28])
    return line.references[0][: maxlen // 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of garbage whose names are markup, in a folder to rank."""
    path = tmp_path_factory.mktemp("runs") / "garbage"
    path.mkdir()
    examples = [example_line(index, id=f"{EVIL}-{index}" if index == 9 else f"test-{index}") for index in range(10)]
    record = with_session(run_record(), command=["--task", "plos", "--instruction", EVIL])
    record = with_task(record, licence=f"CC {EVIL}", description=EVIL)
    made = write_run(path, garbage, examples, {f"doc-{index}": document(index, 20) for index in range(10)}, record)
    lines = [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]
    made.write_lines("predictions.jsonl", [line | {"finish_reason": "length"} for line in lines])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.reporting.run_report.save_charts", lambda folder, specs, own: [])
        assert score([str(path)]) == 0
    return path


@pytest.mark.usefixtures("no_plots")
def test_garbage_is_flagged_in_the_terminal_on_the_page_and_on_boards(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score([str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    report, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    monkeypatch.setattr("eval.reporting.leaderboard_report.save_charts", lambda folder, specs, own: [])
    assert leaderboard([str(folder.parent), "--output", str(folder.parent / "board")]) == 0
    board = (folder.parent / "board" / "leaderboard.md").read_text()
    for mark, sentence in FLAGGED.items():
        for text in (printed, report, page):
            assert sentence in text
        assert mark in board
    assert "show=loop&amp;maxlen=200" in page


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_is_never_wider_than_it_is_and_ends_with_the_verdict(
    columns: int, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert score([str(folder), "--full", "--explain"]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith(("report: ", "folder: "))]
    assert max(map(len, lines)) <= columns
    words = " ".join(printed.split())
    parts = ["lead, tail: as many", "Check before you trust this:", "200 tokens are", "report: "]
    assert sorted(parts, key=words.index) == parts


# What follows needs a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Any]:
    opened = open_page(browser, folder / "report.html", viewport={"width": 1280, "height": 900})
    yield opened
    assert [url for url in opened.requests if "#" not in url] == [(folder / "report.html").as_uri()]
    assert opened.complaints == []
    opened.page.context.close()


def test_the_first_screen_has_the_finding_numbers_checks_and_one_chart(opened: Any) -> None:
    page = opened.page
    assert page.locator(".lead strong").inner_text() == "200 tokens are not shown to be better or worse than 100"
    assert page.locator(".lead").inner_text().startswith("In these 10 documents, a window of 200 tokens holds ")
    assert page.locator(".numbers > div").count() == 4
    assert page.locator(".checks li").count() >= len(FLAGGED)
    drawn = page.locator(".plot:visible")
    assert drawn.count() == 1
    assert drawn.bounding_box()["y"] < 900, "the chart begins on the first screen"
    words = drawn.locator(".light svg").text_content()
    for part in ("oracle", "lead", "model", "time (s)", "cache (MiB)", "3.0"):
        assert part in words


def test_a_switch_shows_another_metric(opened: Any) -> None:
    page = opened.page
    page.get_by_role("button", name="R2", exact=True).click()
    assert page.locator("figcaption:visible strong").inner_text() == "R2 over length, and what it costs"
    assert page.get_by_role("button", name="R2", exact=True).get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="RLsum", exact=True).get_attribute("aria-pressed") == "false"
    page.wait_for_function("() => document.querySelector('.choice:not([hidden]) .light svg').clientWidth > 300")


def test_what_is_folded_opens_by_its_link_and_has_its_charts(opened: Any) -> None:
    page = opened.page
    assert not page.get_by_text("Comparisons: plos").first.is_visible()
    page.get_by_role("link", name="Tables").click()
    page.get_by_text("Comparisons: plos").first.wait_for()  # a page follows its address a moment later
    page.get_by_role("link", name="More charts").click()
    page.wait_for_function("() => document.querySelectorAll('details[open] .plot .light svg').length > 4")


def test_a_check_leads_to_the_answers_that_it_is_about(opened: Any) -> None:
    page = opened.page
    page.locator(".checks li").filter(has_text="repeat themselves").get_by_role("link").click()
    page.get_by_text("3 of 10", exact=True).wait_for()
    assert sorted(page.locator(".item .id").all_text_contents()) == ["test-0", "test-1", "test-2"]
    page.locator(".checks li").filter(has_text="are empty").get_by_role("link").click()
    page.get_by_text("2 of 10", exact=True).wait_for()
    assert sorted(page.locator(".item .id").all_text_contents()) == ["test-3", "test-4"]


def test_a_link_opens_its_sample_and_the_address_follows_the_choice(browser: Any, folder: Path) -> None:
    opened = open_page(browser, folder / "report.html")
    page = opened.page
    for name, maxlen in (("test-7", 100), (f"{EVIL}-9", 200)):
        page.locator(".item").filter(has=page.get_by_text(name, exact=True)).click()
        page.locator(".sample").get_by_role("button", name=f"{maxlen}", exact=True).first.click()
        address = page.evaluate("location.href")
        assert f"maxlen={maxlen}" in address
        other = page.context.new_page()
        other.goto(address)
        assert other.locator(".sample h3").text_content() == name
        assert other.locator(".texts h4").nth(1).text_content().startswith(f"At {maxlen} ")
        assert other.locator(".item[aria-selected=true] .id").text_content() == name
        other.close()
    for before in (200, 100):  # an answer beside itself, and beside another
        chosen = {"Compared with": str(before), "Length": "200"}
        for label, value in chosen.items():
            page.locator(".controls label").filter(has_text=label).locator("select").select_option(value)
        other = page.context.new_page()
        other.goto(page.evaluate("location.href"))
        for label, value in chosen.items():
            assert other.locator(".controls label").filter(has_text=label).locator("select").input_value() == value
        other.close()
    page.goto((folder / "report.html").as_uri() + "#sample=nobody&maxlen=7")
    page.reload()
    assert page.locator(".status .count").text_content() == "No example nobody on this page"
    assert opened.complaints == []
    page.context.close()


def test_the_command_is_copied(browser: Any, folder: Path) -> None:
    opened = open_page(browser, folder / "report.html", permissions=["clipboard-read", "clipboard-write"])
    page = opened.page
    page.get_by_role("link", name="How it was run").click()
    page.locator("div.code").first.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("accelerate launch eval/run.py --task plos --instruction ")
    assert "<script>alert(1)</script>" in copied
    page.context.close()


def test_the_chosen_theme_is_kept(browser: Any, folder: Path) -> None:
    page = open_page(browser, folder / "report.html").page
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.get_by_role("button", name="Dark colours").click()
    page.reload()
    assert page.evaluate(theme) == "dark"
    page.get_by_role("button", name="Light colours").click()
    page.reload()
    assert page.evaluate(theme) == "light"
    page.context.close()


def test_a_chart_that_is_saved_has_its_title_and_source(opened: Any) -> None:
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Save RLsum over length, and what it costs as SVG").click()
    drawn = Path(download.value.path()).read_text(encoding="utf-8")
    for part in ("RLsum over length, and what it costs", "plos, n = 10 documents", "tiny", "made with MASFormer"):
        assert part in drawn


def test_a_phone_scrolls_down_only_with_all_folds_open(browser: Any, folder: Path) -> None:
    opened = open_page(browser, folder / "report.html", viewport={"width": 390, "height": 844}, has_touch=True)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for name in ("How it was run", "More charts", "Tables"):
        page.locator("summary", has_text=name).click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.context.close()


def test_markup_in_names_stays_text_and_paper_shows_what_is_folded(opened: Any) -> None:
    page = opened.page
    assert page.locator("script").count() == 4
    page.get_by_role("link", name="How it was run").click()
    page.locator(".facts").first.wait_for()
    assert f"licence: CC {EVIL.replace('`', '')}" in page.locator(".facts").inner_text()
    page.get_by_role("link", name="How it was run").click()
    page.locator("summary", has_text="How it was run").click()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open]).fold").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open]).fold").count() == 3
