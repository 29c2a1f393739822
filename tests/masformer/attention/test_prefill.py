"""A prompt in chunks leaves what one pass leaves, also where rotary frequencies depend on the length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from masformer import LayerSpan, SpanCache, SpanPlan, apply_plan, fixed_frequencies, prefill
from masformer.plans.spans import FULL
from tests.helpers.tiny_models import VOCAB, tiny_model

TOLERANCE = 1e-4  # fp32, logits of 10
MIXED = SpanPlan((LayerSpan(span=17, sinks=3), FULL, LayerSpan(block=8, previous=1, sinks=2)))
LONGROPE: dict[str, Any] = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 40,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "original_max_position_embeddings": 40,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
    },
}
DYNAMIC: dict[str, Any] = {
    "max_position_embeddings": 40,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
}
moving = pytest.mark.parametrize(("kind", "changes"), [("phi3", LONGROPE), ("llama", DYNAMIC)], ids=["longrope", "dyn"])


def tokens(num_tokens: int, batch: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, (batch, num_tokens), generator=torch.Generator().manual_seed(num_tokens))


def model_of(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    return tiny_model(kind, initializer_range=0.4, **changes)


@torch.no_grad()
def last_logits(model: PreTrainedModel, prompt: Tensor, chunk_tokens: int) -> Tensor:
    """All but the last token in chunks, then the last."""
    plan = getattr(model, "span_plan", None)
    cache = DynamicCache(config=model.config) if plan is None else SpanCache(plan)
    prefill(model, prompt[:, :-1], cache, chunk_tokens=chunk_tokens)
    logits: Tensor = model(prompt[:, -1:], past_key_values=cache).logits[:, -1]
    return logits


@torch.no_grad()
@moving
@pytest.mark.parametrize("plan", [None, MIXED], ids=["untouched", "mixed"])
def test_frequencies_are_those_of_the_final_length(kind: str, changes: dict[str, Any], plan: SpanPlan | None) -> None:
    model, prompt = model_of(kind, changes), tokens(90)
    if plan is not None:
        apply_plan(model, plan)
    once = model(prompt, use_cache=False).logits[:, -1]
    assert not torch.allclose(last_logits(model_of(kind, changes), prompt, 30), once, atol=1e-2)
    with fixed_frequencies(model, prompt.shape[1]):
        torch.testing.assert_close(last_logits(model, prompt, 30), once, atol=TOLERANCE, rtol=0)
    # And again as they were.
    torch.testing.assert_close(model(prompt, use_cache=False).logits[:, -1], once, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@moving
def test_an_earlier_longer_prompt_leaves_nothing(kind: str, changes: dict[str, Any]) -> None:
    model = model_of(kind, changes)
    fresh = model(tokens(60), use_cache=False).logits[:, -1]
    for num_tokens in (200, 20, 200):
        model(tokens(num_tokens))
        with fixed_frequencies(model, 60):
            torch.testing.assert_close(last_logits(model, tokens(60), 25), fresh, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [1, 24, 61, 10_000])
def test_chunks_with_left_padding_leave_what_one_pass_leaves(chunk_tokens: int) -> None:
    model = tiny_model("llama", initializer_range=0.4)
    apply_plan(model, MIXED)
    prompt, mask = tokens(70, batch=3), torch.ones(3, 70, dtype=torch.long)
    mask[1, :11], mask[2, :45] = 0, 0
    cache = SpanCache(MIXED)
    prefill(model, prompt[:, :-1], cache, attention_mask=mask, chunk_tokens=chunk_tokens)
    last = (mask.sum(dim=1) - 1)[:, None]
    logits = model(prompt[:, -1:], attention_mask=mask, position_ids=last, past_key_values=cache).logits[:, -1]
    for row, pad in enumerate((0, 11, 45)):
        alone = model(prompt[row : row + 1, pad:], use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_prompt_goes_through_the_model_a_chunk_at_a_time() -> None:
    model = tiny_model("llama")
    apply_plan(model, MIXED)
    lengths: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    prefill(model, tokens(100), SpanCache(MIXED), chunk_tokens=32)
    assert lengths == [32, 32, 32, 4]
