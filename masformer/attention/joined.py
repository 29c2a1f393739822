"""Attention of a batch whose rows read common runs of keys where they are (`masformer.attention.full`).

Shapes: B rows, H query heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from masformer.attention import cuda, simd
from masformer.attention.cuda_joined import attend_joined
from masformer.attention.full import JoinedLayer
from masformer.attention.parts import Part, partial, with_sinks
from masformer.attention.tiles import ScoreRule
from masformer.attention.ways import SIMD, TORCH, described, is_simd, step_way
from masformer.plans.layer_spans import FULL


def joined_attention(
    query: Tensor, key: Tensor, value: Tensor, joined: JoinedLayer, scores: ScoreRule, learned_sinks: Tensor | None
) -> Tensor:
    """Return (B, H, Tq, D): each row attends to its runs, which are those of `joined`, and its tail (B, K, T, D)."""
    if scores.softcap is None and cuda.takes(query, value.shape[3], FULL):
        return attend_joined(query, key, value, joined, scores.scale, learned_sinks)
    ways: dict[str, Callable[..., Part]] = {TORCH: _attend_by_torch, SIMD: _attend_by_simd}
    way = TORCH
    if joined.place is None and is_simd(query, (key, value)) and _listed(joined, query).fit:
        what = described("joined rows", query, value, scores.softcap, learned_sinks)
        way = step_way(query, key, what, joined.num_tokens, lambda way: ways[way](query, key, value, joined, scores))
    part = ways[way](query, key, value, joined, scores)
    return with_sinks(part, learned_sinks).to(value.dtype)


def _attend_by_torch(query: Tensor, key: Tensor, value: Tensor, joined: JoinedLayer, scores: ScoreRule) -> Part:
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
    return out, lse


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What the steps of a batch give our own kernel besides the tails.

    Attributes:
        runs: Each with its pieces put together.
        fit: Whether the kernel takes them; what one step's queries are like, those of the next are.
        begin: (B, 1) where each row's tail begins; None is at 0.
        bounds: (B, 1, 2) what one token a row sees of the tails; None is all.
    """

    runs: tuple[simd.Keys, ...]
    fit: bool
    begin: Tensor | None
    bounds: Tensor | None


def _listed(joined: JoinedLayer, query: Tensor) -> Listed:
    """Return what the steps of a batch read, made at its first step and kept until its rows change."""
    if joined.listed is None:
        runs, begin, bounds = [], None, None
        for run in joined.runs:
            runs.append(simd.Keys(*run.whole, rows=(run.first, run.stop)))
        if joined.hidden is not None:
            begin = (joined.hidden[:, 0, 0] != 0).sum(dim=-1, dtype=torch.int32)[:, None]
            bounds = torch.stack([begin, torch.full_like(begin, torch.iinfo(torch.int32).max)], dim=-1)
        fit = not runs or simd.takes(query, *((run.key, run.value) for run in runs))
        joined.listed = Listed(runs=tuple(runs), fit=fit, begin=begin, bounds=bounds)
    return joined.listed


def _attend_by_simd(query: Tensor, key: Tensor, value: Tensor, joined: JoinedLayer, scores: ScoreRule) -> Part:
    """Attend from (B, H, Tq, D) queries to the runs of their rows, and to tails (B, K, T, D)."""
    listed, length = _listed(joined, query), query.shape[2]
    bounds = listed.bounds
    if length > 1:
        bounds = simd.causal_bounds(length, key.shape[2])
        if listed.begin is not None:
            low = listed.begin.expand(-1, length)
            bounds = torch.stack([low, bounds[..., 1].expand_as(low)], dim=-1)
    keys = (*listed.runs, simd.Keys(key, value, bounds))
    return simd.attend(query, keys, scale=scores.scale, softcap=scores.softcap)
