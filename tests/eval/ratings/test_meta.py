"""`eval.meta`: planted agreement is found, what cannot be scored is named, and doubtful metrics are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.meta import main as meta
from eval.metrics.base import Item, Metric, Scores, Value
from eval.ratings.judged import Judgements, RatedAnswer, read_judgements
from eval.ratings.measure import ProfileMetric, measure
from eval.ratings.schema import Agreement, Agreements, Shift
from eval.ratings.table import compare_shifts, length_table, set_table
from eval.scoring.profiles import PROFILES, score_prediction

HUMAN = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "human"
SYSTEMS = ("short", "long", "human")


class Planted(Metric):
    """Gives the number that is written in the text, and its opposite; needs a document or not."""

    name, version = "planted", 3
    values = {  # noqa: RUF012
        "number": Value(label="number", title="Number", low=-1e9, high=1e9),
        "cost": Value(label="cost", title="Cost", low=-1e9, high=1e9, better="lower"),
        "noise": Value(label="noise", title="Noise", low=-1e9, high=1e9, better=None),
    }

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        rows: list[Scores] = []
        for item in batch:
            number, noise = map(float, item.prediction.split())
            rows.append({"number": number, "cost": -number, "noise": noise})
        return rows


def rated(
    of: Callable[[float, float], float], num_documents: int = 14, lengths: Sequence[int | None] = (None,)
) -> Judgements:
    """Return answers of which people say `of` their number and other noise; people's own are rated highest."""
    rng = np.random.default_rng(3)
    answers = []
    for document in range(num_documents):
        for system in SYSTEMS:
            for length in lengths:
                number, noise, other = rng.normal(size=3)
                if system == "human":
                    number -= 20
                rating = of(number, other) + (100 if system == "human" else 0) + (length or 0)
                text = f"{number + (length or 0)} {noise}"
                answers.append(
                    RatedAnswer(
                        item=Item(fingerprint=f"{document}{system}{length}", prediction=text),
                        id=str(document),
                        document_id=str(document),
                        system=system,
                        length=length,
                        ratings={"overall": (rating, rating + 0.1 * noise, None)},
                    )
                )
    return Judgements(name="planted", answers=answers, headline="overall", source="", sha256="")


def found(content: Agreements, value: str) -> Agreement:
    [one] = [one for one in content.agreements if one.value == value]
    return one


def test_planted_agreement_is_found_and_noise_is_doubted() -> None:
    content = measure([rated(lambda number, other: number + 0.5 * other)], [Planted()])
    number, noise = found(content, "number"), found(content, "noise")
    assert number.within.r is not None
    assert number.within.low is not None
    assert number.within.r > 0.7
    assert number.within.low > 0.4
    assert [(one.metric, one.version, one.value) for one in content.doubted] == [("planted", 3, "noise")]
    # Answers by people are the best and have the least numbers: with them the correlation turns round.
    assert number.with_human is not None
    assert number.with_human.r is not None
    assert number.with_human.r < -0.5
    assert (number.within.num_summaries, number.with_human.num_summaries) == (28, 42)
    assert noise.within.r == pytest.approx(found(content, "noise").within.r)
    titles = [row[0] for row in set_table(content, "planted", "overall")[1:]]
    assert titles == ["one rater", "planted number", "planted cost", "planted noise°"]


def test_values_of_which_less_is_better_are_turned_round() -> None:
    content = measure([rated(lambda number, other: number + other)], [Planted()])
    assert found(content, "cost").within == found(content, "number").within
    against = measure([rated(lambda number, other: other / 3 - number)], [Planted()])
    assert found(against, "number").within.high is not None
    assert found(against, "number").within.high < 0
    doubted = {one.value for one in against.doubted}
    assert {"number", "cost"} <= doubted  # that they agree is not seen: they say the opposite


def test_the_rating_of_one_rater_is_compared_with_the_others() -> None:
    content = measure([rated(lambda number, other: other)], [])
    people = found(content, "rater")
    assert people.within.num_summaries == 2 * 28
    assert people.within.r is not None
    assert people.within.r > 0.9


def test_what_length_does_to_people_and_to_the_metric_is_compared() -> None:
    content = measure([rated(lambda number, other: other, lengths=(10, 30))], [Planted()])
    [effect] = found(content, "number").lengths
    assert (effect.shortest, effect.longest, effect.num_pairs) == (10, 30, 28)
    # Both rise by 20 with length, in standard deviations of about 1.
    assert effect.people.mean == pytest.approx(20, rel=0.4)
    assert effect.metric.mean == pytest.approx(20, rel=0.4)
    [noise] = found(content, "noise").lengths
    assert abs(noise.metric.mean) < 1
    verdicts = {row[0]: row[4] for row in length_table(content, "planted", "overall")[1:]}
    # Of two costs that rise, the sign is turned round: cost falls as people's ratings rise, so both say the same.
    assert verdicts == {"planted number": "same", "planted cost": "same", "planted noise": "sees nothing"}


