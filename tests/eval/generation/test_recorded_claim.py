"""A claim that is recorded before the first answer, and whether a comparison is that claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main as compare
from eval.config.run import RunConfig
from eval.generation.backend import output_of
from eval.merge import main as merge
from eval.records.schema import ClaimRecord
from eval.run import main
from eval.score import main as score
from tests.helpers.run_folders import run_record, write_run

pytestmark = pytest.mark.usefixtures("no_plots")

AS_GOOD = ["--claim", "as-good", "--claim-metric", "rougeLsum", "--claim-margin", "0.02", "--claim-against", "none"]
AMONG_LENGTHS = ["--claim", "better", "--claim-metric", "rouge1", "--claim-against", "40", "--claim-maxlen", "80"]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Return a command without its output; answers of ten documents are their beginnings."""
    rows = [
        {"context": f"Report {index} says that river {index} rose. " + "Nothing was seen. " * 30, "target": "It rose."}
        for index in range(10)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"--engine mock --task custom --data {tmp_path / 'data.jsonl'} --maxlen 40 80 --max-new-tokens 8"
    return [*command.split(), "--no-texts", "--output"]


def record_of(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on standard error."""
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def compared(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert compare([str(word) for word in words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_claim_is_recorded_before_the_first_answer_and_kept(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "b"
    seen: list[Any] = []

    def interrupted(*_: Any) -> None:
        seen.append(record_of(folder)["claim"])
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.runtime.jobs.append_line", interrupted)
    assert main([*arguments, str(folder), *AS_GOOD]) == 130
    monkeypatch.undo()
    [claim] = seen
    recorded = claim.pop("recorded")
    expected = {"direction": "as-good", "metric": "rougeLsum", "margin": 0.02, "against": "none", "maxlen": None}
    assert claim == expected
    # The folder has no answer yet, so that another claim may take its place; then the same command goes on.
    assert main([*arguments, str(folder), *AMONG_LENGTHS]) == 0
    claim = record_of(folder)["claim"]
    assert (claim["direction"], claim["margin"], claim["maxlen"]) == ("better", None, 80)
    for command in ([*arguments, str(folder), *AMONG_LENGTHS], [*arguments, str(folder)]):
        assert main(command) == 0
        assert record_of(folder)["claim"] == claim
    assert score([str(folder)]) == 0
    assert record_of(folder)["claim"] == claim
    assert recorded <= claim["recorded"]


def test_a_claim_about_answers_that_are_there_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, claimed = tmp_path / "plain", tmp_path / "claimed"
    assert main([*arguments, str(plain)]) == 0
    assert "claim" not in record_of(plain)
    assert not any(name.startswith("claim") for name in record_of(plain)["config"])
    before = (plain / "run.json").read_bytes()
    capsys.readouterr()
    assert main([*arguments, str(plain), *AS_GOOD]) == 2
    assert said(capsys).endswith(
        "has answers already, and no claim; a claim is recorded before the first answer: leave --claim out, or give "
        "another folder with --output"
    )
    assert (plain / "run.json").read_bytes() == before
    # A journal is an answer too, as after a kill.
    (plain / "journal").mkdir()
    (plain / "predictions.jsonl").rename(plain / "journal" / "00000-x.jsonl")
    assert main([*arguments, str(plain), *AS_GOOD]) == 2
    assert "has answers already" in said(capsys)
    assert main([*arguments, str(claimed), *AS_GOOD]) == 0
    wider = ["0.05" if word == "0.02" else word for word in AS_GOOD]
    capsys.readouterr()
    assert main([*arguments, str(claimed), *wider]) == 2
    assert "has answers already, under another claim" in said(capsys)
    assert record_of(claimed)["claim"]["margin"] == 0.02
    assert main([*arguments, str(claimed), *wider, "--overwrite"]) == 0
    assert record_of(claimed)["claim"]["margin"] == 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--claim-margin 0.01", "--claim-margin is of a claim; say which with --claim as-good or better"),
        ("--claim better", "is not whole; name its --claim-metric and --claim-against"),
        ("--claim as-good --claim-metric rouge1 --claim-against full", "as-good needs a --claim-margin"),
        ("--claim better --claim-metric rouge1 --claim-against full --claim-margin 0.01", "better has none"),
        (
            "--claim better --claim-metric bleu --claim-against full",
            "bleu is none of this run's; known: rouge1, rouge2",
        ),
        ("--claim better --claim-metric rouge1 --claim-against 40", "40 is a length; give --claim-maxlen"),
        (
            f"--claim better --claim-metric rouge1 --claim-against {'9' * 5000} --claim-maxlen 80",
            "argument --claim-against: '999",
        ),
        (
            "--claim better --claim-metric rouge1 --claim-against 41 --claim-maxlen 80",
            "about 41 tokens, which --maxlen",
        ),
        ("--claim better --claim-metric rouge1 --claim-against full --claim-maxlen 90", "about 90 tokens"),
        ("--claim worse", "invalid choice: 'worse'"),
        ("--claim as-good --claim-margin 1", "at least 0 and below 1"),
    ],
)
def test_a_claim_that_is_not_whole_is_one_line(
    words: str, message: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, str(tmp_path / "run"), *words.split()]) == 2
    assert message in said(capsys)
    assert not (tmp_path / "run").exists()


def test_a_claim_is_in_no_name_of_a_folder(arguments: list[str]) -> None:
    commands = [arguments[:-1], [*arguments[:-1], *AS_GOOD], [*arguments[:-1], *AMONG_LENGTHS]]
    assert len({output_of(RunConfig.from_command_line(command)) for command in commands}) == 1


def test_a_comparison_is_the_claim_or_is_not(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert main([*arguments, str(first)]) == 0
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({"id": f"test-{index}", "text": "It rose."}) + "\n" for index in range(10)))
    assert main([*arguments, str(second), "--answers", str(answers), *AS_GOOD]) == 0
    recorded = record_of(second)["claim"]["recorded"]
    asked = [first, second, "--claim", "as-good", "--metric", "rougeLsum", "--margin", "0.02"]
    text = compared(capsys, *asked)
    assert f"Claim that B is as good in RLsum, --margin 0.02: fixed beforehand (recorded {recorded})." in text
    assert f"a loss of the margin, fixed beforehand (recorded {recorded}), is ruled out" in text
    capsys.readouterr()
    assert compare([*map(str, asked), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recorded"] == recorded
    others = {
        "another margin": [*asked[:-1], "0.03"],
        "another metric": [*asked[:5], "rouge1", *asked[6:]],
        "more metrics": [*asked[:6], "rouge1", *asked[6:]],
        "all metrics": [*asked[:4], *asked[6:]],
        "the other way": [*asked[:3], "better", *asked[4:]],
        "from the other side": [second, first, *asked[2:]],
        "one length of two": [*asked, "--maxlen-a", "80"],
        "lengths of one run": [second, second, *asked[2:], "--maxlen-a", "40", "--maxlen-b", "80"],
    }
    for what, words in others.items():
        text = compared(capsys, *words)
        assert "fixed beforehand" not in text, what
        assert "as given to this command" in text, what
    assert "recorded is another: as-good beside none in rougeLsum, --claim-margin 0.02" in text
    # Without a claim nothing is said to be fixed.
    assert "fixed beforehand" not in compared(capsys, *asked[:2], *asked[4:])
    # Another profile was chosen after looking.
    for folder in (first, second):
        assert score([str(folder), "--profile", "scrolls"]) == 0
    assert "fixed beforehand" not in compared(capsys, *asked)


@pytest.mark.parametrize(
    ("against", "first", "is_it"),
    [
        ("full", {}, True),
        ("middle:8", {}, False),
        (
            "middle:8",
            {"plan_description": "full@1 span=8 sinks=0", "config": {"plan": "middle:8", "shard": None}},
            True,
        ),
        ("full@1 span=8 sinks=0", {"plan_description": "full@1 span=8 sinks=0"}, True),
        ("tiny", {}, False),
        # The plan of another model is another thing than that of this model.
        ("full", {"identity": "other"}, False),
        ("other", {"identity": "other"}, True),
        ("100", {}, False),
    ],
)
def test_a_claim_names_the_plan_or_the_model_that_it_stands_beside(
    against: str, first: dict[str, Any], is_it: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = ClaimRecord(
        direction="as-good",
        metric="rouge1",
        margin=0.01,
        against=against,
        maxlen=None,
        recorded="2026-01-01T00:00:00+00:00",
    )
    record = run_record()
    if model := first.pop("identity", None):
        other = replace(record.identity, model=replace(record.identity.model, reference=model))
        first = first | {"identity": other}
    for name, changed in (("a", replace(record, **first)), ("b", replace(record, claim=claim))):
        write_run(tmp_path / name, lambda example, maxlen: example.references[0], record=changed)
        assert score([str(tmp_path / name)]) == 0
    asked = [tmp_path / "a", tmp_path / "b", "--claim", "as-good", "--metric", "rouge1", "--margin", "0.01"]
    assert ("fixed beforehand (recorded 2026-01-01T00:00:00+00:00)" in compared(capsys, *asked)) == is_it


def test_lengths_of_one_run_may_be_claimed(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*arguments, str(run), *AMONG_LENGTHS]) == 0
    asked = [run, run, "--claim", "better", "--metric", "rouge1", "--maxlen-a", "40", "--maxlen-b", "80"]
    assert "Claim that B is better in R1: fixed beforehand (recorded" in compared(capsys, *asked)
    assert "fixed beforehand" not in compared(capsys, *asked[:7], "80", "--maxlen-b", "40")


def test_shards_share_a_claim_or_have_none(arguments: list[str], tmp_path: Path) -> None:
    for second, expected in ((AS_GOOD, "as-good"), (AMONG_LENGTHS, None), ([], None)):
        parts = [tmp_path / f"part-{expected}-{len(second)}-{index}" for index in (1, 2)]
        for index, (part, claim) in enumerate(zip(parts, (AS_GOOD, second), strict=True), start=1):
            assert main([*arguments, str(part), "--shard", f"{index}/2", *claim]) == 0
        merged = tmp_path / f"merged-{expected}-{len(second)}"
        assert merge(["--output", str(merged), *map(str, parts)]) == 0
        assert record_of(merged).get("claim", {}).get("direction") == expected
