"""The span cache: decoding through it equals the definition, and it holds nothing that no query sees."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention.cache import SpanCache, cache_layer
from masformer.attention.full import FullLayer
from masformer.attention.kernels import dense_attention, span_attention
from masformer.attention.layers import CacheLayer
from masformer.attention.visibility import SpanMask, cached_slots, num_cached, visible_keys
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, SpanPlan
from tests.helpers.attention_cases import SPANS, Case, States, assert_close, cases, defined, random_states
from tests.helpers.properties import tries

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-10  # fp64
HEAD_SIZE = 8
Layer = CacheLayer
# Lengths of what is given to a cache at a time.
CHUNKS = st.lists(st.just(1) | st.just(1) | st.integers(1, 50), min_size=1, max_size=25)


@st.composite
def chunked_cases(draw: st.DrawFn) -> tuple[Case, list[int]]:
    chunks = draw(CHUNKS)
    return draw(cases(num_tokens=sum(chunks), can_cache=False)), chunks


def step(case: Case, states: States, layer: Layer, first: int, stop: int) -> Tensor:
    """Return the outputs of tokens [first, stop), which are given to the cache."""
    new = (slice(None), slice(None), slice(first, stop))
    padding = None if case.padding is None else torch.tensor(case.padding)
    keys, values = layer.update(states.key[new], states.value[new])
    return span_attention(
        states.query[new],
        keys,
        values,
        case.span,
        SpanMask(offset=first, padding=padding),
        scale=case.scale,
        softcap=case.softcap,
        learned_sinks=states.learned_sinks,
        seen=layer.seen,
    )


def layer_of(case: Case, max_tokens: int = 0, is_latent: bool = False) -> Layer:
    layer = cache_layer(case.span, max_tokens, is_latent=is_latent)
    layer.padding = None if case.padding is None else torch.tensor(case.padding)
    return layer


@tries(60)
@given(chunked_cases(), st.sampled_from([0, 0, 30, 300]))
@torch.no_grad()
def test_any_split_into_chunks_and_tokens_equals_the_definition(split: tuple[Case, list[int]], max_tokens: int) -> None:
    case, chunks = split
    states, layer, stops = random_states(case), layer_of(case, max_tokens), list(accumulate(chunks))
    for _ in range(2):
        outs = [step(case, states, layer, first, stop) for first, stop in zip([0, *stops[:-1]], stops, strict=True)]
        assert_close(torch.cat(outs, dim=2), defined(case, states), TOLERANCE)
        # And once more, in a cache that was used before.
        padding = layer.padding
        layer.reset()
        layer.padding = padding


@tries(60)
@given(chunked_cases(), st.data())
@torch.no_grad()
def test_rows_that_are_selected_and_repeated_on_the_way_take_their_past_along(
    split: tuple[Case, list[int]], data: st.DataObject
) -> None:
    case, chunks = split
    states, layer, first = random_states(case), layer_of(case), 0
    for length in chunks:
        rows = list(range(case.batch))
        if data.draw(st.booleans()) and case.batch < 6:
            layer.batch_repeat_interleave(2)
            rows = [row for row in rows for _ in range(2)]
        if data.draw(st.booleans()):
            # As beams do: some go on twice, others end.
            order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            layer = data.draw(st.sampled_from([layer, layer.fork()]))
            layer.reorder_cache(torch.tensor(order))
            rows = [rows[index] for index in order]
        states = replace(states, query=states.query[rows], key=states.key[rows], value=states.value[rows])
        padding = None if case.padding is None else tuple(case.padding[row] for row in rows)
        case = replace(case, batch=len(rows), padding=padding)
        stop = first + length
        out = step(case, states, layer, first, stop)
        new = replace(case, offset=first, num_new=length)
        past = replace(
            states, query=states.query[:, :, first:stop], key=states.key[:, :, :stop], value=states.value[:, :, :stop]
        )
        assert_close(out, defined(new, past), TOLERANCE)
        first = stop


def continued(states: States, other: States, first: int) -> States:
    """Return states that are others from a token on."""
    return States(
        **{
            name: x
            if x is None or x.dim() == 1
            else torch.cat([x[:, :, :first], vars(other)[name][:, :, first:]], dim=2)
            for name, x in vars(states).items()
        }
    )


@tries(60)
@given(chunked_cases(), st.data())
@torch.no_grad()
def test_forks_go_on_apart(split: tuple[Case, list[int]], data: st.DataObject) -> None:
    case, chunks = split
    origin = layer_of(case, is_latent=data.draw(st.booleans()))
    branches: list[tuple[Layer, States, list[Tensor]]] = [(origin, random_states(case), [])]
    first = 0
    for length in chunks:
        if len(branches) < 4 and data.draw(st.booleans()):
            layer, states, _ = data.draw(st.sampled_from(branches))
            other = random_states(replace(case, seed=case.seed + len(branches)))
            branches.append((layer.fork(), continued(states, other, first), []))
        for layer, states, outs in branches:
            outs.append(step(case, states, layer, first, first + length))
        first += length
    for _, states, outs in branches:
        out = torch.cat(outs, dim=2)
        assert_close(out, defined(case, states)[:, :, -out.shape[2] :], TOLERANCE)


@tries(150)
@given(SPANS, CHUNKS, st.data())
def test_a_layer_returns_the_slots_that_are_named(span: LayerSpan, chunks: list[int], data: st.DataObject) -> None:
    total = sum(chunks)
    padding = data.draw(st.none() | st.lists(st.integers(0, total - 1), min_size=2, max_size=2).map(torch.tensor))
    layer, first = cache_layer(span), 0
    layer.padding = padding
    for length in chunks:
        new = torch.arange(first, first + length, dtype=torch.float32)[None, None, :, None].expand(2, 1, -1, 1)
        keys, values = layer.update(new, -new)
        slots = cached_slots(span, first, length, padding, keys.device)
        # Without a past: all that was given, as it came.
        slots = slots.expand(2, -1) if first else torch.arange(length).expand(2, -1)
        assert keys.shape[2] == num_cached(span, first, length) == slots.shape[1]
        assert torch.equal(keys[:, 0, :, 0][slots >= 0].long(), slots[slots >= 0])
        assert torch.equal(values, -keys)
        first += length
        assert layer.get_seq_length() == first
        assert isinstance(layer, FullLayer) or layer.keys.shape[2] <= layer.capacity


@pytest.mark.parametrize(
    "span", [LayerSpan(span=100, sinks=4), LayerSpan(block=48, previous=1, sinks=4), FULL], ids=str
)
@torch.no_grad()
def test_3000_tokens_one_at_a_time_equal_one_dense_pass(span: LayerSpan) -> None:
    case = Case(span=span, num_new=3000, heads=2, kv_heads=1, size=4, value_size=4)
    states, layer = random_states(case), cache_layer(span)
    outs = torch.cat([step(case, states, layer, token, token + 1) for token in range(3000)], dim=2)
    positions = torch.arange(3000)
    for first in range(0, 3000, 500):
        rows, stop = slice(first, first + 500), first + 500
        expected = dense_attention(
            states.query[:, :, rows],
            states.key[:, :, :stop],
            states.value[:, :, :stop],
            visible_keys(positions[rows], positions[:stop], span),
        )
        assert_close(outs[:, :, rows], expected, TOLERANCE)


def test_cache_holds_sinks_and_last_keys_only() -> None:
    plan = SpanPlan((FULL, LayerSpan(span=64, sinks=4), LayerSpan(block=32, previous=1, sinks=4)))
    cache = SpanCache(plan, max_tokens=1000)
    alone = [SpanCache(SpanPlan((span,)), max_tokens=1000) for span in plan]
    states = torch.randn(2, 3, 1000, HEAD_SIZE)
    for layer in range(3):
        for part in states.split((700, 300), dim=2):
            cache.update(part, part, layer)
            alone[layer].update(part, part, 0)
    row = 2 * 3 * HEAD_SIZE * 4 * 2  # batch, heads, size, bytes, keys and values
    assert [layer.num_bytes for layer in alone] == [1000 * row, 68 * row, 68 * row]
    assert cache.num_bytes == 1136 * row
    before = cache.layers[0].keys.data_ptr()
    for _ in range(3):
        cache.update(states[:, :, :1], states[:, :, :1], 0)
    after = cache.layers[0].keys.data_ptr()
    cache.update(states[:, :, :1], states[:, :, :1], 0)
    assert cache.layers[0].keys.data_ptr() == after != before  # grown once, by a step, not for each token


def test_heads_hold_what_their_own_span_sees() -> None:
    window = LayerSpan(span=64, sinks=4)
    plan = SpanPlan((HeadSpans((window, FULL, window, window)), FULL))
    cache = SpanCache(plan, max_tokens=1000)
    assert not cache.is_initialized
    states = torch.randn(2, 4, 1000, HEAD_SIZE)
    for part in states.split((700, 300), dim=2):
        cache.update(part, part, 0)
    row = 2 * HEAD_SIZE * 4 * 2  # batch, size, bytes, keys and values of one head
    assert cache.num_bytes == (1000 + 3 * 68) * row
    for part in states.split((700, 300), dim=2):
        cache.update(part, part, 1)
    assert cache.num_bytes == (1000 + 3 * 68 + 4 * 1000) * row
    assert cache.is_initialized
    cache.reset()
    assert not cache.is_initialized
    assert cache.num_bytes == cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="spans of 4 key/value heads got 3 of them"):
        cache.update(states[:, :3], states[:, :3], 0)


@pytest.mark.parametrize("span", [LayerSpan(span=4), HeadSpans((FULL, LayerSpan(span=4)))], ids=str)
def test_tokens_are_not_taken_back(span: LayerSpan | HeadSpans) -> None:
    layer = cache_layer(span)
    layer.update(torch.randn(1, 2, 9, HEAD_SIZE), torch.randn(1, 2, 9, HEAD_SIZE))
    layer.crop(0)
    with pytest.raises(ValueError, match="cannot give back tokens"):
        layer.crop(1)
