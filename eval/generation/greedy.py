"""Decode the likeliest tokens under a plan: one pass a step for all rows of a batch.

Rows leave as they end, and others enter in their places: the caller says which prompts, once their beginnings are in
caches. A batch that others enter is made anew: what rows have of their own is copied, the keys that they share are read
where they were.

A row that is alone drafts: tokens that have followed its last ones before go through the model with the last one, and
those that are the likeliest stay. Several rows would accept different numbers of tokens, and a pass of several rows
costs more with each token. On CUDA a step is a graph where that can be (`masformer.step_graph`), which takes less time
than a pass of several tokens does without one, and no row drafts.

Shapes: R rows, T tokens, V tokens that the model knows.

Source: scores in fp32 and the order of processors are those of `generate` in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from eval.generation.answer import Answer, cut_at_end, end_tokens, make_answer
from eval.generation.lookup import Lookup
from eval.generation.thinking import ThinkingRow, ThinkingRows
from eval.runtime.memory import storage_bytes
from masformer import SpanCache
from masformer.attention.cache import can_join, join, row_bytes, split
from masformer.errors import NumbersError
from masformer.hardware import dtype_name
from masformer.step_graph import StepGraph
from masformer.tuning import now

# What a guess costs, in steps of one token: a pass of two takes up to 1.2 times one of one, of five 1.6 times
# (docs/performance.md). A row guesses on as long as what was right has paid for all guesses but the first few, and one
# more in ten tokens: so it loses two steps, and 2% of its time, at most.
_GUESS_COST, _FREE_GUESSES, _TOKENS_A_GUESS = 0.2, 8, 10
# Steps between two looks at the time.
_STEPS = 32
# Steps that a row which has ended stays for: to take it out, the keys of all others are copied.
_STEPS_AFTER_END = 8


@dataclass(frozen=True, kw_only=True)
class Entered:
    """Prompts that begin to decode.

    Attributes:
        numbers: The number of each prompt.
        prompts: Token ids of each, two at least.
        cache: All tokens of the prompts but the last of each, with room for those of the answers. It is joined, unless
            caches of the model do not join.
        mask: (R, T), zeros at the left padding of prompts.
    """

    numbers: Sequence[int]
    prompts: Sequence[Sequence[int]]
    cache: SpanCache
    mask: Tensor


# Given the numbers of the rows that go on, return what lets others enter; None while none does. It is called once the
# documents of rows that have ended are let go of.
Enter = Callable[[Sequence[int]], Callable[[], Entered] | None]


class Row:
    """A prompt and what is written after it.

    Attributes:
        number: The number of the prompt.
        batch_size: Most rows that decoded together while it did.
        cache_bytes: Keys and values that it read when it left.
        tokens: The answer so far, its end token and thought included.
        reason: `stop` or `length` once the row has ended; None before.
        num_drafted: Tokens that were guessed.
        num_accepted: Those of them that are its own.
        seconds: Its share in the time that its batches took.
        thinking: Its thought; None where all text is the answer.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        device: torch.device,
    ) -> None:
        self.number, self.prompt = number, prompt
        self.batch_size = self.cache_bytes = 0
        self.settings, self.tokenizer, self.ends = settings, tokenizer, ends
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.num_drafted = self.num_accepted = 0
        self.seconds = 0.0
        self._lookup: Lookup | None = None
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

    def answer(self, prefill_seconds: float) -> Answer:
        """Return what has been written; `prefill_seconds` as `Answer` has it."""
        assert self.reason is not None
        return make_answer(
            self.tokens,
            self.thinking,
            self.ends,
            self.settings.stop,
            self.tokenizer,
            finish_reason=self.reason,
            prefill_seconds=prefill_seconds,
            seconds=self.seconds,
            cache_bytes=self.cache_bytes,
            batch_size=self.batch_size,
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
        )

    def draft(self, most: int) -> list[int]:
        """Return guesses of the next tokens, at most so many.

        None where too few were right, or where no run of tokens may occur twice.
        """
        most = min(most, self.settings.room - len(self.tokens) - 1)
        free = _FREE_GUESSES + len(self.tokens) / _TOKENS_A_GUESS
        is_poor = self.num_accepted < _GUESS_COST * (self.num_drafted - free)
        if self.settings.no_repeat_ngram_size or is_poor or most < 1:
            return []
        if self._lookup is None:
            self._lookup = Lookup([*self.prompt, *self.tokens])
        return self._lookup.draft(most)

    def choose(self, scores: Tensor, likeliest: Tensor) -> Tensor:
        """Return the next token, as a tensor without dimensions.

        Args:
            scores: (V,) of the model.
            likeliest: The token with the greatest of them.
        """
        if not self._processors or self.reason is not None:
            return likeliest
        ids = self._ids[None, : len(self.prompt) + len(self.tokens)]
        processed: Tensor = self._processors(ids, scores[None].clone())
        return processed.argmax()

    def read(self, token: int) -> None:
        """Take in the token that was chosen."""
        if self._processors:
            self._ids[len(self.prompt) + len(self.tokens)] = token
        self.tokens.append(token)
        if self._lookup is not None:
            self._lookup.append(token)
        if self.thinking is not None and self._thoughts is not None:
            self._thoughts.append([token])
            self.reason = self.thinking.reason
        elif token in self.ends or self._has_stop_text():
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
        room: Tokens of an answer.
        draft_tokens: Tokens that a row which is alone guesses at most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        mask: Tensor,
        cache: SpanCache,
        room: int,
        draft_tokens: int,
    ) -> None:
        self.model, self.rows, self.cache = model, list(rows), cache
        for row in rows:
            row.batch_size = max(row.batch_size, len(rows))
        self.draft_tokens = draft_tokens if cache.can_draft else 0
        self.last = mask.shape[1] - 1 + room  # the cache lacks the last token of each prompt
        self.mask: Tensor | None = None
        self.padding = (mask == 0).sum(dim=1, keepdim=True)
        if not bool(mask.all()):
            self.mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)
        self._make_graph()

    def _make_graph(self) -> None:
        seen = self.cache.get_seq_length()
        self.graph = StepGraph.of(self.model, self.cache, seen - self.padding, self.mask, self.last - seen)

    def scores(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the (R, T, V) scores after each of (R, T) tokens, which the cache takes in."""
        ids, more = torch.tensor(tokens, device=self.model.device), dict[str, Any]()
        if self.graph is not None:
            return self.graph(ids)
        if self.mask is not None:
            first, stop = (seen := self.cache.get_seq_length()), seen + ids.shape[1]
            positions = torch.arange(first, stop, device=ids.device) - self.padding
            more = {"attention_mask": self.mask[:, :stop], "position_ids": positions}
        logits: Tensor = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **more).logits
        return logits.to(ids.device, torch.float32)

    def step(self) -> int:
        """Write a token to each row, and to one that is alone its draft as far as that is right.

        Returns:
            The tokens that a row has got.

        Raises:
            NumbersError: Scores are no numbers.
        """
        is_drafting = len(self.rows) == 1 and self.graph is None
        drafted = self.rows[0].draft(self.draft_tokens) if is_drafting else []
        if drafted:
            self.cache.draft()
        scores = self.scores([[(row.tokens or row.prompt)[-1], *drafted] for row in self.rows])
        likeliest = scores.argmax(dim=-1)
        # Of a row with NaN the largest is NaN; tokens may be ruled out by -inf, but not all of them.
        is_number = scores.gather(-1, likeliest[..., None])[..., 0].isfinite()
        chosen = [row.choose(*first) for row, *first in zip(self.rows, scores[:, 0], likeliest[:, 0], strict=True)]
        # One look at the device for all rows.
        found = torch.cat([torch.stack(chosen)[:, None], is_number], dim=1).tolist()
        num_read = 1
        for index, (row, (token, *are_numbers)) in enumerate(zip(self.rows, found, strict=True)):
            if row.reason is None:
                self._read(row, token, are_numbers[0])
                if drafted:
                    num_read = self._accept(row, token, are_numbers, scores[index], likeliest[index], drafted)
        if drafted:
            self.cache.commit(num_read)
        return num_read

    def _read(self, row: Row, token: int, is_number: int) -> None:
        if not is_number:
            what = f"the logits of a prompt of {len(row.prompt):,} tokens"
            raise NumbersError(what, dtype_name(self.model.dtype), row.number)
        row.read(token)

    def _accept(
        self,
        row: Row,
        token: int,
        are_numbers: Sequence[int],
        scores: Tensor,
        likeliest: Tensor,
        drafted: Sequence[int],
    ) -> int:
        """Let a row read on as long as its last token was drafted, and return how many it has read."""
        row.num_drafted += len(drafted)
        for count, guess in enumerate(drafted, start=1):
            row.num_accepted += token == guess
            if row.reason is not None or token != guess:
                return count
            token = int(row.choose(scores[count], likeliest[count]))
            self._read(row, token, are_numbers[count])
        return len(drafted) + 1

    @property
    def going(self) -> list[int]:
        """Return the places of rows that have not ended."""
        return [place for place, row in enumerate(self.rows) if row.reason is None]

    def run(self, decoded: Callable[[Sequence[int], int], None], start: float) -> list[Row]:
        """Decode until it is time for rows that have ended to leave, and return these.

        Args:
            decoded: As `decode_greedily` has it.
            start: The time since which the rows of the batch are waiting.
        """
        going = self.rows
        steps = steps_after_end = 0
        while True:
            with self.model._optimize_model_for_decode():  # mixtures of experts on a GPU
                steps += self.step()
            num_ended = sum(row.reason is not None for row in self.rows)
            steps_after_end += bool(num_ended)
            is_leaving = 2 * num_ended >= len(self.rows) or steps_after_end == _STEPS_AFTER_END
            if is_leaving or steps >= _STEPS:
                spent = now(self.model.device) - start
                start += spent
                for row in going:
                    row.seconds += spent / len(going)
                decoded([row.number for row in self.rows], steps)
                steps = 0
                if is_leaving:
                    return self._ended()
                going = [row for row in self.rows if row.reason is None]

    def _ended(self) -> list[Row]:
        ended = [(place, row) for place, row in enumerate(self.rows) if row.reason is not None]
        for place, row in ended:
            is_joined = can_join(self.model.config)
            row.cache_bytes = row_bytes(self.cache, place) if is_joined else storage_bytes(self.cache)
        return [row for _, row in ended]

    def drop_ended(self) -> None:
        """Take out the rows that have ended, of which there are not all."""
        going = self.going
        self.rows = [self.rows[place] for place in going]
        kept = torch.tensor(going, device=self.model.device)
        self.cache.batch_select_indices(kept)
        self.padding = self.padding[kept]
        if self.mask is not None:
            self.mask = self.mask[kept]
        self._make_graph()


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    enter: Enter,
    settings: GenerationSettings,
    draft_tokens: int,
    decoded: Callable[[Sequence[int], int], None],
) -> Iterator[Row]:
    """Yield rows with their answers as they leave.

    Args:
        model: With a plan.
        enter: Called when there are no rows, and when some have left.
        settings: The same for all.
        draft_tokens: Tokens that a row which is alone guesses at most.
        decoded: Called with the numbers of a batch's prompts and the tokens that each has got, every few of them.

    Raises:
        NumbersError: Logits of a prompt are no numbers; `row` is its number.
    """
    device, ends = model.device, end_tokens(model)
    batch: _Batch | None = None
    while True:
        rows = [] if batch is None else [batch.rows[place] for place in batch.going]
        begin = enter([row.number for row in rows])
        if begin is not None:
            # What only rows that have ended have read is not kept while others are prefilled.
            alone = [] if batch is None else split(batch.cache, batch.going)
            batch = None
            entered = begin()
            start = now(device)
            numbered = zip(entered.numbers, entered.prompts, strict=True)
            rows += [Row(number, prompt, settings, tokenizer, ends, device) for number, prompt in numbered]
            mask, cache = _joined(alone, entered, settings.room)
            batch = _Batch(model, rows, mask, cache, settings.room, draft_tokens)
            del entered, cache  # the batch has it now
        elif batch is not None and rows:
            start = now(device)
            batch.drop_ended()
        else:
            return
        yield from batch.run(decoded, start)


def _joined(alone: list[SpanCache], entered: Entered, room: int) -> tuple[Tensor, SpanCache]:
    """Return the mask and the cache of rows that go on, whose caches are forgotten, and of others."""
    if not alone:
        return entered.mask, entered.cache
    caches = [*alone, *split(entered.cache, range(len(entered.numbers)))]
    alone.clear()
    lengths = torch.tensor([[cache.get_seq_length() + 1] for cache in caches], device=entered.mask.device)
    longest = int(lengths.max())
    mask = (torch.arange(longest, device=lengths.device) >= longest - lengths).long()
    return mask, join(caches, room)
