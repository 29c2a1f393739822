"""What a comparison says of the settings in which two runs differ."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from eval.records.schema import RunRecord, ThinkingRecord
from eval.scoring.compare_runs import differing_settings
from tests.helpers.run_folders import run_record, with_session


def differing(first: RunRecord, second: RunRecord) -> dict[str, list[Any]]:
    runs: list[Any] = [SimpleNamespace(record=record) for record in (first, second)]
    return differing_settings(*runs)


def test_a_comparison_says_how_thoughts_are_told_from_answers() -> None:
    whole = run_record()
    behind = replace(whole, think_end_token="</think>")
    off = replace(whole, config={**whole.config, "thinking": "off"})
    room = run_record(thinking=ThinkingRecord(start="<think>", end="</think>", max_tokens=9))
    assert differing(whole, behind) == {"think_end_token": [None, "</think>"]}
    assert differing(behind, whole) == {"think_end_token": ["</think>", None]}
    assert differing(whole, off) == {"thinking": ["auto", "off"]}
    told = {"start": "<think>", "end": "</think>", "max_tokens": 9}
    assert differing(off, room) == {"thinking": ["off", told]}
    assert differing(room, room) == {}


def test_a_comparison_names_the_engine_beside_other_settings() -> None:
    local = run_record()
    one = run_record(engine={"name": "vllm", "model": "tiny", "prompts_as": "ids", "args": []})
    other = run_record(engine={"name": "vllm", "model": "tiny", "prompts_as": "ids", "args": ["--enforce-eager"]})
    vllm = with_session(one, engine={"name": "vllm", "version": "0.32.0"})
    assert differing(local, vllm) == {"engine": ["local", "vllm 0.32.0"]}
    assert differing(one, other) == {"args of the engine": [[], ["--enforce-eager"]]}
    assert differing(vllm, vllm) == {}


def test_a_comparison_names_shots_and_what_ends_the_answers_of_a_task() -> None:
    plain = run_record(generation={"stop": []})
    ((name, task),) = plain.tasks.items()
    shots = {"split": "train", "seed": 0, "ids": ["train-0"]}
    shown = replace(plain, tasks={name: replace(task, shots=shots)})
    ended = replace(plain, tasks={name: replace(task, stop=["\n"])})
    assert differing(plain, shown) == {f"shots of {name}": [None, shots]}
    assert differing(shown, plain) == {f"shots of {name}": [shots, None]}
    assert differing(shown, shown) == {}
    assert differing(plain, ended) == {f"stop of {name}": [[], ["\n"]]}
