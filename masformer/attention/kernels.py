"""Attention under a `LayerSpan`, registered with transformers under the name `masformer`.

`span_attention` is exact: it computes what `dense_attention` does, and never builds a T x T mask. The mask function
hands each layer a `SpanMask`, a few numbers, instead of a mask. `choose_kernel` says what computes which case.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens (Tq of the queries, Tk of the keys), D head size
(of the values it may differ).

Key layout. Without a cache, and in full layers, keys are all slots in order. In a layer with a finite span, the keys
that `SpanCache` returns are its sinks, then the slots that it kept, then the new ones (`visibility.cached_slots`).
Where the key/value heads have spans of their own, it returns that for each group of them (`masformer.attention.heads`).

Source: `AttentionInterface` and `AttentionMaskInterface` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from masformer.attention import cuda, simd
from masformer.attention.calls import kept_pieces, pieces_of
from masformer.attention.flex import flex_attention
from masformer.attention.heads import attend_by_head
from masformer.attention.joined import joined_attention
from masformer.attention.layers import Seen
from masformer.attention.parts import attend, with_sinks
from masformer.attention.tiles import TILED, ScoreRule, tile_attention
from masformer.attention.visibility import SpanMask, num_cached, span_mask, visible_keys
from masformer.attention.ways import (
    SIMD,
    TILES,
    TORCH,
    VIEWS,
    causal_way,
    described,
    is_simd,
    pattern_way,
    step_way,
    window_way,
)
from masformer.errors import SpanError
from masformer.plans.layer_spans import FULL, HeadSpans, LayerSpan, Window
from masformer.plans.shapes import layers_with_states

ATTENTION_NAME = "masformer"

# The smallest that compiled flex_attention takes.
_FLEX_HEAD_SIZE = 16
# Queries behind a cache for which a mask over all keys that it kept costs less than tiles.
_FEW_QUERIES = 16
# Queries that a masked call handles at once: bounds the mask to this many rows.
_MASK_ROWS = 512

Runs = tuple[tuple[Tensor, Tensor], ...]
Kernel = Literal["causal", "tiles", "masked", "varlen", "flex"]


def choose_kernel(
    query: Tensor,
    span: LayerSpan,
    offset: int,
    scores: ScoreRule,
    learned: bool,
    dropout: float,
    value_size: int,
    is_ragged: bool = False,
) -> Kernel:
    """Return what attends from several queries a row, as in the table of `masformer.attention`.

    Args:
        is_ragged: Rows have padding, or hold several documents.
    """
    if dropout:
        return "masked"
    exact: Kernel = "tiles" if isinstance(span, TILED) else "masked"
    # Whether each query sees all before it, sinks or not.
    is_causal = span.num_causal is None or offset + query.shape[2] <= span.num_causal
    is_plain = scores.softcap is None and not learned
    if query.device.type == "cuda":
        if is_plain and is_causal and not offset and not is_ragged:
            return "causal"
        if scores.softcap is None and cuda.takes(query, value_size, span):
            return "varlen"
        is_small = min(query.shape[3], value_size) < _FLEX_HEAD_SIZE
        return exact if is_small or query.dtype == torch.float64 else "flex"
    return "causal" if is_plain and is_causal else exact


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scale: float | None = None,
    *,
    softcap: float | None = None,
    learned_sinks: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return (B, H, Tq, D) by the definition; what everything is tested against.

    `visible` broadcasts to (B, H, Tq, Tk). A query that sees nothing gets zeros.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    rule = ScoreRule(scale=query.shape[-1] ** -0.5 if scale is None else scale, softcap=softcap)
    scores = rule.of(query, key).masked_fill(~visible, -torch.inf)
    if learned_sinks is not None:
        column = learned_sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.nan_to_num(scores.softmax(dim=-1))[..., : key.shape[2]].to(value.dtype)
    return F.dropout(weights, dropout) @ value


def span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: LayerSpan | HeadSpans,
    mask: SpanMask | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    learned_sinks: Tensor | None = None,
    dropout: float = 0.0,
    seen: Seen | None = None,
) -> Tensor:
    """Return (B, H, Tq, D) attention in which a query sees what `span` allows.

    Args:
        key: (B, K, Tk, D), in the layout that the module's docstring describes.
        span: One span, or one for each key/value head.
        mask: Offset of the queries, left padding, packed documents; None is an offset of 0 and nothing else.
        scale: Factor of the products; None is D ** -0.5.
        softcap: Scores x become softcap * tanh(x / softcap) (Gemma 2); None leaves them.
        learned_sinks: (H,) scores of a key without a value that every query sees (gpt-oss); None is no such key.
        seen: What a cache lets be seen besides these keys (`SpanMask.seen_with`).

    Raises:
        SpanError: The keys are not laid out as a `SpanCache` does it, or the span is for other heads.
    """
    mask = mask or SpanMask(offset=0)
    if isinstance(span, HeadSpans):
        rule: dict[str, Any] = {"scale": scale, "softcap": softcap, "dropout": dropout}

        def alike(q: Tensor, k: Tensor, v: Tensor, one: LayerSpan, sinks: Tensor | None, more: Seen | None) -> Tensor:
            return span_attention(q, k, v, one, mask, learned_sinks=sinks, seen=more, **rule)

        return attend_by_head(alike, query, key, value, span, learned_sinks, seen)
    scores = ScoreRule(scale=query.shape[-1] ** -0.5 if scale is None else scale, softcap=softcap)
    if seen is not None and (joined := seen.joined) is not None:
        if joined.num_tokens != mask.offset + query.shape[2]:
            raise SpanError(
                f"a joined cache holds {joined.num_tokens} tokens, {mask.offset + query.shape[2]} are expected"
            )
        if dropout or torch.is_autocast_enabled(query.device.type):
            raise SpanError("a joined cache works without dropout and without autocast")
        return joined_attention(query, key, value, joined, scores, learned_sinks)
    before: Runs = () if seen is None else seen.runs
    found = key.shape[2] + sum(keys.shape[2] for keys, _ in before)
    expected = num_cached(span, mask.offset, query.shape[2])
    if found != expected:
        raise SpanError(
            f"a layer with '{span}' got {found} keys where a SpanCache returns {expected}; give the model a "
            "SpanCache of its plan"
        )
    how = _How(scores=scores, learned_sinks=learned_sinks, dropout=dropout)
    if not torch.is_autocast_enabled(query.device.type):
        return _run(query, key, value, before, span, mask, how)
    # What torch's own attention does: all but fp64 is cast.
    dtype = torch.get_autocast_dtype(query.device.type) if query.dtype != torch.float64 else query.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    before = tuple((keys.to(dtype), values.to(dtype)) for keys, values in before)
    with torch.autocast(query.device.type, enabled=False):
        return _run(query, key, value, before, span, mask, how)


@dataclass(frozen=True, kw_only=True)
class _How:
    """What happens to query-key products on their way to weights; the arguments of `span_attention`."""

    scores: ScoreRule
    learned_sinks: Tensor | None
    dropout: float


def _run(query: Tensor, key: Tensor, value: Tensor, before: Runs, span: LayerSpan, mask: SpanMask, how: _How) -> Tensor:
    """Attend in whole documents, from a few tokens a row, in rows without padding, or in rows with it."""
    if mask.offset and query.shape[2] == 1:
        return _decode(query, (*before, (key, value)), mask.hidden(span, query), how)
    is_ragged = mask.padding is not None or mask.documents is not None
    kernel = choose_kernel(
        query, span, mask.offset, how.scores, how.learned_sinks is not None, how.dropout, value.shape[3], is_ragged
    )
    if kernel == "varlen":
        return cuda.attend(
            query,
            key,
            value,
            before,
            span,
            mask.offset,
            how.scores.scale,
            padding=None if mask.padding is None else mask.lengths,
            documents=mask.documents,
            learned_sinks=how.learned_sinks,
        )
    if mask.offset and query.shape[2] <= _FEW_QUERIES and span.num_causal is not None and not how.dropout:
        return _decode(query, (*before, (key, value)), mask.hidden(span, query), how)
    if before and span.is_full and mask.padding is None:
        if (out := _full_by_simd(query, key, value, before, mask.offset, how)) is not None:
            return out
        if _is_fused(query, value, how):
            return _on_runs(query, key, value, before, how)
    if before:
        key, value = (torch.cat(runs, dim=2) for runs in zip(*before, (key, value), strict=True))
    if is_ragged:
        return _ragged(query, key, value, span, mask, how)
    return _attend(query, key, value, span, mask.offset, how)


def _is_fused(query: Tensor, value: Tensor, how: _How) -> bool:
    """Return whether attention may be put together from parts that torch's kernel makes, gradients included."""
    is_plain = how.scores.softcap is None and not how.dropout
    return is_plain and query.shape[3] == value.shape[3] and query.device.type == "cpu"


