"""Decode a batch by transformers' `generate`: beams, samples, and models that masformer does not convert.

`generate` decodes some tokens a call; rows that have ended leave the batch in between. What is likeliest under a plan
is decoded by a loop of our own (`eval.generation.greedy`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from eval.config.generation import GenerationSettings
from eval.generation.answer import Answer, cut_at_end, end_tokens, make_answer
from eval.generation.thinking import RowsEnded, ThinkingRow, ThinkingRows
from masformer.errors import NumbersError
from masformer.hardware import dtype_name
from masformer.tuning import now

# Tokens that a batch decodes before rows that have ended are taken out.
_STEPS = 32


class Rows(ABC):
    """The rows of a batch between two calls of `generate`. Shapes: R rows, T tokens.

    Attributes:
        ids: (R, T) tokens that the decoder has read or written.
        first: Tokens before the answers.
        options: Further settings of `GenerationConfig`.
    """

    ids: Tensor
    first: int
    options: Mapping[str, Any] = {}

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Return what `generate` goes on from."""

    @abstractmethod
    def keep(self, going: Sequence[int], made: Tensor) -> None:
        """Go on with some rows, of (R, T) tokens that the last call has made."""

    @abstractmethod
    def cache_bytes(self, prompt: int, num_new: int) -> int:
        """Return the bytes of keys and values that a prompt's rows read at the end of an answer of so many tokens."""


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    rows: Rows,
    settings: GenerationSettings,
    prefill_seconds: float,
    decoded: Callable[[int], None] = lambda steps: None,
) -> list[Answer]:
    """Return the answers of rows that are ready to be decoded; `settings.num_samples` rows a prompt.

    Raises:
        NumbersError: As `decode`.
    """
    device, ends, samples, first = model.device, end_tokens(model), settings.num_samples, rows.first
    if settings.temperature is not None:
        torch.manual_seed(_seed_of(settings.seed, prompts[0]))
    active, seconds = list(range(len(rows.ids))), [0.0] * len(rows.ids)
    answers: list[list[int]] = [[] for _ in active]
    reasons = ["length"] * len(active)
    thoughts = [ThinkingRow(settings, tokenizer, ends, prompts[row // samples]) for row in active if settings.thinking]
    left = settings.room
    while active and left:
        # Beams are not taken apart.
        steps = left if settings.num_beams > 1 else min(left, _STEPS)
        start = now(device)
        watch = ScoresWatch(ends, rows.ids.shape[1], is_eager=settings.temperature is not None)
        processors, stopping = LogitsProcessorList([watch]), _stopping(settings.stop, tokenizer, first)
        if thoughts:
            # After the watch, which is to see what the model says.
            processors.append(thinking := ThinkingRows([thoughts[index] for index in active], rows.ids.shape[1]))
            stopping = StoppingCriteriaList([RowsEnded(thinking)])
        config = _config(settings, steps, settings.room - left, ends, (ends or [0])[0])
        config.update(**rows.options)
        made = model.generate(
            **rows.inputs(),
            generation_config=config,
            stopping_criteria=stopping,
            logits_processor=processors,
        )
        if (bad := watch.first_bad(len(active))) is not None:
            row = active[bad] // samples
            raise NumbersError(f"the logits of a prompt of {len(prompts[row]):,} tokens", dtype_name(model.dtype), row)
        spent = (now(device) - start) / len(active)
        left -= steps
        decoded(steps)
        going = []
        for row, index in enumerate(active):
            seconds[index] += spent
            if thoughts:
                new, reason = thoughts[index].tokens, thoughts[index].reason or ""
            else:
                new, reason = cut_at_end(made[row, first:].tolist(), ends, settings.stop, tokenizer)
            answers[index] = new
            if reason == "stop":
                reasons[index] = reason
            elif left and not (thoughts and reason):
                going.append(row)
        if left and going:
            rows.keep(going, made)
        active = [active[row] for row in going]
    return [
        make_answer(
            answer,
            thoughts[index] if thoughts else None,
            ends,
            settings.stop,
            tokenizer,
            finish_reason=reasons[index],
            prefill_seconds=prefill_seconds,
            seconds=seconds[index],
            cache_bytes=rows.cache_bytes(index // samples, len(answer)),
            batch_size=len(answers),
        )
        for index, answer in enumerate(answers)
    ]


def _config(settings: GenerationSettings, steps: int, done: int, ends: list[int], pad: int) -> GenerationConfig:
    # All options that this suite has are said: what is not comes from the checkpoint's own generation config, of which
    # `Checkpoint.load_model` leaves the end tokens alone.
    sampling: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if settings.temperature is not None:
        sampling = {
            "do_sample": True,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
    return GenerationConfig(
        max_new_tokens=steps,
        # Of rows with thoughts it is that of the answer, which begins at another place in each.
        min_new_tokens=0 if settings.thinking or not ends else min(max(settings.min_new_tokens - done, 0), steps),
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=False,
        repetition_penalty=float(settings.repetition_penalty),
        no_repeat_ngram_size=settings.no_repeat_ngram_size,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **sampling,
    )


def _seed_of(seed: int, prompt: Sequence[int]) -> int:
    digest = hashlib.sha256(f"{seed} {' '.join(map(str, prompt))}".encode()).digest()
    return int.from_bytes(digest[:7])


class ScoresWatch(LogitsProcessor):  # type: ignore[misc]
    """Notes rows whose scores are no numbers, and changes none; what a row writes after its end does not count.

    Args:
        ends: Tokens that end an answer.
        first: Tokens of the prompts.
        is_eager: Put zeros in the place of such scores, since drawing from them fails.
    """

    def __init__(self, ends: Sequence[int], first: int, *, is_eager: bool) -> None:
        self.ends, self.first, self.is_eager = list(ends), first, is_eager
        self.bad: Tensor | None = None
        self._ends: Tensor | None = None  # on the device of the first call

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # Of a row with NaN the largest is NaN; tokens may be ruled out by -inf, but not all of them.
        bad = ~scores.amax(dim=-1).isfinite()
        if self.ends:
            if self._ends is None:
                self._ends = torch.tensor(self.ends, device=input_ids.device)
            bad &= ~torch.isin(input_ids[:, self.first :], self._ends).any(dim=-1)
        self.bad = bad if self.bad is None else self.bad | bad
        if self.is_eager and bool(bad.any()):
            # Rather than an error of the random number generator, which on CUDA ends the process.
            return torch.zeros_like(scores)
        return scores

    def first_bad(self, num_rows: int) -> int | None:
        """Return the first of the prompts with such scores; None without any. Beams count for their prompt."""
        if self.bad is None or not bool(self.bad.any()):
            return None
        return int(self.bad.nonzero()[0]) // (len(self.bad) // num_rows)


class _StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends a row once what it has written, and not its prompt, holds one of some texts."""

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, first: int) -> None:
        self.texts, self.tokenizer, self.first = texts, tokenizer, first
        # A token is one byte at least.
        self.window = max(len(text.encode()) for text in texts) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tails = input_ids[:, max(self.first, input_ids.shape[1] - self.window) :].tolist()
        found = [any(text in self.tokenizer.decode(tail) for text in self.texts) for tail in tails]
        return torch.tensor(found, device=input_ids.device)


def _stopping(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, first: int) -> StoppingCriteriaList:
    return StoppingCriteriaList([_StopTexts(texts, tokenizer, first)] if texts else [])
