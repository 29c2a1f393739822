"""Attention to some of the keys, and what is needed to merge it with attention to others: the primitive of this room.

    earlier = [partial(query, *run, scale=scale) for run in runs]
    out, _ = merge([*earlier, partial(query, key, value, scale=scale, causal=True)])

A part is the output of attention to its keys alone, and the logarithm of the sum of the exponentials of its scores
(lse). Parts over disjoint keys merge exactly, in any order.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens (Tq of the queries, Tk of the keys), D head size
(of the values it may differ).

Source: merging by log-sum-exps is that of Flash-Decoding and of Hydragen, arXiv 2402.05099, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masformer.attention import cuda
from masformer.attention.tiles import ScoreRule, product_dtype
from masformer.plans.layer_spans import FULL

# (B, H, Tq, D) attention to some keys, and (B, H, Tq) its log-sum-exp.
Part: TypeAlias = tuple[Tensor, Tensor]
# Queries, keys and values of views, how they attend, and the place of the first key.
_View: TypeAlias = tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], int]
# Keys that one product takes, which in half precision are copied: this bounds the memory of the copies.
RUN_KEYS = 8192
_WINDOW_ROWS = 64
# Views of a window in one call: enough for all threads, and few where torch copies what each of them sees.
_VIEWS = 32


def partial(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    hidden: Tensor | None = None,
    softcap: float | None = None,
    rows: int = _WINDOW_ROWS,
) -> Part:
    """Return (B, H, Tq, D) attention of all queries to these keys alone, and its (B, H, Tq) log-sum-exp.

    The output has the dtype of the queries or a wider one, the log-sum-exp fp32 at least. A query that sees no key gets
    zeros and minus infinity. Gradients pass through `attend` alone.

    Args:
        query: (B, H, Tq, D).
        key: (B, K, Tk, D), of which K divides H; with `causal`, Tk is at least Tq.
        value: (B, K, Tk, D).
        scale: Factor of the products.
        causal: A query sees no key after its own; the last key is that of the last query.
        window: A query sees this many keys that end with its own; implies `causal`, and goes with neither `hidden` nor
            `softcap`. None is no limit.
        hidden: What is added to the scores, 0 or minus infinity: (B or 1, 1, Tq or 1, Tk) in the dtype of the queries.
        softcap: Scores x become softcap * tanh(x / softcap); None leaves them.
        rows: Queries of a window that go together on a CPU; each computes the scores of all that one of them sees.
    """
    length, num_keys = query.shape[2], key.shape[2]
    if not num_keys or not length:
        return _nothing(query, value)
    if window is not None and window < num_keys:
        assert hidden is None
        assert softcap is None
        return _windowed(query, key, value, scale, window, rows)
    causal = length > 1 and (causal or window is not None)
    own = num_keys - length
    if causal and own:
        parts = []
        for keys, is_own in ((slice(own), False), (slice(own, None), True)):
            less = None if hidden is None else hidden[..., keys]
            states = query, key[:, :, keys], value[:, :, keys]
            parts.append(partial(*states, scale=scale, causal=is_own, hidden=less, softcap=softcap))
        return merge(parts)
    if not causal and hidden is None and softcap is None and cuda.takes(query, value.shape[3], FULL):
        return cuda.partial(query, key, value, scale=scale)
    is_fused = softcap is None and query.shape[3] == value.shape[3] and query.device.type == "cpu"
    if causal and is_fused and hidden is None:
        return _fused_causal(query, key, value, scale)
    hidden = _hiding_later(query, hidden) if causal else hidden
    rule = ScoreRule(scale=scale, softcap=softcap)
    return _in_blocks(query, key, value, hidden, _fused if is_fused else _dense, rule)


def merge(parts: Sequence[Part]) -> Part:
    """Return attention to the keys of all parts; of several, fp32 at least."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.logsumexp(torch.stack([total for _, total in parts]), dim=0)
    # Where nothing is seen, all shares are zero.
    least = lse.masked_fill(lse == -torch.inf, 0)
    shares = [(total - least).exp().unsqueeze(-1) for _, total in parts]
    out = parts[0][0] * shares[0]
    for (part, _), share in zip(parts[1:], shares[1:], strict=True):
        out = torch.addcmul(out, part.to(out.dtype), share)
    return out, lse


def attend(
    query: Tensor,
    runs: Sequence[tuple[Tensor, Tensor, dict[str, Any]]],
    learned_sinks: Tensor | None = None,
    *,
    scale: float,
) -> Tensor:
    """Return (B, H, Tq, D) attention to the keys of all runs, through which gradients pass.

    Args:
        runs: Keys (B, K, Tk, D), values of the same size, and further arguments of `partial`, of each.
        learned_sinks: (H,) scores of one more key without a value; None is no such key.
    """
    states = [states for run in runs for states in run[:2]]
    found: Tensor = _Attend.apply(query, learned_sinks, scale, [run[2] for run in runs], *states)  # type: ignore[no-untyped-call]
    return found


