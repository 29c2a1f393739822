"""What was found is said as it is: of windows by their own oracle, and of the same prompts as of the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval.compare import main as compare
from eval.records.schema import Compared, Estimate, ExampleRecord, ValueRecord
from eval.reporting.columns import verdict
from eval.reporting.finding import judged, numbers_of, what_was_shown
from eval.reporting.finding_chart import describe_baselines
from eval.reporting.tables import describe_intervals
from eval.score import main as score
from tests.helpers.records import comparison, result
from tests.helpers.run_folders import document, example_line, write_run

SAME = {"num_examples": 0, "num_documents": 0, "num_same_prompts": 20, "low": None, "high": None}


def test_longer_answers_alone_make_no_window_hold_more() -> None:
    results = [
        made
        for maxlen, matched in ((1024, 0.3), (8192, 0.5))  # the answers have more words at the greater length
        for made in (
            result("tiny", maxlen, 0.25),
            result("visible_oracle", maxlen, 0.55, kind="yardstick", cost=None),
            result("matched_oracle", maxlen, matched, kind="yardstick", cost=None),
        )
    ]
    assert "a window of 8,192 tokens holds no more of what references say than one of 1,024 (visible oracle 55.0" in (
        what_was_shown(results)
    )
    shares = {one.name: (one.value, one.remark) for one in numbers_of(results, [])}
    assert shares["share of the oracle, at 8,192"] == ("50%", "83% at 1,024")


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (0.3, "In these 20 documents, the answers score alike (RLsum 30.0 \u2192 30.0) at 8,192 and at 1,024 tokens."),
        (
            0.4,
            "In these 20 documents, the answers score higher (RLsum 30.0 \u2192 40.0) at 8,192 tokens than at 1,024.",
        ),
    ],
)
def test_answers_without_an_oracle_are_compared_in_a_sentence(mean: float, said: str) -> None:
    assert what_was_shown([result("tiny", 1024, 0.3), result("tiny", 8192, mean)]) == said


def test_a_caption_names_the_lines_that_are_drawn() -> None:
    def named(*systems: str) -> str:
        baselines = [result(name, maxlen, 0.5, kind="yardstick") for name in systems for maxlen in (1024, 8192)]
        return describe_baselines(
            [result("tiny", 1024, 0.3), result("tiny", 8192, 0.3), *baselines, result("lead", 1024, 0.2)], "rougeLsum"
        )

    assert named() == "", "the lead is not there at all lengths"
    assert named("common_answer") == "Dotted: the most common answer."
    assert named("visible_oracle") == "Dashed: the oracle, the best that sentences of the window could say."
    words = "as many words as the answer; dotted: the lead, as long as the answer."
    assert named("visible_oracle", "matched_oracle", "matched_lead").endswith(words)


def test_each_reason_why_there_are_no_intervals_is_said() -> None:
    none = {"metrics": {"rougeLsum": Estimate(mean=0.0, low=None, high=None)}}
    alike, few = result("tiny", 1024, 0.0, **none), result("tiny", 1024, 0.0, num_documents=5, **none)
    assert describe_intervals([few]) == "no intervals: fewer than 6 documents"
    assert describe_intervals([alike]) == "no intervals: all documents score alike"
    assert describe_intervals([few, alike]) == ("no intervals: fewer than 6 documents, or all documents score alike")


def test_a_margin_is_in_the_unit_of_what_is_compared() -> None:
    marks = ValueRecord(label="fluency", title="fluency", low=1.0, high=5.0, better="higher", is_share=False)
    for value, margin in ((marks, "0.01"), (None, "1")):
        as_good = comparison(0.0, value=value, non_inferior=True)
        assert verdict(as_good).startswith(f"as good, margin {margin} (")
        assert f"within the margin of {margin}: " in judged(as_good, "`b`", "`a`")
        slightly = comparison(-0.001, value=value, non_inferior=True, p_corrected=0.01)
        assert verdict(slightly) == f"worse, within the margin of {margin}"


def test_the_same_prompts_are_called_the_same() -> None:
    at = Compared(template="instruct", maxlen=500)
    of_one_length = comparison(0.0, first=at, second=at, **SAME)
    assert judged(of_one_length, "`b` at 500 tokens on questions", "`a`") == (
        "`b` at 500 tokens on questions shows the same prompts as `a`, so nothing is compared."
    )
    longer = comparison(0.0, **SAME)
    assert judged(longer, "8,192 tokens", "1,024", is_plural=True).startswith("8,192 tokens show no more than 1,024: ")
    assert judged(longer, "`b`", "`a`").startswith("`b` shows no more than `a`: every document fits both")


@pytest.mark.usefixtures("no_plots")
def test_what_a_page_of_two_runs_found_names_lengths_and_the_metric_that_was_asked_for(tmp_path: Path) -> None:
    examples = [example_line(index) for index in range(6)]
    documents = {f"doc-{index}": document(index, 20) for index in range(6)}
    for name in ("a", "b"):
        write_run(tmp_path / name, lambda one, maxlen: one.references[0][: maxlen // 3], examples, documents)
        assert score([str(tmp_path / name)]) == 0
    page = tmp_path / "page.html"
    options = ["--maxlen-a", "100", "--maxlen-b", "200", "--metric", "rouge1", "--html", str(page)]
    assert compare([str(tmp_path / "a"), str(tmp_path / "b"), *options]) == 0
    (lead,) = [line for line in page.read_text().splitlines() if line.startswith('<p class="lead">')]
    assert lead.startswith('<p class="lead"><code>b</code> at 200 tokens is ')
    assert "<code>a</code> at 100 tokens" in lead
    assert ": R1 +" in lead


@pytest.mark.usefixtures("no_plots")
def test_comparisons_that_are_not_settled_have_one_sentence_together(tmp_path: Path) -> None:
    examples = [example_line(index) for index in range(8)]
    documents = {f"doc-{index}": document(index, 20) for index in range(8)}
    for name, worst in (("a", "doc-0"), ("b", "doc-5"), ("c", "doc-5")):

        def answer(one: ExampleRecord, maxlen: int, name: str = name, worst: str = worst) -> str:
            if (name, maxlen) == ("c", 200):
                return one.references[0][:10]
            return one.references[0][: 20 if one.document_id == worst else 60]

        write_run(tmp_path / name, answer, examples, documents)
        assert score([str(tmp_path / name)]) == 0

    def leads(other: str) -> list[str]:
        page = tmp_path / "page.html"
        metrics = ["--metric", "rouge1", "rouge2", "rougeL"]
        assert compare([str(tmp_path / "a"), str(tmp_path / other), *metrics, "--html", str(page)]) == 0
        return [line for line in page.read_text().splitlines() if line.startswith('<p class="lead">')]

    number = r"[-+]?\d+\.\d( to [-+]?\d+\.\d)?"
    numbers = "; ".join(rf"{metric} {number}, where {number} would show" for metric in ("R1", "R2", "RL"))
    form = (
        "<code>{}</code> is not shown to be better or worse than <code>a</code> in {} comparisons: {}; n = 8 documents"
    )
    (lead,) = leads("b")
    assert re.search(form.format("b", "all 6", numbers), lead), lead
    *settled, lead = leads("c")
    assert len(settled) == 3
    assert all(" at 200 tokens is worse than " in one for one in settled)
    assert re.search(form.format("c", "the other 3", numbers), lead), lead
