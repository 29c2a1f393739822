"""Thoughts before answers: how they are marked, and where each row of a batch stands between the two.

    thinking = find_thinking(config, tokenizer, chat)
    row = ThinkingRow(settings, tokenizer, ends, prompt)
    row.read([17, 4, 9])  # tokens that were chosen
    row.forced            # the token that must come next, once the room for the thought is used up

A row is told by its own tokens alone, whatever decodes beside it. It thinks from its beginning where the prompt opens
the thought, else once it has written the mark that begins one. Stop texts end answers and no thoughts; end tokens end
both. A row that begins with other text answers at once, unless an end mark follows within the room for a thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

from eval.config.generation import GenerationSettings, ThinkingSettings
from eval.config.run import RunConfig
from eval.errors import UserError
from eval.prompting.chat import ChatTemplate
from eval.prompting.encoding import TextEncoder
from eval.prompting.ends import Ends
from eval.records.thoughts import THINKING_MARKS, forced_end, start_of, without_marks

# Room for a thought where thinking is switched on and no other is given.
DEFAULT_TOKENS = 1024
# Tokens at the end of a prompt in which a thought may be opened.
_OPENING = 16


def find_thinking(config: RunConfig, tokenizer: Any, chat: ChatTemplate, ends: Ends) -> ThinkingSettings | None:
    """Return how thoughts are told from answers; None where all text is the answer, as without the settings for it.

    Args:
        config: Settings of the run.
        tokenizer: Tokenizer of the model.
        chat: Its chat template, with the settings of the run.
        ends: What ends an answer.

    Raises:
        UserError: The template cannot be switched, or the end mark is not known or cannot be written.
    """
    chat.check_switch()
    if not config.handles_thoughts:
        return None
    return thinking_settings(
        tokenizer,
        chat,
        ends,
        end=config.think_end_token,
        max_tokens=config.max_thinking_tokens or DEFAULT_TOKENS,
        flag="--think-end-token",
    )


def thinking_settings(
    tokenizer: Any, chat: ChatTemplate, ends: Ends, *, end: str | None, max_tokens: int, flag: str
) -> ThinkingSettings:
    """Return how thoughts are told from answers.

    Args:
        tokenizer: Tokenizer of the model.
        chat: Its chat template.
        ends: What ends an answer.
        end: Text that ends a thought; None is the first of `THINKING_MARKS` that the model has.
        max_tokens: Room for a thought.
        flag: What names the end mark, for messages.

    Raises:
        UserError: The end mark is not known, or cannot be written.
    """
    if end is None:
        words, text = tokenizer.get_added_vocab().keys(), chat.source or ""
        known = [mark for mark in THINKING_MARKS.values() if mark in text or mark in words]
        if not known:
            raise UserError(
                f"neither chat template nor tokenizer has a known mark that ends a thought; name it with {flag}, or "
                "leave thinking to the template"
            )
        end = known[0]
    forced = TextEncoder(tokenizer).encode(forced_end(end), after="a")
    if end not in tokenizer.decode(list(forced)):
        raise UserError(f"the tokenizer cannot write {end!r}, which ends a thought; name another mark with {flag}")
    if both := [ends.names[token] for token in forced if token in ends.names]:
        raise UserError(f"{end!r} cannot end a thought, since {both[0]!r} ends answers; name another mark with {flag}")
    return ThinkingSettings(start=start_of(end), end=end, forced=forced, max_tokens=max_tokens)


class ThinkingRow:
    """One row of a batch: its thought, then its answer.

    Args:
        settings: How answers are chosen, `thinking` among it.
        tokenizer: Tokenizer of the model.
        ends: Tokens that end a row.
        prompt: Token ids of the prompt.

    Attributes:
        tokens: What was chosen, up to the end of the row.
        num_thought: Tokens of the thought, its end mark included; None while there is none.
        is_thinking: Whether a thought has begun; None while that is open.
        reason: `stop` or `length` once the row has ended; None before.
        forced_at: Tokens before the forced end; None where none is forced.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        prompt: Sequence[int],
    ) -> None:
        assert settings.thinking is not None
        self.settings, self.thinking = settings, settings.thinking
        self.tokenizer, self.ends = tokenizer, frozenset(ends)
        self.tokens: list[int] = []
        self.num_thought: int | None = None
        self.forced_at: int | None = None
        self.reason: str | None = None
        start = self.thinking.start
        is_open = not start or self._decode(list(prompt[-_OPENING:])).rstrip().endswith(start)
        self.is_thinking: bool | None = True if is_open else None

    def read(self, tokens: Sequence[int]) -> None:
        """Take in tokens that were chosen; those after the end of the row are none of its own."""
        for token in tokens:
            if self.reason is None:
                self.tokens.append(token)
                self._judge(token)

    @property
    def forced(self) -> int | None:
        """Return the token that must come next, by which a thought ends that has used up its room; None for any."""
        if self.reason is not None or self.num_thought is not None or self.is_thinking is False:
            return None
        if self.forced_at is None and len(self.tokens) >= self.thinking.max_tokens:
            self.forced_at, self.is_thinking = len(self.tokens), True
        return None if self.forced_at is None else self.thinking.forced[len(self.tokens) - self.forced_at]

    @property
    def num_answer(self) -> int:
        """Return the tokens of the answer; none while there may be a thought before it."""
        if self.num_thought is None and self.is_thinking is not False:
            return 0
        return len(self.tokens) - (self.num_thought or 0)

    @property
    def thought_finish(self) -> str | None:
        """Return how the thought ended: `stop`, `length`, or `turn` within it; None where there is none."""
        if self.num_thought is None:
            return "turn" if self.is_thinking else None
        return "stop" if self.forced_at is None else "length"

    @property
    def num_thought_tokens(self) -> int:
        """Return the tokens of the thought, its marks included."""
        return self.num_thought or (len(self.tokens) if self.is_thinking else 0)

    @property
    def thought(self) -> str | None:
        """Return the thought without its marks; None where there is none."""
        if self.num_thought is None and not self.is_thinking:
            return None
        tokens = self.tokens[: self.num_thought_tokens]
        text = self._decode(tokens[:-1] if tokens and tokens[-1] in self.ends else tokens)
        return without_marks(text.partition(self.thinking.end)[0], self.thinking.start, self.thinking.end)

    @property
    def answer(self) -> tuple[str, list[int]]:
        """Return the tokens of the answer, and the text that the first of them has of the thought's end mark."""
        first = self.num_thought_tokens
        if self.num_thought is not None:
            # Of marks that are no tokens the last one may go on with the answer.
            rest = self._decode(self.tokens[:first]).partition(self.thinking.end)[2]
            if rest.strip():
                return self._decode(self.tokens[first - 1 : first]).removesuffix(rest), self.tokens[first - 1 :]
        return "", self.tokens[first:]

    def _judge(self, token: int) -> None:
        """Find out what a new token is to the row."""
        count, thinking = len(self.tokens), self.thinking
        if token in self.ends:
            self.reason = "stop"
        elif self.num_thought is None and self._ends_thought():
            self.num_thought = count
        elif self.is_thinking is None:
            # The end of a text may be part of a character.
            text = self._decode(self.tokens).lstrip().rstrip("\N{REPLACEMENT CHARACTER}")
            if text.startswith(thinking.start):
                self.is_thinking = True
            elif not thinking.start.startswith(text):
                self.is_thinking = False
        if self.reason is None and self.num_answer:
            if self._holds(self.settings.stop, self.num_answer):
                self.reason = "stop"
            elif self.num_answer >= self.settings.max_new_tokens:
                self.reason = "length"

    def _ends_thought(self) -> bool:
        count = len(self.tokens)
        if self.forced_at is not None:
            return count == self.forced_at + len(self.thinking.forced)
        return count <= self.thinking.max_tokens and self._holds([self.thinking.end], count)

    def _holds(self, texts: Sequence[str], most: int) -> bool:
        """Return whether the end of the row, of so many tokens at most, holds one of some texts."""
        if not texts:
            return False
        # A token is one byte at least.
        tail = self._decode(self.tokens[-min(most, max(len(text.encode()) for text in texts) + 4) :])
        return any(text in tail for text in texts)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))


