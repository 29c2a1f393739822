"""A new profile lists a metric's values in `PROFILES`: it is scored, summarized, compared, ranked and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.compare import main as compare
from eval.leaderboard import main as leaderboard
from eval.metrics.base import Value
from eval.metrics.overlap import Overlap
from eval.records.schema import ExampleRecord
from eval.score import main as score
from eval.scoring.profiles import PROFILES, Profile, headline, metric_range
from eval.scoring.significance import mean_interval
from tests.helpers.run_folders import example_line, model_results, read_scores, run_record, write_run

pytestmark = pytest.mark.usefixtures("no_plots")


def agreement(prediction: str, references: Sequence[str]) -> list[dict[str, float]]:
    """Return from -1 to 1 whether the words are the reference's, and whether the number of words is."""
    ours = prediction.split()
    return [
        {
            "agreement": 2 * (len({*ours} & {*one.split()}) / len({*one.split()})) - 1,
            "brevity": float(len(ours) < 9),
            "unlisted": 0.0,
        }
        for one in references
    ]


@pytest.fixture(autouse=True)
def profile(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "unlisted": Value(label="Unlisted", title="Left out"),
        "brevity": Value(label="Short", title="Share of short answers"),
        "agreement": Value(label="Agree", title="Agreement of words", low=-1.0),
    }
    made = Profile(
        scorers=(Overlap("mine", values, agreement),),
        listed=("agreement", "brevity"),
        headline=("agreement",),
        source="this test",
    )
    monkeypatch.setitem(PROFILES, "mine", made)


def half(example: ExampleRecord, maxlen: int) -> str:
    words = example.references[0].split()
    return " ".join(words if maxlen > 100 else words[: len(words) // 4])


def test_a_run_is_scored_and_compared_and_ranked_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = [example_line(index) for index in range(8)]
    write_run(tmp_path / "run", half, examples, record=run_record(profile="mine"))
    assert score([str(tmp_path / "run"), "--full"]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    for text in (printed, page):
        assert "Agree" in text
        assert "Short" in text
        assert "ROUGE profile" not in text
        assert "unlisted" not in text.lower()
    short, long = model_results(tmp_path / "run")
    assert long.metrics["agreement"].mean == 1
    estimate = short.metrics["agreement"]
    assert -1 < estimate.value < 0
    assert estimate.low is not None
    assert estimate.high is not None
    assert -1 <= estimate.low < estimate.value < estimate.high < 0
    comparison = read_scores(tmp_path / "run").comparisons[0]
    assert comparison.metric == "agreement"
    lines = [json.loads(line) for line in (tmp_path / "run" / "example_scores.jsonl").read_text().splitlines()]
    cut = [line["metrics"]["agreement"] for line in lines if line["is_model"] and line["maxlen"] == 100]
    differ = [
        score
        for score, line in zip(cut, (one for one in lines if one["is_model"] and one["maxlen"] == 100), strict=True)
        if line["is_truncated"]
    ]
    assert comparison.num_same_prompts == len(cut) - len(differ) > 0
    assert comparison.difference == pytest.approx(1 - sum(differ) / len(differ))
    assert comparison.difference > 1  # more than any fraction
    run = str(tmp_path / "run")
    assert compare([run, run, "--maxlen-a", "100", "--maxlen-b", "200"]) == 0
    assert "Agree" in capsys.readouterr().out
    assert leaderboard([str(tmp_path), "--profile", "mine"]) == 0
    board = json.loads((tmp_path / "leaderboard" / "leaderboard.json").read_text())["boards"][0]
    assert [row["maxlen"] for row in board["rows"]] == [200, 100]


def test_values_out_of_range_are_refused_by_its_range() -> None:
    assert metric_range("mine", headline("mine")) == (-1, 1)
    assert mean_interval([-1, 0.5], ["a", "b"], within=(-1, 1)).mean == -0.25
    with pytest.raises(ValueError, match=r"example 1 is 1\.5; give a number from -1 to 1 for each"):
        mean_interval([-1, 1.5], ["a", "b"], within=(-1, 1))


def test_an_interval_moves_with_its_range() -> None:
    values, names = [0.1, 0.4, 0.3, 0.9, 0.2, 0.6, 0.7], list("abcdefg")
    plain = mean_interval(values, names)
    moved = mean_interval([10 * value - 5 for value in values], names, within=(-5, 5))
    assert [moved.mean, moved.low, moved.high] == pytest.approx(
        [10 * end - 5 for end in (plain.value, plain.low or 0, plain.high or 0)]
    )


def test_a_geometric_mean_takes_no_metric_that_can_be_negative() -> None:
    metrics = {"a": Value(label="A", title="A", low=-1.0), "b": Value(label="B", title="B")}
    with pytest.raises(ValueError, match="can be negative"):
        Profile(
            scorers=(Overlap("mine", metrics, agreement),), listed=("a", "b"), headline=("a", "b"), source="this test"
        )
