"""Attention of a batch whose rows read common runs of keys where they are (`masformer.attention.full`).

Shapes: B rows, H query heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masformer.attention import cuda
from masformer.attention.cuda_joined import attend_joined
from masformer.attention.full import JoinedLayer
from masformer.attention.parts import partial, with_sinks
from masformer.attention.tiles import ScoreRule
from masformer.plans.layer_spans import FULL


def joined_attention(
    query: Tensor, key: Tensor, value: Tensor, joined: JoinedLayer, scores: ScoreRule, learned_sinks: Tensor | None
) -> Tensor:
    """Return (B, H, Tq, D): each row attends to its runs, which are those of `joined`, and its tail (B, K, T, D)."""
    if scores.softcap is None and cuda.takes(query, value.shape[3], FULL):
        return attend_joined(query, key, value, joined, scores.scale, learned_sinks)
    _, heads, length, size = query.shape
    hidden = joined.hidden_of(key)
    out, lse = partial(query, key, value, causal=True, scale=scores.scale, hidden=hidden, softcap=scores.softcap)
    if joined.runs:
        # Each row merges its tail (0) and the pieces of its runs; places that it does not use keep a weight of zero.
        num_parts = 1 + max(run.place + len(run.keys) for run in joined.runs)
        parts, totals = (
            out.new_zeros((num_parts, *out.shape), dtype=lse.dtype),
            lse.new_full((num_parts, *lse.shape), -torch.inf),
        )
        parts[0], totals[0] = out, lse
        for run in joined.runs:
            # The queries of all rows that read a run are those of one product, for each of its pieces.
            pieces, count = len(run.keys), run.stop - run.first
            asked = query[run.first : run.stop].transpose(0, 1).reshape(1, heads, count * length, size)
            asked = asked.expand(pieces, -1, -1, -1)
            found = partial(asked, run.keys, run.values, scale=scores.scale, softcap=scores.softcap)
            into = (slice(run.place + 1, run.place + 1 + pieces), slice(run.first, run.stop))
            parts[into], totals[into] = (
                x.view(pieces, heads, count, length, *x.shape[3:]).transpose(1, 2) for x in found
            )
        out, lse = (parts * totals.softmax(dim=0).unsqueeze(-1)).sum(dim=0), totals.logsumexp(dim=0)
    return with_sinks((out, lse), learned_sinks).to(value.dtype)
