"""Prompts decoded as one batch give the logits of each alone, whatever they share and however long each is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from masformer import HeadSpans, LayerSpan, SpanCache, SpanPlan, apply_plan, prefill
from masformer.attention import cache as cache_module
from masformer.attention import full as full_module
from masformer.attention import kernels, simd, visibility
from masformer.attention import parts as parts_module
from masformer.attention.cache import can_join, join, num_bytes, row_bytes, split
from masformer.attention.full import JoinedLayer
from masformer.attention.joined import joined_attention
from masformer.attention.kernels import dense_attention, span_attention
from masformer.attention.visibility import SpanMask, cached_slots, left_padding
from masformer.errors import SpanError
from masformer.plans.spans import FULL
from tests.helpers.tiny_models import BY_HEAD, SUPPORTED, VOCAB, plan_by_head, tiny_model

TOLERANCE = 1e-5  # fp32
WINDOWS = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(span=9)))
BLOCKS = SpanPlan((FULL, LayerSpan(block=8, previous=1, sinks=2), FULL))
PLANS = {"windows": WINDOWS, "blocks": BLOCKS}
JOINABLE = [kind for kind in SUPPORTED if can_join(tiny_model(kind).config)]


@pytest.fixture(autouse=True, params=["torch", "simd"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By torch, and by the compiled kernel where the machine has it: then each joined layer calls it once."""
    is_simd = request.param == "simd"
    if is_simd:
        if simd.why_not():
            pytest.skip(f"no kernel: {simd.why_not()}")
        monkeypatch.setenv("MASFORMER_WAYS", "attention=simd window=simd")
    calls, attended = list[Any](), simd.attend

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return attended(*arguments, **options)

    def watched(*arguments: Any) -> Tensor:
        before = len(calls)
        out = joined_attention(*arguments)
        assert len(calls) - before == is_simd
        return out

    monkeypatch.setattr(simd, "attend", counting)
    monkeypatch.setattr(kernels, "joined_attention", watched)
    return str(request.param)


def tokens(seed: int, count: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def tree(model: PreTrainedModel, plan: SpanPlan) -> tuple[list[list[int]], list[SpanCache]]:
    """Return prompts of several lengths that share beginnings, and a cache of each: all tokens but the last."""
    stem, branch = tokens(0, 41), tokens(1, 30)
    ends = [stem + tokens(2, 12), stem + branch + tokens(3, 1), stem + branch + tokens(4, 25), tokens(5, 6)]
    trunk, twig = SpanCache(plan), None
    prefill(model, torch.tensor([stem]), trunk)
    twig = trunk.fork(max_tokens=71)
    prefill(model, torch.tensor([branch]), twig)
    caches = [trunk.fork(), twig.fork(), twig.fork(), SpanCache(plan)]
    for end, cache in zip(ends, caches, strict=True):
        prefill(model, torch.tensor([end[cache.get_seq_length() : -1]]), cache)
    return ends, caches


def left_padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


PLANS_OF_KINDS = [
    *((kind, plan, f"{kind}-{name}") for kind in JOINABLE for name, plan in PLANS.items()),
    *((kind, plan_by_head(tiny_model(kind).config), f"{kind}-heads") for kind in BY_HEAD),
]
# Where a row's own tokens begin is the same for all models, so that one with sinks and one without stand for all.
ANY_TAIL = ("llama", "gpt_oss")


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "plan", "tail_tokens"),
    [
        pytest.param(
            *(kind, plan, tail_tokens),
            id=f"{name}-{tail_tokens}",
            marks=[] if tail_tokens == 20 or kind in ANY_TAIL else pytest.mark.nightly,
        )
        for kind, plan, name in PLANS_OF_KINDS
        for tail_tokens in (0, 20, 512)
    ],
)
def test_each_row_gets_the_logits_it_gets_alone(
    kind: str, plan: SpanPlan, tail_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_module, "TAIL_TOKENS", tail_tokens)
    monkeypatch.setattr(parts_module, "RUN_KEYS", 24)
    monkeypatch.setattr(full_module, "_MIN_HALF", 4)
    model = tiny_model(kind)
    apply_plan(model, plan)
    prompts, caches = tree(model, plan)
    batch = join(caches, room=30)
    more = [tokens(10 + row, 24) for row in range(4)]
    rows = list(range(4))
    # Of every prefix at once: no token sees what comes after it.
    alone = [model(torch.tensor([prompts[row] + more[row]]), use_cache=False).logits[0] for row in rows]
    counts = [0, 0, 0, 0]
    for step in range(24):
        if step == 12:
            # Two rows end; the others go on.
            rows = [1, 2]
            batch.batch_select_indices(torch.tensor(rows))
        if step == 15:
            # One of them ends, and two others begin.
            rows = [1, 0, 3]
            counts[0] = counts[3] = 0
            batch = join([*split(batch, [0]), caches[0].fork(), caches[3].fork()], room=30)
        ids, mask = left_padded([prompts[row] + more[row][: counts[row]] for row in rows])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -1:]
        logits = model(ids[:, -1:], attention_mask=mask, position_ids=positions, past_key_values=batch).logits[:, 0]
        for at, row in enumerate(rows):
            expected = alone[row][len(prompts[row]) + counts[row] - 1]
            torch.testing.assert_close(logits[at], expected, atol=TOLERANCE, rtol=0)
            counts[row] += 1
    # What they shared is as it was.
    for row, (prompt, cache) in enumerate(zip(prompts, caches, strict=True)):
        logits = model(torch.tensor([prompt[-1:]]), past_key_values=cache).logits[0, -1]
        torch.testing.assert_close(logits, alone[row][len(prompt) - 1], atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_goes_on_from_a_joined_cache(beams: int, by_head: bool) -> None:
    model = tiny_model("llama", initializer_range=0.4)
    plan = apply_plan(model, plan_by_head(model.config) if by_head else WINDOWS)
    prompts, caches = tree(model, plan)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "num_beams": beams}
    batch = join(caches, room=12)
    batch.batch_repeat_interleave(beams)
    ids, mask = left_padded(prompts)
    made = model.generate(ids, attention_mask=mask, past_key_values=batch, **settings)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), use_cache=False, **settings)[0, len(prompt) :]
        assert torch.equal(made[row, ids.shape[1] :], alone)


