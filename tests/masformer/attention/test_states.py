"""Layers that carry states: in forks, batches, beams and costs, beside layers with spans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from masformer import PlanError, SpanCache, apply_plan, native_plan, prefill, read_plan, remove_plan
from masformer.attention.cache import join, num_bytes, row_bytes
from masformer.attention.full import FullLayer
from masformer.attention.layers import AttentionAndStates, RingLayer, StateLayer
from masformer.errors import SpanError
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.shapes import layer_shapes, state_bytes
from tests.helpers.library import tiny_library_model

pytestmark = pytest.mark.usefixtures("one_thread")
# One of each family of states.
KINDS = ("qwen3_5_text", "olmo_hybrid", "kimi_linear", "granitemoehybrid", "falcon_h1", "nemotron_h", "lfm2", "zaya")


def converted(kind: str, plan: str, **changes: Any) -> PreTrainedModel:
    model = tiny_library_model(kind, **changes)
    apply_plan(model, read_plan(plan, model.config))
    return model


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, (1, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bytes_have_the_states_of_each_row(kind: str) -> None:
    model = converted(kind, "local span=9 sinks=2")
    plan, cache = model.span_plan, SpanCache(model.span_plan)
    model(tokens(40), past_key_values=cache)
    assert cache_bytes(model.config, plan, 40, 8) == cache.num_bytes
    assert state_bytes(model.config, 8) > 0
    assert attention_flops(model.config, plan, 40) == sum(
        2 * shape.num_heads * (shape.query_size + shape.value_size) * span.num_pairs(40)
        for shape, span in zip(layer_shapes(model.config), plan, strict=True)
    )


@torch.no_grad()
def test_a_fork_holds_states_of_its_own_and_reads_the_keys_of_its_origin() -> None:
    model = converted("lfm2", "full")
    cache = SpanCache(model.span_plan)
    prefill(model, tokens(30), cache)
    fork = cache.fork()
    assert [type(layer) for layer in fork.layers] == [StateLayer, FullLayer] * 2
    states = 8 * sum(layer.states[0].numel() for layer in fork.layers[::2])
    assert num_bytes(cache, fork) == cache.num_bytes + states
    before = [layer.states[0].clone() for layer in cache.layers[::2]]
    prefill(model, tokens(5, seed=1), fork)
    assert all(torch.equal(a, layer.states[0]) for a, layer in zip(before, cache.layers[::2], strict=True))
    assert not torch.equal(before[0], fork.layers[0].states[0])


@torch.no_grad()
def test_layers_with_both_have_keys_of_their_span_and_states() -> None:
    model = converted("falcon_h1", "full@1 span=9 sinks=2")
    cache = SpanCache(model.span_plan)
    prefill(model, tokens(30), cache)
    assert all(isinstance(layer, AttentionAndStates) for layer in cache.layers)
    assert [type(layer.attention) for layer in cache.layers] == [RingLayer, FullLayer, RingLayer, RingLayer]
    joined = join([cache.fork(), cache.fork()], room=2)
    assert row_bytes(joined, 0, copies=2) - row_bytes(joined, 0) >= state_bytes(model.config, 8)
    cache.reset()
    assert cache.get_seq_length() == 0
    with pytest.raises(SpanError, match="cannot give back tokens"):
        cache.crop(-1)


@pytest.mark.parametrize("kind", ["olmo_hybrid", "falcon_h1", "lfm2"])
@torch.no_grad()
def test_rows_of_a_batch_are_chosen_and_repeated_with_their_states(kind: str) -> None:
    model = converted(kind, "local span=9 sinks=2")
    ends = [tokens(count, seed=count) for count in (6, 11, 3)]
    beginning, caches = SpanCache(model.span_plan), []
    prefill(model, tokens(20), beginning)
    for end in ends:
        caches.append(beginning.fork())
        prefill(model, end, caches[-1])
    joined, last = join(caches, room=4), tokens(1, seed=9)
    joined.batch_select_indices(torch.tensor([2, 1]))
    joined.batch_repeat_interleave(2)
    mask = torch.ones(4, 32, dtype=torch.long)
    mask[:2, :8] = 0
    positions = torch.tensor([[23], [23], [31], [31]])
    found = model(last.expand(4, 1), attention_mask=mask, position_ids=positions, past_key_values=joined).logits[:, -1]
    for rows, end in ((found[:2], ends[2]), (found[2:], ends[1])):
        alone = model(torch.cat([tokens(20), end, last], dim=1), use_cache=False).logits[0, -1]
        torch.testing.assert_close(rows, alone.expand(2, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["lfm2", "falcon_h1"])
@torch.no_grad()
def test_beams_take_their_states_along(kind: str) -> None:
    model, prompt = converted(kind, "local span=9 sinks=2", initializer_range=0.3), tokens(25)
    config = GenerationConfig(max_new_tokens=12, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    with_cache = model.generate(prompt, generation_config=config)
    config.use_cache = False
    assert torch.equal(with_cache, model.generate(prompt, generation_config=config))


@torch.no_grad()
def test_a_plan_comes_off_a_hybrid_again() -> None:
    model = tiny_library_model("qwen3_5_text")
    before = model(tokens(30), use_cache=False).logits
    apply_plan(model, read_plan("local span=4", model.config))
    assert not torch.equal(model(tokens(30), use_cache=False).logits, before)
    remove_plan(model)
    made = model(tokens(30), use_cache=True)
    assert torch.equal(made.logits, before)
    assert type(made.past_key_values) is DynamicCache


def test_a_plan_names_what_it_cannot_have() -> None:
    config = tiny_library_model("lfm2").config
    assert str(native_plan(config)) == "full; none@0,2"
    with pytest.raises(PlanError, match="'0' has no attention in this model"):
        read_plan("full@0 span=8", config)
    with pytest.raises(PlanError, match="no layer of this mamba model has attention"):
        native_plan(tiny_library_model("mamba").config)


def test_packed_documents_are_refused_because_states_know_no_boundary() -> None:
    model = converted("lfm2", "full")
    positions = torch.tensor([[*range(12), *range(8)]])
    with pytest.raises(SpanError, match=r"^lfm2 model: packed documents would see each other through its states"):
        model(tokens(20), position_ids=positions, use_cache=False)
