"""A template and an example -> prompt tokens in three parts, of which only the context may be cut.

Each part is tokenized once, so that with head truncation the prompt at one length begins like the prompt at a greater
one, and token counts are exact. A tokenizer with a chat template gets the prompt as one user turn, unless the
template is a plain one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from eval.errors import UserError
from eval.prompting.truncation import Ranges, kept_ranges
from tasks import Example, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for the context while the chat template is rendered: no template and no query contains it.
_CONTEXT_MARK = "\N{OBJECT REPLACEMENT CHARACTER}context\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """Token ids of what stands before the context, the context, and what stands after it."""

    prefix: tuple[int, ...]
    context: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model sees.

    Attributes:
        token_ids: The whole prompt.
        context_ranges: Which of the context's tokens are in it.
        num_context_dropped: Context tokens that were cut.
    """

    token_ids: tuple[int, ...]
    context_ranges: Ranges
    num_context_dropped: int

    @property
    def num_context_kept(self) -> int:
        return sum(stop - start for start, stop in self.context_ranges)


class PromptBuilder:
    """Builds the prompts of one template for one tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        template: A template of the task.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        assert template.text.count("{context}") == 1
        self.tokenizer = tokenizer
        self.template = template
        self.uses_chat_template = template.chat and bool(tokenizer.chat_template)
        self._bos: tuple[int, ...] = ()
        self._fixed: dict[str | None, PromptParts] = {}
        # Of the context asked about last: its prompts are answered together.
        self._offsets: tuple[str, list[tuple[int, int]]] = "", []
        if tokenizer.bos_token_id is not None:
            # Plain text begins as the tokenizer begins it.
            first = tokenizer("a").input_ids[:1]
            self._bos = tuple(first) if first == [tokenizer.bos_token_id] else ()

    @property
    def sha256(self) -> str:
        """Return the digest of the rendered template, chat markup included."""
        return hashlib.sha256("\0".join(self._render()).encode()).hexdigest()

    def fixed_parts(self, query: str | None, context: tuple[int, ...] = ()) -> PromptParts:
        """Return the token ids of a prompt, those of a context as they are given: all else is never cut.

        Raises:
            UserError: The chat template refuses, loses or repeats the user's text.
        """
        if query not in self._fixed:
            before, after = (self._fill(part, query or "") for part in self._render())
            self._fixed[query] = PromptParts(
                prefix=before if self.uses_chat_template else self._bos + before, context=(), suffix=after
            )
        return replace(self._fixed[query], context=context)

    def parts(self, example: Example) -> PromptParts:
        """Return the token ids of an example's prompt, uncut.

        Raises:
            UserError: As `fixed_parts`.
        """
        return self.fixed_parts(example.query, self._tokenize_data(example.context))

    def spans_of(self, context: str, ranges: Ranges) -> list[list[int]]:
        """Return the characters of a context that ranges of its tokens stand for, as starts and ends.

        A tokenizer that does not tell where its tokens stand is taken at the length of what it decodes.
        """
        if not self.tokenizer.is_fast:
            ids = self._tokenize_data(context)
            return [[min(len(self.tokenizer.decode(ids[:end])), len(context)) for end in pair] for pair in ranges]
        if self._offsets[0] != context:
            encoded = self.tokenizer(
                context, add_special_tokens=False, split_special_tokens=True, verbose=False, return_offsets_mapping=True
            )
            self._offsets = context, encoded.offset_mapping
        offsets = self._offsets[1]
        return [[offsets[start][0], offsets[stop - 1][1]] for start, stop in ranges]

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the token ids of an answer, with what ends the model's turn.

        Raises:
            UserError: The chat template refuses an answer, or there is no token that ends one.
        """
        return self._tokenize_data(text.strip()) + self._end

    def document(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text on its own, begun and ended as the tokenizer's vocabulary has it."""
        end = () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)
        return self._bos + self._tokenize_data(text) + end

    @cached_property
    def _end(self) -> tuple[int, ...]:
        """Return what the chat template puts after an answer, else the end token."""
        if self.uses_chat_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _CONTEXT_MARK}]
            try:
                text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            except TemplateError as error:
                raise UserError(f"the model's chat template refuses an answer: {error}") from error
            end = self._tokenize(text.rpartition(_CONTEXT_MARK)[2].rstrip())
            if end:
                return end
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token, so a target cannot be ended; give a model that has one")
        return (self.tokenizer.eos_token_id,)

    def _render(self) -> tuple[str, str]:
        """Return what stands before and after the context, with `{query}` still in its place."""
        before, after = self.template.text.split("{context}")
        if not self.uses_chat_template:
            return before, after
        turn = [{"role": "user", "content": before + _CONTEXT_MARK + after}]
        try:
            text = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UserError(f"the model's chat template refuses a single user turn: {error}") from error
        pieces = text.split(_CONTEXT_MARK)
        if len(pieces) != 2:
            raise UserError(f"the chat template shows the user's text {len(pieces) - 1} times; once is needed")
        return pieces[0], pieces[1]

    def _fill(self, text: str, query: str) -> tuple[int, ...]:
        if not any(token in query for token in self.tokenizer.all_special_tokens):
            return self._tokenize(text.replace("{query}", query))
        ids: tuple[int, ...] = ()
        for index, piece in enumerate(text.split("{query}")):
            ids += (self._tokenize_data(query) if index else ()) + self._tokenize(piece)
        return ids

    def _tokenize_data(self, text: str) -> tuple[int, ...]:
        # A document or query that happens to hold chat markup must not end the user's turn.
        return self._tokenize(text, split_special_tokens=True)

    def _tokenize(self, text: str, *, split_special_tokens: bool = False) -> tuple[int, ...]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )
        return tuple(encoded.input_ids)


def fit(parts: PromptParts, maxlen: int, max_new_tokens: int, policy: str) -> Prompt:
    """Return the prompt that leaves room for the answer within `maxlen`.

    Raises:
        UserError: Not even an empty context fits.
    """
    num_fixed = len(parts.prefix) + len(parts.suffix)
    budget = maxlen - num_fixed - max_new_tokens
    if budget < 0:
        raise UserError(
            f"maxlen {maxlen} is too small: {num_fixed} tokens of instruction and template and {max_new_tokens} for "
            f"the answer need {maxlen - budget} even with an empty context; raise --maxlen or lower --max-new-tokens"
        )
    ranges = kept_ranges(len(parts.context), budget, policy)
    kept = tuple(token for start, stop in ranges for token in parts.context[start:stop])
    return Prompt(
        token_ids=parts.prefix + kept + parts.suffix,
        context_ranges=ranges,
        num_context_dropped=len(parts.context) - len(kept),
    )
