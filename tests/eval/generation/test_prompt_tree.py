"""The prefix tree holds each prompt, shares what is shared, and is the same for the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.generation.prompt_tree import Node, PromptTree, TreeCaches
from masformer import LayerSpan, SpanPlan, apply_plan, tuning
from masformer.attention import ways
from masformer.plans.spans import FULL
from tests.helpers.properties import tries
from tests.helpers.tiny_models import LAYERS, VOCAB, tiny_model

# Few tokens, so that prompts share beginnings.
PROMPTS = st.lists(
    st.lists(st.integers(0, 2), min_size=2, max_size=12).map(tuple), min_size=1, max_size=12, unique=True
)


def edges(tree: PromptTree) -> list[tuple[int, tuple[int, ...], list[int]]]:
    return [(node.start, tuple(node.tokens.tolist()), node.leaves) for node in tree]


@tries(200)
@given(PROMPTS)
def test_every_prompt_is_the_path_to_its_end(prompts: list[tuple[int, ...]]) -> None:
    tree = PromptTree(prompts)
    for leaf, prompt in enumerate(prompts):
        path = tree.ends[leaf].path
        assert tuple(np.concatenate([node.tokens for node in path]).tolist()) == prompt[:-1]
        assert [node.start for node in path] == [0, *(node.stop for node in path[:-1])]
        assert leaf in path[-1].leaves
    # Each distinct beginning goes through the model once.
    beginnings = {prompt[:length] for prompt in prompts for length in range(1, len(prompt))}
    assert tree.num_tokens == len(beginnings)
    assert sorted(tree.order) == list(range(len(prompts)))
    assert edges(PromptTree(prompts)) == edges(tree)
    # Prompts that share an edge stand side by side.
    for node in tree:
        below = [at for at, leaf in enumerate(tree.order) if node in tree.ends[leaf].path]
        assert below == list(range(below[0], below[0] + len(below)))


def test_lengths_of_a_document_cost_one_prefill_and_queries_about_it_too() -> None:
    context = list(range(100, 900))
    lengths = [[1, 2, *context[:kept], 8, 9] for kept in (100, 200, 400, 800)]
    tree = PromptTree(lengths)
    assert tree.num_tokens == 2 + 800 + 4
    assert [len(node.tokens) for node in tree.ends[3].path] == [102, 100, 200, 401]
    queries = [[1, 2, *context, query, 9] for query in range(8)]
    assert PromptTree(queries).num_tokens == 2 + 800 + 8


@torch.no_grad()
def test_the_seconds_of_a_prefill_leave_out_how_long_ways_of_windows_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def measure(*_: Any) -> tuple[str, bool]:
        clock[0] += 100.0
        return "tiles", True

    monkeypatch.setenv("MASFORMER_WAYS", "attention=torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_settled", {})
    monkeypatch.setattr(tuning, "_used", {})
    monkeypatch.setattr(tuning, "_measured", [])
    monkeypatch.setattr(tuning, "_fastest", measure)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(ways, "MEASURED_QUERIES", 16)
    model = tiny_model("llama")
    apply_plan(model, SpanPlan((LayerSpan(span=8, sinks=1),) * LAYERS))
    caches = TreeCaches(model, PromptTree([list(range(60))]), [0], lambda node: clock.append(clock[0]))
    caches.take(0)
    assert clock == [100.0, 100.0]
    assert caches.seconds(0) == 0


@torch.no_grad()
@pytest.mark.parametrize("is_converted", [True, False])
def test_an_edge_goes_through_the_model_once_and_is_kept_as_long_as_it_is_needed(is_converted: bool) -> None:
    model = tiny_model("llama")
    if is_converted:
        apply_plan(model, SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2))))
    generator = torch.Generator().manual_seed(0)
    stem, *ends = (torch.randint(3, VOCAB, (count,), generator=generator).tolist() for count in (50, 9, 20, 31))
    prompts = [stem + ends[0], stem + ends[1], stem + ends[1] + ends[2]]
    tree = PromptTree(prompts)
    seen: list[Node] = []
    caches = TreeCaches(model, tree, range(3), seen.append)
    for leaf in tree.order:
        cache = caches.take(leaf)
        left_out = len(prompts[leaf]) - cache.get_seq_length()
        assert left_out == 1, "one prompt ends within another, so that nothing is left to the batch"
        last = torch.tensor([prompts[leaf][-left_out:]])
        logits = model(last, past_key_values=cache).logits[0, -1]
        alone = model(torch.tensor([prompts[leaf]]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    assert len(seen) == len(set(seen)) == len(list(tree))
    assert sum(caches.num_prefilled.values()) == tree.num_tokens
    assert caches.seconds(0) > 0
    caches.release([0, 1])
    caches.take(2)
    assert len(seen) == 4, "all is still there"
    caches.release([2])
    caches.take(2)
    assert seen[4:] == tree.ends[2].path


@torch.no_grad()
def test_as_many_tokens_of_each_prompt_are_left_to_the_batch() -> None:
    model = tiny_model("llama")
    stem = list(range(3, 90))
    for ends, left in {(7, 5, 90): 5, (70, 80): 64, (3,): 3, (0, 9): 0}.items():
        prompts = [[*stem, *[91 + at] * count, 95] for at, count in enumerate(ends)]
        prompts = prompts if len(prompts) > 1 else [*prompts, [94, 94, 94, 94]]
        tree = PromptTree(prompts)
        caches = TreeCaches(model, tree, range(len(prompts)))
        expected = left if len(ends) > 1 else 2  # of a prompt that shares nothing, a token is always prefilled
        assert {len(prompts[leaf]) - caches.take(leaf).get_seq_length() for leaf in tree.order} == {expected + 1}
        assert sum(caches.num_prefilled.values()) == tree.num_tokens
