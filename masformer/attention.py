"""Attention under a `LayerSpan`, registered with transformers under the name `masformer`.

`span_attention` is exact: it computes what `dense_attention` does, and never builds a T x T mask under a finite span.
The mask function hands each layer a `SpanMask`, a few numbers, instead of a mask.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens (Tq of the queries, Tk of the keys),
D head size (of the values it may differ), C queries a chunk, N chunks, L keys a chunk sees.

Positions count from the first real token of a row; slots count from the first column, padding included. A row with
`p` left-padding tokens holds position `slot - p` in a slot.

Key layout. Without a cache, and in full layers, keys are all slots in order. In a layer with a finite span, the keys
that `SpanCache` returns are its sinks, then the slots that it kept, then the new ones (`cached_slots`).

Source: `AttentionInterface` and `AttentionMaskInterface` of transformers 5.23; the overlapping chunks are those of
Longformer's sliding chunks, arXiv 2004.05150, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from masformer.spans import FULL, LayerSpan

ATTENTION_NAME = "masformer"

# Queries a masked call handles at once: bounds the mask to this many rows.
_MASK_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class SpanMask:
    """What a layer must know beyond its span.

    Attributes:
        offset: Slot of the first query: the number of slots already in the cache.
        padding: (B,) left-padding tokens of each row; None when no row is padded.
    """

    offset: int
    padding: Tensor | None = None


def left_padding(attention_mask: Tensor) -> Tensor | None:
    """Return (B,) left-padding tokens of each row of a (B, T) mask; None when no row has any.

    Tokens to the right of the real ones are left alone: no real token sees them.

    Raises:
        ValueError: A row has padding between real tokens.
    """
    mask = attention_mask.bool()
    if bool(mask.all()):
        return None
    first = mask.int().argmax(dim=1)
    count = mask.sum(dim=1)
    slots = torch.arange(mask.shape[1], device=mask.device)
    if not torch.equal(mask, (slots >= first[:, None]) & (slots < (first + count)[:, None])):
        raise ValueError("attention_mask has padding between real tokens; pad on the left only")
    return first if bool(first.any()) else None


def span_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> SpanMask:
    """Return the `SpanMask` of one forward pass; the mask function registered with transformers.

    Raises:
        ValueError: The model wants another mask than a causal one, or the padding is not on the left.
    """
    if use_vmap:
        raise ValueError(
            "this model adds a mask of its own (images or prefixes seen both ways); only causal masks work"
        )
    padding = None if attention_mask is None else left_padding(attention_mask[:, : int(q_offset) + q_length])
    return SpanMask(offset=int(q_offset), padding=padding)


def visible_keys(query_positions: Tensor, key_positions: Tensor, span: LayerSpan) -> Tensor:
    """Return (..., Tq, Tk) bools, True where a query sees a key; negative key positions are nowhere."""
    query = query_positions.unsqueeze(-1)
    key = key_positions.unsqueeze(-2)
    seen = (key >= 0) & (key <= query)
    if span.is_full:
        return seen
    if span.block is not None:
        near = torch.div(key, span.block, rounding_mode="floor") >= (
            torch.div(query, span.block, rounding_mode="floor") - span.previous
        )
    else:
        assert span.span is not None
        near = query - key < span.span
    return seen & (near | (key < span.sinks))


def cached_slots(span: LayerSpan, offset: int, num_new: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Return (1 or B, Tk) the slot of each key that a `SpanCache` layer returns, -1 where it holds nothing to see.

    Args:
        span: Of the layer.
        offset: Slots in the cache before this call.
        num_new: Slots written in this call. One slot is written in place, so the ring is out of order; several are
            appended to the kept slots in order.
        padding: (B,) left-padding tokens, or None.
        device: Of the result.
    """
    total = offset + num_new
    if span.num_recent is None:
        return torch.arange(total, device=device)[None]
    sinks, ring = span.sinks, span.num_recent
    pad = torch.zeros(1, dtype=torch.long, device=device) if padding is None else padding.to(device)
    stored = total if num_new == 1 else offset
    sink_slots = pad[:, None] + torch.arange(min(sinks, stored), device=device)  # (B, S)
    sink_slots = torch.where(sink_slots < stored, sink_slots, -1)
    if num_new == 1:
        last = total - 1
        entries = torch.arange(min(max(total - sinks, 0), ring), device=device)
        recent = last - (last - sinks - entries) % ring
        new = recent.new_empty(0)
    else:
        recent = torch.arange(max(min(sinks, offset), offset - ring), offset, device=device)
        new = torch.arange(offset, total, device=device)
    # A padded row's sinks lie beyond the first `sinks` slots, so that the ring holds some of them again.
    recent_slots = torch.where(recent[None] >= pad[:, None] + sinks, recent[None], -1)
    return torch.cat([sink_slots, recent_slots, new[None].expand(len(pad), -1)], dim=1)