def _on_runs(query: Tensor, key: Tensor, value: Tensor, before: Runs, how: _How) -> Tensor:
    """Attend to all earlier positions, of which the last are those of (B, K, Tk, D) keys."""
    runs = [*((*run, {}) for run in before), (key, value, {"causal": True})]
    return attend(query, runs, how.learned_sinks, scale=how.scores.scale)


def _full_by_simd(query: Tensor, key: Tensor, value: Tensor, before: Runs, offset: int, how: _How) -> Tensor | None:
    """Attend to all earlier positions by our own kernel, with keys as in `_run`; None where torch is faster."""
    if how.dropout or not is_simd(query, *before, (key, value)):
        return None
    # With learned sinks torch has no fused way.
    is_plain = how.learned_sinks is None and _is_fused(query, value, how)

    def run(way: str, count: int) -> Tensor:
        asked, first = query[:, :, -count:], offset + query.shape[2] - count
        if way == SIMD:
            return _attend_by_simd(asked, key, value, before, FULL, first, how)
        if is_plain:
            return _on_runs(asked, key, value, before, how)
        keys, values = (torch.cat(runs, dim=2) for runs in zip(*before, (key, value), strict=True))
        return tile_attention(asked, keys, values, FULL, first, 0, how.scores, how.learned_sinks)

    way = causal_way(query, key, run) if is_plain else pattern_way(query, key, _what(FULL, query, value, how), run)
    return run(SIMD, query.shape[2]) if way == SIMD else None


