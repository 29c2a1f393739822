"""Answers of prompts that take the places of others, and how many entered when."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.config.generation import GenerationSettings
from eval.generation.answer import Answer
from eval.generation.decode import Prompts
from eval.generation.prompt_tree import PromptTree
from eval.generation.tree_decoder import Observer, TreeDecoder, _Stream
from masformer import fixed_frequencies


def streamed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    most: int,
    fits: Callable[[Sequence[int]], bool] = lambda leaves: True,
) -> tuple[list[Answer], list[tuple[int, int]]]:
    """Return the answers of a stream, and how many rows went on and how many entered, each time that some entered."""
    tree = PromptTree(prompts)
    decoder = TreeDecoder(model, tokenizer, Observer(), "")
    caches = decoder.caches(tree, range(len(prompts)))
    answers: dict[int, Answer] = {}
    entered = []
    with fixed_frequencies(model, len(prompts[0])), pytest.MonkeyPatch.context() as patch:
        original = _Stream._enter

        def noted(stream: _Stream, going: Sequence[int]) -> Prompts | None:
            if (more := original(stream, going)) is not None:
                entered.append((len(going), len(more.numbers)))
            return more

        patch.setattr(_Stream, "_enter", noted)
        (batch,) = decoder.batches(tree.order, settings, most, fits)
        for leaves, made in decoder.decode(batch, prompts, caches, settings, most, fits):
            answers |= dict(zip(leaves, made, strict=True))
            caches.release(leaves)
    assert not caches._filled
    return [answers[leaf] for leaf in range(len(prompts))], entered