def num_cached(span: LayerSpan, offset: int, num_new: int) -> int:
    """Return the number of keys that a `SpanCache` layer returns: the length of `cached_slots`."""
    total = offset + num_new
    if span.num_recent is None or offset == 0:
        return total
    if num_new == 1:
        return min(total, span.sinks + span.num_recent)
    return min(span.sinks, offset) + min(max(offset - span.sinks, 0), span.num_recent) + num_new


def dense_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None = None) -> Tensor:
    """Return (B, H, Tq, D) by the definition, over an explicit (..., Tq, Tk) mask; what everything is tested against.

    A query that sees nothing gets zeros.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~visible, -torch.inf)
    return torch.nan_to_num(scores.softmax(dim=-1)) @ value


def span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: LayerSpan,
    mask: SpanMask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return (B, H, Tq, D) attention in which a query sees what `span` allows.

    Args:
        query: (B, H, Tq, D).
        key: (B, K, Tk, D), in the layout that the module's docstring describes.
        value: (B, K, Tk, D).
        span: Of the layer.
        mask: Offset of the queries and left padding; None is an offset of 0 without padding.
        scale: Of the scores; None is D ** -0.5.
        dropout: Probability of dropping an attention weight.

    Raises:
        ValueError: The keys are not laid out as a `SpanCache` does it.
    """
    mask = mask or SpanMask(offset=0)
    expected = num_cached(span, mask.offset, query.shape[2])
    if key.shape[2] != expected:
        raise ValueError(
            f"a layer with '{span}' got {key.shape[2]} keys where a SpanCache returns {expected}; give the model a "
            "SpanCache of its plan"
        )
    options = {"scale": scale, "dropout_p": dropout}
    if mask.offset and query.shape[2] == 1:
        return _decode(query, key, value, span, mask, options)
    if mask.padding is None:
        return _attend(query, key, value, span, mask.offset, options)
    # Rows are padded differently: each is cut to its real tokens and attended alone.
    out = value.new_zeros((*query.shape[:3], value.shape[3]))
    if mask.offset:
        slots = cached_slots(span, mask.offset, query.shape[2], mask.padding, query.device)
        slots = slots.expand(len(query), -1)
    else:
        slots = torch.arange(key.shape[2], device=query.device).expand(len(query), -1)
    for row, pad in enumerate(mask.padding.tolist()):
        first = max(pad - mask.offset, 0)
        kept = slots[row] >= pad
        part = slice(row, row + 1)
        if first < query.shape[2]:
            out[part, :, first:] = _attend(
                query[part, :, first:],
                key[part, :, kept],
                value[part, :, kept],
                span,
                mask.offset + first - pad,
                options,
            )
    return out


