"""Metrics are opened by name, say what they are, and are refused in one line where they cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from eval.errors import UserError
from eval.metrics.base import Item, Metric, Scores, Value, check_metric, checked_scores, describe_source
from eval.metrics.open import BUILT_IN, open_metric

WORDS = Value(label="words", title="Words", high=math.inf, better=None, is_share=False)
FILE = """
import math
from eval.metrics.base import Metric, Value

class NumWords(Metric):
    name, version = "num_words", 3
    values = {"words": Value(label="words", title="Words", high=math.inf, better=None, is_share=False)}

    def score(self, batch):
        return [{"words": float(len(item.prediction.split()))} for item in batch]

NOTHING = 3
"""


class NumWords(Metric):
    name, version = "num_words", 1
    values = {"words": WORDS}  # noqa: RUF012  # as users write it

    def score(self, batch: Sequence[Item]) -> list[Scores]:
        return [{"words": float(len(item.prediction.split()))} for item in batch]


def test_a_metric_in_a_file_is_opened_and_pinned_by_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    metric = open_metric(f"{file}:NumWords")
    assert (metric.name, metric.version) == ("num_words", 3)
    assert metric.score([Item.of(metric, prediction="a b c")]) == [{"words": 3.0}]
    before = describe_source(metric)
    file.write_text(FILE.replace("float(len", "1 + float(len"))
    assert describe_source(open_metric(f"{file}:NumWords")) != before
    assert describe_source(open_metric("diagnostics")) == {}, "the suite's own have a version"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", r"there is no metric 'nothing'; give diagnostics, "),
        ("gone.py:Metric", "there is no file gone.py"),
        ("mine.py:Other", r"mine.py has no Other"),
        ("mine.py:NOTHING", "is int, and no metric"),
        ("broken.py:Metric", "broken.py cannot be run: No module named 'nowhere_to_be_found'"),
        ("diagnostics:x", "diagnostics takes nothing behind its name, and got 'x'"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE)
    Path("broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(UserError, match=reason):
        open_metric(name)


def test_entry_points_of_other_packages_are_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("words", f"{__name__}:NumWords", "masformer.metrics"),
        EntryPoint("lost", "nowhere_to_be_found:Metric", "masformer.metrics"),
    ]
    monkeypatch.setattr("eval.metrics.open.entry_points", lambda **about: EntryPoints(points).select(**about))
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(NumWords=NumWords))
    assert open_metric("words").name == "num_words"
    with pytest.raises(UserError, match="nowhere_to_be_found"):
        open_metric("lost")
    with pytest.raises(UserError, match="lost, words"):
        open_metric("other")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ""}, "has name ''"),
        ({"version": None}, "has version None"),
        ({"values": {}}, "has values {}"),
        ({"values": {"a.b": WORDS}}, "a name without a full stop"),
        ({"values": {"words": replace(WORDS, low=1.0, high=1.0)}}, "low below high"),
        ({"needs": frozenset({"shoes"})}, "reads shoes"),
        ({"needs": frozenset({"query"}), "reads": frozenset({"window"})}, "needs query, which it does not read"),
    ],
)
def test_what_a_metric_says_of_itself_is_checked(changes: dict[str, Any], reason: str) -> None:
    metric = type("Changed", (NumWords,), changes)()
    with pytest.raises(UserError, match=reason):
        check_metric(metric)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "gave 0 rows for 1 items"),
        ([{"letters": 1.0}], "gave letters where it has the values words"),
        ([{"words": -1.0}], "gave words = -1.0"),
        ([{"words": math.nan}], "gave words = nan"),
    ],
)
def test_what_a_metric_gives_is_checked(scores: list[Scores], reason: str) -> None:
    metric = NumWords()
    batch = [Item.of(metric, prediction="a")]
    with mock.patch.object(NumWords, "score", return_value=scores), pytest.raises(UserError, match=reason):
        checked_scores(metric, batch)
    for value, kept in ((None, None), (-1e-7, 0.0)):
        with mock.patch.object(NumWords, "score", return_value=[{"words": value}]):
            assert checked_scores(metric, batch) == [{"words": kept}]


def test_an_item_has_what_its_metric_reads_and_a_name_made_of_it() -> None:
    class Short(NumWords):
        needs = frozenset({"references"})
        reads = frozenset({"references"})

    item = Item.of(Short, prediction="a", references=("b",), window="c", query="")
    assert (item.references, item.window) == (("b",), None)
    assert item.fingerprint == Item.of(Short, prediction="a", references=("b",), window="d").fingerprint
    assert item.fingerprint != Item.of(Short, prediction="a", references=("c",)).fingerprint
    assert item.fingerprint != Item.of(Short, prediction="b", references=("b",)).fingerprint
    assert item.fingerprint != Item.of(NumWords, prediction="a", references=("b",), window="c").fingerprint
    assert Item.of(Short, prediction="a").lacks(Short.needs) == ["references"]
    assert set(BUILT_IN) >= {"diagnostics", "evaluate"}
