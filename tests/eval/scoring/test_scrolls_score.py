"""The SCROLLS score is the mean of seven tasks or none, and its interval covers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.leaderboard import main as leaderboard
from eval.records.schema import Estimate, ExampleRecord, Result, ScrollsScore
from eval.reporting.tables import describe_missing
from eval.reporting.trackers import values_by_length
from eval.score import main as score
from eval.scoring.profiles import headline
from eval.scoring.scrolls import SCROLLS_TASKS, mean_of_tasks, scrolls_score
from eval.scoring.significance import mean_interval
from tests.helpers.run_folders import (
    document,
    example_line,
    model_results,
    read_scores,
    run_record,
    with_task,
    write_run,
)

pytestmark = pytest.mark.usefixtures("no_plots")


def result(task: str, mean: float, maxlen: int = 100, template: str = "instruct", **changes: Any) -> Result:
    profile = SCROLLS_TASKS.get(task, "hf")
    made = Result(
        task=task,
        template=template,
        profile=profile,
        system="tiny",
        kind="model",
        subset="all",
        maxlen=maxlen,
        num_examples=8,
        num_documents=8,
        num_truncated=0,
        metrics={
            headline(profile): Estimate(mean=mean, low=mean - 0.1, high=mean + 0.2),
            "other": Estimate(mean=0.9, low=None, high=None),
        },
        evidence_visible=None,
        cost=None,
    )
    return replace(made, **changes)


def seven(**changes: Any) -> list[Result]:
    return [result(task, index / 10, **changes) for index, task in enumerate(SCROLLS_TASKS)]


def means(found: ScrollsScore | None) -> list[tuple[int, str, float]]:
    assert found is not None
    return [(row.maxlen, row.template, round(row.value, 10)) for row in found.scores]


def test_it_is_the_mean_of_the_headlines_of_seven_tasks_at_each_length() -> None:
    noise = [
        result("plos", 1.0),
        result("qmsum", 1.0, kind="yardstick"),
        result("quality", 1.0, subset="always_truncated"),
    ]
    found = scrolls_score([*seven(), *seven(maxlen=200)[:6], result("contract_nli", 1.0, 200), *noise])
    assert means(found) == [(100, "", 0.3), (200, "", 0.3571428571)]
    assert found is not None
    assert found.missing == []
    first = found.scores[0]
    # Distances of 0.1 and 0.2 of seven independent tasks: the root of seven squares, over seven.
    assert first.low == pytest.approx(0.3 - 0.1 / 7**0.5)
    assert first.high == pytest.approx(0.3 + 0.2 / 7**0.5)
    assert list(first.tasks) == list(SCROLLS_TASKS)


@pytest.mark.parametrize("absent", list(SCROLLS_TASKS))
def test_without_one_of_the_tasks_there_is_none(absent: str) -> None:
    found = scrolls_score(one for one in seven() if one.task != absent)
    assert means(found) == []
    assert found is not None
    assert describe_missing(found.missing, has_scores=False) == (
        f"SCROLLS score, the mean of seven tasks: none; missing: {absent} (not there)."
    )


def test_what_keeps_a_run_from_it_is_named() -> None:
    others = seven()[:5]
    wrong = [*others, result("quality", 0.5, profile="f1"), result("contract_nli", 0.5, num_examples=6)]
    found = scrolls_score(wrong, dict.fromkeys(SCROLLS_TASKS, 8))
    assert means(found) == []
    assert found is not None
    assert found.missing == [
        "quality (scored under profile f1, not exact_match)",
        "contract_nli (2 predictions not there at 100)",
    ]
    assert scrolls_score(seven()[:1]) is None
    assert scrolls_score([result("plos", 0.5)]) is None
    apart = scrolls_score([*seven()[:6], result("contract_nli", 0.5, 200)])
    assert apart is not None
    assert apart.missing == ["a length and a template that all seven have"]


def test_templates_of_several_tasks_are_taken_by_name() -> None:
    found = [*seven()[:2], *seven(template="context_first")[2:]]
    assert means(scrolls_score(found)) == [(100, "", 0.3)]
    found += [replace(one, template="query_first") for one in found[2:5]]
    # Three tasks have two templates: the others, with one each, go with the one that each of the three has.
    assert means(scrolls_score(found)) == [(100, "context_first", 0.3), (100, "query_first", 0.3)]
    found.append(result("qmsum", 0.9, template="short"))
    assert means(scrolls_score(found)) == [(100, "context_first", 0.3), (100, "query_first", 0.3)]


def test_a_task_without_an_interval_leaves_none() -> None:
    one = Estimate(mean=0.5, low=0.4, high=0.6)
    assert mean_of_tasks([one, Estimate(mean=0.3, low=None, high=None)]) == Estimate(mean=0.4, low=None, high=None)


@pytest.mark.parametrize("num_simulations", [60, pytest.param(300, marks=pytest.mark.nightly)])
def test_the_interval_covers(num_simulations: int) -> None:
    """Seven tasks of 40 to 60 documents: three of ROUGE's three means, two skewed, two of zeros and ones."""
    rng = np.random.default_rng(11)
    num_resamples = 300
    levels = [0.35, 0.3, 0.25]
    truth = 3 * np.prod([0.3 * level for level in levels]) ** (1 / 3) + 2 * 0.2 + 0.35 + 0.7

    def draw() -> Iterable[Estimate]:
        for _ in range(3):
            shared = rng.beta(3, 7, 50)[:, None]
            values = shared * np.array(levels) * rng.uniform(0.5, 1.5, (50, 3))
            yield mean_interval(values, np.arange(50), num_resamples=num_resamples)
        for _ in range(2):
            yield mean_interval(rng.beta(0.5, 2, 60), np.arange(60), num_resamples=num_resamples)
        for share in (0.35, 0.7):
            yield mean_interval(
                (rng.uniform(size=40) < share).astype(float), np.arange(40), num_resamples=num_resamples
            )

    covered = 0
    for _ in range(num_simulations):
        found = mean_of_tasks(list(draw()))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth / 7 <= found.high
    # 95% give or take three standard errors.
    assert covered / num_simulations == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / num_simulations) ** 0.5)


