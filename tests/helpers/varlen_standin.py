"""Attention of packed sequences by its definition, in place of what torch has on CUDA alone, with the limits of that.

Shapes: Tq packed queries, Tk packed keys, H query heads, K key/value heads, D head size.

Source: the documentation of `torch.nn.attention.varlen.varlen_attn` of torch 2.13, and what its CUDA code checks and
returns beyond it: a head size that 8 divides; infinity for the sum over no keys; nothing for queries of no sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest


def sequences(
    query: Tensor, key: Tensor, cu_q: Tensor, cu_k: Tensor, *most: int, num_used: Tensor | None = None
) -> Iterator[tuple[slice, slice]]:
    """Yield where the queries and the keys of each sequence are, once all limits are met."""
    size = query.shape[2]
    assert size % 8 == 0
    assert size <= 256
    assert query.shape[1] % key.shape[1] == 0
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert query.stride(-1) == key.stride(-1) == 1
    starts = [cu.tolist() for cu in (cu_q, cu_k)]
    assert len(starts[0]) == len(starts[1])
    for cu, states in zip(starts, (query, key), strict=True):
        assert cu == sorted(cu)
        assert cu[0] >= 0
        assert cu[-1] <= len(states)
    # With this many queries at most, the kernel takes each sequence to have one.
    assert most[0] > 1 or query.shape[1] == key.shape[1]
    assert num_used is None or num_used.dtype == torch.int32
    for row, ((q0, k0), (q1, k1)) in enumerate(pairwise(zip(*starts, strict=True))):
        assert num_used is None or int(num_used[row]) <= k1 - k0
        k1 = k1 if num_used is None else k0 + int(num_used[row])
        assert q1 - q0 <= most[0]
        assert k1 - k0 <= most[1]
        yield slice(q0, q1), slice(k0, k1)


def scores_of(query: Tensor, key: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """Return (H, Tq, Tk) scores of one sequence, minus infinity where the window hides a key."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    distance = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    left, right = window
    hidden = (distance > left) & (left >= 0) | (-distance > right) & (right >= 0)
    return scores.masked_fill(hidden, -torch.inf)


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    num_splits: int | None = None,
) -> Any:
    """Return (Tq, H, D) and, where asked for, (H, Tq) logs of the sums of exponentials."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert key.shape == value.shape
    assert num_splits == 1, "else a row's result would depend on its batch"
    out = torch.full_like(query, torch.nan)
    # Rounded once, as an output.
    query, key, value = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    total = query.new_full((query.shape[1], len(query)), torch.nan)
    groups = query.shape[1] // key.shape[1]
    for own, seen in sequences(query, key, cu_seq_q, cu_seq_k, max_q, max_k, num_used=seqused_k):
        scores = scores_of(query[own], key[seen], query.shape[2] ** -0.5 if scale is None else scale, window_size)
        sums = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - sums.unsqueeze(-1)).nan_to_num(0.0)
        found = torch.einsum("hqk,khd->qhd", weights, value[seen].repeat_interleave(groups, dim=1))
        out[own] = found.to(out.dtype)
        total[:, own] = torch.where(sums == -torch.inf, torch.inf, sums)
    return (out, total) if return_aux is not None and return_aux.lse else out


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    is_causal: bool,
    *state: Tensor,
    scale: float,
    window_size_left: int,
    window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, as `aten::_flash_attention_backward`."""
    window = window_size_left, window_size_right
    assert is_causal == (window == (-1, 0))
    assert total.is_contiguous()
    assert not dropout
    dtype, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    grad, query, key, value, out = (x.to(wide) for x in (grad, query, key, value, out))
    grads = [torch.full_like(x, torch.nan) for x in (query, key, value)]
    groups = query.shape[1] // key.shape[1]
    for own, seen in sequences(query, key, cu_seq_q, cu_seq_k, max_q, max_k):
        keys, values = (x[seen].repeat_interleave(groups, dim=1) for x in (key, value))
        weights = torch.exp(scores_of(query[own], key[seen], scale, window) - total[:, own].unsqueeze(-1))
        product = (grad[own] * out[own]).sum(dim=-1).T.unsqueeze(-1)
        slopes = weights * (torch.einsum("qhd,khd->hqk", grad[own], values) - product) * scale
        grads[0][own] = torch.einsum("hqk,khd->qhd", slopes, keys)
        for whole, left, right in ((grads[1], slopes, query[own]), (grads[2], weights, grad[own])):
            whole[seen] = torch.einsum("hqk,qhd->khd", left, right).unflatten(1, (-1, groups)).sum(dim=2)
    return grads[0].to(dtype), grads[1].to(dtype), grads[2].to(dtype)
