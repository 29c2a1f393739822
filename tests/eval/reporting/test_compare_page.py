"""The page of two runs: what was found, each document as a point, answers side by side, and what of it is length."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval.compare import main as compare
from eval.records.run_folder import comparison_page
from eval.records.schema import ExampleRecord
from eval.score import main as score
from eval.scoring.length_parts import length_parts
from eval.scoring.scored_run import read_scored
from tests.helpers.browser import chromium, open_page
from tests.helpers.run_folders import document, example_line, write_run

HOSTILE = "</script><script>alert(1)</script>`<img src=x onerror=alert(2)>"
DOCUMENTS = {f"doc-{index}": document(index, 20) for index in range(6)}


def words_of(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def reference(example: ExampleRecord, maxlen: int) -> str:
    """Answer well, but about one document with nothing in common."""
    return "zebra quartz" if example.id.startswith("test-3") else example.references[0]


def lead(num_words: int) -> Callable[[ExampleRecord, int], str]:
    return lambda example, maxlen: words_of(DOCUMENTS[example.document_id], num_words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder of runs: `short` and `long` write leads of 8 and 16 words, `good` the references."""
    root = tmp_path_factory.mktemp("runs")
    examples = [
        example_line(index, id=f"test-{index}{HOSTILE if index == 2 else ''}", query=HOSTILE if index == 2 else None)
        for index in range(6)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.reporting.score_run.write_page", lambda *_, **__: None)
        patch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")
        for name, answer in (("short", lead(8)), ("long", lead(16)), ("good", reference)):
            write_run(root / name, answer, examples, DOCUMENTS)
            assert score([str(root / name)]) == 0
        yield root


def test_a_longer_lead_gains_by_length_alone(runs: Path) -> None:
    short, longer, good = (read_scored(runs / name) for name in ("short", "long", "good"))
    parts = list(length_parts(short, longer))
    assert [part.name for part in parts] == ["plos, instruct, 100", "plos, instruct, 200"]
    for part in parts:
        assert part.words == (8, 16)
        assert part.change == pytest.approx(part.of_length, abs=1e-12)
        assert part.change > 0.01
        assert part.beyond.mean == pytest.approx(0, abs=1e-12)
    for part in length_parts(longer, good, (200, 200)):
        assert part.change - part.of_length == pytest.approx(part.beyond.mean)
        assert part.beyond.mean is not None
        assert part.beyond.mean > 0.1
        assert part.beyond.low is not None


def test_a_page_shows_what_changed_and_its_answers_side_by_side(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(runs / "short"), str(runs / "good"), "--html"]) == 0
    file = runs / "good" / "compare-short.html"
    assert capsys.readouterr().out.endswith(f"page: {file}\n")
    with chromium() as browser:
        opened = open_page(browser, file, viewport={"width": 1280, "height": 900})
        page = opened.page
        assert page.locator("h1").inner_text() == "good against short: plos"
        found = page.locator("p.lead").all_inner_texts()
        assert re.match(r"Good at 100 tokens is .* short: RLsum \+", found[0], re.IGNORECASE)
        assert len(found) == 2
        changes = [
            abs(float(text.replace("\N{MINUS SIGN}", "-"))) for text in page.locator(".item .change").all_inner_texts()
        ]
        assert changes == sorted(changes, reverse=True)
        assert len(changes) == 12
        heads = [text.split(" RLsum")[0] for text in page.locator(".texts h4").all_inner_texts()]
        assert [head.strip() for head in heads] == ["Reference", "short", "good"]
        page.locator(".controls input[type=search]").fill("zebra")
        assert page.locator(".item").count() == 2
        assert "zebra quartz" in page.locator(".texts").inner_text()
        page.locator(".controls input[type=search]").fill("onerror")
        assert HOSTILE in page.locator(".sample h3").inner_text()
        assert opened.requests == [file.as_uri()]
        assert opened.complaints == []
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_click_on_a_point_opens_that_document(runs: Path) -> None:
    options = ["--maxlen-a", "100", "--html", str(runs / "one.html")]
    assert compare([str(runs / "short"), str(runs / "good"), *options]) == 0
    with chromium() as browser:
        page = open_page(browser, runs / "one.html", viewport={"width": 1280, "height": 900}).page
        points = page.locator(".plot > .light .mark-symbol.role-mark path").all()
        opened = set()
        for point in points:
            point.click(force=True)
            opened.add(page.locator(".sample h3").inner_text())
        assert len(points) == 6
        assert len(opened) > 3  # some points may lie on each other


def test_a_page_of_runs_without_texts_shows_none(runs: Path, tmp_path: Path) -> None:
    scores = json.loads((runs / "short" / "scores.json").read_text())
    try:
        (runs / "short" / "scores.json").write_text(json.dumps(scores | {"texts": False}))
        assert compare([str(runs / "short"), str(runs / "good"), "--html", str(tmp_path / "page.html")]) == 0
    finally:
        (runs / "short" / "scores.json").write_text(json.dumps(scores))
    text = (tmp_path / "page.html").read_text()
    for example in (example_line(0), example_line(1)):
        assert example.references[0] not in text
    assert words_of(DOCUMENTS["doc-0"], 8) not in text
    assert str(runs) not in text


def test_a_page_has_the_name_of_a_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(runs / "short"), "none", "--html", str(runs / "good" / "run.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ends in .html" in error
    assert json.loads((runs / "good" / "run.json").read_text())["identity"]


def test_a_page_is_named_by_its_lengths_and_replaces_no_report(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [str(runs / "short"), str(runs / "good")]
    assert compare([*pair, "--maxlen-a", "100", "--maxlen-b", "200", "--html"]) == 0
    assert (runs / "good" / "compare-short-100-to-200.html").exists()
    names = [
        comparison_page(first, runs / "good").name for first in (runs / "short", tmp_path / "short", Path("short"))
    ]
    assert names[0] == "compare-short.html"
    assert len(set(names)) == 3, "runs of one name have pages of their own"
    assert all(re.fullmatch(r"compare-short-[0-9a-f]{6}\.html", name) for name in names[1:]), "no folder is told"
    assert comparison_page(runs / "x" / ".." / "short", runs / "good" / "." / "x" / "..").name == names[0]
    capsys.readouterr()
    (tmp_path / "folder.html").mkdir()
    for name, what in (("folder.html", "a folder"), ("report.html", "what the report of a run is called")):
        assert compare([*pair, "--html", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err == f"error: --html is {tmp_path / name}, {what}; give another name\n"