def with_sinks(part: Part, learned_sinks: Tensor | None) -> Tensor:
    """Return the output of a part of which one more key, with a score for each head and no value, takes its share."""
    out, lse = part
    if learned_sinks is None:
        return out
    return out * torch.sigmoid(lse - learned_sinks[:, None].to(lse.dtype)).unsqueeze(-1)


def _nothing(query: Tensor, value: Tensor) -> Part:
    shape = query.shape[:3]
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_zeros((*shape, value.shape[3])), query.new_full(shape, -torch.inf, dtype=wide)


def _hiding_later(query: Tensor, hidden: Tensor | None) -> Tensor:
    """Return (B or 1, 1, Tq, Tq), what is hidden and the keys after each query; there are as many keys as queries."""
    length = query.shape[2]
    later = query.new_full((1, 1, length, length), -torch.inf).triu(1)
    return later if hidden is None else hidden + later


def _fused_causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
    """Attend by torch's fused kernel; there are as many keys as queries."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, is_causal=True, scale=scale
    )
    return out, lse


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, attend: Callable[..., Part], rule: ScoreRule
) -> Part:
    """Attend to `RUN_KEYS` keys at a time, by `_fused` or `_dense`."""
    batch, heads, length, size = query.shape
    groups = heads // key.shape[1]
    # What needs no causal mask: the query heads of one key/value head become the rows of one product.
    folded = query.reshape(batch, key.shape[1], groups * length, size)
    parts = []
    for first in range(0, key.shape[2], RUN_KEYS):
        keys, values = (x[:, :, first : first + RUN_KEYS] for x in (key, value))
        less = None if hidden is None else hidden[..., first : first + RUN_KEYS]
        if less is not None and less.shape[2] > 1:
            less = less.repeat(1, 1, groups, 1)
        parts.append(attend(folded, keys, values, less, rule))
    out, lse = merge(parts)
    return out.reshape(batch, heads, length, -1), lse.reshape(batch, heads, length)


def _fused(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, rule: ScoreRule) -> Part:
    """Attend by torch's fused kernel, which knows no soft cap; (B, K, Tq, D) queries."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(query, key, value, attn_mask=hidden, scale=rule.scale)
    if hidden is not None:  # torch calls the log-sum-exp of nothing 0
        lse = lse.masked_fill((hidden == -torch.inf).all(dim=-1), -torch.inf)
    return out, lse


def _dense(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, rule: ScoreRule) -> Part:
    """Attend by the definition, all scores at once; (B, K, Tq, D) queries."""
    # In fp32: a product in half precision would be rounded before the soft cap.
    scores = rule.of(query, key)
    if hidden is not None:
        scores = scores + hidden.to(scores.dtype)
    lse = scores.logsumexp(dim=-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)).exp()
    dtype = product_dtype(value)
    return weights.to(dtype) @ value.to(dtype), lse


def _windowed(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, at_once: int) -> Part:
    """Attend in a window: some queries together, to a view of the keys that one of them sees."""
    rows = []
    for q, k, v in zip(*(torch.split(x, 1) for x in (query, key, value)), strict=True):  # of several they were copies
        views = [partial(*seen, scale=scale, **options) for seen, options, _ in _views(q, k, v, window, at_once)]
        rows.append([torch.cat([_in_order(view) for view in part], dim=2) for part in zip(*views, strict=True)])
    out, lse = rows[0] if len(rows) == 1 else map(torch.cat, zip(*rows, strict=True))
    return out, lse


