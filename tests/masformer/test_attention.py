"""Span attention and the span cache against a mask written out key by key, in fp64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from masformer.attention import dense_attention, span_attention
from masformer.cache import SpanCache, SpanCacheLayer
from masformer.spans import FULL, LayerSpan, SpanPlan
from masformer.visibility import SpanMask, left_padding, visible_keys

TOLERANCE = 1e-10  # fp64
HEAD_SIZE = 8


def sees(query: int, key: int, span: LayerSpan) -> bool:
    """The definition, one pair at a time."""
    if key < 0 or key > query:
        return False
    if span.is_full or key < span.sinks:
        return True
    if span.span is not None:
        return query - key + 1 <= span.span
    assert span.block is not None
    return query // span.block - key // span.block <= span.previous


def random_span(rng: random.Random, longest: int) -> LayerSpan:
    sinks = rng.choice([0, 1, 4, 9])
    kind = rng.choice(["window", "block", "full"])
    if kind == "window":
        return LayerSpan(span=rng.randint(1, longest), sinks=sinks)
    if kind == "block":
        return LayerSpan(block=rng.randint(1, longest // 2), previous=rng.randint(0, 3), sinks=sinks)
    return FULL


def random_states(rng: random.Random, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads = rng.choice([(2, 2), (4, 2), (3, 1)])
    batch = rng.choice([1, 2, 3])
    generator = torch.Generator().manual_seed(rng.randint(0, 10**6))
    query, key, value = (
        torch.randn(batch, count, num_tokens, HEAD_SIZE, dtype=torch.float64, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )
    return query, key, value


def reference(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, padding: Tensor | None) -> Tensor:
    num_tokens = query.shape[2]
    pads = [0] * len(query) if padding is None else padding.tolist()
    visible = torch.tensor(
        [[[sees(q - pad, k - pad, span) for k in range(num_tokens)] for q in range(num_tokens)] for pad in pads]
    )
    return dense_attention(query, key, value, visible[:, None])


def assert_equal_where_real(out: Tensor, expected: Tensor, padding: Tensor | None) -> None:
    for row in range(len(out)):
        pad = 0 if padding is None else int(padding[row])
        torch.testing.assert_close(out[row, :, pad:], expected[row, :, pad:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", range(60))
def test_one_pass_equals_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    num_tokens = rng.randint(1, 150)
    span = random_span(rng, 70)
    query, key, value = random_states(rng, num_tokens)
    padding = torch.tensor([rng.randint(0, num_tokens - 1) for _ in query]) if rng.random() < 0.4 else None
    out = span_attention(query, key, value, span, SpanMask(offset=0, padding=padding))
    assert_equal_where_real(out, reference(query, key, value, span, padding), padding)


@pytest.mark.parametrize("seed", range(80))
def test_any_split_into_chunks_and_tokens_through_the_cache_equals_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    num_tokens = rng.randint(2, 120)
    span = random_span(rng, 40)
    query, key, value = random_states(rng, num_tokens)
    first = rng.randint(1, num_tokens)
    padding = torch.tensor([rng.randint(0, first - 1) for _ in query]) if rng.random() < 0.5 else None
    layer, outs, seen = SpanCacheLayer(span), [], 0
    layer.padding = padding
    while seen < num_tokens:
        step = min(first if seen == 0 else rng.choice([1, 1, 1, 2, 7, 30]), num_tokens - seen)
        new = slice(seen, seen + step)
        keys, values = layer.update(key[:, :, new], value[:, :, new])
        outs.append(span_attention(query[:, :, new], keys, values, span, SpanMask(offset=seen, padding=padding)))
        seen += step
    assert_equal_where_real(torch.cat(outs, dim=2), reference(query, key, value, span, padding), padding)


def test_visible_keys_is_the_definition() -> None:
    positions = torch.arange(-2, 40)
    for span in (FULL, LayerSpan(span=5, sinks=2), LayerSpan(block=6, previous=1, sinks=1), LayerSpan(block=4)):
        expected = [[sees(int(q), int(k), span) for k in positions] for q in positions]
        rows = positions >= 0
        assert torch.equal(visible_keys(positions, positions, span)[rows], torch.tensor(expected)[rows])


@pytest.mark.parametrize("span", [LayerSpan(span=16, sinks=2), LayerSpan(block=16, previous=1), FULL])
def test_gradients_equal_the_dense_ones(span: LayerSpan) -> None:
    query, key, value = (x.requires_grad_() for x in random_states(random.Random(5), 100))
    weight = torch.randn(query.shape, dtype=torch.float64)
    got = torch.autograd.grad((span_attention(query, key, value, span) * weight).sum(), (query, key, value))
    expected = torch.autograd.grad((reference(query, key, value, span, None) * weight).sum(), (query, key, value))
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=0)


def test_no_mask_of_the_whole_sequence_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    attend = torch.nn.functional.scaled_dot_product_attention

    def recording(*args: Tensor, attn_mask: Tensor | None = None, **kwargs: object) -> Tensor:
        nonlocal largest
        largest = max(largest, 0 if attn_mask is None else attn_mask.numel())
        return attend(*args, attn_mask=attn_mask, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    query = torch.randn(1, 1, 20_000, HEAD_SIZE)
    heads = torch.randn(1, 4, 20_000, HEAD_SIZE)
    for span in (LayerSpan(span=256, sinks=4), LayerSpan(block=2048, previous=0, sinks=4), FULL):
        span_attention(heads, query, query, span)
    assert largest <= 4 * 512 * (4 + 2048)  # 20,000 x 20,000 would be 400 million


def test_cache_holds_sinks_and_last_keys_only() -> None:
    plan = SpanPlan((FULL, LayerSpan(span=64, sinks=4), LayerSpan(block=32, previous=1, sinks=4)))
    cache = SpanCache(plan, max_tokens=1000)
    states = torch.randn(2, 3, 1000, HEAD_SIZE)
    for layer in range(3):
        cache.update(states, states, layer)
    row = 2 * 3 * HEAD_SIZE * 4 * 2  # batch, heads, size, bytes, keys and values
    assert [layer.num_bytes for layer in cache.layers] == [1000 * row, 68 * row, 68 * row]
    assert cache.num_bytes == 1136 * row
    before = cache.layers[0].keys.data_ptr()
    for _ in range(3):
        cache.update(states[:, :, :1], states[:, :, :1], 0)
    after = cache.layers[0].keys.data_ptr()
    cache.update(states[:, :, :1], states[:, :, :1], 0)
    assert cache.layers[0].keys.data_ptr() == after != before  # grown once, by a step, not for each token


@pytest.mark.parametrize("previous", [0, 1])
def test_blocks_larger_than_a_mask(previous: int) -> None:
    query, key, value = random_states(random.Random(previous), 2600)
    span = LayerSpan(block=1100, previous=previous, sinks=3)
    positions = torch.arange(2600)
    expected = dense_attention(query, key, value, visible_keys(positions, positions, span))
    torch.testing.assert_close(span_attention(query, key, value, span), expected, atol=TOLERANCE, rtol=0)


def test_keys_of_another_cache_are_refused() -> None:
    query = torch.randn(1, 2, 1, HEAD_SIZE)
    key = torch.randn(1, 2, 50, HEAD_SIZE)
    with pytest.raises(ValueError, match="got 50 keys where a SpanCache returns 12"):
        span_attention(query, key, key, LayerSpan(span=10, sinks=2), SpanMask(offset=49))


def test_left_padding() -> None:
    assert left_padding(torch.ones(2, 5)) is None
    assert left_padding(torch.tensor([[1, 1, 0], [1, 0, 0]])) is None  # padding after the text hides nothing
    found = left_padding(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert found is not None
    assert found.tolist() == [1, 0]
    with pytest.raises(ValueError, match="between real tokens"):
        left_padding(torch.tensor([[1, 0, 1]]))