def _what(what: object, query: Tensor, value: Tensor, how: _How) -> str:
    return described(what, query, value, how.scores.softcap, how.learned_sinks)


def _attend_by_simd(
    query: Tensor, key: Tensor, value: Tensor, before: Runs, span: LayerSpan, offset: int, how: _How
) -> Tensor:
    runs = [simd.Keys(*run) for run in before]
    at = offset - sum(keys.shape[2] for keys, _ in before)
    for keys, bounds in simd.bounds_of(span, at, query.shape[2], key.shape[2]):
        runs.append(simd.Keys(key[:, :, keys], value[:, :, keys], bounds))
    return _finished(simd.attend(query, runs, scale=how.scores.scale, softcap=how.scores.softcap), how, query)


def _finished(part: tuple[Tensor, Tensor], how: _How, query: Tensor) -> Tensor:
    return with_sinks(part, how.learned_sinks).to(query.dtype)


def _ragged(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, mask: SpanMask, how: _How) -> Tensor:
    """Attend in each document of each row alone, or in the real tokens of each row; padding gets zeros."""
    batch, heads, length, _ = query.shape
    num_keys, lengths = key.shape[2], mask.lengths or ()
    kept: Tensor | None = None
    if mask.padding is not None and mask.offset:
        pieces, kept = kept_pieces(span, mask.offset, length, lengths, num_keys, key.device)
    else:
        starts = mask.documents or [[min(pad, length)] for pad in lengths]
        pieces = tuple(pieces_of(starts, length, num_keys, num_keys, 0))
    parts, done = list[Tensor](), 0
    for piece in pieces:
        parts.append(value.new_zeros((piece.query - done, heads, value.shape[3])))
        done = piece.query + piece.num_queries
        if piece.num_queries:
            row, first = divmod(piece.query, length)
            q, k, v = (x[row : row + 1] for x in (query, key, value))
            if kept is None:
                k, v = (x[:, :, first : first + piece.num_keys] for x in (k, v))
            elif piece.num_keys < num_keys:
                places = kept[piece.key : piece.key + piece.num_keys] - row * num_keys
                k, v = k[:, :, places], v[:, :, places]
            out = _attend(q[:, :, first : first + piece.num_queries], k, v, span, piece.position, how)
            parts.append(out[0].transpose(0, 1))
    return torch.cat(parts).view(batch, length, heads, value.shape[3]).transpose(1, 2)


