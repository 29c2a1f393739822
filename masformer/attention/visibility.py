"""What a query sees: the numbers a layer needs beyond its span, which slots a cache returns, and the definition.

Positions count from the first real token of a row; slots count from the first column, padding included. A row with
`p` left-padding tokens holds position `slot - p` in a slot.

Shapes: B batch, T tokens (Tq of the queries, Tk of the keys), S sinks.

Source: the mask function is one of the `AttentionMaskInterface` of transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from masformer.errors import SpanError
from masformer.plans.spans import LayerSpan

if TYPE_CHECKING:
    from masformer.attention.cache import SpanCache
    from masformer.attention.layers import Seen


class Offset(int):
    """The slot of the first query of a pass, and the cache that says so: a mask function is given no other."""

    cache: SpanCache


@dataclass(kw_only=True)
class SpanMask:
    """What a layer must know beyond its span.

    Attributes:
        offset: Slot of the first query: the number of slots already in the cache.
        padding: (B,) left-padding tokens of each row; None when no row is padded.
        lengths: The same as numbers; None is to be read from there.
        documents: Where the packed documents of each row start; None when no row holds more than one.
        num_queries: Queries of the pass.
        num_dropped: First queries of the pass that a layer is not given, though their keys are there (Gemma 4).
        cache: The cache of the pass; None without one.
    """

    offset: int
    padding: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    documents: list[list[int]] | None = None
    has_looked: bool = False
    num_queries: int = 0
    num_dropped: int = 0
    cache: SpanCache | None = None
    # What a few tokens a row do not see, which all layers of a span share.
    _hidden: dict[Any, Tensor | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.padding is not None:
            self.lengths = self.lengths or tuple(self.padding.tolist())
            self.padding = self.padding if self.most_padding else None

    @property
    def most_padding(self) -> int:
        """Return the left-padding tokens of the row that has most."""
        return max(self.lengths or (0,))

    def seen_with(self, key: Tensor, value: Tensor) -> Seen | None:
        """Return what the cache has besides the very keys and values that it handed out; None where that is nothing.

        Raises:
            SpanError: The values are not those that it handed out with the keys.
        """
        seen: Seen | None = None if self.cache is None else self.cache.handed.get(key)  # type: ignore[no-untyped-call]
        if seen is not None and seen.value is not value:
            raise SpanError("the model changes values after the cache has stored them")
        return seen

    def hidden(self, span: LayerSpan, query: Tensor) -> Tensor | None:
        """Return (B or 1, 1, Tq, Tk), minus infinity where (B, H, Tq, D) queries do not see a key of the cache, else 0.

        None where one token sees all: unless blocks or padding hide something, a cache keeps nothing else.
        """
        length = query.shape[2]
        # Once the ring of the shortest row is full, a window's row sees all that its ring holds.
        is_filled = self.offset + 1 - self.most_padding >= span.sinks + (span.num_recent or self.offset + 1)
        if length == 1 and span.keeps_only_seen and (self.padding is None or is_filled):
            return None
        name = span, query.dtype, query.device
        if name not in self._hidden:
            slots = cached_slots(span, self.offset, length, self.padding, query.device)
            pad = slots.new_zeros(1) if self.padding is None else self.padding.to(query.device)
            positions = torch.where(slots < 0, -1, slots - pad[:, None])
            asking = self.offset + torch.arange(length, device=query.device) - pad[:, None]
            visible = visible_keys(asking, positions, span)[:, None]
            self._hidden[name] = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -torch.inf)
        return self._hidden[name]

    def __getitem__(self, kept: tuple[slice, slice, slice, slice]) -> SpanMask:
        """Return the mask of the last queries alone, as Gemma 4 asks for it with `[:, :, -n:, :]`.

        Raises:
            SpanError: Something else is asked for.
        """
        everything = slice(None)
        if not (isinstance(kept, tuple) and len(kept) == 4 and (*kept[:2], kept[3]) == (everything,) * 3):
            raise SpanError(f"a part {kept} of a mask is not computed by masformer")
        start, stop, step = kept[2].indices(self.num_queries)
        if self.num_dropped or stop != self.num_queries or step != 1:
            raise SpanError(f"queries {kept[2]} of a mask are not computed by masformer")
        return replace(self, num_dropped=start)

    def look_for_documents(self, position_ids: Tensor | None, batch: int, num_queries: int) -> None:
        """Find packed documents, unless an earlier layer did; these go with neither padding nor a cache."""
        if self.has_looked:
            return
        self.has_looked = True
        if position_ids is None or position_ids.ndim != 2 or num_queries == 1:
            return
        # Negative positions are some models' padding.
        breaks = ((position_ids.diff(dim=1) != 1) & (position_ids[:, 1:] >= 0)).expand(batch, -1)
        if self.padding is not None:
            # Padding carries any position; a document starts anew only after it.
            slots = torch.arange(1, num_queries, device=breaks.device) + self.offset
            breaks = breaks & (slots > self.padding.to(breaks.device)[:, None])
        if self.offset and self.padding is None:
            # A document of its own, though the cache holds another.
            breaks = breaks | (position_ids[:, :1] == 0).expand(batch, -1)
        if not bool(breaks.any()):
            return
        if self.padding is not None or self.offset:
            raise SpanError("packed documents (position_ids that start again) work without padding and without a cache")
        self.documents = [[0, *(row.nonzero().flatten() + 1).tolist()] for row in breaks]


def is_slow_to_read(tensor: Tensor) -> bool:
    """Return whether the numbers of a tensor are known only when a device has done all that it was given."""
    return tensor.device.type != "cpu"


def left_padding(attention_mask: Tensor) -> Tensor | None:
    """Return (B,) left-padding tokens of each row of a (B, T) mask; None when no row has any.

    Tokens to the right of the real ones are left alone: no real token sees them.

    Raises:
        SpanError: A row has padding between real tokens.
    """
    mask = attention_mask.bool()
    if bool(mask.all()):
        return None
    count = mask.sum(dim=1)
    # A row may hold nothing but padding as yet.
    first = torch.where(count > 0, mask.int().argmax(dim=1), mask.shape[1])
    slots = torch.arange(mask.shape[1], device=mask.device)
    if not torch.equal(mask, (slots >= first[:, None]) & (slots < (first + count)[:, None])):
        raise SpanError("attention_mask has padding between real tokens; pad on the left only")
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
    """Return the `SpanMask` of one forward pass for transformers. Raises `SpanError` unless the mask is causal."""
    if use_vmap:
        raise SpanError("this model adds a mask of its own (images or prefixes seen both ways); only causal masks work")
    cache, lengths = getattr(q_offset, "cache", None), None
    if attention_mask is None:
        padding = None
    elif cache is not None and cache.num_masked == attention_mask.shape[1]:  # it has looked at this mask
        padding = cache.attention[0].padding
        lengths = cache.padding_lengths
    else:
        padding = left_padding(attention_mask[:, : int(q_offset) + q_length])
    return SpanMask(offset=int(q_offset), padding=padding, lengths=lengths, num_queries=q_length, cache=cache)


def is_visible(query: Tensor, key: Tensor, span: LayerSpan) -> Tensor:
    """Return bools, True where the query at a position sees the key at another; element by element, broadcast."""
    return (key >= 0) & (key <= query) & span.sees(query, key)


def visible_keys(query_positions: Tensor, key_positions: Tensor, span: LayerSpan) -> Tensor:
    """Return (..., Tq, Tk) bools, True where a query sees a key; negative key positions are nowhere."""
    return is_visible(query_positions.unsqueeze(-1), key_positions.unsqueeze(-2), span)


def cached_slots(span: LayerSpan, offset: int, num_new: int, padding: Tensor | None, device: torch.device) -> Tensor:
    """Return (1 or B, Tk) the slot of each key that a `SpanCache` layer returns, -1 where it holds nothing to see.

    One new slot is written in place, so the ring is out of order; several are appended to the kept slots in order.
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
