"""Attention under a span on CUDA: the window of FlashAttention where it is installed, else compiled `flex_attention`.

Both skip what no query of a block sees. `flex_attention` computes every span; its block mask is made once for a shape
and shared by the layers and calls that have it.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size.

Source: `flash_attn_func` of the package flash-attn 2.6 and later, whose left window is the span less one, with queries
aligned to the last keys; `torch.nn.attention.flex_attention` of torch 2.9 and later, arXiv 2412.05496.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from masformer.attention.tiles import ScoreRule
from masformer.attention.visibility import is_visible
from masformer.plans.spans import LayerSpan


@functools.cache
def has_flash_attention() -> bool:
    """Return whether the package flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def flash_attention(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, scores: ScoreRule) -> Tensor:
    """Return (B, H, Tq, D) under a window without sinks, or full attention; the last key is that of the last query."""
    attend = importlib.import_module("flash_attn").flash_attn_func
    left = -1 if span.span is None else span.span - 1
    states = [x.transpose(1, 2) for x in (query, key, value)]
    softcap = scores.softcap or 0.0  # what the package takes for none
    out: Tensor = attend(*states, softmax_scale=scores.scale, causal=True, window_size=(left, -1), softcap=softcap)
    return out.transpose(1, 2)


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: LayerSpan,
    offset: int,
    scores: ScoreRule,
    learned_sinks: Tensor | None = None,
) -> Tensor:
    """Return (B, H, Tq, D) attention; the arguments are those of `masformer.attention.tiles.tile_attention`."""
    mask = _block_mask(span, offset, query.shape[2], key.shape[2], query.device)
    cap = scores.softcap

    def soft_capped(score: Tensor, *_: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    out, more = _flex(query.device.type)(
        query,
        key,
        value,
        score_mod=None if cap is None else soft_capped,
        block_mask=mask,
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=flex.AuxRequest(lse=True),
    )
    if learned_sinks is None:
        return out  # type: ignore[no-any-return]
    # One more key without a value takes its share of the weight.
    share = torch.sigmoid(more.lse - learned_sinks[:, None].to(more.lse.dtype))
    return (out * share.unsqueeze(-1)).to(out.dtype)  # type: ignore[no-any-return]


@functools.cache
def _flex(device_type: str) -> Callable[..., Any]:
    """Return `flex_attention`, compiled where that is what makes it skip blocks."""
    if device_type == "cpu":
        return flex.flex_attention
    return torch.compile(flex.flex_attention, dynamic=True)


# A model has few spans, and a prefill in chunks few lengths; block masks are small.
@functools.lru_cache(maxsize=256)
def _block_mask(span: LayerSpan, offset: int, num_queries: int, num_keys: int, device: torch.device) -> flex.BlockMask:
    """Return which blocks of keys each block of queries sees; keys are laid out as a `SpanCache` returns them."""
    gap = offset + num_queries - num_keys

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = torch.where(key < span.sinks, key, key + gap)
        return is_visible(query + offset, position, span)

    return flex.create_block_mask(
        sees, B=None, H=None, Q_LEN=num_queries, KV_LEN=num_keys, device=device, _compile=device.type != "cpu"
    )
