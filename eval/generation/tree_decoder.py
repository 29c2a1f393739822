"""Decode prompts that share a prefix tree, in batches, and in halves of a batch where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.config.generation import DRAFT_TOKENS, GenerationSettings
from eval.errors import UserError
from eval.generation.answer import Answer
from eval.generation.decode import decode, rows_together, warm_up
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

    def decode(
        self,
        leaves: Sequence[int],
        prompts: Sequence[Sequence[int]],
        caches: TreeCaches,
        settings: GenerationSettings,
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Yield answers to some prompts, as `decode` does: of one batch, or of halves where memory does not hold it.

        Args:
            leaves: Indices of the prompts.
            prompts: Token ids of all prompts of the tree.
            caches: Caches of the tree.
            settings: How answers are chosen.

        Raises:
            UserError: Memory does not hold a single prompt.
            NumbersError: Logits of a prompt are no numbers; `row` is its index.
        """
        num_tokens = sum(len(prompts[leaf]) for leaf in leaves)
        if self.too_many is None or num_tokens < self.too_many or len(leaves) == 1:
            answers = self._decode_at_once(leaves, prompts, caches, settings)
            if answers is None and len(leaves) == 1:
                # Beside the edges that others wait for it may not fit, and by itself it may.
                self._release_all(caches)
                answers = self._decode_at_once(leaves, prompts, caches, settings)
            if answers is not None:
                yield leaves, answers
                return
            self._release_all(caches)
            if len(leaves) == 1:
                rows = f" in {settings.num_rows} rows (--num-samples, --num-beams)" if settings.num_rows > 1 else ""
                size = f"{num_tokens:,} tokens{rows}"
                raise UserError(f"out of memory with a single prompt of {size}; {self.remedy}")
            self.too_many = num_tokens
            self.observer.print(
                f"out of memory with {len(leaves)} prompts of {num_tokens:,} tokens at once; going on with half as "
                f"many (a smaller {self.hint} avoids this)"
            )
        half = (len(leaves) + 1) // 2
        yield from self.decode(leaves[:half], prompts, caches, settings)
        yield from self.decode(leaves[half:], prompts, caches, settings)

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

    def _release_all(self, caches: TreeCaches) -> None:
        caches.release()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
