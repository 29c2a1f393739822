"""How models mark what they think, and what reports say of it: thoughts are kept and never scored."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from eval.records.schema import Prediction, RunRecord, Sample

# What begins a thought, and what ends it: of Qwen, DeepSeek, GLM and most others, EXAONE, Magistral, Command A,
# Seed-OSS, Kimi-VL, Apertus, Gemma 4, gpt-oss.
THINKING_MARKS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<seed:think>": "</seed:think>",
    "◁think▷": "◁/think▷",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|channel|>final<|message|>",
}
# What some models write between a thought and its end mark, in a turn of its own.
_BEFORE_END = {"<|channel|>final<|message|>": "<|end|><|start|>assistant"}


def forced_end(end: str) -> str:
    """Return what is to be written where a thought is cut off: the end mark, and what belongs before it."""
    return _BEFORE_END.get(end, "") + end


def start_of(end: str) -> str:
    """Return the mark that begins thoughts with this end mark; empty where none is known."""
    return next((start for start, closing in THINKING_MARKS.items() if closing == end), "")


def opened_thought(text: str) -> str | None:
    """Return the mark of the thought that a text opens at its end; None where it opens none."""
    return next((start for start in THINKING_MARKS if text.rstrip().endswith(start)), None)


def without_marks(thought: str, start: str, end: str) -> str:
    """Return a thought, as it was before its end mark, without the marks around it."""
    return thought.strip().removeprefix(start).removesuffix(_BEFORE_END.get(end, "")).strip()


def is_unfinished(text: str, end: str) -> bool:
    """Return whether a text begins a thought and never leaves it."""
    start = start_of(end)
    return bool(start) and end not in text and text.lstrip().startswith(start)


def describe_thinking(predictions: Sequence[Prediction], record: RunRecord) -> Iterator[str]:
    """Yield what is scored of answers that hold thinking, or what was thought before them, in a sentence."""
    answers = [answer for one in predictions for answer in one.answers]
    texts = [answer.text for answer in answers]
    if record.identity.thinking is not None:
        yield _thoughts_told(answers, record.identity.thinking.max_tokens)
    elif (end := record.think_end_token) is not None:
        num_ended = sum(end in text for text in texts)
        num_open = sum(is_unfinished(text, end) for text in texts)
        unfinished = f" {num_open:,} never left their thought and are scored as empty." if num_open else ""
        yield f"Scored from behind the last {end}, which {num_ended:,} of {len(texts):,} answers have.{unfinished}"
        return
    for opening, closing in THINKING_MARKS.items():
        num_thinking = sum(closing in text or text.startswith(opening) for text in texts)
        if num_thinking:
            holding = f"{num_thinking:,} of {len(texts):,} answers hold thinking, which is scored with them"
            # With a room for thoughts, an end mark of scores would be that of the room.
            remedy = f"--think-end-token '{closing}' leaves it out, --thinking off may switch it off"
            yield f"{holding}." if record.identity.thinking else f"{holding}: {remedy}."


def _thoughts_told(answers: Sequence[Sample], max_tokens: int) -> str:
    """Return what was thought before answers, with a room of so many tokens."""
    lengths = [one.num_thought_tokens for one in answers if one.num_thought_tokens]
    if not lengths:
        return f"None of {len(answers):,} answers has a thought."
    counts = {reason: sum(one.thought_finish_reason == reason for one in answers) for reason in ("length", "turn")}
    num_cut = counts["length"]
    told = [
        f"Thoughts are not scored: {len(lengths):,} of {len(answers):,} answers have one",
        f"{statistics.median(lengths):,.0f} tokens in the median",
        f"{num_cut:,} ({num_cut / len(lengths):.0%}) cut off after {max_tokens:,} tokens",
    ]
    if counts["turn"]:
        told.append(f"{counts['turn']:,} never ended: their answers are empty")
    return f"{', '.join(told)}."
