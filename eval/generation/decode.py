"""Decode answers to prompts whose beginnings are in caches already, several at once.

Greedy decoding and beams share a batch: caches are joined (`masformer.attention.joined`), rows that have ended leave
it. What cannot share one is decoded alone: samples, whose random numbers belong to the prompt; models that masformer
does not convert; n-grams of padding. The loop over tokens is transformers' `generate`.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from transformers.cache_utils import Cache

from eval.config.generation import GenerationSettings
from eval.generation.thinking import RowsEnded, ThinkingRow, ThinkingRows
from eval.runtime.memory import storage_bytes
from masformer import SpanCache, fixed_frequencies, prefill
from masformer.attention.cache import can_join, join, row_bytes
from masformer.attention.prefill import new_cache
from masformer.errors import NumbersError

# Tokens that a batch decodes before rows that have ended are taken out.
_STEPS = 32
# Tokens of a batch's ends that go through the model at once: their scores exist as a whole.
_JOINT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was decoded for one prompt, or one of its samples.

    Attributes:
        text: Without its thought, special tokens, surrounding white space, and what follows a stop text.
        token_ids: The thought and the end token included, and the tokens of a stop text.
        finish_reason: `stop` at an end token or a stop text, `length` when the room was used up.
        prefill_seconds: Share of this row in the time of the ends of prompts.
        seconds: Share of this row in the time that its batch took to decode.
        cache_bytes: Keys and values that the prompt's rows read at the end, from real storage.
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
    thought: str | None = None
    num_thought_tokens: int | None = None
    thought_finish_reason: str | None = None


def rows_together(model: PreTrainedModel, settings: GenerationSettings) -> int | None:
    """Return how many prompts may decode as one batch without a change of what any of them gets; None is any number."""
    alone = getattr(model, "span_plan", None) is None or not can_join(model.config) or settings.temperature is not None
    # Padding must be no part of an n-gram: a row that has written the end token has ended.
    ngrams = settings.no_repeat_ngram_size
    return 1 if alone or ngrams == 1 or (ngrams and not end_tokens(model)) else None


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def set_end_tokens(model: PreTrainedModel, token_ids: Iterable[int]) -> None:
    """Let these tokens end an answer too."""
    model.generation_config.eos_token_id = sorted({*end_tokens(model), *token_ids}) or None


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


class _PromptRows(Rows):
    """Rows of a decoder: prompts, padded on the left, in a cache."""

    def __init__(self, ids: Tensor, mask: Tensor, cache: Cache, held: Sequence[int]) -> None:
        self.ids, self.mask, self.cache, self.held = ids, mask, cache, held
        self.first = ids.shape[1]

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": self.ids, "attention_mask": self.mask, "past_key_values": self.cache}

    def keep(self, going: Sequence[int], made: Tensor) -> None:
        if len(going) < len(self.ids):
            self.cache.batch_select_indices(torch.tensor(going, device=made.device))
        mask = self.mask[going]
        self.mask = torch.cat([mask, mask.new_ones(len(going), made.shape[1] - mask.shape[1])], dim=1)
        self.ids = made[going]

    def cache_bytes(self, prompt: int, num_new: int) -> int:
        return self.held[prompt] if self.held else storage_bytes(self.cache)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[Cache],
    settings: GenerationSettings,
    decoded: Callable[[int], None] = lambda steps: None,
) -> list[Answer]:
    """Return the answers to each prompt, one or as many as samples are asked for, in a row; they decode as one batch.

    Args:
        model: With a plan, unless there is one prompt alone.
        tokenizer: Tokenizer of the model.
        prompts: Token ids, two at least.
        caches: Each holds all tokens of its prompt but the last few, as many of each. Those that share memory stand
            side by side.
        settings: The same for all.
        decoded: Called with the steps that were decoded, every few of them.

    Raises:
        NumbersError: Logits of a prompt are no numbers; `row` says of which.
    """
    assert len(prompts) == 1 or rows_together(model, settings) is None
    device, ends, samples = model.device, end_tokens(model), settings.num_samples
    pad, longest = (ends or [0])[0], max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    start = now(device)
    (missing,) = {len(prompt) - cache.get_seq_length() for prompt, cache in zip(prompts, caches, strict=True)}
    if isinstance(caches[0], SpanCache) and can_join(model.config):
        cache: Cache = join(caches, missing + settings.room)
        held = [row_bytes(cache, row, settings.num_rows) for row in range(len(prompts))]
    else:
        (cache,) = caches
        held = []
    if missing > 1:
        prefill(model, ids[:, -missing:-1], cache, mask[:, :-1], _JOINT_TOKENS)
    if settings.num_rows > 1:
        cache.batch_repeat_interleave(settings.num_rows)
    # `generate` repeats rows for beams, and not for samples.
    ids, mask = ids.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
    prefill_seconds = (now(device) - start) / len(ids)
    rows = _PromptRows(ids, mask, cache, held)
    return answer_rows(model, tokenizer, prompts, rows, settings, prefill_seconds, decoded)


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
            raise NumbersError(f"the logits of a prompt of {len(prompts[row]):,} tokens", dtype_name(model), row)
        spent = (now(device) - start) / len(active)
        left -= steps
        decoded(steps)
        going = []
        for row, index in enumerate(active):
            seconds[index] += spent
            if thoughts:
                new, reason = thoughts[index].tokens, thoughts[index].reason or ""
            else:
                new, reason = _cut(made[row, first:].tolist(), ends, settings.stop, tokenizer)
            answers[index] = new
            if reason == "stop":
                reasons[index] = reason
            elif left and not (thoughts and reason):
                going.append(row)
        if left and going:
            rows.keep(going, made)
        active = [active[row] for row in going]
    return [
        Answer(
            **(
                _thinking_fields(thoughts[index], ends)
                if thoughts
                else {"text": _answer_text(answer, ends, settings.stop, tokenizer)}
            ),
            token_ids=tuple(answer),
            finish_reason=reasons[index],
            prefill_seconds=prefill_seconds,
            seconds=seconds[index],
            cache_bytes=rows.cache_bytes(index // samples, len(answer)),
        )
        for index, answer in enumerate(answers)
    ]


def _answer_text(
    tokens: Sequence[int], ends: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> str:
    # Markers of turns are not always special tokens, which decoding leaves out.
    return _text(tokens[:-1] if tokens and tokens[-1] in ends else tokens, stop, tokenizer)


def _thinking_fields(row: ThinkingRow, ends: Sequence[int]) -> dict[str, Any]:
    """Return what an answer says of a row that may have a thought before it."""
    mark, tokens = row.answer
    return {
        "text": _answer_text(tokens, ends, row.settings.stop, row.tokenizer).removeprefix(mark).strip(),
        "thought": row.thought,
        "num_thought_tokens": row.num_thought_tokens,
        "thought_finish_reason": row.thought_finish,
    }


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


def dtype_name(model: PreTrainedModel) -> str:
    """Return the name of the dtype that a model computes in."""
    return str(model.dtype).removeprefix("torch.")


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


def _cut(
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


def _text(tokens: Sequence[int], stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    whole = str(tokenizer.decode(tokens)) if stop else ""
    spelled = [place for end in stop if end not in text and (place := whole.find(end)) >= 0]
    if spelled:  # a stop text that spells a special token, which decoding leaves out
        count = max(count for count in range(len(tokens)) if len(tokenizer.decode(tokens[:count])) <= min(spelled))
        text = str(tokenizer.decode(tokens[:count], skip_special_tokens=True))
    return text[: min((text.find(end) for end in stop if end in text), default=len(text))].strip()


def warm_up(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generate once and throw it away: first calls allocate and page in weights, which no prediction should pay for."""
    prompt = [token % model.config.get_text_config().vocab_size for token in range(3, 67)]
    cache = new_cache(model, len(prompt))
    with fixed_frequencies(model, len(prompt)):
        prefill(model, torch.tensor([prompt[:-1]], device=model.device), cache)
        with suppress(NumbersError):  # what these tokens give says nothing of a document
            decode(model, tokenizer, [prompt], [cache], GenerationSettings(max_new_tokens=4))


def now(device: torch.device) -> float:
    """Return a time in seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
