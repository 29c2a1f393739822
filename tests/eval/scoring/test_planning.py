"""Plans reach their goal in simulations, and take the cheapest of documents and samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.errors import UserError
from eval.plan import main
from eval.records.schema import ExampleScore, Sample
from eval.score import main as score
from eval.scoring.claims import compare_paired
from eval.scoring.noise import spread_of
from eval.scoring.pilots import costs_of, pilots_of
from eval.scoring.planning import Costs, Goal, Pilot, plans_of
from tests.helpers.run_folders import document, example_line, prediction_line, run_record, sentence, write_run

SPREAD = 0.06


def pilot(num_documents: int = 4000, num_samples: int = 1, *, noise: float = 0.0) -> Pilot:
    """Return differences of this spread between documents, and of samples, so many that chance hardly matters."""
    rng = np.random.default_rng(0)
    values = SPREAD * rng.standard_normal((num_documents, 1)) + noise * rng.standard_normal(
        (num_documents, num_samples)
    )
    return Pilot(name="x", lengths=(1, 2), values=values, documents=range(num_documents), collapse=0.4)


def costs(prefill: float = 1.0, decode: float = 1.0) -> Costs:
    return Costs(prefill={1: prefill / 2, 2: prefill}, decode={1: decode / 2, 2: decode / 2}, shared=1.0)


def test_as_many_documents_as_planned_reach_the_goal() -> None:
    rng = np.random.default_rng(1)
    [shown] = plans_of([pilot()], costs(), Goal(difference=0.03), 1)
    assert shown.num_documents == 34  # of a paired t test, from a table
    [as_good] = plans_of([pilot()], costs(), Goal(margin=0.03, power=0.8), 1)
    count, found = 60, {"difference": 0, "as good": 0}
    for name, plan, true in (("difference", shown, 0.03), ("as good", as_good, 0.0)):
        assert plan.num_documents is not None
        for _ in range(count):
            first = 0.3 + 0.03 * rng.standard_normal(plan.num_documents).clip(-3, 3)
            gains = true + SPREAD * rng.standard_normal(plan.num_documents)
            second = (first + gains).clip(0, 1)
            result = compare_paired(
                first, second, range(plan.num_documents), 0.03, num_resamples=300, num_exchanges=999
            )
            found[name] += result.non_inferior if name == "as good" else (result.p_value or 1) < 0.05
    assert found["difference"] / count == pytest.approx(0.8, abs=0.15)
    assert found["as good"] / count == pytest.approx(0.8, abs=0.15)
    [width] = plans_of([pilot()], costs(), Goal(width=0.02), 1)
    assert width.num_documents is not None
    assert 2 * 1.96 * SPREAD / np.sqrt(width.num_documents) == pytest.approx(0.02, rel=0.03)


def test_samples_are_taken_where_they_are_cheaper_than_documents() -> None:
    noisy = pilot(num_samples=4, noise=SPREAD)
    apart, added = spread_of(noisy.values, noisy.documents)
    assert (apart, added) == (pytest.approx(SPREAD**2, rel=0.1), pytest.approx(SPREAD**2, rel=0.1))
    [cheap] = plans_of([noisy], costs(prefill=8, decode=1), Goal(difference=0.02), 8)
    [dear] = plans_of([noisy], costs(prefill=0.1, decode=1), Goal(difference=0.02), 8)
    # The cost of D documents is D (prefill + K decode), and D goes with 1 + 1 / K: K is the root of their ratio.
    assert (cheap.num_samples, dear.num_samples) == (3, 1)
    assert cheap.num_documents is not None
    assert dear.num_documents is not None
    assert cheap.num_documents == pytest.approx(dear.num_documents * (1 + 1 / 3) / 2, rel=0.03)
    assert cheap.seconds == pytest.approx(cheap.num_documents * (8 + 3))
    [alone] = plans_of([pilot()], costs(prefill=8), Goal(difference=0.02), 8)
    assert (alone.num_samples, alone.of_samples) == (1, None)


def test_a_small_pilot_leaves_more_open() -> None:
    plans = [next(iter(plans_of([pilot(count)], costs(), Goal(difference=0.02), 1))) for count in (6, 4000)]
    ratios = [(plan.at_most or 0) / (plan.num_documents or 1) for plan in plans]
    assert ratios[0] > 1.8
    assert ratios[1] < 1.05


def test_no_plan_is_below_what_has_an_interval() -> None:
    for goal in (Goal(difference=0.5), Goal(width=0.9), Goal(margin=0.9)):
        [plan] = plans_of([pilot()], costs(), goal, 1)
        assert (plan.num_documents, plan.num_drawn) == (6, 6)
    constant = replace(pilot(), values=np.full((4000, 1), 0.1))
    assert next(iter(plans_of([constant], costs(), Goal(difference=0.01), 1))).num_documents == 6


def test_documents_that_a_row_leaves_out_are_drawn_and_paid_too() -> None:
    whole, part = pilot(), replace(pilot(), share=0.25, per_unit=3)
    [first], [second] = (list(plans_of([one], costs(), Goal(difference=0.03), 1)) for one in (whole, part))
    assert (first.num_documents, first.num_drawn) == (34, 34)
    assert (second.num_documents, second.num_drawn) == (34, 34 * 4 * 3)
    assert first.seconds is not None
    assert second.seconds == pytest.approx(4 * first.seconds)  # the seconds of a unit are those of all its documents


def line(index: int, *, is_truncated: bool) -> ExampleScore:
    """Return a score of one document of three in a cluster."""
    return ExampleScore(
        task="t",
        template="instruct",
        id=f"test-{index}",
        document_id=f"doc-{index}",
        cluster_id=f"book-{index // 3}",
        maxlen=100,
        system="model",
        is_truncated=is_truncated,
        is_model=True,
        metrics={"rouge1": 0.1 * (index % 7)},
    )


def test_a_pilot_tells_which_share_of_its_documents_a_row_uses() -> None:
    # Of eight clusters both lengths show four whole.
    short = {f"test-{index}": line(index, is_truncated=index >= 12) for index in range(24)}
    long = {f"test-{index}": line(index, is_truncated=False) for index in range(24)}
    low, high, between = pilots_of({100: short, 200: long}, "hf", "rouge1", None, has_means=True)
    assert [(one.share, one.per_unit) for one in (low, high, between)] == [(1, 3), (1, 3), (0.5, 3)]


def test_another_run_may_lack_examples_of_a_length() -> None:
    lines = {f"test-{index}": line(index, is_truncated=True) for index in range(12)}
    most = {name: of for name, of in lines.items() if name != "test-4"}
    [found] = pilots_of({100: lines}, "hf", "rouge1", {100: most}, has_means=False)
    assert len(found.values) == 11
    for num_left in (0, 6):
        few = dict(list(lines.items())[:num_left])
        with pytest.raises(UserError, match=f"R1 at 100: a spread takes at least 3 documents, and {num_left // 3} can"):
            pilots_of({100: lines}, "hf", "rouge1", {100: few}, has_means=False)


def test_what_cannot_be_reached_has_no_number() -> None:
    [plan] = plans_of([pilot()], costs(), Goal(difference=1e-6), 1)
    assert (plan.num_documents, plan.at_most, plan.seconds) == (None, None, None)
    [free] = plans_of([pilot()], Costs(prefill=None, decode=None, shared=None), Goal(difference=0.03), 1)
    assert (free.num_documents, free.seconds) == (34, None)


def test_costs_are_those_of_lengths_that_share_their_beginnings() -> None:
    examples = [example_line(index) for index in range(4)]
    units = {one.id: one.unit for one in examples}

    def lines(*, has_shared: bool, num_samples: int = 1) -> Costs:
        made = []
        for example in examples:
            for maxlen, seconds in ((100, 1.0), (200, 2.0)):
                line = prediction_line(example, maxlen, "x", 1000, prefill_seconds=seconds, seconds=seconds + 0.5)
                line = replace(line, prefilled_tokens=100 if has_shared else maxlen)
                answer = Sample(text="x", num_generated_tokens=1, finish_reason="stop")
                made.append(replace(line, samples=[answer] * num_samples if num_samples > 1 else None))
        return costs_of(made, units)

    assert lines(has_shared=True).seconds([100, 200], 1) == pytest.approx(2 + 1)
    assert lines(has_shared=True).seconds([100], 4) == pytest.approx(1 + 4 * 0.5)
    assert lines(has_shared=False).seconds([100, 200], 1) == pytest.approx(3 + 1)
    assert lines(has_shared=True, num_samples=5).seconds([200], 5) == pytest.approx(2 + 0.5)
    unknown = prediction_line(examples[0], 100, "x", 1000, seconds=None, prefill_seconds=None)
    assert costs_of([unknown], units).seconds([100], 1) is None


@pytest.mark.usefixtures("no_plots")
def test_the_command_plans_from_a_folder_and_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("a", 0), ("b", 3)):
        write_run(tmp_path / name, lambda one, maxlen, shift=shift: sentence(int(one.id[5:]) * maxlen + shift))
        assert score([str(tmp_path / name)]) == 0
    capsys.readouterr()
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main([a, "--difference", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "RLsum, 100 to 200" in out
    assert "Cheapest: RLsum, 100 to 200, --sample " in out
    assert "--num-samples" not in out.partition("sd: ")[0]
    # Of six documents both lengths show two whole.
    assert main([a, "--difference", "0.05", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["num_pilot"] == 4
    assert row["num_drawn"] == math.ceil(row["num_documents"] * 6 / 4)
    assert row["seconds"] == pytest.approx((0.2 + 2) * row["num_documents"] * 6 / 4)
    assert f"--sample {row['num_drawn']} --maxlen 100 200" in out
    assert main([a, "--width", "0.1", "--metric", "rouge1", "--maxlen", "200", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["name"], row["lengths"], row["num_samples"]) == ("R1 at 200", [200], 1)
    # A tenth of the prompts was computed, of which each would take 2 seconds, and answers take 1.
    assert row["seconds"] == pytest.approx(1.2 * row["num_documents"])
    assert main([b, "--margin", "0.05", "--against", a]) == 0
    out = capsys.readouterr().out
    assert "RLsum at 100" in out
    assert "RLsum at 200" in out


@pytest.mark.usefixtures("no_plots")
def test_lengths_that_cut_nothing_are_told_from_a_single_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {f"doc-{index}": document(index, 3) for index in range(6)}
    for name, lengths in (("whole", (100, 200)), ("other", (300,))):
        record = run_record(lengths=lengths)
        write_run(tmp_path / name, lambda one, maxlen: one.references[0], documents=short, record=record)
        assert score([str(tmp_path / name)]) == 0
    capsys.readouterr()
    whole, other = str(tmp_path / "whole"), str(tmp_path / "other")
    assert main([whole, "--difference", "0.1"]) == 2
    assert "no length cuts a document, so none can differ; take shorter ones" in capsys.readouterr().err
    assert main([whole, "--difference", "0.1", "--against", other]) == 2
    assert f"{other} has no length in common with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--width 2", "2 must be above 0 and below 1"),
        ("", "one of the arguments --width --difference --margin is required"),
        ("--width 0.1 --metric bleu", "'bleu' is no metric of profile hf; give one of rouge1, rouge2"),
        ("--width 0.1 --maxlen 300", "has no answers of plos, instruct at 300 tokens; it has 100, 200"),
        ("--difference 0.1 --maxlen 200", "one length; a difference takes two, or --against"),
        ("--width 0.1 --max-samples 0", "--max-samples is 0; give 1 or more"),
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_what_cannot_be_planned_is_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, lambda one, maxlen: one.references[0], record=run_record())
    assert score([str(tmp_path)]) == 0
    capsys.readouterr()
    status = 0
    try:
        status = main([str(tmp_path), *words.split()])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