@pytest.mark.parametrize(
    ("people", "metric", "describes", "expected"),
    [
        ((1, 3), (1, 3), False, "same"),
        ((1, 3), (-3, -1), False, "opposite"),
        ((1, 3), (-3, -1), True, "falls"),
        ((-1, 3), (1, 3), False, "not settled"),
        ((1, 3), (-1, 3), False, "sees nothing"),
    ],
)
def test_verdicts_on_length_need_intervals_without_0(
    people: tuple[float, float], metric: tuple[float, float], describes: bool, expected: str
) -> None:
    first, second = (Shift(mean=1, low=low, high=high) for low, high in (people, metric))
    assert compare_shifts(first, second, describes=describes) == expected


def test_a_metric_that_needs_what_a_set_lacks_is_skipped_by_name() -> None:
    content = measure([rated(lambda number, other: number)], [ProfileMetric("hf")])
    [skipped] = content.skipped
    assert (skipped.metric, skipped.set, skipped.missing) == ("hf", "planted", ["references"])
    assert [one.metric for one in content.agreements] == ["people"]


def test_a_profile_scores_as_in_reports() -> None:
    item = Item(fingerprint="x", prediction="the cat sat", references=("the cat sat down", "no"))
    metric = ProfileMetric("scrolls")
    assert metric.score([item]) == [score_prediction("scrolls", "the cat sat", ["the cat sat down", "no"])]
    assert metric.values == PROFILES["scrolls"].metrics


def test_two_sets_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "mine.csv")
    files = [str(tmp_path / folder / "mine.csv") for folder in ("a", "b")]
    assert meta(["--data", *files]) == 2
    assert "two sets are called mine; rename a file" in capsys.readouterr().err


def write_table(path: Path, num_documents: int = 8) -> None:
    lines = ["document_id,system,prediction,references,rating:overall"]
    for index in range(num_documents):
        for system in ("a", "b"):
            words = " ".join(f"word{number}" for number in range(1 + (index * 3 + len(system) * 5) % 7))
            lines.append(f"d{index},{system},{words} {system}{index},word0 word1 word2 word3 word4,{len(words)}")
    path.write_text("\n".join(lines) + "\n")


def test_the_command_prints_tables_and_writes_all_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "mine.csv")
    arguments = ["--data", str(tmp_path / "mine.csv"), "--metrics", "hf,chrf", "--output", str(tmp_path / "out.json")]
    assert meta(arguments) == 0
    printed = capsys.readouterr().out
    assert "mine: 16 answers (0 by people) about 8 documents." in printed
    assert "hf RLsum" in printed
    content = json.loads((tmp_path / "out.json").read_text())
    assert {one["metric"] for one in content["agreements"]} == {"hf", "chrf"}


def test_an_unknown_metric_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "mine.csv")
    assert meta(["--data", str(tmp_path / "mine.csv"), "--metrics", "nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nothing" in error
    assert error.count("\n") == 1


class Copied(Metric):
    name, version = "copied", 1
    needs = frozenset({"document"})
    values = {"copied": Value(label="copied", title="Copied", better=None)}  # noqa: RUF012

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        return [{"copied": self._share(item)} for item in batch]

    def _share(self, item: Item) -> float | None:
        known, ours = (list(zip(*(words[n:] for n in range(4)), strict=False)) for words in self._words(item))
        known_set = set(known)
        return sum(one in known_set for one in ours) / len(ours) if ours else None

    def _words(self, item: Item) -> tuple[list[str], list[str]]:
        return PROFILES["scrolls"].words(item.document or ""), PROFILES["scrolls"].words(item.prediction)


@pytest.mark.skipif(not HUMAN.is_dir(), reason=f"needs people's judgements in {HUMAN}")
def test_published_judgements_give_the_known_correlations() -> None:
    sets = [read_judgements(HUMAN / f"{name}.jsonl") for name in ("longsciverify", "squality")]
    sets = [replace(one, answers=[rated_as(answer, one.headline) for answer in one.answers]) for one in sets]
    content = measure(sets, [Copied()])
    first, second = (one for one in content.agreements if one.metric == "copied")
    # Computed apart from this code, before it was written.
    assert first.pooled.r == pytest.approx(0.76, abs=0.01)
    assert first.within.r == pytest.approx(0.44, abs=0.01)
    assert second.with_human is not None
    assert second.with_human.r == pytest.approx(-0.04, abs=0.02)
    assert (first.within.num_summaries, second.within.num_summaries) == (87, 100)


def rated_as(answer: RatedAnswer, rating: str) -> RatedAnswer:
    """Return an answer with one rating, which takes less time."""
    kept: dict[str, Any] = {rating: answer.ratings[rating]}
    return replace(answer, ratings=kept)