def _views(query: Tensor, key: Tensor, value: Tensor, window: int, at_once: int) -> Iterator[_View]:
    """Yield the first queries of a row, which see all before them, then views of queries with those of their keys."""
    length, reach, gap = query.shape[2], window - 1, key.shape[2] - query.shape[2]
    start = min(max(window - gap, 0), length)
    if start:
        yield (query[:, :, :start], key[:, :, : gap + start], value[:, :, : gap + start]), {"causal": True}, 0
    while start < length:
        rows = min(at_once, length - start)
        count = min((length - start) // rows, _VIEWS)
        stop, first = start + count * rows, gap + start - reach
        asked, keys, values = (
            x[0, :, begin:end].unfold(1, width, rows).permute(1, 0, 3, 2)
            for x, begin, end, width in (
                (query, start, stop, rows),
                (key, first, gap + stop, reach + rows),
                (value, first, gap + stop, reach + rows),
            )
        )
        band = torch.full((rows, reach + rows), -torch.inf, dtype=query.dtype, device=query.device)
        yield (asked, keys, values), {"hidden": (band.tril(-1) + band.triu(window))[None, None]}, first
        start = stop


def _in_order(states: Tensor) -> Tensor:
    """Return (1, H, N R, ...) of (N, H, R, ...) views."""
    return states.transpose(0, 1).flatten(1, 2)[None]


class _Attend(torch.autograd.Function):
    """Attention merged from parts; torch's backward pass of each part, given what all made, yields exact gradients."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, learned: Tensor | None, scale: float, options: list[dict[str, Any]], *states: Tensor
    ) -> Tensor:
        runs = zip(states[::2], states[1::2], options, strict=True)
        out, lse = merge([partial(query, key, value, scale=scale, **more) for key, value, more in runs])
        out = with_sinks((out, lse), learned).to(query.dtype)
        if any(ctx.needs_input_grad):
            if learned is not None:
                lse = torch.logaddexp(lse, learned[:, None].to(lse.dtype))
            # Where nothing is seen, all weights are zero.
            ctx.save_for_backward(query, learned, out, lse.masked_fill(lse == -torch.inf, 0), *states)
            ctx.rule = scale, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, learned, out, lse, *states = ctx.saved_tensors
        scale, options = ctx.rule
        of_query, of_learned, of_states = torch.zeros_like(query, dtype=lse.dtype), None, []
        grad = grad.contiguous()
        with torch.autocast(grad.device.type, enabled=False):
            for key, value, more in zip(states[::2], states[1::2], options, strict=True):
                first, *rest = _gradients(grad, query, key, value, out, lse, scale, **more)
                of_query += first
                of_states += [found.to(key.dtype) for found in rest]
            if learned is not None:
                share = torch.exp(learned[:, None].to(lse.dtype) - lse)
                of_learned = -((grad * out).to(lse.dtype).sum(dim=-1) * share).sum(dim=(0, 2)).to(learned.dtype)
        return of_query.to(query.dtype), of_learned, None, None, *of_states


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    hidden: Tensor | None = None,
    softcap: float | None = None,
    rows: int = _WINDOW_ROWS,
) -> tuple[Tensor, ...]:
    """Return what a part gives to the gradients of query, key and value, from the output and lse of all parts."""
    assert softcap is None, "torch's backward pass knows no soft cap"
    of_query, of_key, of_value = (torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value))
    length, num_keys = query.shape[2], key.shape[2]
    own = num_keys - length
    if window is not None and window < num_keys:
        for row in range(len(query)):
            one, at = slice(row, row + 1), 0
            for states, options, first in _views(query[one], key[one], value[one], window, rows):
                count, _, each, _ = states[0].shape
                asked = slice(at, at := at + count * each)
                of_out, given, given_lse = (
                    x[row, :, asked].reshape(-1, count, each, *x.shape[3:]).transpose(0, 1) for x in (grad, out, lse)
                )
                of_views = _gradients(of_out, *states, given, given_lse, scale, **options)
                of_query[one, :, asked] = _in_order(of_views[0])
                for total, found in ((of_key, of_views[1]), (of_value, of_views[2])):
                    for view, part in enumerate(found):
                        total[row, :, first + view * each :][:, : part.shape[1]] += part
        return of_query, of_key, of_value
    causal = length > 1 and (causal or window is not None)
    if causal and own:
        for keys, is_own in ((slice(own), False), (slice(own, None), True)):
            states = query, key[:, :, keys], value[:, :, keys]
            less = None if hidden is None else hidden[..., keys]
            of_part = _gradients(grad, *states, out, lse, scale, is_own, hidden=less)
            of_query += of_part[0]
            of_key[:, :, keys], of_value[:, :, keys] = of_part[1:]
        return of_query, of_key, of_value
    if not num_keys:
        return of_query, of_key, of_value
    if causal and hidden is not None:
        causal, hidden = False, _hiding_later(query, hidden)
    groups = query.shape[1] // key.shape[1]
    if causal:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    else:
        grad, query, out = (x.reshape(len(x), key.shape[1], -1, x.shape[3]) for x in (grad, query, out))
        lse = lse.reshape(query.shape[:3])
        if hidden is not None and hidden.shape[2] > 1:
            hidden = hidden.repeat(1, 1, groups, 1)
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    first, *rest = back(grad, query, key, value, out, lse, 0.0, causal, attn_mask=hidden, scale=scale)
    if causal:
        rest = [x.to(lse.dtype).view(len(x), -1, groups, *x.shape[2:]).sum(dim=2) for x in rest]
    return first.reshape(of_query.shape), *rest