@torch.no_grad()
def test_what_is_shared_is_neither_copied_nor_counted_twice() -> None:
    plan = SpanPlan((FULL, LayerSpan(span=64, sinks=4)))
    trunk = SpanCache(plan, max_tokens=5000)
    states = torch.randn(1, 2, 5000, 8)
    for layer in range(2):
        trunk.update(states, states, layer)
    branches = [trunk.fork(max_tokens=5010) for _ in range(3)]
    for branch in branches:
        for layer in range(2):
            branch.update(states[:, :, :10], states[:, :, :10], layer)
    a_token = 2 * 8 * 4 * 2  # heads, size, bytes, keys and values
    joined = join(branches, room=6)
    assert num_bytes(joined) == (5000 + 3 * (10 + 6) + 3 * 68) * a_token
    assert num_bytes(joined, *branches) == num_bytes(joined) + 3 * (10 + 68) * a_token
    assert row_bytes(joined, 1) == (5000 + 16 + 68) * a_token


@torch.no_grad()
def test_a_run_of_an_odd_length_takes_no_product_of_one_key() -> None:
    trunk = SpanCache(SpanPlan((FULL,)))
    states = torch.randn(1, 2, 5001, 8)
    trunk.update(states, -states, 0)
    branches = [trunk.fork() for _ in range(2)]
    for branch in branches:
        branch.update(states[:, :, :10], states[:, :, :10], 0)
    layer = join(branches, room=6).layers[0]
    assert isinstance(layer, JoinedLayer)
    (run,) = layer.runs
    assert run.keys.shape == (2, 2, 2500, 8)
    assert run.keys.data_ptr() == trunk.layers[0].keys.data_ptr()
    # The last key of the run is in both tails, besides ten of their own.
    assert layer.num_tail == 11
    assert torch.equal(layer.keys[0, :, 0], states[0, :, -1]) != torch.equal(layer.keys[0, :, 10], states[0, :, -1])