def write_seven(path: Path, tasks: Iterable[str] = tuple(SCROLLS_TASKS), quality: float = 1.0, **changes: Any) -> None:
    record = run_record(tuple(tasks), seed=0, generation={}, generation_version=1)
    examples, documents = [], {}
    for task in tasks:
        record = with_task(record, task, profile=SCROLLS_TASKS[task], **changes)
        for index in range(6):
            name = f"{task}-{index}"
            examples.append(example_line(index, task=task, id=name, document_id=name))
            documents[name] = document(index, 20)

    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        return " ".join(words[: len(words) // 2] if maxlen == 100 else words[: round(quality * len(words))])

    write_run(path, answer, examples, documents, record)
    assert score([str(path), "--full"]) == 0


def test_a_run_of_seven_tasks_has_it_in_scores_report_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seven(tmp_path)
    printed = capsys.readouterr().out
    scores = read_scores(tmp_path)
    found = scores.scrolls_score
    assert found is not None
    assert [(row.maxlen, row.mean) for row in found.scores] == [(100, pytest.approx(found.scores[0].mean)), (200, 1.0)]
    parts = [one.metrics[headline(one.profile)].value for one in model_results(tmp_path) if one.maxlen == 100]
    assert len(parts) == 7
    assert found.scores[0].mean == pytest.approx(sum(parts) / 7)
    for text in (printed, (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "SCROLLS score" in text
        assert "100.00" in text
    assert {name: value for name, value in values_by_length(scores)[200].items() if "scrolls" in name} == {
        "scrolls_score/mean": 1.0  # all alike, so without an interval
    }
    # An answer that is missing keeps its length from a score.
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    gone = [line for line in lines if '"quality-3"' not in line or '"maxlen": 200' not in line]
    (tmp_path / "predictions.jsonl").write_text("\n".join(gone) + "\n")
    assert score([str(tmp_path), "--full"]) == 0
    found = read_scores(tmp_path).scrolls_score
    assert found is not None
    assert [row.maxlen for row in found.scores] == [100]
    printed = " ".join(capsys.readouterr().out.split())
    assert "not everywhere; missing: quality (1 predictions not there at 200)" in printed


def test_a_leaderboard_ranks_systems_by_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("eval.reporting.score_run.write_page", lambda *_, **__: None)
    monkeypatch.setattr("eval.reporting.charts.draw_chart", lambda spec, suffix: b"drawn")
    tasks = list(SCROLLS_TASKS)
    # One system, whose tasks were answered in two folders, each task after a solved example of its own.
    shots = {name: {"split": "train", "seed": 0, "ids": [name]} for name in ("one", "two", "three")}
    write_seven(tmp_path / "one", tasks[:3], shots=shots["one"])
    write_seven(tmp_path / "two", tasks[3:], shots=shots["two"])
    capsys.readouterr()
    assert leaderboard([str(tmp_path)]) == 0
    content = json.loads((tmp_path / "leaderboard" / "leaderboard.json").read_text())
    assert [(row["runs"], row["maxlen"], row["mean"]) for row in content["scrolls_score"]["rows"]][:1] == [
        (["one", "two"], 200, 1.0)
    ]
    assert {board["task"]: board["profile"] for board in content["boards"]} == SCROLLS_TASKS
    with (tmp_path / "leaderboard" / "leaderboard.csv").open() as stream:
        rows = [line for line in csv.DictReader(stream) if line["task"] == "scrolls_score"]
    assert {(row["maxlen_tokens"], float(row["scrolls_score_mean_fraction"]) == 1) for row in rows} == {
        ("200", True),
        ("100", False),
    }
    printed = capsys.readouterr().out
    for text in (printed, *((tmp_path / "leaderboard" / f"leaderboard.{end}").read_text() for end in ("md", "html"))):
        assert "SCROLLS score" in text
        assert "headline scores" in text
    # Another folder with one of its tasks: which counts is not ours to say.
    write_seven(tmp_path / "three", ["qmsum"], shots=shots["three"])
    assert leaderboard([str(tmp_path)]) == 0
    assert "missing: which folder counts for qmsum" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(tmp_path / "three")
    write_seven(tmp_path / "three", ["qmsum"], shots=shots["three"] | {"seed": 1})
    assert leaderboard([str(tmp_path)]) == 0
    assert "which folder counts" not in capsys.readouterr().out, "another seed is another system"
    shutil.rmtree(tmp_path / "three")
    (tmp_path / "two" / "scores.json").unlink()
    assert leaderboard([str(tmp_path)]) == 0
    assert "one: SCROLLS score, the mean of seven tasks: none; missing:" in " ".join(capsys.readouterr().out.split())
