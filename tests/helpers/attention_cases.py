"""The definition of attention under a span, one pair at a time, and cases that implementations are held against.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries), D head size (of the values it may
differ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from torch import Tensor

from masformer.attention import tiles
from masformer.attention.cache import cache_layer
from masformer.attention.kernels import dense_attention, span_attention
from masformer.attention.layers import Seen
from masformer.attention.tiles import ScoreRule
from masformer.attention.visibility import SpanMask
from masformer.plans.spans import FULL, HeadSpans, LayerSpan, layer_of_heads


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


@cache
def visible(span: LayerSpan, first: int, stop: int) -> Tensor:
    """Return (stop - first, stop) bools: what the queries at positions [first, stop) see."""
    pairs = [[sees(query, key, span) for key in range(stop)] for query in range(first, stop)]
    return torch.tensor(pairs, dtype=torch.bool).view(stop - first, stop)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of an attention function.

    Attributes:
        span: One span, or one for each key/value head.
        num_new: Queries (Tq).
        offset: Tokens that are in the cache before.
        batch: Rows (B).
        heads: Query heads (H).
        kv_heads: Key/value heads (K).
        size: Head size of queries and keys.
        value_size: Head size of values.
        padding: Left-padding tokens of each row.
        scale: Factor of the products; None is the default.
        softcap: Cap of the scores; None leaves them.
        learned: There are learned sinks.
        by_token: States lie in memory tokens before heads, as projections make them.
        forked: The new tokens go on in a fork of the cache.
        seed: Seed of the states.
    """

    span: LayerSpan | HeadSpans
    num_new: int
    offset: int = 0
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    value_size: int = 16
    padding: tuple[int, ...] | None = None
    scale: float | None = None
    softcap: float | None = None
    learned: bool = False
    by_token: bool = False
    forked: bool = False
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        return self.offset + self.num_new

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and not self.learned

    @property
    def by_head(self) -> bool:
        return isinstance(self.span, HeadSpans)

    def sight(self, first: int, stop: int) -> Tensor:
        """Return bools, to broadcast to (H, stop - first, stop): what the queries at positions [first, stop) see."""
        if not isinstance(self.span, HeadSpans):
            return visible(self.span, first, stop)
        heads = torch.stack([visible(span, first, stop) for span in self.span.heads])
        return heads.repeat_interleave(self.heads // self.kv_heads, dim=0)

    @property
    def scores(self) -> ScoreRule:
        return ScoreRule(scale=self.size**-0.5 if self.scale is None else self.scale, softcap=self.softcap)

    def mask(self, device: str = "cpu") -> SpanMask:
        padding = None if self.padding is None else torch.tensor(self.padding, device=device)
        return SpanMask(offset=self.offset, padding=padding)


@dataclass(frozen=True, kw_only=True)
class States:
    """The tensors of a case.

    Attributes:
        query: (B, H, Tq, D), of the new tokens.
        key: (B, K, T, D), of all tokens.
        value: (B, K, T, D).
        learned_sinks: (H,), or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    learned_sinks: Tensor | None = None

    def all(self) -> tuple[Tensor, ...]:
        """Return the tensors that there are."""
        return tuple(x for x in (self.query, self.key, self.value, self.learned_sinks) if x is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> States:
        """Return the states after a function of one tensor."""
        return States(**{name: None if x is None else change(x) for name, x in vars(self).items()})

    def with_grad(self) -> States:
        return self.map(lambda x: x.detach().requires_grad_())


def random_states(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> States:
    """Return the states of a case, rounded to a dtype."""
    generator = torch.Generator().manual_seed(case.seed)

    def random(heads: int, tokens: int, size: int) -> Tensor:
        shape = (case.batch, tokens, heads, size) if case.by_token else (case.batch, heads, tokens, size)
        states = torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype)
        return states.transpose(1, 2) if case.by_token else states

    query = random(case.heads, case.num_new, case.size)
    key = random(case.kv_heads, case.num_tokens, case.size)
    value = random(case.kv_heads, case.num_tokens, case.value_size)
    learned = torch.randn(case.heads, dtype=torch.float64, generator=generator) * 2
    return States(query=query, key=key, value=value, learned_sinks=learned.to(device, dtype) if case.learned else None)


def defined(case: Case, states: States) -> Tensor:
    """Return (B, H, Tq, D) by the definition, each row alone and cut to its real tokens; zeros for its padding."""
    rows = []
    for row, length in enumerate(case.padding or [0] * case.batch):
        pad = min(length, case.num_tokens)
        first = max(pad - case.offset, 0)
        part = slice(row, row + 1)
        query, key, value = states.query[part, :, first:], states.key[part, :, pad:], states.value[part, :, pad:]
        sight = case.sight(case.offset + first - pad, case.num_tokens - pad).to(query.device)
        options = {"softcap": case.softcap, "learned_sinks": states.learned_sinks}
        out = dense_attention(query, key, value, sight, case.scale, **options)  # type: ignore[arg-type]
        rows.append(torch.cat([out.new_zeros(1, case.heads, first, case.value_size), out], dim=2))
    return torch.cat(rows)


def cached(case: Case, states: States) -> tuple[Tensor, Tensor]:
    """Return the keys and values that a cache hands to the case's queries."""
    return from_a_cache(case, states)[:2]


def from_a_cache(case: Case, states: States, forked: bool = False) -> tuple[Tensor, Tensor, Seen | None]:
    """Return the keys and values that a cache, or a fork of it, hands to the queries, and what is seen besides."""
    layer = cache_layer(case.span)
    layer.padding = case.mask(str(states.key.device)).padding
    old, new = slice(case.offset), slice(case.offset, None)
    if case.offset:
        layer.update(states.key[:, :, old], states.value[:, :, old])
    if forked:
        layer = layer.fork()
    key, value = layer.update(states.key[:, :, new], states.value[:, :, new])
    return key, value, layer.seen


def attend(case: Case, states: States, **options: Any) -> Tensor:
    """Return (B, H, Tq, D) from `span_attention`, on top of a cache."""
    key, value, seen = from_a_cache(case, states, case.forked)
    mask = case.mask(str(key.device))
    options = {"scale": case.scale, "softcap": case.softcap, "learned_sinks": states.learned_sinks} | options
    return span_attention(states.query, key, value, case.span, mask, seen=seen, **options)


def gradients(out: Tensor, states: States) -> tuple[Tensor, ...]:
    """Return the gradients of the states for a random gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(out.device, out.dtype)
    return torch.autograd.grad((out * weight).sum(), states.all())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@contextmanager
def lanes_at_once(count: int | None) -> Iterator[None]:
    """Work on so many tiles together; None is what suits the machine: for short sequences one tile a lane."""
    if count is None:
        yield
        return
    with mock.patch.object(tiles, "_lanes_at_once", return_value=count):
        yield


# Sinks may be more than the span, and more than the tokens.
_SINKS = st.sampled_from([4, 1, 0]) | st.integers(0, 90)
WINDOWS = st.builds(LayerSpan, span=st.integers(1, 70), sinks=_SINKS)
BLOCKS = st.builds(LayerSpan, block=st.integers(1, 40), previous=st.integers(0, 3), sinks=_SINKS)
SPANS = WINDOWS | BLOCKS | st.just(FULL)
LANES = st.sampled_from([None, 1, 2, 5])
_HEADS = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (3, 1), (6, 3), (4, 4)])  # H, K


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    longest: int = 150,
    num_tokens: int | None = None,
    can_pad: bool = True,
    can_cache: bool = True,
    can_cap: bool = True,
    by_head: bool = True,
) -> Case:
    """Draw a case.

    Args:
        draw: What hypothesis hands in.
        longest: New tokens at most, and tokens in the cache.
        num_tokens: New tokens; None draws them too.
        can_pad: Rows may have padding.
        can_cache: There may be tokens in the cache.
        can_cap: There may be a soft cap.
        by_head: The key/value heads may have spans of their own.
    """
    num_new = num_tokens or draw(st.integers(2, longest) | st.just(1))
    offset = draw(st.integers(0, longest) | st.just(0)) if can_cache else 0
    batch = draw(st.integers(1, 3))
    heads, kv_heads = draw(_HEADS)
    size, value_size = draw(st.sampled_from([(4, 4), (8, 8), (8, 4), (4, 8)]))
    kinds = draw(st.lists(SPANS, min_size=1, max_size=3 if by_head else 1))
    padding = None
    if can_pad and draw(st.booleans()):
        padding = tuple(draw(st.integers(0, offset + num_new - 1)) for _ in range(batch))
    return Case(
        span=layer_of_heads([draw(st.sampled_from(kinds)) for _ in range(kv_heads)]),
        num_new=num_new,
        offset=offset,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        value_size=value_size,
        padding=padding,
        scale=draw(st.sampled_from([None, 0.1, 1.0])),
        softcap=draw(st.sampled_from([None, 0.5, 20.0])) if can_cap else None,
        learned=draw(st.booleans()),
        by_token=draw(st.booleans()),
        forked=offset > 0 and draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


# Written out for what is compared in many dtypes and on devices; sizes are those that all kernels take.
_PLAIN_CASES = {
    "full": Case(span=FULL, num_new=300),
    "full on a cache": Case(span=FULL, num_new=130, offset=170, heads=4),
    "full on a long cache": Case(span=FULL, num_new=120, offset=900),
    "full on a short cache": Case(span=FULL, num_new=600, offset=3),
    "full on a fork": Case(span=FULL, num_new=120, offset=200, heads=4, forked=True),
    "one token on a fork": Case(span=FULL, num_new=1, offset=300, heads=4, forked=True),
    "window": Case(span=LayerSpan(span=100), num_new=500, heads=4),
    "window with sinks": Case(span=LayerSpan(span=200, sinks=4), num_new=700, batch=2),
    "window with sinks on a cache": Case(span=LayerSpan(span=64, sinks=4), num_new=150, offset=200, heads=4),
    "window on a cache": Case(span=LayerSpan(span=40), num_new=90, offset=100, by_token=True),
    "window on a cache, all in sight": Case(span=LayerSpan(span=90, sinks=20), num_new=50, offset=60),
    "more sinks than span": Case(span=LayerSpan(span=24, sinks=70), num_new=300),
    "blocks": Case(span=LayerSpan(block=48), num_new=300),
    "blocks with sinks": Case(span=LayerSpan(block=80, previous=1, sinks=4), num_new=500, heads=8, batch=2),
    "blocks with sinks on a cache": Case(
        span=LayerSpan(block=32, previous=1, sinks=3), num_new=150, offset=171, heads=4
    ),
    "one token": Case(span=LayerSpan(span=64, sinks=4), num_new=1, offset=300, heads=8, batch=2),
    "one token, blocks": Case(span=LayerSpan(block=32, previous=1, sinks=4), num_new=1, offset=300, heads=8),
    "padding": Case(span=LayerSpan(span=64, sinks=4), num_new=200, batch=2, padding=(0, 61)),
    "padding on a cache": Case(span=LayerSpan(span=64, sinks=4), num_new=90, offset=110, batch=2, padding=(37, 0)),
    "heads": Case(span=HeadSpans((FULL, LayerSpan(span=64, sinks=4))), num_new=300, heads=4, batch=2),
    "heads on a cache": Case(
        span=HeadSpans((LayerSpan(span=64, sinks=4), FULL, LayerSpan(span=64, sinks=4))),
        num_new=130,
        offset=170,
        heads=6,
        kv_heads=3,
    ),
    "heads, one token on a fork": Case(
        span=HeadSpans((FULL, LayerSpan(block=32, previous=1, sinks=4))), num_new=1, offset=300, heads=4, forked=True
    ),
    "heads and padding": Case(
        span=HeadSpans((LayerSpan(span=64, sinks=4), FULL)), num_new=200, batch=2, padding=(0, 61), by_token=True
    ),
    "values of another size": Case(span=LayerSpan(span=64, sinks=4), num_new=300, value_size=32),
}
CASES = _PLAIN_CASES | {
    f"{name}, {how}": replace(_PLAIN_CASES[name], **changes)  # type: ignore[arg-type]
    for how, changes in {"softcap": {"softcap": 1.5}, "learned sinks": {"learned": True}}.items()
    for name in (
        "full",
        "full on a cache",
        "window",
        "window with sinks",
        "window on a cache, all in sight",
        "blocks with sinks on a cache",
        "heads on a cache",
        "one token",
        "padding",
    )
}
