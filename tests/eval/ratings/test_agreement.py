"""The agreements that the package has: reports quote them, and mark what people were not seen to agree with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.metrics import agreement
from eval.metrics.agreement import FILE, MARK, headline_correlations, mark
from eval.ratings.document import PAGE, document
from eval.ratings.schema import Agreements
from eval.records.typed import from_json
from eval.reporting.columns import doubt_legend, metric_heading
from eval.reporting.page import as_table
from eval.score import main as score
from eval.scoring.examples import SCORING_VERSION
from tests.helpers.run_folders import write_run


def test_the_docs_have_the_tables_of_the_package() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert document(page) == page
    assert "| one rater |" in page


def test_the_file_of_the_package_is_whole() -> None:
    content = from_json(Agreements, json.loads(FILE.read_text(encoding="utf-8")), FILE.name)
    assert {one.name for one in content.sets} == {"LongSciVerify", "SQuALITY", "Koh et al."}
    assert all(len(one.sha256) == 64 for one in content.sets)
    measured = {(one.metric, one.version, one.value) for one in content.agreements}
    assert {(one.metric, one.version, one.value) for one in content.doubted} < measured


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file in which R2 of `hf` is in doubt, and RLsum was measured."""
    within = {"r": 0.25, "low": 0.1, "high": 0.375}
    about = {"metric": "hf", "version": SCORING_VERSION, "value": "rougeLsum", "set": "A set", "rating": "overall"}
    content = {
        "doubted": [{"metric": "hf", "version": SCORING_VERSION, "value": "rouge2"}],
        "agreements": [
            {**about, "is_headline": True, "within": within},
            {**about, "rating": "other", "is_headline": False, "within": within},
            {**about, "set": "B", "is_headline": True, "within": {"r": None, "low": None, "high": None}},
        ],
    }
    (tmp_path / "agreement.json").write_text(json.dumps(content))
    monkeypatch.setattr(agreement, "FILE", tmp_path / "agreement.json")
    agreement._content.cache_clear()
    yield
    agreement._content.cache_clear()


@pytest.mark.usefixtures("planted")
def test_a_value_in_doubt_has_a_mark_and_another_version_has_none() -> None:
    assert mark("hf", "rouge2", SCORING_VERSION) == mark("hf", "rouge2") == MARK
    assert mark("hf", "rouge2", SCORING_VERSION + 1) == mark("hf", "rougeL") == mark("scrolls", "rouge2") == ""
    assert metric_heading("rouge2", "hf") == f"R2{MARK}"
    assert doubt_legend(["hf"]) == [agreement.LEGEND]
    assert doubt_legend(["scrolls"]) == []


@pytest.mark.usefixtures("planted")
def test_headline_ratings_are_quoted() -> None:
    expected = {"A set overall": "0.25 [0.10, 0.38]", "B overall": "-"}
    assert headline_correlations("hf", "rougeLsum", SCORING_VERSION) == expected
    assert headline_correlations("hf", "rougeLsum", SCORING_VERSION + 1) == {}


@pytest.mark.usefixtures("planted", "no_plots")
def test_reports_mark_and_quote(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder, lambda line, maxlen: line.references[0])
    assert score([str(folder)]) == 0
    report, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert f"| R1 | R2{MARK} | RL | RLsum |" in report
    assert "r of RLsum with people, within systems: 0.25 [0.10, 0.38] (A set overall), - (B overall)." in report
    assert agreement.LEGEND in report
    assert f'<th scope="col" class="number grey" aria-sort="none"><button type="button">R2{MARK}' in page
    assert '<td class="number grey whole"' in page


def test_marked_columns_and_rows_are_grey() -> None:
    by_column = as_table("a", [["name", f"x{MARK}"], ["b", "1"]])
    assert [head.is_grey for head in by_column.columns] == [False, True]
    assert [cell.is_grey for cell in by_column.rows[0]] == [False, True]
    by_row = as_table("a", [["name", "x"], [f"b ↓{MARK}", "1"], ["c", "2"]])
    assert [[cell.is_grey for cell in row] for row in by_row.rows] == [[True, True], [False, False]]
