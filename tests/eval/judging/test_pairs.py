"""Which of two answers a judge prefers: both orders, its liking for a place, and replies that cannot be read."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.judge import main
from eval.judging.judge import open_judge
from eval.judging.pairs import Pair, PairJudge, PairSummary, summarize_pairs
from eval.records.schema import ExampleRecord
from tests.eval.judging.conftest import Write, between, looks, prompt_of
from tests.helpers.engine_faults import Call
from tests.helpers.engine_standin import EngineStandIn
from tests.helpers.run_folders import example_line, sentence, write_run

NUM_PAIRS = 200


def pair(number: int, first: str, second: str) -> Pair:
    return Pair(
        id=f"example-{number}",
        unit=("document", f"doc-{number}"),
        query=None,
        references=(f"Reference {number} tells of rivers and stones.",),
        document=f"The secret document {number}.",
        first=first,
        second=second,
    )


GOOD, BAD = "rivers and stones", "cats and dogs"
LONGER_GOOD = f"{GOOD} forever"
# The second is better in three of four, and the better one is longer in half of all.
PAIRS = [
    pair(number, GOOD if number % 8 else LONGER_GOOD, BAD)
    if number % 4 == 0
    else pair(number, BAD, GOOD if number % 2 else LONGER_GOOD)
    for number in range(NUM_PAIRS)
]


def judged(file: Path, pairs: list[Pair], **settings: bool) -> PairSummary:
    judge = PairJudge(file, **settings)
    with judge.replies:
        return summarize_pairs(judge.judge(pairs))


def likes_the_first(share: float, call: Call) -> str:
    """Return the first place for a share of prompts, and else what is right."""
    return '{"better": "1"}' if zlib.crc32(prompt_of(call).encode()) % 1000 < 1000 * share else looks(call)


def test_each_pair_is_asked_in_both_orders_and_the_better_answer_wins(server: EngineStandIn, write: Write) -> None:
    found = judged(write("pairwise"), PAIRS[:8])
    assert found.preference is not None
    assert found.preference.mean == 0.75
    assert (found.agreement, found.unread, found.num_replies) == (1.0, {}, 16)
    assert found.first_place is not None
    assert found.first_place.mean == 0.5
    firsts = [between(prompt_of(call), "<answer_1>", "</answer_1>") for call in server.asked]
    assert sum(text.startswith(GOOD) for text in firsts) == 8


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_a_planted_liking_for_the_first_place_is_measured_and_cancels(
    share: float, server: EngineStandIn, write: Write
) -> None:
    server.says = lambda call: likes_the_first(share, call)
    found = judged(write("pairwise"), PAIRS)
    assert found.first_place is not None
    assert found.preference is not None
    # It names the first place where it likes it, and in half of the others.
    assert found.first_place.mean == pytest.approx((1 + share) / 2, abs=0.05)
    assert found.preference.mean == pytest.approx(0.5 + 0.25 * (1 - share), abs=0.05)
    assert found.agreement == pytest.approx(1 - share, abs=0.07)
    if share:
        assert found.first_place.low is not None
        assert found.first_place.low > 0.5


def test_a_judge_that_always_names_the_first_place_prefers_nobody(server: EngineStandIn, write: Write) -> None:
    server.says = lambda call: '{"better": "1"}'
    found = judged(write("pairwise"), PAIRS[:12])
    assert found.preference is not None
    assert found.first_place is not None
    assert (found.preference.mean, found.first_place.mean, found.agreement) == (0.5, 1.0, 0.0)


def test_a_liking_for_the_longer_answer_is_measured(server: EngineStandIn, write: Write) -> None:
    def longer(call: Call) -> str:
        first, second = (between(prompt_of(call), f"<answer_{place}>", f"</answer_{place}>") for place in (1, 2))
        return json.dumps({"better": "1" if len(first.split()) > len(second.split()) else "2"})

    server.says = longer
    found = judged(write("pairwise"), PAIRS)
    assert found.longer is not None
    assert found.longer.mean == 1.0
    assert found.num_judged == NUM_PAIRS


def test_a_pair_that_is_read_in_one_order_alone_has_no_preference(server: EngineStandIn, write: Write) -> None:
    server.says = lambda call: (
        "I cannot." if "1" in between(prompt_of(call), "<answer_1>", "</answer_1>") else looks(call)
    )
    pairs = [pair(0, "stones 1", BAD), pair(2, GOOD, BAD)]
    found = judged(write("pairwise"), pairs)
    assert (found.num_pairs, found.num_judged, found.unread) == (2, 1, {"no JSON": 1})
    assert found.preference is not None
    assert found.preference.mean == 0.0


def test_answers_that_are_alike_tie_and_are_not_asked_about(server: EngineStandIn, write: Write) -> None:
    found = judged(write("pairwise"), [pair(0, GOOD, f" {GOOD}\n"), pair(1, BAD, GOOD)])
    assert (found.num_alike, len(server.asked)) == (1, 2)
    assert found.preference is not None
    assert found.preference.mean == 0.75
    assert found.agreement == 1.0


def test_repeats_tell_how_far_preferences_change(server: EngineStandIn, write: Write) -> None:
    server.says = lambda call: '{"better": "tie"}' if call.body["seed"] else looks(call)
    found = judged(write("pairwise", repeats=2), [pair(0, BAD, GOOD)])
    assert found.preference is not None
    assert found.preference.mean == 0.75
    assert found.spread == pytest.approx(0.5**0.5 / 2)


def test_documents_are_shown_where_the_prompt_has_them_and_that_is_allowed(
    server: EngineStandIn, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("<answer_1>\n{first}\n</answer_1> <answer_2>\n{second}\n</answer_2> {document}")
    file = write("pairwise", prompt="mine.txt")
    with pytest.raises(UserError, match="--judge-may-see-documents"):
        judged(file, PAIRS[:1])
    judged(file, PAIRS[:1], may_see_documents=True)
    assert "The secret document 0." in prompt_of(server.asked[0])


def test_a_judge_of_single_answers_is_no_judge_of_pairs(write: Write) -> None:
    with pytest.raises(UserError, match="mode key-points; two runs need one of mode pairwise"):
        PairJudge(write())
    with pytest.raises(UserError, match=r"eval.judge RUN_A RUN_B --judge"):
        open_judge(str(write("pairwise")))


# The command


def right(example: ExampleRecord, maxlen: int) -> str:
    return example.references[0] if maxlen == 200 else sentence(int(example.id.partition("-")[2]))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Return two runs; the second says its references at both lengths, the first at the greater one."""
    write_run(tmp_path / "a", right)
    write_run(tmp_path / "b", lambda example, maxlen: example.references[0])
    return [str(tmp_path / name) for name in ("a", "b")]