def _decode(query: Tensor, runs: Runs, hidden: Tensor | None, how: _How) -> Tensor:
    """Attend from a few tokens a row to what the cache kept, of which (B or 1, 1, Tq, Tk) may be hidden."""
    if hidden is None and not how.dropout and is_simd(query, *runs):

        def run(way: str) -> Tensor:
            if way == TORCH:
                return _decode_by_torch(query, runs, None, how)
            given = [simd.Keys(*each) for each in runs]
            return _finished(simd.attend(query, given, scale=how.scores.scale, softcap=how.scores.softcap), how, query)

        num_keys = sum(keys.shape[2] for keys, _ in runs)
        if step_way(query, runs[0][0], _what("a cache", query, runs[0][1], how), num_keys, run) == SIMD:
            return run(SIMD)
    return _decode_by_torch(query, runs, hidden, how)


def _decode_by_torch(query: Tensor, runs: Runs, hidden: Tensor | None, how: _How) -> Tensor:
    scores, learned = how.scores, how.learned_sinks
    key, value = runs[0]
    if len(runs) == 1 and scores.softcap is None and learned is None:
        # The query heads of one key/value head become the rows of one product, and keys need no repeating.
        folded = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        if hidden is not None and query.shape[2] > 1:
            hidden = hidden.repeat(1, 1, query.shape[1] // key.shape[1], 1)
        out = F.scaled_dot_product_attention(
            folded, key, value, attn_mask=hidden, dropout_p=how.dropout, scale=scores.scale
        )
        return out.reshape(*query.shape[:3], value.shape[3])
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, *(x for run in runs for x in run)))
    if how.dropout or (needs_grad and not _is_fused(query, value, how)):
        key, value = (torch.cat(states, dim=2) for states in zip(*runs, strict=True))
        visible = key.new_ones((1, 1, 1, key.shape[2]), dtype=torch.bool) if hidden is None else hidden == 0
        rule = {"softcap": scores.softcap, "learned_sinks": learned, "dropout": how.dropout}
        return dense_attention(query, key, value, visible, scores.scale, **rule)  # type: ignore[arg-type]
    parts, first = [], 0
    for keys, values in runs:
        less = None if hidden is None else hidden[..., first : first + keys.shape[2]]
        parts.append((keys, values, {"hidden": less, "softcap": scores.softcap}))
        first += keys.shape[2]
    return attend(query, parts, learned, scale=scores.scale)


def _attend(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, offset: int, how: _How) -> Tensor:
    """Attend without padding; keys are all positions in order, or the sinks and then a run that ends at the last."""
    scores, learned = how.scores, how.learned_sinks
    kernel = choose_kernel(query, span, offset, scores, learned is not None, how.dropout, value.shape[3])
    if kernel == "causal":
        return _causal(query, key, value, offset, how)
    if kernel == "masked":
        return _masked(query, key, value, span, offset, how)
    if kernel == "flex":
        return flex_attention(query, key, value, span, offset, scores, learned)
    # The first queries see everything before them; all keys up to them are there.
    skip = max((span.num_causal or 0) - offset, 0)
    way = _fastest(query, key, value, span, offset, skip, how)
    if way == SIMD:
        return _attend_by_simd(query, key, value, (), span, offset, how)
    if scores.softcap is not None or learned is not None:
        return tile_attention(query, key, value, span, offset, 0, scores, learned)
    causal = query[:, :, :skip], key[:, :, : offset + skip], value[:, :, : offset + skip]
    if way in VIEWS:
        rest = _views(query[:, :, skip:], key, value, span, int(way), scores.scale)
        parts = [_causal(*causal, offset, how), rest] if skip else [rest]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)
    out = tile_attention(query, key, value, span, offset, skip, scores)
    if skip:
        out[:, :, :skip] = _causal(*causal, offset, how)
    return out


def _fastest(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, offset: int, skip: int, how: _How) -> str:
    """Return the way to take for the queries from `skip` on, with their gradients where these are asked for."""
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    asked = query[:, :, skip:]

    def run(way: str, count: int) -> Tensor:
        first = query.shape[2] - count
        q, k, v = (x.detach().requires_grad_(needs_grad) for x in (query[:, :, first:], key, value))
        if way == SIMD:
            out = _attend_by_simd(q, k, v, (), span, offset + first, how)
        elif way == TILES:
            out = tile_attention(q, k, v, span, offset + first, 0, how.scores, how.learned_sinks)
        else:
            out = _views(q, k, v, span, int(way), how.scores.scale)
        if needs_grad:
            torch.autograd.grad(out.sum(), (q, k, v))
        return out

    if isinstance(span, Window) and how.learned_sinks is None and _is_fused(query, value, how):
        return window_way(asked, key, value, span, needs_grad, run)
    if not isinstance(span, simd.SPANS) or not is_simd(query, (key, value)):
        return TILES
    return pattern_way(asked, key, _what(span, query, value, how), run)


