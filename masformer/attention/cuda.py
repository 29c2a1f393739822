"""Attention under a span on CUDA in half precision: calls of torch's `varlen_attn` over packed sequences, merged.

`masformer.attention.calls` says which calls make up a span. Other dtypes, and soft caps, are computed elsewhere
(`masformer.attention.flex`).

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size. Packed
queries are (Tq, H, D), packed keys (Tk, K, D), the logs of sums of exponentials (H, Tq).

Source: `torch.nn.attention.varlen.varlen_attn` of torch 2.13, which aligns the last query with the last key and whose
left window is the span less one. Each call's gradients are those of FlashAttention (arXiv 2205.14135, section B.4),
given the merged output and sums.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from masformer.attention.calls import CAUSAL, EVERYTHING, Call, Stretch, call_of, calls_of, kept_pieces, pieces_of
from masformer.plans.layer_spans import Blocks, Full, LayerSpan, Window

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

flash_backward: Callable[..., Any] = torch.ops.aten._flash_attention_backward

# What FlashAttention computes in, and its head sizes: multiples of the first up to the second.
DTYPES = (torch.float16, torch.bfloat16)
_HEAD_SIZE_STEP, _LARGEST_HEAD_SIZE = 8, 256
# Each is a call and a merge of its own.
_MOST_PREVIOUS_BLOCKS = 4
# The sum of exponentials (log) of no keys: finite, so that differences of two are.
_NOTHING = -1e30

Runs = Sequence[tuple[Tensor, Tensor]]


@functools.cache
def is_ready(device: torch.device) -> bool:
    """Return whether torch has `varlen_attn` with windows and fixed splits, and the device runs it."""
    if device.type != "cuda" or varlen_attn is None or "num_splits" not in inspect.signature(varlen_attn).parameters:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def takes(query: Tensor, value_size: int, span: LayerSpan) -> bool:
    """Return whether `attend` computes a span for (B, H, Tq, D) queries of this device, dtype and size."""
    if max(query.shape[3], value_size) > _LARGEST_HEAD_SIZE or query.dtype not in DTYPES or not is_ready(query.device):
        return False
    return isinstance(span, Full | Window) or (isinstance(span, Blocks) and span.previous <= _MOST_PREVIOUS_BLOCKS)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: Runs,
    span: LayerSpan,
    offset: int,
    scale: float,
    *,
    padding: Sequence[int] | None = None,
    documents: Sequence[Sequence[int]] | None = None,
    learned_sinks: Tensor | None = None,
) -> Tensor:
    """Return (B, H, Tq, D) attention, where rows of padding are zero.

    Args:
        key: (B, K, Tk, D), laid out as a `SpanCache` does it for several new tokens.
        before: Earlier keys and values (B, K, T, D) of a full layer.
        padding: Left-padding tokens of each row.
        documents: Where the packed documents of each row start.
    """
    batch, heads, length, _ = query.shape
    value_size = value.shape[3]
    size = head_size_of(query, value)
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (query, key, value, learned_sinks)
    )
    if before and (padding is not None or needs_grad):
        key, value = (torch.cat(runs, dim=2) for runs in zip(*before, (key, value), strict=True))
        before = ()
    packed = _widened(query, size).transpose(1, 2).reshape(batch * length, heads, size)
    keys, values, step = packed_states(key, value, size)
    if padding is not None and offset:
        kept = kept_pieces(span, offset, length, tuple(padding), step, key.device)
        pieces, keys, values = kept[0], keys[kept[1]], values[kept[1]]
    else:
        starts = documents or [[0] if padding is None else [min(row, length)] for row in padding or [0] * batch]
        at = offset - sum(run.shape[2] for run, _ in before)
        pieces = tuple(pieces_of(starts, length, key.shape[2], step, at))
    calls = calls_of(span, pieces, len(packed), len(keys), key.device)
    if needs_grad:
        out: Tensor = _Attention.apply(packed, keys, values, learned_sinks, calls, scale)  # type: ignore[no-untyped-call]
    else:
        out, total = _attend(packed, keys, values, calls, scale)
        for run in before:
            keys, values, step = packed_states(*run, size)
            whole = tuple(Stretch(row * length, length, row * step, run[0].shape[2]) for row in range(batch))
            call = call_of(whole, EVERYTHING, len(packed), len(keys), key.device)
            total = _merge(out, total, *_by_varlen(packed, keys, values, call, scale))
        if learned_sinks is not None:
            out, _ = _with_learned(out, total, learned_sinks)
    return out.view(batch, length, heads, size).transpose(1, 2)[..., :value_size]


def partial(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Return (B, H, Tq, D) attention of all queries to all keys, and its (B, H, Tq) log-sum-exp."""
    batch, heads, length, _ = query.shape
    size = head_size_of(query, value)
    keys, values, step = packed_states(key, value, size)
    rows = tuple(Stretch(row * length, length, row * step, key.shape[2]) for row in range(batch))
    call = call_of(rows, EVERYTHING, batch * length, len(keys), key.device)
    packed = _widened(query, size).transpose(1, 2).reshape(batch * length, heads, size)
    out, total = raw_attention(packed, keys, values, call, scale)
    total = total.masked_fill(total == torch.inf, -torch.inf).view(heads, batch, length).transpose(0, 1)
    return out.view(batch, length, heads, size).transpose(1, 2)[..., : value.shape[3]], total


