"""What was decoded for a prompt, and the text of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.generation.thinking import ThinkingRow


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was decoded for one prompt, or one of its samples.

    Attributes:
        text: Without its thought, special tokens, surrounding white space, and what follows a stop text.
        token_ids: The thought and the end token included, and the tokens of a stop text.
        finish_reason: `stop` at an end token or a stop text, `length` when the room was used up.
        prefill_seconds: Share of this row in the time of the ends of prompts.
        seconds: Share of this row in the time that its batches took to decode.
        cache_bytes: Keys and values that the prompt's rows read at the end, from real storage.
        batch_size: Rows that decoded together, this one included; at most, where they change.
        num_drafted: Tokens that were guessed from what stood before (`eval.generation.lookup`).
        num_accepted: Those of them that the model would have written.
        thought: What was thought first; None for nothing.
        num_thought_tokens: Tokens of the thought, its marks included; None where all text is the answer.
        thought_finish_reason: How it ended, as `ThinkingRow.thought_finish`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prefill_seconds: float
    seconds: float
    cache_bytes: int
    batch_size: int
    num_drafted: int = 0
    num_accepted: int = 0
    thought: str | None = None
    num_thought_tokens: int | None = None
    thought_finish_reason: str | None = None


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def set_end_tokens(model: PreTrainedModel, token_ids: Iterable[int]) -> None:
    """Let these tokens end an answer too."""
    model.generation_config.eos_token_id = sorted({*end_tokens(model), *token_ids}) or None


def cut_at_end(
    tokens: list[int], ends: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], str]:
    """Return the tokens up to the first end, that included, and `stop` when there is one."""
    # Beams without an end token are filled up with -1.
    tokens = tokens[: tokens.index(-1)] if -1 in tokens else tokens
    cut = next((at + 1 for at, token in enumerate(tokens) if token in ends), None)
    if stop and any(text in tokenizer.decode(tokens[:cut]) for text in stop):
        counts = range(1, len(tokens) + 1)
        cut = next(count for count in counts if any(text in tokenizer.decode(tokens[:count]) for text in stop))
    return (tokens, "length") if cut is None else (tokens[:cut], "stop")


def make_answer(
    tokens: Sequence[int],
    thinking: ThinkingRow | None,
    ends: Sequence[int],
    stop: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    **about: Any,
) -> Answer:
    """Return the answer that a row's tokens are; `about` has the fields of `Answer` that these do not tell."""
    mark, said = ("", tokens) if thinking is None else thinking.answer
    # Markers of turns are not always special tokens, which decoding leaves out.
    text = text_of(said[:-1] if said and said[-1] in ends else said, stop, tokenizer)
    if thinking is not None:
        text = text.removeprefix(mark).strip()
        about |= {
            "thought": thinking.thought,
            "num_thought_tokens": thinking.num_thought_tokens,
            "thought_finish_reason": thinking.thought_finish,
        }
    return Answer(text=text, token_ids=tuple(tokens), **about)


def text_of(tokens: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of tokens up to the first stop text, without special tokens and surrounding white space."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    whole = str(tokenizer.decode(tokens)) if stop else ""
    spelled = [place for end in stop if end not in text and (place := whole.find(end)) >= 0]
    if spelled:  # a stop text that spells a special token, which decoding leaves out
        count = max(count for count in range(len(tokens)) if len(tokenizer.decode(tokens[:count])) <= min(spelled))
        text = str(tokenizer.decode(tokens[:count], skip_special_tokens=True))
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))].strip()
