"""The loss in chunks is the loss of the logits, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masformer import ConversionError, SpanPlan, apply_plan, loss
from masformer.loss import IGNORED, NextTokenLoss, check_packing, token_losses
from tests.helpers.tiny_models import SUPPORTED, VOCAB, tiny_model

# Cohere and Granite scale their logits, Gemma 2 caps them; small enough here to bend them.
HEADS: dict[str, dict[str, Any]] = {kind: {} for kind in SUPPORTED} | {
    "gemma2": {"final_logit_softcapping": 0.05},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.2},
}


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(3, VOCAB, (2, 26), generator=torch.Generator().manual_seed(0))
    inputs, following = tokens[:, :-1], tokens[:, 1:].clone()
    following[0, :9] = IGNORED
    following[1, -4:] = IGNORED
    return inputs, following, torch.arange(25).expand(2, -1)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_gradients_are_those_of_the_logits(kind: str) -> None:
    model = tiny_model(kind, **HEADS[kind])
    # Experts of a mixture are computed in float32 at the most.
    exact = kind not in ("qwen3_moe", "gpt_oss", "deepseek_v3")
    model, tolerance = (model.double(), 1e-9) if exact else (model, 2e-5)
    inputs, following, positions = batch()
    found = NextTokenLoss(model)(inputs, following, positions)
    found.backward()
    ours = gradients(model)
    logits = model(inputs, position_ids=positions, use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=100 * tolerance, atol=tolerance, msg=name)
    with torch.no_grad():
        found = NextTokenLoss(model)(inputs, following, positions)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_a_bias_of_the_head_gets_its_gradient() -> None:
    model = tiny_model("phi").double()
    assert model.lm_head.bias is not None
    inputs, following, positions = batch()
    NextTokenLoss(model)(inputs, following, positions).backward()
    ours = model.lm_head.bias.grad.clone()
    model.zero_grad()
    logits = model(inputs, use_cache=False).logits
    F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum").backward()
    torch.testing.assert_close(ours, model.lm_head.bias.grad)


def test_under_autocast_products_are_bfloat16_and_gradients_float32() -> None:
    model = tiny_model("llama", initializer_range=0.2)
    inputs, following, positions = batch()
    wrapped = NextTokenLoss(model)
    wrapped(inputs, following, positions).backward()
    exact = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = wrapped(inputs, following, positions)
    assert found.dtype == torch.float32
    found.backward()
    rounded = gradients(model)
    weight = "model.lm_head.weight" if "model.lm_head.weight" in exact else "lm_head.weight"
    assert rounded[weight].dtype == torch.float32
    difference = (rounded[weight] - exact[weight]).abs().max() / exact[weight].abs().max()
    assert 1e-6 < float(difference) < 0.05


def test_frozen_weights_get_no_gradient_and_what_is_below_does() -> None:
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    NextTokenLoss(model)(*batch()).backward()
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in gradients(model)} == {"q_proj"}


def test_a_batch_without_targets_has_no_loss_and_gradients_of_zero() -> None:
    model = tiny_model("llama")
    inputs, following, positions = batch()
    found = NextTokenLoss(model)(inputs, torch.full_like(following, IGNORED), positions)
    assert float(found.detach()) == 0
    found.backward()
    assert all(not bool(gradient.any()) for gradient in gradients(model).values())


def test_losses_of_tokens_sum_to_the_loss() -> None:
    model = tiny_model("gemma2", final_logit_softcapping=0.05)
    inputs, following, positions = batch()
    hidden = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
    asked = following != IGNORED
    single = token_losses(model, hidden[asked], following[asked])
    with torch.no_grad():
        torch.testing.assert_close(single.sum(), NextTokenLoss(model)(inputs, following, positions))


def test_logits_made_in_an_unknown_way_are_refused() -> None:
    model = tiny_model("llama")

    class Louder(nn.Linear):
        pass

    model.lm_head.__class__ = Louder
    with pytest.raises(ConversionError, match="have a Louder for logits"):
        NextTokenLoss(model)
    model = tiny_model("llama", initializer_range=0.2)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    with pytest.raises(ConversionError, match="in a way that the loss does not know"):
        NextTokenLoss(model)


def test_no_logits_of_all_tokens_stand_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = loss.Head.logits

    def noting(head: Any, hidden: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(hidden))
        return original(head, hidden)

    model = tiny_model("llama")
    wrapped = NextTokenLoss(model)
    monkeypatch.setattr(loss.Head, "logits", noting)
    wrapped(*batch()).backward()
    assert largest == 7


@pytest.mark.parametrize("kind", SUPPORTED)
def test_every_supported_architecture_can_pack_documents(kind: str) -> None:
    model = tiny_model(kind, initializer_range=0.2)
    apply_plan(model, SpanPlan.parse("every:2 span=9 sinks=2", 3))
    check_packing(model)


def test_packing_is_refused_where_attention_is_not_told_of_documents() -> None:
    model = tiny_model("llama", initializer_range=0.2)
    apply_plan(model, SpanPlan.full(3))
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "position_ids": None}), with_kwargs=True
        )
    with pytest.raises(ConversionError, match="would see each other in llama models; pass --no-packing"):
        check_packing(model)