class ThinkingRows(LogitsProcessor):  # type: ignore[misc]
    """The rows that decode together: forces the ends of thoughts.

    Args:
        rows: Those of the batch, in order.
        num_seen: Columns that they have read, the prompts among them.
    """

    def __init__(self, rows: Sequence[ThinkingRow], num_seen: int) -> None:
        self.rows, self.num_seen = rows, num_seen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.read(input_ids)
        # `generate` gives scores that are its own, and takes them back.
        for index, row in enumerate(self.rows):
            if (forced := row.forced) is not None:
                scores[index] = -torch.inf
                scores[index, forced] = 0
            elif row.num_answer < row.settings.min_new_tokens:
                for end in row.ends:  # a list would be copied to the device, which waits for it
                    scores[index, end] = -torch.inf
        return scores

    def read(self, input_ids: Tensor) -> None:
        """Let each row take in its new tokens."""
        if input_ids.shape[1] == self.num_seen:
            return
        new, self.num_seen = input_ids[:, self.num_seen :].tolist(), input_ids.shape[1]
        for row, tokens in zip(self.rows, new, strict=True):
            row.read(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """Let each row take in its next token, which is not read from the device."""
        self.num_seen += 1
        for row, token in zip(self.rows, tokens, strict=True):
            row.read([token])


class RowsEnded(StoppingCriteria):  # type: ignore[misc]
    """Ends each row where it says so."""

    def __init__(self, rows: ThinkingRows) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.rows.read(input_ids)
        return torch.tensor([row.reason is not None for row in self.rows.rows], device=input_ids.device)
