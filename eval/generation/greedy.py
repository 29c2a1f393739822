"""Decode the likeliest tokens under a plan: one pass a step for all rows of a batch, which rows leave as they end.

Shapes: R rows, T tokens, V tokens that the model knows.

Source: scores in fp32 and the order of processors are those of `generate` in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from eval.config.generation import GenerationSettings
from eval.generation.answer import cut_at_end, dtype_name, end_tokens, now
from eval.generation.thinking import ThinkingRow, ThinkingRows
from masformer import SpanCache
from masformer.errors import NumbersError

# Steps between two looks at the time.
_STEPS = 32
# Steps that a row which has ended stays for: to take it out, the keys of all others are copied.
_STEPS_AFTER_END = 8


class Row:
    """A prompt and what is written after it.

    Attributes:
        index: Its place among the prompts.
        tokens: The answer so far, its end token and thought included.
        reason: `stop` or `length` once the row has ended; None before.
        seconds: Its share in the time that its batches took.
        thinking: Its thought; None where all text is the answer.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        device: torch.device,
    ) -> None:
        self.index, self.prompt = index, prompt
        self.settings, self.tokenizer, self.ends = settings, tokenizer, ends
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.seconds = 0.0
        self.thinking = ThinkingRow(settings, tokenizer, ends, prompt) if settings.thinking else None
        self._thoughts = ThinkingRows([self.thinking], len(prompt)) if self.thinking else None
        self._processors = self._make_processors(device)
        # A token is one byte at least.
        self._tail = max((len(text.encode()) for text in settings.stop), default=0) + 4
        if self._processors:
            self._ids = torch.tensor([*prompt, *[0] * settings.room], device=device)

    def _make_processors(self, device: torch.device) -> LogitsProcessorList:
        settings, processors = self.settings, LogitsProcessorList()
        if settings.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
        if settings.no_repeat_ngram_size:
            processors.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
        if self._thoughts:  # which has the least length of the answer, that begins after the thought
            processors.append(self._thoughts)
        elif settings.min_new_tokens and self.ends:
            ends = torch.tensor(self.ends, device=device)
            processors.append(
                MinNewTokensLengthLogitsProcessor(len(self.prompt), settings.min_new_tokens, ends, str(device))
            )
        return processors

    def read(self, scores: Tensor, likeliest: int) -> None:
        """Choose the next token and take it in.

        Args:
            scores: (V,) of the model.
            likeliest: The token with the greatest of them.
        """
        if self._processors:
            count = len(self.prompt) + len(self.tokens)
            likeliest = int(self._processors(self._ids[None, :count], scores[None].clone()).argmax())
            self._ids[count] = likeliest
        self.tokens.append(likeliest)
        if self.thinking is not None and self._thoughts is not None:
            self._thoughts.read(self._ids[None, : len(self.prompt) + len(self.tokens)])
            self.reason = self.thinking.reason
        elif likeliest in self.ends or self._has_stop_text():
            tokens, reason = cut_at_end(self.tokens, self.ends, self.settings.stop, self.tokenizer)
            if reason == "stop":
                self.tokens, self.reason = tokens, reason
        if self.reason is None and len(self.tokens) == self.settings.room:
            self.reason = "length"

    def _has_stop_text(self) -> bool:
        stop = self.settings.stop
        if not stop:
            return False
        tail = str(self.tokenizer.decode(self.tokens[-self._tail :]))
        return any(text in tail for text in stop)


class _Batch:
    """Rows that go through the model together.

    Args:
        mask: (R, T), zeros at the left padding of prompts.
        cache: All tokens of the prompts but the last of each.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], mask: Tensor, cache: SpanCache, room: int) -> None:
        self.model, self.rows, self.cache = model, list(rows), cache
        self.mask: Tensor | None = None
        if not bool(mask.all()):
            self.padding = (mask == 0).sum(dim=1, keepdim=True)
            self.mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)

    def scores(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the (R, T, V) scores after each of (R, T) tokens, which the cache takes in."""
        ids, more = torch.tensor(tokens, device=self.model.device), dict[str, Any]()
        if self.mask is not None:
            first, stop = (seen := self.cache.get_seq_length()), seen + ids.shape[1]
            positions = torch.arange(first, stop, device=ids.device) - self.padding
            more = {"attention_mask": self.mask[:, :stop], "position_ids": positions}
        logits: Tensor = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **more).logits
        return logits.float()

    def step(self) -> None:
        """Write a token to each row; raise `NumbersError` where scores are no numbers."""
        last = [[row.tokens[-1] if row.tokens else row.prompt[-1]] for row in self.rows]
        scores = self.scores(last)[:, -1]
        likeliest = scores.argmax(dim=-1)
        # Of a row with NaN the largest is NaN; tokens may be ruled out by -inf, but not all of them.
        is_number = scores.gather(1, likeliest[:, None])[:, 0].isfinite()
        for row, token, is_good, each in zip(
            self.rows, *torch.stack([likeliest, is_number.long()]).tolist(), scores, strict=True
        ):
            if row.reason is None:
                if not is_good:
                    what = f"the logits of a prompt of {len(row.prompt):,} tokens"
                    raise NumbersError(what, dtype_name(self.model), row.index)
                row.read(each, token)

    def drop_ended(self) -> None:
        """Take out the rows that have ended."""
        going = [index for index, row in enumerate(self.rows) if row.reason is None]
        self.rows = [self.rows[index] for index in going]
        if not going:
            return
        kept = torch.tensor(going, device=self.model.device)
        self.cache.batch_select_indices(kept)
        if self.mask is not None:
            self.mask, self.padding = self.mask[kept], self.padding[kept]


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    mask: Tensor,
    cache: SpanCache,
    settings: GenerationSettings,
    decoded: Callable[[int], None] = lambda steps: None,
) -> list[Row]:
    """Return the rows of prompts with their answers, one row a prompt.

    Args:
        model: With a plan.
        mask: (R, T), zeros at the left padding of prompts.
        cache: Holds all tokens of the prompts but the last of each, with room for those of the answers.
        decoded: Called with the steps that were decoded, every few of them.

    Raises:
        NumbersError: Logits of a prompt are no numbers; `row` says of which.
    """
    device, ends = model.device, end_tokens(model)
    rows = [Row(index, prompt, settings, tokenizer, ends, device) for index, prompt in enumerate(prompts)]
    batch, going, start = _Batch(model, rows, mask, cache, settings.room), rows, now(device)
    steps = steps_after_end = 0
    with model._optimize_model_for_decode():  # mixtures of experts on a GPU
        while batch.rows:
            batch.step()
            steps += 1
            num_ended = sum(row.reason is not None for row in batch.rows)
            steps_after_end += bool(num_ended)
            is_leaving = 2 * num_ended >= len(batch.rows) or steps_after_end == _STEPS_AFTER_END
            if is_leaving or steps == _STEPS:
                spent = now(device) - start
                start += spent
                for row in going:
                    row.seconds += spent / len(going)
                decoded(steps)
                steps = 0
                if is_leaving:
                    batch.drop_ended()
                    steps_after_end = 0
                going = [row for row in batch.rows if row.reason is None]
    return rows
