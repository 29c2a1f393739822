"""What reports say of thoughts."""

from __future__ import annotations

from eval.records.schema import ThinkingRecord
from eval.records.thoughts import describe_thinking
from tests.helpers.run_folders import example_line, prediction_line, run_record

ROOM = run_record(thinking=ThinkingRecord(start="<think>", end="</think>", max_tokens=9))


def told(text: str, **changes: object) -> list[str]:
    return list(describe_thinking([prediction_line(example_line(1), 100, text, 300, **changes)], ROOM))


def test_a_second_thought_is_told_without_a_flag_that_does_not_leave_it_out() -> None:
    first, *others = told("so</think>Yes", thought="hm", num_thought_tokens=4, thought_finish_reason="stop")
    assert first.startswith("Thoughts are not scored: 1 of 1 answers have one")
    assert others == ["1 of 1 answers hold thinking, which is scored with them."]


def test_a_room_that_no_answer_used_is_told() -> None:
    assert told("Yes", num_thought_tokens=0) == ["None of 1 answers has a thought."]
