"""Decode prompts that share a prefix tree: in a stream, or in batches; by half as many where memory runs out.

In a stream up to so many prompts decode together, and the next of the tree take the places of those that have ended. A
batch is decoded as it is: of beams, of encoder-decoders, of models without a plan.
"""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.config.generation import DRAFT_TOKENS, GenerationSettings
from eval.errors import UserError
from eval.generation.answer import Answer
from eval.generation.decode import Prompts, decode, decode_stream, is_greedy, rows_together, warm_up
from eval.generation.prompt_tree import Node, PromptTree, TreeCaches
from eval.runtime.model import plan_of
from masformer import SpanPlan
from masformer.errors import NumbersError, is_out_of_memory
from masformer.plans.cost import attention_flops


class Observer:
    """What a decoder reports meanwhile; silent by itself."""

    def filled(self, node: Node) -> None:
        """An edge of the tree has gone through the model."""

    def decoded(self, batch: Sequence[Sequence[int]], settings: GenerationSettings, steps: int) -> None:
        """A batch has decoded some steps."""

    def print(self, text: str) -> None:
        """Print a remark."""


class TreeDecoder:
    """Decodes the prompts of one tree after another.

    Args:
        model: Model with its plan.
        tokenizer: Tokenizer of the model.
        observer: What to report to.
        hint: Settings that avoid a lack of memory, after the remark on it.
        draft_tokens: As `decode`.
    """

    # What helps where memory does not hold a single prompt.
    remedy = "lower --maxlen, give layers a span with --plan, or take a smaller --dtype"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        observer: Observer,
        hint: str,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        self.draft_tokens = draft_tokens
        self.hint = hint
        self.model = model
        self.tokenizer = tokenizer
        self.observer = observer
        # Fewest tokens at once that memory did not hold.
        self.too_many: int | None = None

    @cached_property
    def spans(self) -> SpanPlan | None:
        """Return the spans that the model computes; None where no span describes them."""
        return plan_of(self.model)

    def warm_up(self) -> None:
        """Generate once and throw it away."""
        warm_up(self.model, self.tokenizer)

    def rows_together(self, settings: GenerationSettings) -> int | None:
        """Return how many prompts may decode as one batch without a change of what any gets; None is any number."""
        return rows_together(self.model, settings)

    def is_stream(self, settings: GenerationSettings) -> bool:
        """Return whether prompts take the places of others that have ended."""
        return is_greedy(self.model, settings)

    def attention_flops(self, num_prompt: int, num_new: Sequence[int]) -> int | None:
        """Return the operations of attention for a prompt and samples of so many tokens after it; None if unknown."""
        if self.spans is None:
            return None
        ends = [attention_flops(self.model.config, self.spans, num_prompt + each) for each in num_new]
        return sum(ends) - (len(ends) - 1) * attention_flops(self.model.config, self.spans, num_prompt)

    def caches(self, tree: PromptTree, wanted: Sequence[int]) -> TreeCaches:
        """Return the caches of a tree, filled when they are needed.

        Args:
            tree: All prompts that share it.
            wanted: Prompts that will be decoded.
        """
        return TreeCaches(self.model, tree, wanted, self.observer.filled)

    def batches(
        self, order: Sequence[int], settings: GenerationSettings, most: int, fits: Callable[[Sequence[int]], bool]
    ) -> list[Sequence[int]]:
        """Return the prompts of each call of `decode`.

        Where prompts take the places of others that have ended, that is one call; else those that decode together, as
        even in number as memory lets them be.

        Args:
            order: All prompts of a tree, such that those that share an edge stand side by side.
            settings: How answers are chosen.
            most: Prompts that decode together at most.
            fits: Whether memory holds the rows of such prompts.
        """
        if self.is_stream(settings):
            return [order]
        most = min(most, self.rows_together(settings) or most)
        even = math.ceil(len(order) / math.ceil(len(order) / most))
        batches: list[list[int]] = []
        for leaf in order:
            if not batches or len(batches[-1]) == even or not fits([*batches[-1], leaf]):
                batches.append([])
            batches[-1].append(leaf)
        return list(batches)

    def decode(
        self,
        leaves: Sequence[int],
        prompts: Sequence[Sequence[int]],
        caches: TreeCaches,
        settings: GenerationSettings,
        most: int,
        fits: Callable[[Sequence[int]], bool],
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Yield answers to some prompts, as `decode` does, with the prompts that they answer.

        Args:
            leaves: Indices of the prompts, as `batches` has them.
            prompts: Token ids of all prompts of the tree.
            caches: Caches of the tree; the caller releases the edges of prompts that are answered.
            settings: How answers are chosen.
            most: As `batches` has it.
            fits: As `batches` has it.

        Raises:
            UserError: Memory does not hold a single prompt.
            NumbersError: Logits of a prompt are no numbers; `row` is its index.
        """
        if self.is_stream(settings):
            most = min(most, self.rows_together(settings) or most)
            yield from _Stream(self, leaves, prompts, caches, settings, most, fits).decode()
        else:
            yield from self._decode_batch(leaves, prompts, caches, settings)

    def _decode_batch(
        self,
        leaves: Sequence[int],
        prompts: Sequence[Sequence[int]],
        caches: TreeCaches,
        settings: GenerationSettings,
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Yield answers to some prompts: of one batch, or of halves where memory does not hold it."""
        num_tokens = sum(len(prompts[leaf]) for leaf in leaves)
        if self.may_hold(num_tokens) or len(leaves) == 1:
            answers = self._decode_at_once(leaves, prompts, caches, settings)
            if answers is None and len(leaves) == 1:
                # Beside the edges that others wait for it may not fit, and by itself it may.
                self.release_all(caches)
                answers = self._decode_at_once(leaves, prompts, caches, settings)
            if answers is not None:
                yield leaves, answers
                return
            self.release_all(caches)
            if len(leaves) == 1:
                raise self.too_long(num_tokens, settings)
            self.too_many = num_tokens
            self.say_halved(len(leaves), num_tokens)
        half = (len(leaves) + 1) // 2
        yield from self._decode_batch(leaves[:half], prompts, caches, settings)
        yield from self._decode_batch(leaves[half:], prompts, caches, settings)

    def _decode_at_once(
        self,
        leaves: Sequence[int],
        prompts: Sequence[Sequence[int]],
        caches: TreeCaches,
        settings: GenerationSettings,
    ) -> list[Answer] | None:
        """Return answers to some prompts as one batch; None when memory does not hold it."""
        batch = [prompts[leaf] for leaf in leaves]
        try:
            filled = [caches.take(leaf) for leaf in leaves]
            return self._decode(batch, filled, settings, lambda steps: self.observer.decoded(batch, settings, steps))
        except NumbersError as error:
            error.row = leaves[error.row]
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _decode(
        self,
        batch: Sequence[Sequence[int]],
        filled: Sequence[Any],
        settings: GenerationSettings,
        decoded: Callable[[int], None],
    ) -> list[Answer]:
        """Return the answers to prompts whose caches are filled."""
        return decode(self.model, self.tokenizer, batch, filled, settings, decoded, self.draft_tokens)

    def may_hold(self, num_tokens: int) -> bool:
        """Return whether memory may hold so many tokens at once, by what it did not hold so far."""
        return self.too_many is None or num_tokens < self.too_many

    def say_halved(self, num_prompts: int, num_tokens: int) -> None:
        """Say that memory did not hold so many at once."""
        self.observer.print(
            f"out of memory with {num_prompts} prompts of {num_tokens:,} tokens at once; going on with half as "
            f"many (a smaller {self.hint} avoids this)"
        )

    def too_long(self, num_tokens: int, settings: GenerationSettings) -> UserError:
        """Return the error about a prompt that does not fit by itself."""
        rows = f" in {settings.num_rows} rows (--num-samples, --num-beams)" if settings.num_rows > 1 else ""
        size = f"{num_tokens:,} tokens{rows}"
        return UserError(f"out of memory with a single prompt of {size}; {self.remedy}")

    def release_all(self, caches: TreeCaches) -> None:
        """Let go of all edges, to be filled anew."""
        caches.release()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


class _Stream:
    """Prompts of a tree that decode one after another, some at once.

    Args:
        decoder: Whose model it is.
        leaves: Prompts to answer.
        prompts: Token ids of all prompts of the tree.
        caches: Caches of the tree.
        settings: How answers are chosen.
        most: Prompts at once.
        fits: Whether memory holds the rows of such prompts.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        leaves: Sequence[int],
        prompts: Sequence[Sequence[int]],
        caches: TreeCaches,
        settings: GenerationSettings,
        most: int,
        fits: Callable[[Sequence[int]], bool],
    ) -> None:
        self.decoder, self.prompts, self.caches, self.settings = decoder, prompts, caches, settings
        self.most, self.fits = most, fits
        self.waiting, self.going = deque(leaves), list[int]()
        self.size = 0  # rows when some entered last
        self.alone: int | None = None  # what memory did not hold, and is decoded by itself

    def decode(self) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Yield each prompt with its answer."""
        decoder = self.decoder
        while self.waiting:
            try:
                for leaf, answer in decode_stream(
                    *(decoder.model, decoder.tokenizer, self._enter, self.settings, self._decoded),
                    decoder.draft_tokens,
                ):
                    self.going.remove(leaf)
                    self.alone = None
                    yield [leaf], [answer]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.going:  # the frames that held memory are gone now
                self._make_smaller()

    def _make_smaller(self) -> None:
        """Let half as many prompts begin again as memory did not hold."""
        decoder, going, self.going = self.decoder, self.going, []
        decoder.release_all(self.caches)
        num_tokens = self._num_tokens(going)
        if len(going) > 1:
            decoder.too_many = num_tokens // 2 + 1
            decoder.say_halved(len(going), num_tokens)
        elif going[0] == self.alone:
            raise decoder.too_long(num_tokens, self.settings)
        else:
            # Beside the edges that others wait for it may not fit, and by itself it may.
            self.alone = going[0]
        self.waiting.extendleft(reversed(going))

    def _enter(self, going: Sequence[int]) -> Prompts | None:
        """Return the next prompts when half of the rows have left, as many as there are places and memory for."""
        self.going, entering = list(going), list[int]()
        most = self.most if self.alone is None else 1
        while self.waiting and 2 * len(going) <= self.size and len(going) + len(entering) < most:
            rows = [*going, *entering, self.waiting[0]]
            if len(rows) > 1 and not (self.decoder.may_hold(self._num_tokens(rows)) and self.fits(rows)):
                break
            entering.append(self.waiting.popleft())
        if not entering:
            return None
        self.going += entering
        self.size = len(self.going)
        tokens = [self.prompts[leaf] for leaf in entering]
        return Prompts(numbers=entering, tokens=tokens, caches=lambda: [self.caches.take(leaf) for leaf in entering])

    def _decoded(self, going: Sequence[int], steps: int) -> None:
        self.decoder.observer.decoded([self.prompts[leaf] for leaf in going], self.settings, steps)

    def _num_tokens(self, leaves: Sequence[int]) -> int:
        return sum(len(self.prompts[leaf]) for leaf in leaves)
