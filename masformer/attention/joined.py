"""Attention of a batch whose rows read common runs of keys where they are (`masformer.attention.full`).

Shapes: B rows, H query heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masformer.attention.full import JoinedKeys
from masformer.attention.tiles import ScoreRule


def joined_attention(
    query: Tensor, key: Tensor, value: Tensor, joined: JoinedKeys, scores: ScoreRule, learned_sinks: Tensor | None
) -> Tensor:
    """Return (B, H, Tq, D): each row attends to its runs, which are those of `joined`, and its tail (B, K, T, D)."""
    batch, heads, length, size = query.shape
    kv_heads, groups = key.shape[1], heads // key.shape[1] * length
    # The queries of one key/value head are the rows of a product.
    rows = query.reshape(batch, kv_heads, groups, size)
    hidden = joined.hidden
    if length > 1:
        later = torch.full((length, key.shape[2]), -torch.inf, dtype=query.dtype, device=query.device)
        later = later.triu(key.shape[2] - length + 1).repeat(heads // kv_heads, 1)
        hidden = later.expand(batch, 1, -1, -1) if hidden is None else hidden + later
    tail, total = _partial(rows, key, value, hidden, scores)
    if not joined.runs and learned_sinks is None:
        return tail.to(value.dtype).reshape(batch, heads, length, value.shape[3])
    # Each row merges its tail (0) and the pieces of its runs; places that it does not use keep a weight of zero.
    num_parts = 1 + max((run.place + run.num_pieces for run in joined.runs), default=0)
    parts = tail.new_zeros((num_parts, *tail.shape))
    totals = total.new_full((num_parts, *total.shape), -torch.inf)
    parts[0], totals[0] = tail, total
    for run in joined.runs:
        count = run.stop - run.first
        asked = rows[run.first : run.stop].transpose(0, 1).reshape(1, kv_heads, count * groups, size)
        for place, keys, values in run.pieces:
            part, part_total = _partial(asked.expand(len(keys), -1, -1, -1), keys, values, None, scores)
            into = (slice(place + 1, place + 1 + len(keys)), slice(run.first, run.stop))
            shape = (len(keys), kv_heads, count, groups)
            parts[into] = part.view(*shape, -1).transpose(1, 2)
            totals[into] = part_total.view(shape).transpose(1, 2)
    if learned_sinks is not None:
        sink = learned_sinks.to(total.dtype).repeat_interleave(length).view(1, 1, kv_heads, groups)
        totals = torch.cat([totals, sink.expand(1, batch, -1, -1)])
        parts = torch.cat([parts, torch.zeros_like(parts[:1])])
    out = (parts * totals.softmax(dim=0).unsqueeze(-1)).sum(dim=0)
    return out.to(value.dtype).reshape(batch, heads, length, value.shape[3])


def _partial(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scores: ScoreRule
) -> tuple[Tensor, Tensor]:
    """Return (B, K, R, D) attention of R queries a head to all keys, and (B, K, R) its sums of exponentials (log).

    Both in fp32 at least.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    if query.device.type == "cpu" and scores.softcap is None and query.shape[3] == value.shape[3]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = attend(query, key, value, attn_mask=hidden, scale=scores.scale)
        return out.to(wide), total.to(wide)
    products = scores.of(query, key)
    if hidden is not None:
        products = products + hidden.to(wide)
    total = products.logsumexp(dim=-1)
    return ((products - total.unsqueeze(-1)).exp().to(value.dtype) @ value).to(wide), total
