"""A new span pattern is one class and one entry of a table: everything else follows from its rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from masformer import SpanCache, SpanPlan, apply_plan, prefill, read_plan
from masformer.attention import kernels
from masformer.attention.cache import join, split
from masformer.attention.flex import flex_attention
from masformer.attention.kernels import dense_attention
from masformer.plans.cost import attention_flops, cache_bytes
from masformer.plans.layer_spans import PATTERNS, LayerSpan, PlanError
from tests.helpers.attention_cases import Case, attend, cached, gradients, random_states
from tests.helpers.tiny_models import VOCAB, tiny_model

TOLERANCE = 1e-5  # fp32
TOKENS = 70


@dataclass(frozen=True, init=False)
class Dilated(LayerSpan):
    """A query sees every `dilated`-th key before it, itself included, and the sinks; a cache keeps all."""

    dilated: int = field()
    sinks: int = 0
    typed: ClassVar = {"sinks": 2}

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key) % self.dilated == 0) | (key < self.sinks)


@dataclass(frozen=True, init=False)
class Comb(LayerSpan):
    """A query sees every second of its last `comb` keys; a cache keeps these keys."""

    comb: int = field()

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key) % 2 == 0) & (query - key < self.comb)

    @property
    def num_recent(self) -> int | None:
        return self.comb


PLANS = ["local dilated=3", "full@1 comb=9", "dilated=5 sinks=0@0; comb=8@1,2.0; full@2.1"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATTERNS, "dilated", Dilated)
    monkeypatch.setitem(PATTERNS, "comb", Comb)


def tokens(seed: int, count: int) -> Tensor:
    return torch.randint(3, VOCAB, (1, count), generator=torch.Generator().manual_seed(seed))


def rule(span: LayerSpan, query: int, key: int) -> bool:
    """The patterns once more, one pair at a time."""
    if key > query or span.is_full:
        return key <= query
    if isinstance(span, Dilated):
        return (query - key) % span.dilated == 0 or key < span.sinks
    assert isinstance(span, Comb)
    return (query - key) % 2 == 0 and query - key < span.comb


def sight(span: LayerSpan, num_tokens: int) -> Tensor:
    return torch.tensor([[rule(span, query, key) for key in range(num_tokens)] for query in range(num_tokens)])


def test_its_text_and_json_forms_are_those_of_its_numbers() -> None:
    plan = SpanPlan.parse(PLANS[2], 3, 2)
    assert plan[0] == LayerSpan(dilated=5) == Dilated(dilated=5)
    assert str(plan) == "full@2.1; dilated=5 sinks=0@0; comb=8@1,2.0"
    assert SpanPlan.parse(str(plan), 3, 2) == SpanPlan.from_json(plan.to_json()) == plan
    assert SpanPlan.parse("local dilated=3", 3)[0] == Dilated(dilated=3, sinks=2)
    for text, message in {
        "local dilated=0": "dilated=0 must be at least 1",
        "local dilated=3 span=8": "span=8 and dilated=3 exclude each other",
        "local dilated=3 previous=2": "previous=2 needs block=N",
    }.items():
        with pytest.raises(PlanError, match=message):
            SpanPlan.parse(text, 3)


@torch.no_grad()
@pytest.mark.parametrize("text", PLANS)
def test_a_model_computes_it_with_and_without_a_cache(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    plan = apply_plan(model, read_plan(text, model.config))
    text_tokens = tokens(0, TOKENS)
    logits = model(text_tokens, use_cache=False).logits
    cache = SpanCache(plan)
    prefill(model, text_tokens[:, :20], cache)
    parts = [model(part, past_key_values=cache).logits for part in text_tokens[:, 20:].split([17, *[1] * 33], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits[:, 20:], atol=TOLERANCE, rtol=0)

    def dense(query, key, value, span, mask, scale=None, **_):  # type: ignore[no-untyped-def]
        heads = span.heads if hasattr(span, "heads") else (span,) * key.shape[1]
        seen = torch.stack([sight(head, query.shape[2]) for head in heads]).repeat_interleave(2, dim=0)
        return dense_attention(query, key, value, seen, scale)

    monkeypatch.setattr(kernels, "span_attention", dense)
    torch.testing.assert_close(logits, model(text_tokens, use_cache=False).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("text", PLANS)
def test_forks_and_joined_batches_go_on_as_each_alone(text: str) -> None:
    model = tiny_model("llama")
    plan = apply_plan(model, read_plan(text, model.config))
    stem = tokens(0, 31)
    texts = [torch.cat([stem, tokens(seed, count)], dim=1) for seed, count in ((1, 30), (2, 22))]
    trunk = SpanCache(plan)
    prefill(model, stem, trunk)
    forks = [trunk.fork(), trunk]
    for row, cache in zip(texts, forks, strict=True):
        prefill(model, row[:, 31:-10], cache)
    batch = join(forks, room=10)
    pad = texts[0].shape[1] - texts[1].shape[1]
    padded = torch.cat([texts[0], torch.cat([texts[1].new_zeros(1, pad), texts[1]], dim=1)])
    mask = torch.ones_like(padded)
    mask[1, :pad] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    whole = [model(row, use_cache=False).logits[0] for row in texts]
    for back in range(10, 0, -1):
        stop = padded.shape[1] - back + 1
        if back == 5:
            batch = join(split(batch, range(2)), room=5)
        joined = model(
            padded[:, stop - 1 : stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, stop - 1 : stop],
            past_key_values=batch,
        ).logits[:, -1]
        alone = [
            model(row[:, -back : row.shape[1] - back + 1], past_key_values=cache).logits[0, -1]
            for row, cache in zip(texts, forks, strict=True)
        ]
        for found in (joined, alone):
            for row, logits in zip(found, whole, strict=True):
                torch.testing.assert_close(row, logits[-back], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_left_padding_leaves_a_row_what_it_is_alone() -> None:
    model = tiny_model("llama")
    apply_plan(model, read_plan(PLANS[2], model.config))
    row = tokens(1, 40)
    padded = torch.cat([tokens(0, 53), torch.cat([row.new_zeros(1, 13), row], dim=1)])
    mask = torch.ones_like(padded)
    mask[1, :13] = 0
    settings = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = model.generate(padded, attention_mask=mask, **settings)[1, 53:]
    assert torch.equal(made, model.generate(row, use_cache=False, **settings)[0, 40:])


@pytest.mark.parametrize("span", [Dilated(dilated=3, sinks=2), Comb(comb=9)], ids=str)
def test_its_gradients_are_those_of_the_definition(span: LayerSpan) -> None:
    case = Case(span=span, num_new=60, heads=4)
    states = random_states(case).with_grad()
    expected = dense_attention(states.query, states.key, states.value, sight(span, 60))
    for ours, theirs in zip(gradients(attend(case, states), states), gradients(expected, states), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("offset", [0, 40])
@pytest.mark.parametrize("span", [Dilated(dilated=3, sinks=2), Comb(comb=9)], ids=str)
def test_flex_attention_takes_its_rule(span: LayerSpan, offset: int) -> None:
    case = Case(span=span, num_new=60, offset=offset, heads=4)
    states = random_states(case)
    out = flex_attention(states.query, *cached(case, states), span, offset, case.scores)
    expected = dense_attention(states.query, states.key, states.value, sight(span, case.num_tokens)[offset:])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


def test_its_cost_is_counted() -> None:
    config = tiny_model("llama").config  # heads of size 8, 2 of keys and values for 4 of queries
    plan = read_plan(PLANS[2], config)
    pairs = [int(sight(layer, TOKENS).sum()) for layer in (Dilated(dilated=5), Comb(comb=8))]
    pairs_of_heads = pairs[0] * 4 + pairs[1] * 4 + pairs[1] * 2 + TOKENS * (TOKENS + 1) // 2 * 2
    assert attention_flops(config, plan, TOKENS) == pairs_of_heads * 8 * 2 * 2
    assert cache_bytes(config, plan, TOKENS, 4) == (2 * TOKENS + 2 * 8 + 8 + TOKENS) * 8 * 2 * 4
    cache = SpanCache(plan, max_tokens=TOKENS)
    model = tiny_model("llama")
    apply_plan(model, plan)
    with torch.no_grad():
        model(tokens(0, TOKENS), past_key_values=cache)
    assert cache.num_bytes == cache_bytes(config, plan, TOKENS, 4)
