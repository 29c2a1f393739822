"""Learning from a teacher: the divergence in chunks is that of the logits, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from masformer import SpanPlan, apply_plan, loss
from masformer.loss import IGNORED, DistilledLoss, NextTokenLoss, Teacher
from tests.helpers.tiny_models import tiny_model
from tests.masformer.test_loss import HEADS, batch, gradients


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 7)


def teacher_of(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a model with other weights than those of `tiny_model`."""
    model = tiny_model(kind, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def expected_losses(student: PreTrainedModel, teacher: PreTrainedModel, share: float) -> Tensor:
    """Return loss, negative log likelihood and divergence from logits of all tokens at once."""
    inputs, following, positions = batch()
    asked = following != IGNORED
    ours = student(inputs, position_ids=positions, use_cache=False).logits[asked]
    with torch.no_grad():
        theirs = teacher(inputs, position_ids=positions, use_cache=False).logits[asked].softmax(dim=1)
    likelihood = F.cross_entropy(ours, following[asked], reduction="sum")
    divergence = (theirs * (theirs.log() - ours.log_softmax(dim=1))).sum()
    return torch.stack([(1 - share) * likelihood + share * divergence, likelihood, divergence])


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "cohere", "phi", "gpt2"])
def test_losses_and_gradients_are_those_of_all_logits(kind: str, share: float) -> None:
    student, teacher = tiny_model(kind, **HEADS[kind]).double(), teacher_of(kind, **HEADS[kind]).double()
    wrapped = DistilledLoss(student, Teacher(model=teacher, share=share))
    found = wrapped(*batch())
    found[0].backward()
    ours = gradients(student)
    expected = expected_losses(student, teacher, share)
    assert float(expected[2].detach()) > 0.01
    expected[0].backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    theirs = gradients(student)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-7, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(*batch()), expected.detach(), rtol=1e-9, atol=1e-9)


def test_a_teacher_that_predicts_the_same_leaves_nothing_to_learn() -> None:
    student, teacher = tiny_model("llama"), tiny_model("llama")
    found = DistilledLoss(student, Teacher(model=teacher, share=1.0))(*batch())
    assert abs(float(found[0].detach())) < 1e-4
    found[0].backward()
    assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients(student).values())


def test_the_teacher_sees_what_its_own_plan_shows() -> None:
    student, teacher = tiny_model("llama", initializer_range=0.2), tiny_model("llama", initializer_range=0.2)
    apply_plan(teacher, SpanPlan.full(3))
    apply_plan(student, SpanPlan.parse("local span=3 sinks=0", 3))
    wrapped = DistilledLoss(student, Teacher(model=teacher, share=0.5))
    found = wrapped(*batch())
    torch.testing.assert_close(found, expected_losses(student, teacher, 0.5), rtol=1e-4, atol=1e-4)
    assert float(found[2].detach()) > 0.01
    apply_plan(student, SpanPlan.full(3))
    assert abs(float(wrapped(*batch())[2].detach())) < 1e-4


def test_the_teacher_gets_no_gradient_and_is_no_part_of_what_is_saved() -> None:
    student, teacher = tiny_model("llama"), teacher_of("llama")
    wrapped = DistilledLoss(student, Teacher(model=teacher, share=0.5))
    assert wrapped.state_dict().keys() == NextTokenLoss(student).state_dict().keys()
    wrapped(*batch())[0].backward()
    assert not gradients(teacher)


def test_the_parts_of_the_loss_are_numbers_to_read_and_move_nothing() -> None:
    student = tiny_model("llama")
    found = DistilledLoss(student, Teacher(model=teacher_of("llama"), share=0.5))(*batch())
    with torch.no_grad():
        torch.testing.assert_close(found[1].detach(), NextTokenLoss(student)(*batch()))
    found[1:].sum().backward()
    assert all(not bool(gradient.any()) for gradient in gradients(student).values())


def test_no_logits_of_all_tokens_stand_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = loss.Head.logits

    def noting(head: Any, hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return original(head, hidden)

    wrapped = DistilledLoss(tiny_model("llama"), Teacher(model=teacher_of("llama"), share=0.5))
    monkeypatch.setattr(loss.Head, "logits", noting)
    wrapped(*batch())[0].backward()
    with torch.no_grad():
        wrapped(*batch())
    # 37 tokens are predicted: six chunks of the model and of its teacher, twice.
    assert max(sizes) == 7
    assert sum(sizes) == 4 * 37


def test_under_autocast_products_are_bfloat16_and_gradients_float32() -> None:
    student, teacher = tiny_model("llama", initializer_range=0.2), teacher_of("llama")
    wrapped = DistilledLoss(student, Teacher(model=teacher.requires_grad_(False), share=0.5))
    wrapped(*batch())[0].backward()
    exact = gradients(student)
    with torch.autocast("cpu", torch.bfloat16):
        found = wrapped(*batch())
    assert found.dtype == torch.float32
    found[0].backward()
    rounded = gradients(student)
    assert rounded.keys() == exact.keys()
    for name, gradient in exact.items():
        assert rounded[name].dtype == torch.float32
        difference = (rounded[name] - gradient).abs().max() / gradient.abs().max()
        assert 1e-6 < float(difference) < 0.1, name


def test_a_batch_without_targets_has_no_loss() -> None:
    wrapped = DistilledLoss(tiny_model("llama"), Teacher(model=teacher_of("llama"), share=0.5))
    inputs, following, positions = batch()
    found = wrapped(inputs, torch.full_like(following, IGNORED), positions)
    assert found.tolist() == [0, 0, 0]
