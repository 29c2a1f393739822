"""Closed forms against counted pairs and real cache buffers."""

from __future__ import annotations

import itertools

import pytest
import torch

from masformer import SpanCache, SpanPlan, apply_plan, native_plan
from masformer.attention.visibility import visible_keys
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.spans import FULL, HeadSpans, LayerSpan
from tests.helpers.tiny_models import BY_HEAD, SUPPORTED, plan_by_head, tiny_model

SPANS = [
    FULL,
    *[LayerSpan(span=w, sinks=s) for w, s in itertools.product((1, 5, 16), (0, 1, 4, 30))],
    *[LayerSpan(block=b, previous=p, sinks=s) for b, p, s in itertools.product((1, 4, 7), (0, 1, 3), (0, 1, 4, 30))],
]


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_the_number_of_pairs_equals_the_counted_ones(span: LayerSpan) -> None:
    for num_tokens in range(50):
        positions = torch.arange(num_tokens)
        pairs = int(visible_keys(positions, positions, span).sum())
        # In closed form, and as a pattern without one is counted.
        assert span.num_pairs(num_tokens) == LayerSpan.num_pairs(span, num_tokens) == pairs, num_tokens


@pytest.mark.parametrize(
    ("kind", "by_head"), [*((kind, False) for kind in SUPPORTED), *((kind, True) for kind in BY_HEAD)]
)
def test_cache_bytes_equals_the_storage_after_a_forward_pass(kind: str, by_head: bool) -> None:
    model = tiny_model(kind)
    mixed = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
    plan = apply_plan(model, plan_by_head(model.config) if by_head else mixed)
    cache = SpanCache(plan)
    with torch.no_grad():
        model(torch.arange(3, 63)[None], past_key_values=cache)
    assert cache_bytes(model.config, plan, 60, 4) == cache.num_bytes


def test_flops_of_a_known_case() -> None:
    config = tiny_model("llama").config  # 3 layers, 4 heads of size 8
    assert attention_flops(config, native_plan(config), 10) == 3 * 55 * 4 * 8 * 2 * 2


@pytest.mark.parametrize("num_tokens", [1, 7, 40])
def test_flops_of_heads_are_those_of_the_pairs_that_each_query_head_sees(num_tokens: int) -> None:
    config = tiny_model("llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=3).config  # heads of size 8
    spans = (FULL, LayerSpan(span=5, sinks=2), LayerSpan(block=4))
    plan = SpanPlan((HeadSpans(spans), LayerSpan(span=3), FULL))
    positions = torch.arange(num_tokens)
    pairs = 0
    for layer in plan:
        for head in range(6):
            span = layer.heads[head // 2] if isinstance(layer, HeadSpans) else layer
            pairs += int(visible_keys(positions, positions, span).sum())
    flops = attention_flops(config, plan, num_tokens)
    assert flops == pairs * 8 * 2 * 2
    assert isinstance(flops, int)