def _decode(
    query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, mask: SpanMask, options: Mapping[str, Any]
) -> Tensor:
    """Attend from one token a row to what the cache kept: everything, unless blocks or padding hide some of it."""
    visible = None
    if mask.padding is not None or span.block is not None:
        slots = cached_slots(span, mask.offset, 1, mask.padding, query.device)
        pad = slots.new_zeros(1) if mask.padding is None else mask.padding.to(query.device)
        positions = torch.where(slots < 0, -1, slots - pad[:, None])
        visible = visible_keys((mask.offset - pad)[:, None], positions, span)[:, None]  # (B, 1, 1, Tk)
    batch, heads, _, size = query.shape
    # The query heads of one key/value head become the rows of one product, and keys need no repeating.
    folded = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=visible, **options)
    return out.reshape(batch, heads, 1, value.shape[3])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, offset: int, options: Mapping[str, Any]
) -> Tensor:
    """Attend without padding; keys are all positions in order, or the sinks and then a run that ends at the last."""
    total = offset + query.shape[2]
    if span.num_recent is None or total <= span.num_recent:
        if offset == 0:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, **options)
        return _masked(query, key, value, FULL, offset, options)

    # Chunk n holds the queries of positions [base + n * chunk, base + (n + 1) * chunk), and sees `reach` keys before.
    if span.block is not None:
        chunk, reach = span.block, span.previous * span.block
        base = offset - offset % span.block
    else:
        assert span.span is not None
        chunk, reach, base = _chunk_size(span.span), span.span - 1, offset
    # The first chunks reach into the sinks or before the start: few, and masked key by key.
    num_edge = max(0, -(-(span.sinks + reach - base) // chunk))
    start = base + num_edge * chunk
    if start >= total:
        return _masked(query, key, value, span, offset, options)
    num_masked = max(start - offset, 0)
    parts = [_band(query[:, :, num_masked:], key, value, span, _Band(start, total, chunk, reach), options)]
    if num_masked:
        first = query[:, :, :num_masked]
        parts.insert(0, _masked(first, key[:, :, :start], value[:, :, :start], span, offset, options))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _chunk_size(span: int) -> int:
    """Return the queries a chunk of the band holds: small enough to waste little, large enough to fill the cores."""
    return min(_MASK_ROWS, max(64, span // 2))


def _masked(
    query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, offset: int, options: Mapping[str, Any]
) -> Tensor:
    """Attend under an explicit mask, `_MASK_ROWS` queries at a time; keys are all positions in order."""
    assert key.shape[2] == offset + query.shape[2], "keys before the queries are missing"
    parts = []
    for first in range(0, query.shape[2], _MASK_ROWS):
        part = query[:, :, first : first + _MASK_ROWS]
        stop = offset + first + part.shape[2]
        positions = torch.arange(stop, device=query.device)
        visible = visible_keys(positions[offset + first :], positions, span)
        keys, values = key[:, :, :stop], value[:, :, :stop]
        parts.append(F.scaled_dot_product_attention(part, keys, values, attn_mask=visible, enable_gqa=True, **options))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@dataclass(frozen=True)
class _Band:
    """Where the chunks of a band lie: from position `start` to `total`, each with `reach` keys before it."""

    start: int
    total: int
    chunk: int
    reach: int


def _band(
    query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, band: _Band, options: Mapping[str, Any]
) -> Tensor:
    """Attend from the queries up to `band.total`, in chunks all of which see the sinks and a band of keys.

    The first chunk may begin before the first query: its missing rows are padded and dropped again.
    """
    heads, num_queries, size = query.shape[1:]
    kv_heads, chunk, reach = key.shape[1], band.chunk, band.reach
    lead = band.total - num_queries - band.start
    num_chunks = -(-(band.total - band.start) // chunk)
    tail = band.start + num_chunks * chunk - band.total
    first_key = band.start - reach + key.shape[2] - band.total

    outs = []
    for row in range(len(query)):
        # (H, lead + T + tail, D) -> (N, K, G, C, D)
        q = F.pad(query[row], (0, 0, lead, tail)).reshape(kv_heads, heads // kv_heads, num_chunks, chunk, size)
        q = q.permute(2, 0, 1, 3, 4)
        padded = [F.pad(states[row, :, first_key:], (0, 0, 0, tail)) for states in (key, value)]
        sinks = [states[row, None, :, : span.sinks] for states in (key, value)]
        parts = []
        # Large blocks are taken some rows at a time, each with the keys up to its last row.
        for first in range(0, chunk, _MASK_ROWS):
            stop = min(first + _MASK_ROWS, chunk)
            visible = _band_mask(span, first, stop, reach, heads // kv_heads, query.device)
            seen = []
            for states, sink in zip(padded, sinks, strict=True):
                # (K, N, D, L) -> (N, K, L, D): each chunk a view into the keys, copied only to set the sinks before it
                keys = states.unfold(1, reach + stop, chunk)[:, :num_chunks].permute(1, 0, 3, 2)
                seen.append(torch.cat([sink.expand(num_chunks, -1, -1, -1), keys], dim=2) if span.sinks else keys)
            # The query heads of one key/value head share one product: (N, K, G C, D)
            part = q[:, :, :, first:stop].reshape(num_chunks, kv_heads, -1, size)
            out = F.scaled_dot_product_attention(part, seen[0], seen[1], attn_mask=visible, **options)
            parts.append(out.reshape(num_chunks, kv_heads, heads // kv_heads, stop - first, -1))
        out = torch.cat(parts, dim=3) if len(parts) > 1 else parts[0]
        out = out.permute(1, 2, 0, 3, 4).reshape(heads, num_chunks * chunk, -1)
        outs.append(out[:, lead : lead + num_queries])
    return torch.stack(outs)


def _band_mask(span: LayerSpan, first: int, stop: int, reach: int, groups: int, device: torch.device) -> Tensor:
    """Return (G C, S + L) bools for rows [first, stop) of a chunk: what each sees of the sinks and its band."""
    rows = torch.arange(first, stop, device=device)[:, None]
    columns = torch.arange(-reach, stop, device=device)
    visible = columns <= rows
    if span.block is None:
        visible &= rows - columns <= reach
    if span.sinks:
        visible = F.pad(visible, (span.sinks, 0), value=True)
    return visible.repeat(groups, 1)


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return (B, T, H, D) attention under the span that the plan gives this layer; registered with transformers.

    Packed documents, whose `position_ids` start again at each boundary, do not see each other.

    Raises:
        ValueError: The layer has no plan, or asks for something that this function does not compute.
    """
    span = getattr(module, "layer_span", None)
    if span is None:
        raise ValueError("this model uses masformer attention without a plan; call masformer.apply_plan(model, plan)")
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention with {name} is not computed by masformer")
    if is_causal is False or not getattr(module, "is_causal", True):
        raise ValueError("attention that is not causal is not computed by masformer")
    if not isinstance(attention_mask, SpanMask):
        raise ValueError("masformer attention takes a (B, T) padding mask; explicit 4D masks are not supported")
    bounds = _document_bounds(position_ids, attention_mask, query)
    if bounds is None:
        out = span_attention(query, key, value, span, attention_mask, scale=scaling, dropout=dropout)
    else:
        out = value.new_empty((*query.shape[:3], value.shape[3]))
        options = {"scale": scaling, "dropout_p": dropout}
        for row, starts in enumerate(bounds):
            for first, stop in zip(starts, [*starts[1:], query.shape[2]], strict=True):
                part = (slice(row, row + 1), slice(None), slice(first, stop))
                out[part] = _attend(query[part], key[part], value[part], span, 0, options)
    return out.transpose(1, 2).contiguous(), None


def _document_bounds(position_ids: Tensor | None, mask: SpanMask, query: Tensor) -> list[list[int]] | None:
    """Return for each row where its packed documents start; None when no row holds more than one.

    Raises:
        ValueError: Documents are packed in a batch with padding, or on top of a cache.
    """
    batch, num_queries = query.shape[0], query.shape[2]
    if position_ids is None or position_ids.ndim != 2 or num_queries == 1:
        return None
    # Negative positions are some models' padding.
    breaks = ((position_ids.diff(dim=1) != 1) & (position_ids[:, 1:] >= 0)).expand(batch, -1)
    if mask.padding is not None:
        # Padding carries any position; a document starts anew only after it.
        slots = torch.arange(1, num_queries, device=breaks.device) + mask.offset
        breaks = breaks & (slots > mask.padding.to(breaks.device)[:, None])
    if not bool(breaks.any()):
        return None
    if mask.padding is not None or mask.offset:
        raise ValueError("packed documents (position_ids that start again) work without padding and without a cache")
    return [[0, *(row.nonzero().flatten() + 1).tolist()] for row in breaks]


def register() -> None:
    """Make the attention and mask functions known to transformers by name; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, masformer_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, span_mask)
