"""Ways that compute the same: the faster one is chosen, once, and a person has the last word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from masformer import tuning
from masformer.errors import OneLineError

AMONG = "linear a; of plain, packed"  # as the file names a choice


class Clock:
    """A clock that only the ways move, so that no test waits or depends on a machine's speed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def way(self, name: str, seconds: float) -> Callable[[], None]:
        def compute() -> None:
            self.calls.append(name)
            self.now += seconds

        return compute


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuning.WAYS, raising=False)
    monkeypatch.setattr(tuning, "_settled", {})
    monkeypatch.setattr(tuning, "_used", {})
    monkeypatch.setattr(tuning, "_measured", [])
    monkeypatch.setattr("masformer.tuning.time.perf_counter", lambda: clock.now)
    return clock


def ways(clock: Clock, plain: float, packed: float) -> dict[str, Callable[[], None]]:
    return {"plain": clock.way("plain", plain), "packed": clock.way("packed", packed)}


def test_the_faster_way_is_chosen_and_recorded(clock: Clock) -> None:
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"
    assert tuning.choose("linear", "b", ways(clock, 2.0, 3.0)) == "plain"
    assert tuning.chosen() == {"linear a": "packed", "linear b": "plain"}


def test_the_first_way_stays_unless_another_is_clearly_faster(clock: Clock) -> None:
    assert tuning.choose("linear", "a", ways(clock, 2.0, 1.99)) == "plain"


def test_ways_take_turns_until_the_time_is_spent(clock: Clock) -> None:
    tuning.choose("linear", "a", ways(clock, 1.0, 1.0), seconds=10)
    assert clock.calls == ["plain", "packed"] * (1 + 5)  # a call of each beforehand, and 10 seconds of pairs


def test_a_choice_from_disturbed_times_holds_for_this_process_alone(clock: Clock) -> None:
    slow = iter([0.0, 5.0, 1.0, 3.0])  # after the first call, no two alike

    def disturbed() -> None:
        clock.now += next(slow, 7.0)

    assert tuning.choose("linear", "a", {"plain": clock.way("plain", 2.0), "packed": disturbed}) == "packed"
    assert tuning.choose("linear", "a", ways(clock, 1.0, 2.0)) == "packed"
    assert not tuning.choices_file().exists()


def test_a_choice_is_remembered_by_the_next_process(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"
    clock.calls.clear()
    assert tuning.choose("linear", "a", ways(clock, 2.0, 3.0)) == "packed"
    monkeypatch.setattr(tuning, "_settled", {})
    assert tuning.choose("linear", "a", ways(clock, 2.0, 3.0)) == "packed"
    assert clock.calls == []


def test_a_choice_is_made_anew_where_a_way_has_come_to_the_others(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuning.choose("linear", "a", ways(clock, 2.0, 3.0)) == "plain"
    monkeypatch.setattr(tuning, "_settled", {})
    more = ways(clock, 2.0, 3.0) | {"new": clock.way("new", 1.0)}
    assert tuning.choose("linear", "a", more) == "new"
    monkeypatch.setattr(tuning, "_settled", {})
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "plain"


def test_another_machine_chooses_anew(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.choose("linear", "a", ways(clock, 3.0, 2.0))
    here = tuning.machine()
    monkeypatch.setattr(tuning, "machine", lambda: "another")
    assert tuning.choose("linear", "a", ways(clock, 2.0, 3.0)) == "plain"
    kept = json.loads(tuning.choices_file().read_text())
    assert kept == {here: {AMONG: "packed"}, "another": {AMONG: "plain"}}


def test_threads_and_hidden_instructions_are_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "threads" in tuning.machine()
    before = tuning._processor.__wrapped__()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert tuning._processor.__wrapped__() != before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"x": [1]}', "null"])
def test_a_broken_file_is_ignored_and_replaced(clock: Clock, text: str) -> None:
    tuning.choices_file().parent.mkdir(parents=True)
    tuning.choices_file().write_text(text)
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"
    assert json.loads(tuning.choices_file().read_text())[tuning.machine()] == {AMONG: "packed"}
    assert [file.name for file in tuning.choices_file().parent.iterdir()] == ["ways.json"]


@pytest.mark.parametrize("name", ["gone", ["packed"]])
def test_a_remembered_way_that_is_no_more_is_chosen_anew(clock: Clock, name: object) -> None:
    tuning.choices_file().parent.mkdir(parents=True)
    tuning.choices_file().write_text(json.dumps({tuning.machine(): {AMONG: name}}))
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"
    assert json.loads(tuning.choices_file().read_text())[tuning.machine()] == {AMONG: "packed"}


def test_a_cache_that_cannot_be_written_costs_only_the_time(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"


def test_ways_of_an_earlier_process_are_taken_up_and_not_measured(clock: Clock) -> None:
    tuning.take_up({"linear a": "plain", "linear b": "lost"})
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "plain"
    assert clock.calls == []
    assert tuning.choose("linear", "b", ways(clock, 3.0, 2.0)) == "packed"


def test_an_earlier_process_that_knew_no_kernel_of_ours_went_without(clock: Clock) -> None:
    tuning.take_up({})
    assert tuning.settled("attention") is None
    tuning.take_up({"linear a": "plain"})
    assert tuning.settled("attention") == "torch"
    tuning.take_up({"attention": "simd"})
    assert tuning.settled("attention") == "simd"


def test_the_time_stands_still_while_ways_are_measured(clock: Clock) -> None:
    start, cpu = clock.now, torch.device("cpu")
    tuning.choose("linear", "a", ways(clock, 3.0, 2.0))
    assert clock.now >= start + 15
    assert tuning.now(cpu) == start
    clock.now += 0.5
    assert tuning.now(cpu) == start + 0.5


def test_the_environment_has_the_last_word(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.choose("linear", "a", ways(clock, 3.0, 2.0))
    clock.calls.clear()
    monkeypatch.setenv(tuning.WAYS, "window=tiles linear=plain")
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "plain"
    assert tuning.chosen() == {"linear a": "plain"}
    monkeypatch.setenv(tuning.WAYS, "default")
    assert tuning.choose("other", "a", ways(clock, 3.0, 2.0)) == "plain"
    assert clock.calls == []
    monkeypatch.setenv(tuning.WAYS, "window=tiles")
    assert tuning.choose("linear", "a", ways(clock, 3.0, 2.0)) == "packed"


def test_an_unknown_way_is_refused_with_those_there_are(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.WAYS, "linear=pakced")
    with pytest.raises(OneLineError, match="MASFORMER_WAYS names 'pakced' for linear; known: plain, packed"):
        tuning.choose("linear", "a", ways(clock, 3.0, 2.0))
    assert clock.calls == []


@pytest.mark.parametrize("text", ["", "default", "linear=direct window=64 attention=simd", "step=torch pattern=tiles"])
def test_names_that_there_are(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.WAYS, text)
    tuning.check_names()


@pytest.mark.parametrize("text", ["linear=pakced", "lniear=packed", "packed", "window=tiles step", "pattern=64"])
def test_names_that_there_are_not(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning.WAYS, text)
    wrong = text.split()[-1]
    with pytest.raises(OneLineError, match=rf"^MASFORMER_WAYS has '{wrong}'; known: default, linear=plain\|direct\|"):
        tuning.check_names()
