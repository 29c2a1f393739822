"""The useful length: which tests it takes, how often it is wrong in simulations, and what reports say of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from eval.leaderboard import main as leaderboard
from eval.records.schema import ExampleRecord, ExampleScore, PairedResult, UsefulLength
from eval.reporting.tables import table_of
from eval.reporting.useful_lengths import USEFUL, describe_useful, useful_cell
from eval.score import main as score
from eval.scoring.examples import Scored
from eval.scoring.profiles import PROFILES
from eval.scoring.useful import Places, find_useful, useful_lengths
from tests.helpers.records import comparison
from tests.helpers.run_folders import document, example_line, prediction_line, read_scores, run_record, write_run
from tests.helpers.useful_lengths import DRAWS, rates

SHOWN, OPEN, LOST = "shown", "open", "lost"  # of a length beside a longer one: as good; not settled; worse


def places(
    states: Mapping[tuple[int, int], str], num_lengths: int = 4, default: str = OPEN
) -> tuple[Places, list[Any]]:
    """Return what is found where a shorter length stands beside a longer one like this, and what was tested."""
    tested: list[Any] = []

    def compare(pairs: Sequence[tuple[int, int]]) -> list[PairedResult]:
        tested.append(list(pairs))
        rows = []
        for first, second in pairs:
            state = states.get((min(first, second), max(first, second)), default)
            if first < second:  # what the longer one gains
                gain = {SHOWN: 0.0, OPEN: 0.02, LOST: 0.05}[state]
                rows.append(comparison(gain, claim_low=0.03 if state == LOST else -0.05))
            else:
                rows.append(comparison(0.0, non_inferior=state == SHOWN))
        return list(rows)

    return find_useful(4, compare, 0.01), tested


def test_a_length_is_of_use_that_is_as_good_as_every_longer_one() -> None:
    assert places({}, default=SHOWN)[0] == Places(0, 0, 0)
    assert places({}, default=LOST)[0] == Places(3, 3, 3), "even the two greatest differ"
    assert places({})[0] == Places(0, 3, 3), "nothing is settled"
    found, _ = places({(0, 2): LOST, (1, 2): SHOWN, (1, 3): SHOWN, (2, 3): SHOWN})
    assert found == Places(1, 1, 1)


def test_the_first_length_that_fails_ends_the_tests() -> None:
    # The smallest would pass, but the one above it does not.
    found, tested = places({(0, 1): SHOWN, (0, 2): SHOWN, (0, 3): SHOWN, (1, 3): OPEN, (2, 3): SHOWN, (1, 2): SHOWN})
    assert found == Places(0, 0, 2)
    alone = [pairs for pairs in tested if pairs[0][0] > pairs[0][1]]
    assert alone == [[(3, 2)], [(2, 1)], [(3, 1)]], "each beside every longer one, from the greatest down"
    together = [pairs for pairs in tested if pairs not in alone]
    assert together == [[(0, 1), (0, 2), (0, 3)]], "all longer ones at one level"


def test_the_same_prompts_are_as_good_and_no_shared_example_is_not() -> None:
    same = comparison(0.0, num_examples=0, num_documents=0)
    assert find_useful(2, lambda _: [same], 0.01) == Places(0, 0, 0)
    assert find_useful(2, lambda _: [], 0.01) == Places(0, 0, 1)


def scored(scores: Mapping[int, Sequence[float]], system: str = "tiny", *, is_cut: bool = True) -> list[Scored]:
    """Return lines with these scores of documents by maxlen; the documents are cut at every length, or at none."""
    found = []
    for maxlen, values in scores.items():
        for index, value in enumerate(values):
            line = ExampleScore(
                task="plos",
                template="instruct",
                id=f"test-{index}",
                document_id=f"doc-{index}",
                maxlen=maxlen,
                system=system,
                is_truncated=is_cut,
                is_model=system == "tiny",
                metrics=dict.fromkeys(PROFILES["hf"].metrics, value),
            )
            made = prediction_line(example_line(index), maxlen, "", 1000)
            one: dict[str, Any] = {
                "prediction": made,
                "texts": [""],
                "references": [""],
                "evidence_visible": None,
                "num_words": 0,
            }
            found.append(Scored(line=line, profile="hf", **one))
    return found


def test_model_and_oracle_have_a_useful_length_each() -> None:
    flat = [0.3 + 0.002 * (index % 7) for index in range(120)]
    wavy = [value + 0.001 * (index % 3) for index, value in enumerate(flat)]
    model = scored({100: flat, 200: wavy, 400: [value - 0.01 for value in wavy]})
    oracle = scored({100: flat, 200: [0.1 + one for one in wavy], 400: [0.3 + one for one in flat]}, "visible_oracle")
    [of_model, of_oracle] = useful_lengths([*model, *oracle, *scored({100: flat, 200: flat}, "lead")])
    assert (of_model.low, of_model.observed, of_model.high) == (100, 100, 100)
    assert (of_oracle.low, of_oracle.observed, of_oracle.high) == (400, 400, 400)
    assert (of_model.kind, of_oracle.kind, of_oracle.system) == ("model", "yardstick", "visible_oracle")
    assert (of_model.lengths, of_model.num_documents, of_model.is_open) == ([100, 200, 400], 120, True)
    assert [row[0] for row in table_of(USEFUL, [of_model, of_oracle])] == ["system", "model", "visible oracle"]
    # A greater margin is what longer windows may add and still be of no use.
    assert useful_lengths(oracle, margin=0.5)[0].high == 100


def test_few_documents_have_no_interval_and_one_length_has_no_entry() -> None:
    [few] = useful_lengths(scored({100: [0.1, 0.2, 0.3, 0.4, 0.5], 200: [0.2, 0.3, 0.4, 0.5, 0.7]}))
    assert (few.low, few.observed, few.high, few.num_documents) == (None, 200, None, 5)
    assert useful_cell(few) == useful_cell(None) == "-"
    assert useful_lengths(scored({100: [0.1] * 8})) == []


def test_documents_that_fit_the_smallest_length_need_no_more() -> None:
    [fitting] = useful_lengths(scored({100: [0.1] * 8, 200: [0.1] * 8}, is_cut=False))
    assert (fitting.low, fitting.high, fitting.num_documents, fitting.is_open) == (100, 100, 0, False)
    assert useful_cell(fitting) == "100"


USEFUL_LENGTH = UsefulLength(
    task="plos",
    template="instruct",
    system="tiny",
    kind="model",
    metric="rougeLsum",
    margin=0.01,
    lengths=[1024, 2048, 4096, 8192],
    observed=2048,
    low=1024,
    high=8192,
    is_open=True,
    num_documents=46,
)


@pytest.mark.parametrize(
    ("changes", "cell", "said"),
    [
        ({}, "2,048 [1,024, 8,192+]", "1,024 to 8,192 or more tokens (observed 2,048)"),
        ({"high": 4096}, "2,048 [1,024, 4,096]", "1,024 to 4,096 tokens (observed 2,048)"),
        ({"low": 8192, "observed": 8192}, "8,192+", "8,192 or more tokens"),
        ({"low": 8192, "observed": 8192, "is_open": False}, "8,192", "8,192 tokens"),
        ({"low": 2048, "high": 2048}, "2,048", "2,048 tokens"),
    ],
)
def test_the_greatest_length_is_or_more_where_it_cuts(changes: dict[str, Any], cell: str, said: str) -> None:
    one = replace(USEFUL_LENGTH, **changes)
    assert useful_cell(one) == cell
    assert describe_useful([one]) == f"Useful length, margin 1, 95%: {said}."
    oracle = replace(USEFUL_LENGTH, kind="yardstick", system="visible_oracle", low=8192, observed=8192)
    assert describe_useful([one, oracle]).endswith("; of the visible oracle 8,192 or more tokens.")
    assert describe_useful([oracle]) == describe_useful([replace(one, low=None, high=None), oracle]) == ""


@pytest.mark.usefixtures("no_plots")
def test_reports_and_leaderboards_have_it_and_folders_without_it_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers of forty documents gain nothing, and what the window shows does."""

    def answer(example: ExampleRecord, maxlen: int) -> str:
        words = example.references[0].split()
        return " ".join(words[: 9 if int(example.id.rpartition("-")[2]) % 9 or maxlen == 100 else 8])

    examples = [example_line(index) for index in range(40)]
    documents = {f"doc-{index}": document(index, 20) for index in range(40)}
    for name in ("new", "old"):
        write_run(tmp_path / "runs" / name, answer, examples, documents, run_record(lengths=(100, 400)))
        assert score([str(tmp_path / "runs" / name), "--margin", "0.05", "--full"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        useful = read_scores(tmp_path / "runs" / name).useful_lengths
        assert useful is not None
        assert [(one.kind, one.margin, one.lengths) for one in useful] == [
            ("model", 0.05, [100, 400]),
            ("yardstick", 0.05, [100, 400]),
        ]
        assert useful[0].high == 100, "the answers are shown to gain nothing"
        assert useful[1].low == 400, "what is shown is worth more"
        oracle = "of the visible oracle 400 or more tokens."
        assert f"Useful length, margin 5, 95%: 100 tokens; {oracle}" in printed
        report = (tmp_path / "runs" / name / "report.md").read_text()
        assert "### Useful length: plos, template instruct" in report
        assert "| model | 40 | 5 | 100 |" in report
        assert "Useful length, margin 5" in (tmp_path / "runs" / name / "report.html").read_text()
    file = tmp_path / "runs" / "old" / "scores.json"  # as earlier versions wrote it
    file.write_text(json.dumps({key: one for key, one in json.loads(file.read_text()).items() if "useful" not in key}))
    assert leaderboard([str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert "useful length" in printed
    assert "Useful lengths have the margin under which a run was scored, which is not 1 in new: 5." in printed
    board = (tmp_path / "runs" / "leaderboard" / "leaderboard.md").read_text()
    assert {row["useful length"] for row in table_in(board) if row["run"] == "`new`"} == {"100"}
    assert {row["useful length"] for row in table_in(board) if row["run"] == "`old`"} == {"-"}
    rows = list(csv.DictReader((tmp_path / "runs" / "leaderboard" / "leaderboard.csv").open()))
    assert {(row["run"], row["useful_length_high_tokens"]) for row in rows} == {("new", "100"), ("old", "")}
    assert "useful length" in (tmp_path / "runs" / "leaderboard" / "leaderboard.html").read_text()


def table_in(markdown: str) -> list[dict[str, str]]:
    """Return the rows of the first table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


# Where a length loses just the margin to a longer one, both ends are wrong in one case of forty at most.
IN_THE_GATE = [
    ("near normal", "goes on", 20),
    ("the worse collapses", "goes on", 20),
    ("near normal", "saturates", 100),
]
CASES = [pytest.param(*case, 24) for case in IN_THE_GATE]
CASES += [
    pytest.param(name, curve, num_documents, 200, marks=pytest.mark.nightly)
    for name in DRAWS
    for curve in ("goes on", "saturates", "rises late")
    for num_documents in (10, 20, 50, 200, 400)
]


@pytest.mark.parametrize(("name", "curve", "num_documents", "count"), CASES)
def test_useful_lengths_are_hardly_ever_wrong(name: str, curve: str, num_documents: int, count: int) -> None:
    found = rates(name, curve, num_documents, count)
    most = float(scipy.stats.binom.ppf(0.999, count, 0.025)) / count
    assert found.too_short <= most
    assert found.too_long <= most


@pytest.mark.parametrize(("num_documents", "count"), [(150, 24), pytest.param(200, 200, marks=pytest.mark.nightly)])
def test_useful_lengths_are_found_with_enough_documents(num_documents: int, count: int) -> None:
    rising = rates("near normal", "rises late", num_documents, count)
    assert rising.lows[-1] > 0.9, "that even the two greatest lengths differ is shown"
    saturating = rates("near normal", "saturates", num_documents, count)
    assert saturating.lows[0] < 0.1, "the smallest loses six points"
    assert saturating.highs[2] > 0.3, "the third is as good as the fourth"
