"""Attention under any span on CUDA by compiled `flex_attention`: what `masformer.attention.cuda` does not take.

That is soft-capped scores, fp32, patterns of one's own and blocks that see far back. A kernel skips the blocks of keys
that no query of a block sees. What varies from call to call, lengths, offset and the numbers of the span, it reads from
a small tensor, so that one compilation serves them all.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size.

Source: `torch.nn.attention.flex_attention` of torch 2.9 and later, arXiv 2412.05496.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from masformer.attention.parts import with_sinks
from masformer.attention.tiles import ScoreRule
from masformer.attention.visibility import is_visible
from masformer.plans.spans import LayerSpan

# Few queries would have a kernel of their own, which on an H200 failed in fp32 (`pytest -m gpu`).
_OPTIONS: Any = {"FORCE_USE_FLEX_ATTENTION": True}


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
    cap = None if scores.softcap is None else _number(scores.softcap, query.device)

    def soft_capped(score: Tensor, *_: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    out = _flex(query.device.type)(
        query,
        key,
        value,
        score_mod=None if cap is None else soft_capped,
        block_mask=mask,
        scale=scores.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_OPTIONS,
        return_aux=None if learned_sinks is None else flex.AuxRequest(lse=True),
    )
    if learned_sinks is None:
        return out  # type: ignore[no-any-return]
    out, more = out
    return with_sinks((out, more.lse), learned_sinks).to(query.dtype)


@functools.cache
def _flex(device_type: str) -> Callable[..., Any]:
    """Return `flex_attention`, compiled where that is what makes it skip blocks."""
    if device_type == "cpu":
        return flex.flex_attention
    return torch.compile(flex.flex_attention, dynamic=True)


# A number of Python's would be compiled as a variable in fp64, which flex_attention does not take.
@functools.lru_cache(maxsize=16)
def _number(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)


# The layers of a pass have few spans. A mask takes 8 bytes for each pair of blocks.
@functools.lru_cache(maxsize=16)
def _block_mask(span: LayerSpan, offset: int, num_queries: int, num_keys: int, device: torch.device) -> flex.BlockMask:
    """Return which blocks of keys each block of queries sees; keys are laid out as a `SpanCache` returns them."""
    numbers = {name: value for name, value in vars(span).items() if value is not None}
    gap = offset + num_queries - num_keys
    on_device = torch.tensor([offset, gap, *numbers.values()], device=device)
    rule = object.__new__(type(span))
    for index, name in enumerate(numbers, start=2):
        object.__setattr__(rule, name, on_device[index])

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        position = torch.where(key < rule.sinks, key, key + on_device[1])
        return is_visible(query + on_device[0], position, rule)

    return flex.create_block_mask(
        sees, B=None, H=None, Q_LEN=num_queries, KV_LEN=num_keys, device=device, _compile=device.type != "cpu"
    )
