"""Cross entropy of next tokens, in chunks: logits over the vocabulary never stand in memory for all tokens at once.

    loss = NextTokenLoss(model)
    loss(input_ids, next_tokens, position_ids).backward()      # the sum over all tokens that are not IGNORED

Gradients of a chunk are computed with its loss: no logits are kept for the backward pass, or computed again in it.

Shapes: B batch, T tokens, N tokens that are predicted, V words of the vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
        decoder = self.model.get_decoder()
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        asked = next_tokens != IGNORED
        head, hidden, targets = _head_of(self.model), hidden[asked], next_tokens[asked]
        if not torch.is_grad_enabled():
            return _negative_log_likelihood(head, hidden, targets).sum()
        if not torch.is_autocast_enabled(hidden.device.type):
            return summed_loss(hidden, head, targets)
        dtype = torch.get_autocast_dtype(hidden.device.type)
        with torch.autocast(hidden.device.type, enabled=False):
            return summed_loss(hidden, head, targets, dtype)


@torch.no_grad()
def token_losses(model: PreTrainedModel, hidden: Tensor, next_tokens: Tensor) -> Tensor:
    """Return (N,) negative log likelihoods in nats, in fp32 at least, of tokens after (N, D) last hidden states."""
    return _negative_log_likelihood(_head_of(model), hidden, next_tokens)


def total_loss(model: PreTrainedModel, hidden: Tensor, next_tokens: Tensor) -> Tensor:
    """Return the sum of `token_losses`, to be differentiated."""
    return summed_loss(hidden, _head_of(model), next_tokens)


def _chunks(hidden: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    for first in range(0, len(targets), CHUNK_TOKENS):
        part = slice(first, first + CHUNK_TOKENS)
        yield part, hidden[part], targets[part]


def _negative_log_likelihood(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    parts = [F.cross_entropy(head.logits(x), y, reduction="none") for _, x, y in _chunks(hidden, targets)]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def summed_loss(hidden: Tensor, head: Head, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the summed loss of (N,) targets after (N, D) hidden states, in nats; products are computed in `dtype`."""
    loss: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, targets, head, dtype or hidden.dtype
    )
    return loss


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        dtype: torch.dtype,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = torch.promote_types(dtype, torch.float32)
        used = Head(
            weight=weight.to(dtype), bias=None if bias is None else bias.to(dtype), scale=head.scale, cap=head.cap
        )
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for part, states, following in _chunks(hidden, targets):
            states, index = states.to(dtype), following[:, None]
            logits = used.logits(states)
            # Of a capped logit c = cap * tanh(x / cap), dc / dx is 1 - (c / cap) ** 2.
            slope = None if head.cap is None else 1 - (logits / head.cap).square_()
            # In place from here on: logits, their exponentials, their probabilities, the gradient.
            logits.sub_(logits.amax(dim=1, keepdim=True))
            wanted = logits.gather(1, index)
            sums = logits.exp_().sum(dim=1, keepdim=True)
            total += (sums.log() - wanted).sum(dtype=torch.float64)
            grad = logits.div_(sums)
            grad.scatter_add_(1, index, torch.full_like(wanted, -1))
            if slope is not None:
                grad.mul_(slope)
            if head.scale != 1:
                grad.mul_(head.scale)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(dtype)
            del logits
            if grad_hidden is not None:
                grad_hidden[part] = grad @ used.weight
            if grad_weight is not None:
                # Some words at a time, because the product in half precision is a tensor of its own.
                for words in range(0, len(weight), _WORDS):
                    grad_weight[words : words + _WORDS] += grad[:, words : words + _WORDS].T @ states
        # Not saved for the backward pass by autograd, which would copy them there.
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total.to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss went through the backward pass before; compute it again")
        scaled = (
            None if grad is None else grad.mul_(grad_out).to(dtype)
            for grad, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


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
