"""Cross entropy of next tokens, in chunks: logits over the vocabulary never stand in memory for all tokens at once.

    loss = NextTokenLoss(model)
    loss(input_ids, next_tokens, position_ids).backward()      # the sum over all tokens that are not IGNORED

Gradients of a chunk are computed with its loss: no logits are kept for the backward pass, or computed again in it. With
a teacher, whose logits are made a chunk at a time too, the loss is partly the divergence from its predictions.

Shapes: B batch, T tokens, N tokens that are predicted, V words of the vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from masformer.errors import ConversionError
from masformer.linear import TunedLinear
from masformer.probe import (
    PROBE_TOLERANCE,
    check_close,
    inference,
    probe_logits,
    probe_tokens,
    tolerance_of,
)

# Marks a token whose successor is not predicted: torch's own default.
IGNORED = -100
# Tokens whose logits stand in memory at once.
CHUNK_TOKENS = 128
# Words whose gradients are computed at once.
_WORDS = 8192
_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Head:
    """How hidden states become logits: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)` if there is a cap."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None
    layer: TunedLinear | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (N, V) logits in fp32 at least."""
        logits = F.linear(hidden, self.weight, self.bias) if self.layer is None else self.layer(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def cast(self, dtype: torch.dtype) -> Head:
        """Return the head for (N, D) hidden states of a dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias, layer=None)


def _head_of(model: PreTrainedModel) -> Head:
    config, embeddings = model.config.get_text_config(decoder=True), model.get_output_embeddings()
    if type(embeddings) not in (nn.Linear, TunedLinear):
        raise ConversionError(
            f"{config.model_type} models have a {type(embeddings).__name__} for logits; the loss needs a linear layer"
        )
    scaling = getattr(config, "logits_scaling", None)
    scale = 1 / scaling if scaling else getattr(config, "logit_scale", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    layer = embeddings if isinstance(embeddings, TunedLinear) else None
    return Head(weight=embeddings.weight, bias=embeddings.bias, scale=float(scale), cap=cap, layer=layer)


class NextTokenLoss(nn.Module):
    """A decoder that returns its loss instead of logits.

    Auxiliary losses of a mixture of experts are not added.

    Raises:
        ConversionError: Its logits are not made of its last hidden states in a way that is known here.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # What FSDP takes as a unit.
        self._no_split_modules = getattr(model, "_no_split_modules", None)
        check_head(model)

    def forward(self, input_ids: Tensor, next_tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return the summed negative log likelihood, in nats, of (B, T) `next_tokens` that are not IGNORED.

        Positions count from 0 in each packed document.
        """
        asked = next_tokens != IGNORED
        hidden = _last_hidden(self.model, input_ids, position_ids)[asked]
        losses = _losses(_head_of(self.model), hidden, next_tokens[asked])
        return losses[0]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A decoder that is not trained, and from whose predictions another one learns.

    Attributes:
        model: The decoder. It may be the trained one, if `running` makes it the teacher.
        share: Share of the loss that is the divergence from the teacher, above 0 and at most 1.
        running: Returns what surrounds a forward pass of the teacher.
    """

    model: PreTrainedModel
    share: float
    running: Callable[[], AbstractContextManager[Any]] = nullcontext

    @torch.no_grad()
    def lesson(self, input_ids: Tensor, position_ids: Tensor, asked: Tensor) -> Lesson:
        """Return what the teacher says of the tokens that are True in the (B, T) bools `asked`."""
        with self.running():
            hidden = _last_hidden(self.model, input_ids, position_ids)[asked]
        return Lesson(hidden=hidden, head=_head_of(self.model), share=self.share)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a teacher says of N tokens: its last hidden states (N, D), from which `head` makes logits."""

    hidden: Tensor
    head: Head
    share: float


class DistilledLoss(NextTokenLoss):
    """A decoder that returns the losses of learning from data and from a teacher.

    The loss is (1 - share) x the negative log likelihood of the next tokens + share x KL(teacher, model), the
    sum of p log(p / q) over the vocabulary with p the teacher's probabilities and q the model's, at temperature 1.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531, section 2).
    """

    def __init__(self, model: PreTrainedModel, teacher: Teacher) -> None:
        super().__init__(model)
        self.teacher = teacher  # not a module of this one: it is neither trained nor saved

    def forward(self, input_ids: Tensor, next_tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return (3,) sums in nats over (B, T) `next_tokens` that are not IGNORED: loss, likelihood, divergence.

        Only the first can be differentiated.
        """
        asked = next_tokens != IGNORED
        lesson = self.teacher.lesson(input_ids, position_ids, asked)
        hidden = _last_hidden(self.model, input_ids, position_ids)[asked]
        return _losses(_head_of(self.model), hidden, next_tokens[asked], lesson)


def _last_hidden(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return (B, T, D) hidden states."""
    decoder = model.get_decoder()
    hidden: Tensor = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
    return hidden


def _losses(head: Head, hidden: Tensor, targets: Tensor, lesson: Lesson | None = None) -> Tensor:
    """Return (3,) sums: the loss, the negative log likelihood of (N,) targets, the divergence from a teacher."""
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    if not torch.is_grad_enabled() and lesson is not None:
        return _read_losses(head, hidden, targets, lesson)
    if not torch.is_grad_enabled():
        likelihood = _negative_log_likelihood(head, hidden, targets).sum()
        return torch.stack([likelihood, likelihood, torch.zeros_like(likelihood)])
    with torch.autocast(hidden.device.type, enabled=False):
        return _summed_losses(hidden, head, targets, dtype, lesson)


@torch.no_grad()
def token_losses(model: PreTrainedModel, hidden: Tensor, next_tokens: Tensor) -> Tensor:
    """Return (N,) negative log likelihoods in nats, in fp32 at least, of tokens after (N, D) last hidden states."""
    return _negative_log_likelihood(_head_of(model), hidden, next_tokens)


def total_loss(model: PreTrainedModel, hidden: Tensor, next_tokens: Tensor) -> Tensor:
    """Return the sum of `token_losses`, to be differentiated."""
    return summed_loss(hidden, _head_of(model), next_tokens)


def _chunks(num_tokens: int) -> Iterator[slice]:
    for first in range(0, num_tokens, CHUNK_TOKENS):
        yield slice(first, first + CHUNK_TOKENS)


def _negative_log_likelihood(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    parts = [
        F.cross_entropy(head.logits(hidden[part]), targets[part], reduction="none") for part in _chunks(len(targets))
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _read_losses(head: Head, hidden: Tensor, targets: Tensor, lesson: Lesson) -> Tensor:
    """Return what `_losses` does, without gradients."""
    likelihood, divergence = torch.zeros(
        2, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device
    )
    for part in _chunks(len(targets)):
        ours, theirs = head.logits(hidden[part]), lesson.head.logits(lesson.hidden[part])
        likelihood += F.cross_entropy(ours, targets[part], reduction="sum")
        divergence += F.kl_div(ours.log_softmax(dim=1), theirs.log_softmax(dim=1), log_target=True, reduction="sum")
    return torch.stack([(1 - lesson.share) * likelihood + lesson.share * divergence, likelihood, divergence])


def summed_loss(hidden: Tensor, head: Head, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the summed loss of (N,) targets after (N, D) hidden states, in nats; products are computed in `dtype`."""
    return _summed_losses(hidden, head, targets, dtype or hidden.dtype, None)[0]


def _summed_losses(hidden: Tensor, head: Head, targets: Tensor, dtype: torch.dtype, lesson: Lesson | None) -> Tensor:
    loss, parts = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head, dtype, lesson
    )
    return torch.cat([loss[None], parts])


class _SummedLoss(torch.autograd.Function):
    """The loss to be differentiated, and the (2,) parts of it: negative log likelihood and divergence."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        dtype: torch.dtype,
        lesson: Lesson | None,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(dtype, torch.float32)
        used, teacher = head.cast(dtype), None if lesson is None else lesson.head.cast(dtype)
        share = 0.0 if lesson is None else lesson.share
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        parts = torch.zeros(2, dtype=torch.float64, device=hidden.device)
        for part in _chunks(len(targets)):
            states = hidden[part].to(dtype)
            logits = used.logits(states)
            theirs = None if teacher is None or lesson is None else teacher.logits(lesson.hidden[part].to(dtype))
            # Of a capped logit c = cap * tanh(x / cap), dc / dx is 1 - (c / cap) ** 2.
            slope = None if head.cap is None else 1 - (logits / head.cap).square_()
            of_part, grad = _by_logits(logits, targets[part][:, None], theirs, share)
            parts += of_part
            if slope is not None:
                grad.mul_(slope)
            if head.scale != 1:
                grad.mul_(head.scale)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(dtype)
            del logits, theirs
            if grad_hidden is not None:
                grad_hidden[part] = grad @ used.weight
            if grad_weight is not None:
                # Some words at a time, because the product in half precision is a tensor of its own.
                for words in range(0, len(weight), _WORDS):
                    grad_weight[words : words + _WORDS] += grad[:, words : words + _WORDS].T @ states
        # Not saved for the backward pass by autograd, which would copy them there.
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        loss, parts = ((1 - share) * parts[0] + share * parts[1]).to(wide), parts.to(wide)
        ctx.mark_non_differentiable(parts)
        return loss, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss went through the backward pass before; compute it again")
        scaled = (
            None if grad is None else grad.mul_(grad_out).to(dtype)
            for grad, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


def _by_logits(logits: Tensor, targets: Tensor, theirs: Tensor | None, share: float) -> tuple[Tensor, Tensor]:
    """Return the (2,) sums of likelihood and divergence, and the loss's gradient by (N, V) logits, in their memory.

    Args:
        logits: Logits of the model; lost.
        targets: (N, 1) words that follow.
        theirs: Logits of the teacher; lost.
        share: Share of the divergence in the loss.
    """
    logits.sub_(logits.amax(dim=1, keepdim=True))
    wanted = logits.gather(1, targets)
    expected, divergence = None, logits.new_zeros(len(logits))
    if theirs is not None:
        theirs.sub_(theirs.logsumexp(dim=1, keepdim=True))
        expected = theirs.exp()
        divergence = torch.linalg.vecdot(expected, theirs.sub_(logits))
    # In place from here on: logits, their exponentials, their probabilities, the gradient.
    sums = logits.exp_().sum(dim=1, keepdim=True)
    likelihood = (sums.log() - wanted).sum(dtype=torch.float64)
    if expected is not None:
        divergence += sums.log()[:, 0]
    grad = logits.div_(sums)
    grad.scatter_add_(1, targets, torch.full_like(wanted, share - 1))
    if expected is not None:
        grad.sub_(expected, alpha=share)
    return torch.stack([likelihood, divergence.sum(dtype=torch.float64)]), grad


def check_head(model: PreTrainedModel) -> None:
    """Raise `ConversionError` unless, on random tokens, this module's logits are the model's."""
    kind = model.config.get_text_config(decoder=True).model_type
    with inference(model):
        tokens, expected = probe_logits(model, _PROBE_TOKENS)
        found = _head_of(model).logits(model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[0])
    what = f"{kind} models make their logits in a way that the loss does not know:"
    check_close(found, expected, tolerance_of(expected), what)


def check_packing(model: PreTrainedModel) -> None:
    """Raise `ConversionError` if, on random tokens, two documents in one row see each other.

    They do if the architecture does not tell its attention where documents begin.
    """
    kind, count = model.config.get_text_config(decoder=True).model_type, 3 * _PROBE_TOKENS
    tokens, positions = probe_tokens(model, 2 * count), torch.arange(count, device=model.device)[None]

    def hidden(some: Tensor, at: Tensor) -> Tensor:
        found: Tensor = model.get_decoder()(input_ids=some, position_ids=at, use_cache=False).last_hidden_state
        return found[0, -count:]

    with inference(model):
        alone = hidden(tokens[:, count:], positions)
        packed = hidden(tokens, torch.cat([positions, positions], dim=1))
    if not float((packed - alone).abs().max()) <= PROBE_TOLERANCE.get(alone.dtype, 1e-4) * float(alone.abs().max()):
        raise ConversionError(f"documents packed in one row would see each other in {kind} models; pass --no-packing")
