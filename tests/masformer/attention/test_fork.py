"""Forks of a cache: two branches never see each other's tokens, and what they share is held once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masformer import HeadSpans, LayerSpan, SpanCache, SpanPlan, apply_plan
from masformer.attention.cache import num_bytes
from masformer.plans.spans import FULL
from tests.helpers.tiny_models import BY_HEAD, SUPPORTED, VOCAB, plan_by_head, tiny_model

TOLERANCE = 1e-5  # fp32
MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
STEM = 60
# A fork knows nothing of architectures: plain, with learned sinks, with windows of its own, without rotary positions.
OF_EACH_SORT = ("llama", "gpt_oss", "gemma3_text", "gpt2")


def continued(stem: Tensor, seed: int, num_tokens: int) -> Tensor:
    more = torch.randint(3, VOCAB, (len(stem), num_tokens), generator=torch.Generator().manual_seed(seed))
    return torch.cat([stem, more], dim=1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "by_head"),
    [
        pytest.param(kind, by_head, marks=[] if kind in OF_EACH_SORT else pytest.mark.nightly)
        for kinds, by_head in ((SUPPORTED, False), (BY_HEAD, True))
        for kind in kinds
    ],
)
def test_branches_do_not_see_each_other(kind: str, by_head: bool) -> None:
    model = tiny_model(kind)
    plan = apply_plan(model, plan_by_head(model.config) if by_head else MIXED)
    stem = continued(torch.empty(1, 0, dtype=torch.long), 0, STEM)
    first, second = continued(stem, 1, 40), continued(stem, 2, 40)
    third = continued(second[:, : STEM + 15], 3, 25)
    trunk = SpanCache(plan)
    model(stem, past_key_values=trunk)
    branch = trunk.fork()
    outs: dict[str, list[Tensor]] = {"first": [], "second": [], "third": []}
    twig = None
    # Token by token in turn, one branch in a chunk on top of its own tokens, a fork of a fork.
    for at in range(STEM, STEM + 40):
        outs["first"].append(model(first[:, at : at + 1], past_key_values=trunk).logits)
        if at < STEM + 5 or at >= STEM + 20:
            outs["second"].append(model(second[:, at : at + 1], past_key_values=branch).logits)
        elif at == STEM + 5:
            outs["second"].append(model(second[:, at : at + 10], past_key_values=branch).logits)
            twig = branch.fork()
            outs["second"].append(model(second[:, at + 10 : at + 15], past_key_values=branch).logits)
        if at >= STEM + 15:
            outs["third"].append(model(third[:, at : at + 1], past_key_values=twig).logits)
    for tokens, name, start in ((first, "first", STEM), (second, "second", STEM), (third, "third", STEM + 15)):
        expected = model(tokens, use_cache=False).logits[:, start:]
        torch.testing.assert_close(torch.cat(outs[name], dim=1), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_branches_with_left_padding_do_not_see_each_other() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    stem = continued(torch.empty(2, 0, dtype=torch.long), 0, STEM)
    mask = torch.ones(2, STEM + 20, dtype=torch.long)
    mask[0, :13] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)

    def step(tokens: Tensor, cache: SpanCache, first: int, stop: int) -> Tensor:
        out: Tensor = model(
            tokens[:, first:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, first:stop],
            past_key_values=cache,
        ).logits
        return out

    trunk = SpanCache(MIXED)
    step(stem, trunk, 0, STEM)
    branch = trunk.fork()
    branches = {1: trunk, 2: branch}
    texts = {seed: continued(stem, seed, 20) for seed in branches}
    outs: dict[int, list[Tensor]] = {1: [], 2: []}
    for at in range(STEM, STEM + 20):
        for seed, cache in branches.items():
            outs[seed].append(step(texts[seed], cache, at, at + 1))
    for seed in branches:
        for row, pad in ((0, 13), (1, 0)):
            alone = model(texts[seed][row : row + 1, pad:], use_cache=False).logits[0, STEM - pad :]
            torch.testing.assert_close(torch.cat(outs[seed], dim=1)[row], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("by_head", [False, True])
def test_a_fork_goes_on_in_generate_with_beams(by_head: bool) -> None:
    model = tiny_model("llama", initializer_range=0.4)
    plan = apply_plan(model, plan_by_head(model.config) if by_head else MIXED)
    stem = continued(torch.empty(1, 0, dtype=torch.long), 0, STEM)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": 3}
    trunk = SpanCache(plan)
    model(stem[:, :-1], past_key_values=trunk)
    expected = model.generate(stem, use_cache=False, **settings)
    for cache in (trunk.fork(), trunk.fork(), trunk):
        cache.batch_repeat_interleave(3)
        assert torch.equal(model.generate(stem, past_key_values=cache, **settings), expected)


def test_a_fork_copies_only_what_is_written_afterwards() -> None:
    plan = SpanPlan((FULL, LayerSpan(span=64, sinks=4)))
    trunk = SpanCache(plan, max_tokens=5000)
    states = torch.randn(1, 2, 5000, 8)
    for layer in range(2):
        trunk.update(states, states, layer)
    row = 2 * 8 * 4 * 2  # heads, size, bytes, keys and values
    assert trunk.num_bytes == num_bytes(trunk) == (5000 + 68) * row
    branch = trunk.fork()
    assert num_bytes(trunk, branch) == trunk.num_bytes
    addresses = [layer.keys.data_ptr() for layer in trunk.layers]
    for layer in range(2):
        branch.update(states[:, :, :10], states[:, :, :10], layer)
    # Ten tokens in the full layer, a ring of its own in the other; the trunk stays where it was.
    assert num_bytes(trunk, branch) - trunk.num_bytes == (10 + 68) * row
    assert branch.num_bytes == (5000 + 10 + 68) * row
    assert [layer.keys.data_ptr() for layer in trunk.layers] == addresses
    assert branch.get_seq_length() == 5010
    assert trunk.get_seq_length() == 5000


def test_a_fork_by_head_copies_only_what_is_written_afterwards() -> None:
    window = LayerSpan(span=64, sinks=4)
    trunk = SpanCache(SpanPlan((HeadSpans((window, FULL, window)),)), max_tokens=5000)
    states = torch.randn(1, 3, 5000, 8)
    trunk.update(states, states, 0)
    row = 8 * 4 * 2  # size, bytes, keys and values of one head
    assert trunk.num_bytes == (5000 + 2 * 68) * row
    branch = trunk.fork()
    assert num_bytes(trunk, branch) == trunk.num_bytes
    branch.update(states[:, :, :10], states[:, :, :10], 0)
    # Ten tokens of the full head, and the rings of the two others.
    assert num_bytes(trunk, branch) - trunk.num_bytes == (10 + 2 * 68) * row
    assert (branch.get_seq_length(), trunk.get_seq_length()) == (5010, 5000)


def test_a_fork_of_an_empty_cache_is_empty() -> None:
    branch = SpanCache(MIXED).fork()
    assert branch.get_seq_length() == 0
    assert branch.num_bytes == 0