def head_size_of(query: Tensor, value: Tensor) -> int:
    """Return the head size of a call, which takes one for all."""
    return -(-max(query.shape[3], value.shape[3]) // _HEAD_SIZE_STEP) * _HEAD_SIZE_STEP


def _widened(states: Tensor, size: int) -> Tensor:
    """Return states with zeros up to a head size."""
    return F.pad(states, (0, size - states.shape[3])) if states.shape[3] < size else states


def packed_states(key: Tensor, value: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """Return (N, K, D) keys and values and the tokens from one row to the next, without a copy where strides allow."""
    states = [_widened(x, size) for x in (key, value)]
    batch, heads, length, _ = key.shape
    # Of a buffer with room for more, or with heads before tokens, rows are further apart than they are long.
    step = states[0].stride(0) // max(states[0].stride(2), 1)
    is_even = all(x.stride(3) == 1 and x.stride(0) == step * x.stride(2) and not x.requires_grad for x in states)
    if batch == 1 and is_even:
        step = length
    if not is_even or step < length:
        keys, values = (x.transpose(1, 2).reshape(batch * length, heads, size) for x in states)
        return keys, values, length
    shape = ((batch - 1) * step + length, heads, size)
    keys, values = (x.as_strided(shape, (x.stride(2), x.stride(1), 1)) for x in states)
    return keys, values, step


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """Return (Tq, H, D) and (H, Tq) of one call, about the queries that take part in it."""
    query = query if call.queries is None else query[call.queries]
    key, value = (key, value) if call.keys is None else (key[call.keys], value[call.keys])
    out, total = raw_attention(query, key, value, call, scale)
    # Infinity stands for no keys.
    return out, total.masked_fill(total == torch.inf, _NOTHING)


def raw_attention(
    query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float, num_used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (Tq, H, D) and (H, Tq) of one call; of no keys the sum is infinite.

    Args:
        num_used: (N,) how many keys of each sequence are seen; None is all.
    """
    assert varlen_attn is not None
    out: tuple[Tensor, Tensor] = varlen_attn(
        query,
        key,
        value,
        call.cu_queries,
        call.cu_keys,
        # Of one query each, FlashAttention would fold heads and take every sequence to have one.
        max(call.most[0], 2),
        call.most[1],
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=call.window,
        enable_gqa=query.shape[1] != key.shape[1],
        seqused_k=num_used,
        num_splits=1,  # a row's result is that of any batch
    )
    return out


def _attend(query: Tensor, key: Tensor, value: Tensor, calls: Sequence[Call], scale: float) -> tuple[Tensor, Tensor]:
    """Return (Tq, H, D) and (H, Tq) of all calls, merged."""
    out, total = _by_varlen(query, key, value, calls[0], scale)
    for call in calls[1:]:
        part = _by_varlen(query, key, value, call, scale)
        if call.queries is None:
            total = _merge(out, total, *part)
            continue
        some = out[call.queries]
        total[:, call.queries] = _merge(some, total[:, call.queries], *part)
        out[call.queries] = some
    return out, total


def _merge(out: Tensor, total: Tensor, part: Tensor, part_total: Tensor) -> Tensor:
    """Merge a part into `out`, in place; return the new (H, Tq) sums of exponentials."""
    share = torch.sigmoid(part_total - total).T.unsqueeze(-1)
    # One pass in one dtype, because this is bound by memory; the product is in fp32.
    out.lerp_(part, share.to(out.dtype))
    return torch.logaddexp(total, part_total)


def _with_learned(out: Tensor, total: Tensor, learned_sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the sums with one more key, whose value is zero."""
    sinks = learned_sinks.to(total.dtype)[:, None]
    out = out.mul_(torch.sigmoid(total - sinks).T.unsqueeze(-1))
    return out, torch.logaddexp(total, sinks)


class _Attention(torch.autograd.Function):
    """All calls, merged, and the learned sinks: each call's gradients follow from the merged output and sums."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        learned_sinks: Tensor | None,
        calls: tuple[Call, ...],
        scale: float,
    ) -> Tensor:
        out, total = _attend(query, key, value, calls, scale)
        if learned_sinks is not None:
            out, total = _with_learned(out, total, learned_sinks)
        ctx.save_for_backward(query, key, value, learned_sinks, out, total)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, learned_sinks, out, total = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        grad = grad.contiguous()
        for call in ctx.calls:
            part = _gradients(grad, query, key, value, out, total, call, ctx.scale)
            for whole, some, index in zip(grads, part, (call.queries, call.keys, call.keys), strict=True):
                whole.add_(some) if index is None else whole.index_add_(0, index, some)
        grad_sinks = None
        if learned_sinks is not None:
            share = torch.exp(learned_sinks.to(total.dtype)[:, None] - total)
            product = (grad.to(total.dtype) * out.to(total.dtype)).sum(dim=-1).T
            grad_sinks = -(share * product).sum(dim=1).to(learned_sinks.dtype)
        return (*grads, grad_sinks, None, None)


def _gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, call: Call, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the queries, keys and values that take part in a call."""
    if call.queries is not None:
        grad, query, out = (x[call.queries] for x in (grad, query, out))
        total = total[:, call.queries].contiguous()
    if call.keys is not None:
        key, value = key[call.keys], value[call.keys]
    return flash_backward(  # type: ignore[no-any-return]
        grad,
        query,
        key,
        value,
        out,
        total,
        call.cu_queries,
        call.cu_keys,
        *call.most,
        0.0,
        call.window == CAUSAL,
        torch.zeros(2, dtype=torch.uint64, device=query.device),  # of dropout, which there is none of
        torch.empty(0, device=query.device),
        scale=scale,
        window_size_left=call.window[0],
        window_size_right=call.window[1],
    )