def test_two_runs_are_compared_at_each_length(
    runs: list[str], write: Write, capsys: pytest.CaptureFixture[str], server: EngineStandIn
) -> None:
    file = write("pairwise", prices={"prompt": 1, "completion": 1})
    command = [*runs, "--judge", str(file)]
    assert main(command) == 0
    out = capsys.readouterr().out
    short, same = (next(line for line in out.splitlines() if f"instruct, {maxlen}" in line) for maxlen in (100, 200))
    assert " 100.0 " in f"{short} "
    assert " 50.0 " in f"{same} "
    assert "6 pairs" in out  # alike
    assert "asked now: 12" in out
    assert "USD" in out
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(server.asked) == 12
    assert [one["preference"]["mean"] for one in content["comparisons"]] == [1.0, 0.5]
    assert content["comparisons"][0]["price"] > 0
    assert content["comparisons"][0]["examples"][0]["choices"] == [["second", "second"]]
    assert content["judge"]["model"] == "tiny-instruct"


def test_a_question_is_paid_for_once(
    tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str], server: EngineStandIn
) -> None:
    write_run(tmp_path / "a", lambda example, maxlen: "Wrong at every length.")
    write_run(tmp_path / "b", lambda example, maxlen: example.references[0])
    file = write("pairwise", prices={"prompt": 1, "completion": 1})
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--judge", str(file), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    short, long = (one["price"] for one in content["comparisons"])
    assert len(server.asked) == 12
    assert content["price"] == short == long > 0


def test_two_lengths_of_one_run_are_compared(runs: list[str], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    command = [runs[0], runs[0], "--judge", str(write("pairwise")), "--maxlen-a", "100", "--maxlen-b", "200"]
    assert main([*command, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["comparisons"]
    assert (row["maxlen_a"], row["maxlen_b"], row["preference"]["mean"]) == (100, 200, 1.0)


def test_runs_that_do_not_belong_together_are_refused(
    runs: list[str], write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write("pairwise")
    others = [example_line(index, references=["Something else."]) for index in range(6)]
    write_run(tmp_path / "c", right, others)
    for folder, more, message in (
        (tmp_path / "c", [], "has another references in"),
        (runs[1], ["--maxlen-a", "300"], "plos instruct 100, plos instruct 200"),
        (tmp_path / "nowhere", [], "holds no run"),
    ):
        assert main([runs[0], str(folder), "--judge", str(file), *more]) == 2
        assert message in capsys.readouterr().err
