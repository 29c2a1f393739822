"""Names and texts that others have chosen are text in Markdown, in CSV files, and on a terminal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from eval.leaderboard import main as leaderboard
from eval.records.schema import ModelRecord, RunRecord
from eval.reporting.leaderboard_tables import _plain_cell
from eval.reporting.tables import as_markdown, code, markdown
from eval.score import main as score
from tasks.terminal import plain_text
from tests.helpers.run_folders import example_line, run_record, sentence, with_session, with_task, write_run

HOSTILE = "</script><img src=x onerror=alert(1)><!--`|[a](javascript:alert(1))\x1b]0;pwn\x07\x9b2J"
PICTURE = "![x](https://example.org/x.png) [x]: https://example.org\n\n# Title\n<b>"


class Tags(HTMLParser):
    """Collects what a page would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        # The report's own charts are pictures beside it.
        if tag in ("script", "b", "a") or (tag == "img" and not dict(attrs)["src"].startswith("plots/")):
            self.found.append((tag, attrs))

    def handle_comment(self, data: str) -> None:
        self.found.append(data)


def hostile_tags(text: str) -> list[Any]:
    tags = Tags()
    tags.feed(MarkdownIt("commonmark").enable("table").render(text))
    return tags.found


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")


def record_of(text: str) -> RunRecord:
    """Return a record with a text wherever a text may stand."""
    record = run_record(model=ModelRecord(reference=text, source="folder"), dtype=text)
    source = {"kind": text, "name": text}
    record = with_task(record, description=text, split=text, source=source, rows={"num_bad": 1, "bad": [text]})
    machine = replace(record.sessions[0].machine, device=text)
    return replace(with_session(record, machine=machine, commit=text, command=[text]), plan_description=text)


@pytest.mark.parametrize("text", [HOSTILE, PICTURE, "```\n<b>", "`a` <b> `c`", "\\`<b>", "a\x1b[31m"])
def test_reports_and_boards_hold_no_tag_and_no_escape(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [example_line(index, id=f"{text}{index}", references=[text + sentence(index)]) for index in range(6)]
    folder = write_run(tmp_path / "runs" / "run", lambda line, maxlen: text, examples, record=record_of(text)).path
    assert score([str(folder)]) == 0
    assert score([str(folder), "--full"]) == 0
    assert leaderboard([str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    for file in (folder / "report.md", tmp_path / "runs" / "leaderboard" / "leaderboard.md"):
        content = file.read_text()
        assert hostile_tags(content) == []
        assert plain_text(content) == content
        assert len(re.findall(r"^#+ Title", content, flags=re.MULTILINE)) == 0
    assert plain_text(printed) == printed


def test_prose_and_code_in_a_report() -> None:
    assert markdown("a `b_c` 1.0 [0.5, 1.5] <0.001 _d_ e_f *g*") == (
        r"a `b_c` 1.0 [0.5, 1.5] &lt;0.001 \_d\_ e_f \*g\*"
    )
    assert markdown("# one\n two") == r"\# one two"
    assert markdown(code("a`b|c")) == "`a'b|c`"
    assert as_markdown([["x|y", "[a](b)"]]).splitlines()[0] == r"| x\|y | [a\](b) |"


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1"])
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    assert _plain_cell(text) == f"'{text}"
    assert [_plain_cell(value) for value in ("a", "", -1.5, None, "a=b")] == ["a", "", -1.5, None, "a=b"]


def test_errors_and_json_hold_no_escape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score([str(tmp_path / "a\x1b]0;x\x07\x9b")]) == 2
    error = capsys.readouterr().err
    assert "a\\u001b]0;x\\u0007\\u009b holds no run" in error
    assert plain_text(error) == error
    folder = write_run(tmp_path / "run", lambda line, maxlen: "a", record=record_of("m\x9b\x7f")).path
    assert score([str(folder), "--json"]) == 0
    printed = capsys.readouterr().out
    assert plain_text(printed) == printed
    assert {one["system"] for one in json.loads(printed)["results"] if one["kind"] == "model"} == {"m\x9b\x7f"}
