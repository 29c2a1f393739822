"""A column is declared once and shown everywhere; reports need no torch, and no cost that is not known breaks them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.leaderboard import main as leaderboard
from eval.records.schema import Cost
from eval.reporting.columns import ANSWERS, COSTS, Column, charted_costs
from eval.reporting.trackers import values_by_length
from eval.score import main as score
from tests.helpers.run_folders import read_scores, run_record, with_session, write_run

JOULES = Column(
    key="joules",
    heading="energy kJ",
    digits=1,
    unit=1000,
    legend="energy: of an example, in the mean.",
    plain_name="joules_per_example",
    axis="Energy per example (kJ)",
    phrase="energy of an example",
)


def answer(line: Any, maxlen: int) -> str:
    return str(line.references[0][:maxlen])


def samples_of(folder: Path) -> dict[str, Any]:
    page = (folder / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', page, re.DOTALL)
    assert found
    samples: dict[str, Any] = json.loads(found.group(1))
    return samples


@pytest.fixture
def joules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Declare one more cost, as a row of the list and a value of the record."""
    monkeypatch.setattr(Cost, "joules", 42_000.0, raising=False)
    COSTS.append(JOULES)
    yield
    COSTS.remove(JOULES)


@pytest.mark.usefixtures("joules", "no_plots")
def test_a_cost_that_is_declared_once_is_shown_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "run"
    write_run(folder, answer)
    assert score([str(folder), "--full", "--explain"]) == 0
    printed = capsys.readouterr().out
    for text in (printed, (folder / "report.md").read_text(), (folder / "report.html").read_text()):
        assert "energy kJ" in text
        assert "42.0" in text
        assert " ".join(JOULES.legend.split()) in " ".join(text.split())
    assert "RLsum against energy per example (kJ)" in (folder / "report.html").read_text()
    assert values_by_length(read_scores(folder))[100]["plos/instruct/cost/joules"] == 42_000
    monkeypatch.setattr("eval.reporting.leaderboard_report.save_charts", lambda folder, specs, own: [])
    assert leaderboard([str(tmp_path / "runs"), "--cost", "joules"]) == 0
    assert "RLsum against energy of an example" in capsys.readouterr().out
    made = tmp_path / "runs" / "leaderboard"
    with (made / "leaderboard.csv").open() as stream:
        assert {row["joules_per_example"] for row in csv.DictReader(stream)} == {"42000.0"}
    assert "energy kJ" in (made / "leaderboard.md").read_text()
    assert 'title="of an example, in the mean">energy kJ<' in (made / "leaderboard.html").read_text()


@pytest.mark.usefixtures("no_plots")
def test_a_value_of_answers_that_is_declared_once_is_in_the_browser_of_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.reporting.samples.ANSWERS", [*ANSWERS, Column(key="num_generated_tokens", heading="new")])
    write_run(tmp_path, answer)
    assert score([str(tmp_path)]) == 0
    samples = samples_of(tmp_path)
    assert samples["columns"][-1] == {"key": "num_generated_tokens", "heading": "new", "digits": 0, "unit": 1}
    assert samples["examples"][0]["answers"][0]["num_generated_tokens"] == 10


def test_costs_that_an_engine_cannot_know_are_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = ("seconds", "prefill_seconds", "decode_seconds", "cache_bytes", "attention_flops", "prefilled_tokens")
    folder = tmp_path / "runs" / "run"
    made = write_run(folder, answer)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    made.write_lines("predictions.jsonl", [line | dict.fromkeys((*unknown, "peak_bytes")) for line in lines])
    assert score([str(folder)]) == 0
    assert "| 100 | - | - | - | - | - | - |" in (folder / "report.md").read_text()
    assert samples_of(folder)["examples"][0]["answers"][0]["seconds"] is None
    assert not list((folder / "plots").glob("*cost*"))
    assert set(values_by_length(read_scores(folder))[100]) & {"plos/instruct/cost/seconds"} == set()
    assert leaderboard([str(tmp_path / "runs")]) == 0
    assert "have no known attention_flops and are not on the frontier" in " ".join(capsys.readouterr().out.split())
    with (tmp_path / "runs" / "leaderboard" / "leaderboard.csv").open() as stream:
        assert {row["seconds_per_example"] for row in csv.DictReader(stream)} == {""}


@pytest.mark.usefixtures("no_plots")
def test_the_report_of_a_server_says_how_it_was_timed_and_what_it_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_record(engine={"name": "endpoint", "model": "served", "prompts_as": "text"})
    record = with_session(record, engine={"name": "vllm 0.32.0", "address": "http://x/v1", "concurrency": 8})
    unknown = dict.fromkeys(("prefill_seconds", "decode_seconds", "cache_bytes", "attention_flops", "peak_bytes"))
    told = {"first_token_seconds": 0.25, "token_seconds": 0.0312, "cached_tokens": 25}
    folder = tmp_path / "run"
    made = write_run(folder, answer, record=record)
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    made.write_lines("predictions.jsonl", [line | unknown | told for line in lines])
    assert score([str(folder), "--full", "--explain"]) == 0
    report = (folder / "report.md").read_text()
    assert "- engine: endpoint (vllm 0.32.0), at http://x/v1, serving `served`, prompts as text" in report
    assert "- machine: that of the server, which does not tell; asked from CPU (test)" in report
    assert "| 100 | - | - | 3.0 | - | - | - | 0.25 | 0.0312 | 25.0 |" in report
    assert "| 200 | - | - | 3.0 | - | - | - | 0.25 | 0.0312 | 12.5 |" in report
    for text in (capsys.readouterr().out, report, (folder / "report.html").read_text()):
        plain = " ".join(text.split())
        assert "Seconds are those of a request beside others, at most 8 at a time" in plain
        assert "tokens that the server had in its prefix cache." in plain
    assert values_by_length(read_scores(folder))[200]["plos/instruct/cost/cached_share"] == 0.125


def test_quality_is_drawn_against_three_costs() -> None:
    assert list(charted_costs()) == ["attention_flops", "cache_bytes", "seconds"]


def test_reports_are_made_without_torch() -> None:
    rooms = sorted(file.stem for file in Path("eval/reporting").glob("*.py") if file.stem != "__init__")
    code = f"import sys, {', '.join(f'eval.reporting.{room}' for room in rooms)}, eval.score, eval.leaderboard\n"
    code += "print([name for name in ('torch', 'transformers', 'accelerate', 'matplotlib') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "[]\n", ran.stderr
