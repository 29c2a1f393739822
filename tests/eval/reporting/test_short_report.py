"""A finished run prints one table, what it means in a line, what is wrong, and where its page is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.records.read_run import RunInputs
from eval.records.schema import Baselines, Compared, Comparison, Estimate, Result, RunRecord, Scores
from eval.reporting.checks import checks_of
from eval.reporting.finding import meanings
from eval.reporting.short_report import render_short, score_table
from eval.score import main as score
from eval.scoring.profiles import PROFILES
from tests.helpers.records import comparison, result
from tests.helpers.run_folders import run_record, with_task, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

LENGTHS = (1024, 8192)
TWO = {"num_examples": 2, "num_documents": 2, "low": None, "high": None, "detectable": None}

OPEN = "20 documents without a collapse leave collapses of up to 14% of documents open"
TOO_FEW = "no difference could be shown with so few documents (7 could)"


def scores_of(results: list[Result], comparisons: list[Comparison], words: int = 100) -> Scores:
    return Scores(
        profiles={"plos": "hf"},
        scoring_version=2,
        predictions="0",
        example_scores="0",
        yardsticks={"plos": Baselines(word_budget=words, objective="ROUGE", common_answer=None)},
        results=results,
        comparisons=comparisons,
    )


def inputs_of(record: RunRecord, **changes: Any) -> RunInputs:
    made = RunInputs(record=record, predictions=[], examples=[], documents=[], num_absent=0, notes=["Not shown."])
    return replace(made, **changes)


RESULTS = [
    made
    for maxlen, mean in zip(LENGTHS, (0.3, 0.25), strict=True)
    for made in (
        result("tiny", maxlen, mean),
        result("lead", maxlen, 0.25, kind="yardstick", cost=None),
        result("visible_oracle", maxlen, 0.55, kind="yardstick", cost=None),
        result("matched_oracle", maxlen, 0.5, kind="yardstick", cost=None),
        result("matched_lead", maxlen, 0.2, kind="yardstick", cost=None),
    )
]


@pytest.mark.parametrize(
    ("changes", "claim", "numbers"),
    [
        (
            {"difference": 0.051, "low": 0.02, "high": 0.083, "p_corrected": 0.003},
            "better than 1,024",
            "RLsum +5.1 [+2.0, +8.3], n = 20 documents",
        ),
        (
            {"difference": -0.051, "low": -0.083, "high": -0.02, "p_corrected": 0.003},
            "worse than 1,024",
            "RLsum -5.1 [-8.3, -2.0], n = 20 documents",
        ),
        (
            {"difference": -0.004, "low": -0.006, "high": -0.002, "p_corrected": 0.003, "non_inferior": True},
            "worse than 1,024, by less than the margin of 1",
            "RLsum -0.4 [-0.6, -0.2], n = 20 documents",
        ),
        (
            {"difference": 0.001, "low": -0.002, "high": 0.004, "non_inferior": True},
            "at least as good as 1,024, within the margin of 1",
            f"RLsum +0.1 [-0.2, +0.4], n = 20 documents; {OPEN}",
        ),
        (
            {"difference": -0.05, "low": -0.23, "high": 0.13, "num_examples": 40},
            "not shown to be better or worse than 1,024",
            "RLsum -5.0 [-23.0, +13.0], n = 40 examples about 20 documents; so many would show a difference of 7.0",
        ),
        (
            {"difference": -0.177, **TWO},
            "not shown to be better or worse than 1,024",
            "RLsum -17.7, n = 2 documents, no interval with fewer than 6",
        ),
        (
            {
                "difference": -0.2,
                "low": -0.3,
                "high": -0.1,
                "p_corrected": 0.06,
                "detectable": None,
                "needs_documents": 7,
            },
            "not shown to be better or worse than 1,024",
            f"RLsum -20.0 [-30.0, -10.0], n = 20 documents; {TOO_FEW}",
        ),
        (
            {"difference": 0.0, "low": None, "high": None, "detectable": None},
            "not shown to be better or worse than 1,024",
            "RLsum +0.0, n = 20 documents, no interval",
        ),
    ],
)
def test_a_line_says_what_the_greatest_length_does(changes: dict[str, Any], claim: str, numbers: str) -> None:
    record = run_record(lengths=LENGTHS)
    lines = list(meanings(record, scores_of(RESULTS, [comparison(**changes)])))
    assert lines == [f"8,192 tokens are {claim}: {numbers}."]


def test_the_ends_are_compared_and_not_the_steps_between_them() -> None:
    results = [result("tiny", maxlen, 0.2) for maxlen in (1024, 2048, 8192)]
    steps = [
        comparison(1.0, first=Compared(template="instruct", maxlen=a), second=Compared(template="instruct", maxlen=b))
        for a, b in ((1024, 2048), (2048, 8192))
    ]
    record = run_record(lengths=(1024, 2048, 8192))
    cut = comparison(2.0, subset="always_truncated")
    (line,) = meanings(record, scores_of(results, [*steps, comparison(-0.05), cut]))
    assert "RLsum -5.0" in line


def test_a_single_length_stands_beside_the_lead() -> None:
    (line,) = meanings(run_record(lengths=LENGTHS[:1]), scores_of(RESULTS[:5], []))
    assert line == (
        "One length, so nothing is compared: RLsum 30.00 [28.0, 32.0] beside 20.00 of the lead of as many words (not "
        "tested), n = 20 documents."
    )


def test_templates_are_compared_at_the_greatest_length() -> None:
    record = run_record(lengths=LENGTHS)
    (template,) = record.tasks["plos"].templates.values()
    record = with_task(record, templates={"instruct": template, "plain": template})
    results = [*RESULTS, *(replace(one, template="plain") for one in RESULTS)]
    between = [
        comparison(
            0.1,
            first=Compared(template="instruct", maxlen=maxlen),
            second=Compared(template="plain", maxlen=maxlen),
        )
        for maxlen in LENGTHS
    ]
    lines = list(meanings(record, scores_of(results, between)))
    expected = "Template plain at 8,192 tokens is not shown to be better or worse than instruct: RLsum +10.0"
    assert lines[-1].startswith(expected)
    table = score_table([one for one in results if one.kind == "model"], results)
    assert [row[0] for row in table] == ["template", "instruct", "instruct", "plain", "plain"]


def test_the_table_has_a_row_a_length_with_baselines_beside_the_model() -> None:
    table = score_table([one for one in RESULTS if one.kind == "model"], RESULTS)
    assert table == [
        ["maxlen", "n", "words", "by length", "RLsum", "oracle", "lead"],
        ["1,024", "20", "95", "5%", "30.00 [28.0, 32.0]", "50.00", "20.00"],
        ["8,192", "20", "95", "5%", "25.00 [23.0, 27.0]", "50.00", "20.00"],
    ]


def test_other_metrics_are_shown_where_the_table_stays_narrow() -> None:
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    metrics = dict.fromkeys(names, Estimate(mean=0.3, low=0.2, high=0.4))
    results = [replace(one, metrics=metrics) for one in RESULTS]
    models = [one for one in results if one.kind == "model"]
    start = ["maxlen", "n", "words", "by length", "RLsum"]
    assert score_table(models, results)[0] == [*start, "R1", "R2°", "RL", "oracle", "lead"]
    long = [replace(one, template="a template with a long name" * (one.maxlen > 1024)) for one in models]
    assert score_table(long, results)[0] == ["template", *start, "oracle", "lead"]


def test_what_people_were_not_seen_to_agree_with_is_marked() -> None:
    def printed(profile: str, metric: str) -> str:
        metrics = {metric: Estimate(mean=0.3, low=0.2, high=0.4)}
        results = [replace(one, profile=profile, metrics=metrics) for one in RESULTS]
        found = [replace(comparison(0.1), metric=metric)]
        text = render_short(inputs_of(run_record(lengths=LENGTHS, profile=profile)), scores_of(results, found))
        return " ".join(text.split())

    marked = printed("longbench", "rougeL")
    assert "; °: not seen to agree with people maxlen n words by length RL° oracle lead " in marked
    assert "°" not in printed("hf", "rougeLsum"), "and no legend without a mark"


def test_a_mark_stands_at_the_task_whose_metric_it_is_of() -> None:
    results = []
    for task, profile, metric in (("plos", "hf", "rougeLsum"), ("qmsum", "longbench", "rougeL")):
        metrics = {metric: Estimate(mean=0.3, low=0.2, high=0.4)}
        results += [replace(one, task=task, profile=profile, metrics=metrics) for one in RESULTS]
    table = score_table([one for one in results if one.kind == "model"], results)
    place = table[0].index("metric")
    assert [row[place] for row in table[1:]] == ["RLsum", "RLsum", "RL°", "RL°"]


def test_a_column_stands_for_what_the_profiles_of_all_tasks_have() -> None:
    results = []
    estimate = Estimate(mean=0.3, low=0.2, high=0.4)
    for task, profile in (("qa", "helmet_answer"), ("cases", "helmet_summary")):
        metrics = dict.fromkeys(PROFILES[profile].listed, estimate)
        results += [replace(one, task=task, profile=profile, metrics=metrics) for one in RESULTS]
    table = score_table([one for one in results if one.kind == "model"], results)
    assert "RL recall" in table[0]
    assert "F1" not in table[0]


def test_only_what_is_wrong_is_said_below() -> None:
    record = run_record(lengths=LENGTHS)
    scores = scores_of(RESULTS, [comparison(-0.05)])
    fine = render_short(inputs_of(record), scores)
    assert "Not shown." not in fine
    assert len(fine.splitlines()) <= 8
    record = with_task(record, rows={"num_bad": 2, "bad": ["line 3: no 'output'"]})
    broken = render_short(inputs_of(record, num_absent=7, dropped="lines dropped from the journal: 1 torn"), scores)
    added = [line for line in broken.splitlines() if line not in fine.splitlines()]
    assert added == [
        "Check before you trust this:",
        "- Not there yet: 7 predictions of a run that was interrupted.",
        "- 2 rows of plos could not be used and were skipped; the report names the first.",
        "- Lines dropped from the journal: 1 torn.",
    ]
    assert fine.splitlines()[-1] == broken.splitlines()[-1], "the verdict is last"
    assert max(map(len, broken.splitlines())) <= 100


def test_a_table_without_summaries_has_the_oracle_that_takes_as_many_sentences_as_help() -> None:
    of_answers = [one for one in RESULTS if one.system != "matched_oracle"]
    table = score_table([one for one in of_answers if one.kind == "model"], of_answers)
    assert table[0][-2:] == ["visible oracle", "lead"]
    assert table[1][-2:] == ["55.00", "20.00"]


@pytest.mark.parametrize(
    ("ended", "words", "said"),
    [
        ((4, 4), 100, None),  # a fifth of 20 is not more than a fifth
        ((5, 0), 100, "Answers of plos, template instruct, used up their room (25% at 1,024)"),
        ((5, 20), 100, "used up their room (25 to 100% at every length), so their beginnings are scored."),
        ((0, 0), 142, None),
        ((0, 0), 143, "of another length than references (95 words at every length, against 143, in the median)"),
        ((0, 0), 63, "(95 words at every length, against 63, in the median)"),
        ((None, None), 100, None),  # folders of earlier versions do not say
    ],
)
def test_lengths_that_decide_scores_are_a_warning(
    ended: tuple[int | None, int | None], words: int, said: str | None
) -> None:
    counts = dict(zip(LENGTHS, ended, strict=True))
    results = [replace(one, num_ended_by_length=counts[one.maxlen]) for one in RESULTS]
    checks = checks_of(scores_of(results, [], words))["plos"]
    assert len(checks) == (said is not None)
    assert said is None or said in checks[0].text
    printed = " ".join(render_short(inputs_of(run_record(lengths=LENGTHS)), scores_of(results, [], words)).split())
    assert said is None or said in printed


def test_the_path_of_the_page_is_last_and_the_full_form_has_all_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, lambda line, maxlen: line.references[0][: maxlen // 2])
    assert score([str(tmp_path)]) == 0
    short = capsys.readouterr().out
    assert short.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "attn TFLOP" not in short
    assert score([str(tmp_path), "--full"]) == 0
    full = " ".join(capsys.readouterr().out.split())
    for part in (
        "attn TFLOP",
        "Comparisons: plos",
        "wins/ties/losses",
        "visible oracle",
        "Prefilled",
    ):
        assert part in full
    assert "permutation of whole" not in full
    assert score([str(tmp_path), "--explain"]) == 0
    assert "permutation of whole" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        score(["--predictions", "a", "--references", "b", "--full"])
    assert "--full is for the folder of a run" in capsys.readouterr().err


def test_lengths_without_a_common_example_are_not_compared() -> None:
    (line,) = meanings(run_record(lengths=LENGTHS), scores_of(RESULTS, []))
    assert line == "8,192 and 1,024 tokens have no example in common, so nothing is compared."
