"""Decode answers to prompts whose beginnings are in caches already, several at once.

Greedy decoding and beams share a batch: caches are joined (`masformer.attention.joined`), rows that have ended leave
it. What cannot share one is decoded alone: samples, whose random numbers belong to the prompt; models that masformer
does not convert; beams with n-grams of padding. Greedy decoding under a plan is `eval.generation.greedy`, where other
prompts take the places of those that have ended; all else is transformers' `generate`
(`eval.generation.library_loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from eval.config.generation import DRAFT_TOKENS, GenerationSettings
from eval.generation.answer import Answer, end_tokens
from eval.generation.greedy import Entered, decode_greedily
from eval.generation.library_loop import Rows, answer_rows
from eval.runtime.memory import storage_bytes
from masformer import SpanCache, fixed_frequencies, prefill
from masformer.attention.cache import can_join, join, row_bytes
from masformer.attention.prefill import new_cache
from masformer.errors import NumbersError
from masformer.tuning import now

# Tokens of a batch's ends that go through the model at once: their scores exist as a whole.
_JOINT_TOKENS = 512


def rows_together(model: PreTrainedModel, settings: GenerationSettings) -> int | None:
    """Return how many prompts may decode as one batch without a change of what any of them gets; None is any number."""
    alone = getattr(model, "span_plan", None) is None or not can_join(model.config) or settings.temperature is not None
    # Beams are padded by end tokens, which must be no part of an n-gram; a row of greedy decoding has none.
    ngrams = settings.no_repeat_ngram_size if settings.num_beams > 1 else 0
    return 1 if alone or ngrams == 1 or (ngrams and not end_tokens(model)) else None


def is_greedy(model: PreTrainedModel, settings: GenerationSettings) -> bool:
    """Return whether `decode_stream` decodes such answers."""
    return getattr(model, "span_plan", None) is not None and settings.num_beams == 1 and settings.temperature is None


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
    draft_tokens: int = DRAFT_TOKENS,
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
        draft_tokens: Tokens that a row which decodes alone guesses at most; 0 guesses none.

    Raises:
        NumbersError: Logits of a prompt are no numbers; `row` says of which.
    """
    assert len(prompts) == 1 or rows_together(model, settings) is None
    if is_greedy(model, settings):
        waiting = [Prompts(numbers=range(len(prompts)), tokens=prompts, caches=lambda: caches)]
        by_number = dict(
            decode_stream(
                *(model, tokenizer, lambda going: waiting.pop() if waiting else None, settings),
                *(lambda going, steps: decoded(steps), draft_tokens),
            )
        )
        return [by_number[number] for number in range(len(prompts))]
    samples = settings.num_samples
    start = now(model.device)
    ids, mask, cache = join_prompts(model, prompts, caches, settings)
    is_joined = isinstance(cache, SpanCache) and can_join(model.config)
    held = [row_bytes(cache, row, settings.num_rows) for row in range(len(prompts))] if is_joined else []
    if settings.num_rows > 1:
        cache.batch_repeat_interleave(settings.num_rows)
    # `generate` repeats rows for beams, and not for samples.
    ids, mask = ids.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
    prefill_seconds = (now(model.device) - start) / len(ids)
    return answer_rows(
        model, tokenizer, prompts, _PromptRows(ids, mask, cache, held), settings, prefill_seconds, decoded
    )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts that are to be answered.

    Attributes:
        numbers: A number for each.
        tokens: Token ids of each, two at least.
        caches: What makes their caches, as `decode` has them.
    """

    numbers: Sequence[int]
    tokens: Sequence[Sequence[int]]
    caches: Callable[[], Sequence[Cache]]


def decode_stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    enter: Callable[[Sequence[int]], Prompts | None],
    settings: GenerationSettings,
    decoded: Callable[[Sequence[int], int], None],
    draft_tokens: int,
) -> Iterator[tuple[int, Answer]]:
    """Yield answers to prompts with their numbers, as they end: others take their places.

    Args:
        model: With a plan.
        tokenizer: Tokenizer of the model.
        enter: Called when there are no rows, and when some have left, with the numbers of those that go on. Returns
            what joins them, in the order of prompts that share memory, or None. Where prompts do not share a batch,
            returns one when there are no rows.
        settings: Without beams and samples, the same for all.
        decoded: Called with the numbers of a batch and the steps that it was decoded, every few of them.
        draft_tokens: As `decode` has them.

    Raises:
        NumbersError: Logits of a prompt are no numbers; `row` is its number.
    """
    prefill_seconds: dict[int, float] = {}

    def entering(going: Sequence[int]) -> Callable[[], Entered] | None:
        if (more := enter(going)) is None:
            return None

        def begin() -> Entered:
            caches = more.caches()
            start = now(model.device)
            _, mask, cache = join_prompts(model, more.tokens, caches, settings)
            seconds = (now(model.device) - start) / len(more.tokens)
            prefill_seconds.update(dict.fromkeys(more.numbers, seconds))
            return Entered(numbers=more.numbers, prompts=more.tokens, cache=cache, mask=mask)

        return begin

    for row in decode_greedily(model, tokenizer, entering, settings, draft_tokens, decoded):
        yield row.number, row.answer(prefill_seconds.pop(row.number))


def join_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    caches: Sequence[Cache],
    settings: GenerationSettings,
) -> tuple[Tensor, Tensor, Any]:
    """Join the caches of prompts with room for answers, and let the ends of prompts go through the model at once.

    Arguments are those of `decode`. A model whose caches do not join has one prompt.

    Returns:
        (R, T) tokens, padded on the left; (R, T), zeros at the padding; a cache of all tokens but the last of each.
    """
    device, ends, longest = model.device, end_tokens(model), max(map(len, prompts))
    pad = (ends or [0])[0]
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    (missing,) = {len(prompt) - cache.get_seq_length() for prompt, cache in zip(prompts, caches, strict=True)}
    if isinstance(caches[0], SpanCache) and can_join(model.config):
        cache: Cache = join(caches, missing + settings.room)
    else:
        (cache,) = caches
    if missing > 1:
        prefill(model, ids[:, -missing:-1], cache, mask[:, :-1], _JOINT_TOKENS)
    return ids, mask, cache


def warm_up(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generate once and throw it away: first calls allocate and page in weights, which no prediction should pay for."""
    prompt = [token % model.config.get_text_config().vocab_size for token in range(3, 67)]
    cache = new_cache(model, len(prompt))
    with fixed_frequencies(model, len(prompt)):
        prefill(model, torch.tensor([prompt[:-1]], device=model.device), cache)
        with suppress(NumbersError):  # what these tokens give says nothing of a document
            decode(model, tokenizer, [prompt], [cache], GenerationSettings(max_new_tokens=4))