@torch.no_grad()
def test_the_kernel_reads_runs_in_one_call(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is kept as two halves."""
    trunk = SpanCache(SpanPlan((FULL,)))
    states = torch.randn(1, 2, 1100, 8)
    trunk.update(states, -states, 0)
    branches = [trunk.fork() for _ in range(3)]
    for row, branch in enumerate(branches):
        branch.update(states[:, :, : 3 + row], states[:, :, : 3 + row], 0)
    joined = join(branches, room=6)
    calls, attended = [], simd.attend
    monkeypatch.setattr(simd, "attend", lambda *of, **more: calls.append(of) or attended(*of, **more))
    query, new = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 1, 8)
    key, value = joined.update(new, new, 0)
    mask = SpanMask(offset=1105, cache=joined)
    out = span_attention(query, key, value, FULL, mask, seen=mask.seen_with(key, value))
    assert [len(of[1]) for of in calls] == ([2] if way == "simd" else [])
    for row in range(3):
        keys = torch.cat([states, states[:, :, : 3 + row], new[row : row + 1]], dim=2)
        values = torch.cat([-states, states[:, :, : 3 + row], new[row : row + 1]], dim=2)
        visible = torch.ones(1, keys.shape[2], dtype=torch.bool)
        expected = dense_attention(query[row : row + 1], keys, values, visible)
        torch.testing.assert_close(out[row : row + 1], expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_step_looks_at_padding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    window = LayerSpan(span=90, sinks=3)  # whose ring is not full, so that padding hides some of it
    apply_plan(model, SpanPlan((window, FULL, window)))
    prompts, caches = tree(model, SpanPlan((window, FULL, window)))
    batch = join(caches, room=30)
    ids, mask = left_padded(prompts)
    found, slots = [], []
    for module in (cache_module, visibility):
        monkeypatch.setattr(module, "left_padding", lambda mask: found.append(mask) or left_padding(mask))
    monkeypatch.setattr(visibility, "cached_slots", lambda *of: slots.append(of) or cached_slots(*of))
    for _ in range(2):
        positions = (mask.cumsum(dim=1) - 1)[:, -1:]
        model(ids[:, -1:], attention_mask=mask, position_ids=positions, past_key_values=batch)
        mask = torch.cat([mask, mask.new_ones(4, 1)], dim=1)
    # The joined cache knows its padding; the two layers with a window share what it hides, in each of two steps.
    assert (len(found), len(slots)) == (0, 2)
    layers = [layer for layer in batch.attention if not isinstance(layer, JoinedLayer)]
    batch.set_padding(mask)
    assert all(layer.padding is not None for layer in layers)
    wrong = mask.clone()
    wrong[2, :2] = 0
    with pytest.raises(SpanError, match="attention_mask pads rows by"):
        model(ids[:, -1:], attention_mask=wrong, past_key_values=batch)


@torch.no_grad()
def test_heads_share_what_their_own_span_lets_them_share() -> None:
    window = LayerSpan(span=64, sinks=4)
    trunk = SpanCache(SpanPlan((HeadSpans((window, FULL, window)),)), max_tokens=5000)
    states = torch.randn(1, 3, 5000, 8)
    trunk.update(states, states, 0)
    branches = [trunk.fork(max_tokens=5010) for _ in range(3)]
    for branch in branches:
        branch.update(states[:, :, :10], states[:, :, :10], 0)
    of_a_head = 8 * 4 * 2  # size, bytes, keys and values
    joined = join(branches, room=6)
    assert num_bytes(joined) == (5000 + 3 * (10 + 6) + 3 * 2 * 68) * of_a_head
    assert num_bytes(joined, *branches) == num_bytes(joined) + 3 * (10 + 2 * 68) * of_a_head
    assert row_bytes(joined, 1) == (5000 + 16 + 2 * 68) * of_a_head
    assert row_bytes(joined, 1, copies=2) == (5000 + 2 * (16 + 2 * 68)) * of_a_head


@torch.no_grad()
@pytest.mark.parametrize("by_head", [False, True])
def test_misuse_is_told(by_head: bool) -> None:
    model = tiny_model("llama")
    plan = apply_plan(model, plan_by_head(model.config) if by_head else BLOCKS)
    prompts, caches = tree(model, plan)
    batch = join(caches[:2], room=1)
    ids, mask = left_padded(prompts[:2])
    model(ids[:, -1:], attention_mask=mask, past_key_values=batch)
    with pytest.raises(ValueError, match="room of a joined cache is used up"):
        model(ids[:, -1:], attention_mask=torch.cat([mask, mask[:, -1:]], dim=1), past_key_values=batch)
    with pytest.raises(ValueError, match="cannot be forked"):
        batch.fork()


@torch.no_grad()
@pytest.mark.parametrize("plan", [WINDOWS, BLOCKS, None], ids=["windows", "blocks", "heads"])
@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "gemma2", "gpt2"])
def test_several_tokens_a_row_go_through_the_model_at_once(kind: str, plan: SpanPlan | None) -> None:
    model = tiny_model(kind)
    plan = apply_plan(model, plan or plan_by_head(model.config))
    prompts, caches = tree(model, plan)
    batch = join(caches, room=12)
    whole = [prompt[:-1] + tokens(20 + row, 11) for row, prompt in enumerate(prompts)]
    ids, mask = left_padded(whole)
    prefill(model, ids[:, -11:-4], batch, mask[:, :-4])
    for count in (3, 1):
        stop = ids.shape[1] - count + 1
        shown = mask[:, : stop if count == 1 else -1]
        new = ids[:, -4:-1] if count == 3 else ids[:, -1:]
        positions = (shown.cumsum(dim=1) - 1).clamp(min=0)[:, -count:]
        logits = model(new, attention_mask=shown, position_ids=positions, past_key_values=batch).logits
        for row, text in enumerate(whole):
            seen = text[:-1] if count == 3 else text
            alone = model(torch.tensor([seen]), use_cache=False).logits[0, -count:]
            torch.testing.assert_close(logits[row], alone, atol=TOLERANCE, rtol=0)