def _views(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, rows: int, scale: float) -> Tensor:
    """Attend in a window from queries that the sinks have left, `rows` of them together."""
    sinks, others = zip(*((x[:, :, : span.sinks], x[:, :, span.sinks :]) for x in (key, value)), strict=True)
    runs = [(*others, {"window": span.num_recent, "rows": rows}), *([(*sinks, {})] if span.sinks else [])]
    return attend(query, runs, scale=scale)


def _causal(query: Tensor, key: Tensor, value: Tensor, offset: int, how: _How) -> Tensor:
    """Attend to all earlier positions."""
    if (out := _full_by_simd(query, key, value, (), offset, how)) is not None:
        return out
    if not offset:
        scale, size = how.scores.scale, max(query.shape[3], value.shape[3])
        # Of one size, else torch computes all scores at once.
        q, k, v = (F.pad(x, (0, size - x.shape[3])) if x.shape[3] < size else x for x in (query, key, value))
        if query.device.type == "cuda" and query.dtype not in cuda.DTYPES:
            # Nor has it a kernel of other dtypes for heads that share keys.
            k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=scale)
        return out[..., : value.shape[3]]
    if _is_fused(query, value, how):
        return _on_runs(query, key, value, (), how)
    return tile_attention(query, key, value, FULL, offset, 0, how.scores)


def _masked(query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, offset: int, how: _How) -> Tensor:
    """Attend under an explicit mask, `_MASK_ROWS` queries at a time."""
    missing = offset + query.shape[2] - key.shape[2]
    if missing and how.dropout:
        raise SpanError(
            f"dropout of attention weights needs all {offset + query.shape[2]} keys, and a cache of '{span}' has kept "
            f"{key.shape[2]}; call model.eval(), or pass use_cache=False"
        )
    places = torch.arange(key.shape[2], device=query.device)
    positions = torch.where(places < span.sinks, places, places + missing)  # the sinks, then a run to the last
    scale, softcap, learned = how.scores.scale, how.scores.softcap, how.learned_sinks
    parts = []
    for first in range(0, query.shape[2], _MASK_ROWS):
        part = query[:, :, first : first + _MASK_ROWS]
        stop = offset + first + part.shape[2] - missing
        visible = visible_keys(positions[stop - part.shape[2] : stop], positions[:stop], span)
        keys, values = key[:, :, :stop], value[:, :, :stop]
        out = dense_attention(
            part, keys, values, visible, scale, softcap=softcap, learned_sinks=learned, dropout=how.dropout
        )
        parts.append(out)
    return torch.cat(parts, dim=2)


def masformer_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SpanMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (B, T, H, D) attention under the span that the plan gives this layer; registered with transformers.

    Packed documents, whose `position_ids` start again at each boundary, do not see each other.

    Raises:
        SpanError: The layer has no plan, or asks for something that this function does not compute.
    """
    span = getattr(module, "layer_span", None)
    if span is None:
        raise SpanError("this model uses masformer attention without a plan; call masformer.apply_plan(model, plan)")
    for name in ("position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise SpanError(f"attention with {name} is not computed by masformer")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise SpanError("attention that is not causal is not computed by masformer")
    if not isinstance(attention_mask, SpanMask):
        raise SpanError("masformer attention takes a (B, T) padding mask; explicit 4D masks are not supported")
    num_dropped = attention_mask.num_dropped
    try:
        attention_mask.look_for_documents(position_ids, query.shape[0], query.shape[2])
        if attention_mask.documents is not None and layers_with_states(module.config):
            mistake = SpanError("packed documents would see each other through its states; give each a row of its own")
            raise mistake.of(module.config, is_of_caller=True)
        if num_dropped:  # what nobody asks for is computed, so that keys and queries end together
            query = F.pad(query, (0, 0, num_dropped, 0))
        out = span_attention(
            query,
            key,
            value,
            span,
            attention_mask,
            scale=scaling,
            softcap=softcap,
            learned_sinks=s_aux,
            dropout=dropout,
            seen=attention_mask.seen_with(key, value),
        )
    except SpanError as error:
        raise error.of(module.config) if hasattr(module, "config") else error from error
    return out[:, :, num_dropped:].transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention and mask functions known to transformers by name; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, masformer_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, span_mask)
