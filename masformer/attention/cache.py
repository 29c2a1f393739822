"""A key/value cache that keeps what its spans can still see, and nothing else.

A layer with full attention keeps every key in a buffer that grows by steps. A layer with a finite span keeps its sinks
and a ring of its last keys. Keys carry their rotary position from when they were written, so the order inside the ring
does not matter to the one token that is decoded; a prefill on top of the cache gets the kept keys in order.
`visibility.cached_slots` says which slots a layer returns. Where the key/value heads of a layer have
spans of their own, those of each span are kept as if they were a layer (`HeadSpansCacheLayer`).

    cache = SpanCache(plan)
    model(input_ids, past_key_values=cache)
    cache.num_bytes

A converted model makes one by itself, inside `generate` too (`masformer.convert`).

`cache.fork()` is a second cache that goes on from the same tokens, neither seeing what the other writes. A fork reads
the keys of full layers where they are and keeps its own apart (`SegmentedKeys`); each of the two copies a ring when
it first writes to it. So a fork costs nothing by itself, and afterwards what is written and at most one span a layer.

Shapes: B batch, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from masformer.attention.heads import HeadKeys, heads_of
from masformer.attention.visibility import SpanMask, left_padding
from masformer.errors import SpanError
from masformer.plans.spans import HeadSpans, LayerSpan, SpanPlan

# Tokens by which a buffer grows: rare enough that copying is a small part of decoding them.
GROWTH_TOKENS = 512


class SegmentedKeys(Tensor):
    """The keys that a fork has written itself.

    Attributes:
        before: (B, K, T, D) keys and values of each earlier run.
        own_values: The values that go with these keys: what attends must be given this very object.
    """

    before: tuple[tuple[Tensor, Tensor], ...]
    own_values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _CountedLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of a cache that knows how many tokens it was given, of which it may keep some."""

    is_sliding = False
    is_croppable = False
    num_tokens: int

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SpanCacheLayer(_CountedLayer):
    """The keys and values of one layer; slots for `max_tokens`, when known, are allocated at once."""

    def __init__(self, span: LayerSpan, max_tokens: int = 0) -> None:
        super().__init__()
        self.span = span
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.padding: Tensor | None = None
        self.before: tuple[tuple[Tensor, Tensor], ...] = ()
        self.is_shared = False
        # With padding, each row's sinks are its own first tokens, and there only when the last of them is.
        self.has_sinks = False

    @property
    def capacity(self) -> int | None:
        """Return the most entries this layer ever holds; None when there is no limit."""
        recent = self.span.num_recent
        return None if recent is None else self.span.sinks + recent

    @property
    def parts(self) -> tuple[SpanCacheLayer, ...]:
        """Return the layer itself, as the only part of all heads."""
        return (self,)

    @property
    def num_before(self) -> int:
        """Return the tokens whose keys another cache wrote, in a full layer of a fork."""
        return sum(keys.shape[2] for keys, _ in self.before)

    @property
    def storages(self) -> dict[int, int]:
        """Return the bytes of each piece of memory that this layer reads, by its address; unused room included."""
        own = [(self.keys, self.values)] if self.is_initialized else []
        found = [states.untyped_storage() for pair in (*self.before, *own) for states in pair]
        return {storage.data_ptr(): storage.nbytes() for storage in found}

    def fork(self, max_tokens: int = 0, copy: bool = False) -> SpanCacheLayer:
        """Return a layer that goes on from the same tokens; `copy` gives a full layer keys of its own."""
        other = SpanCacheLayer(self.span, max_tokens)
        other.num_tokens, other.padding, other.has_sinks = self.num_tokens, self.padding, self.has_sinks
        if not self.is_initialized:
            return other
        other.dtype, other.device, other.is_initialized = self.dtype, self.device, True
        if self.span.num_recent is None:
            held = self.num_tokens - self.num_before
            own = (self.keys[:, :, :held], self.values[:, :, :held])
            if copy:
                other.keys, other.values = (torch.cat(runs, dim=2) for runs in zip(*self.before, own, strict=True))
            else:
                other.before = (*self.before, own) if held else self.before
                other.keys, other.values = (x[:, :, :0].clone() for x in own)
        else:
            other.keys, other.values = self.keys, self.values
            self.is_shared = other.is_shared = True
        return other

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new keys and values; return those that the queries of the same tokens may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        offset, num_new = self.num_tokens, key_states.shape[2]
        self._reserve(offset + num_new)
        self.num_tokens += num_new
        new = (key_states, value_states)
        if self.span.num_recent is None:
            first, held = offset - self.num_before, self.num_tokens - self.num_before
            for buffer, states in zip((self.keys, self.values), new, strict=True):
                buffer[:, :, first:held] = states
            keys, values = self.keys[:, :, :held], self.values[:, :, :held]
            if self.before:
                keys = keys.as_subclass(SegmentedKeys)
                keys.before, keys.own_values = self.before, values
            return keys, values
        if num_new == 1:
            self._write(offset, new)
            held = min(self.num_tokens, self.capacity or 0)
            return self.keys[:, :, :held], self.values[:, :, :held]
        if offset == 0:
            seen = new
        else:
            order = self._kept_in_order(offset)
            seen = (
                torch.cat([self.keys[:, :, order], key_states], dim=2),
                torch.cat([self.values[:, :, order], value_states], dim=2),
            )
        self._write(offset, new)
        return seen

    def _reserve(self, num_tokens: int) -> None:
        """Make room of our own for `num_tokens` slots, growing by steps."""
        capacity, before = self.capacity, self.num_before
        # Never less than the sinks, so that these have their place from the first token on.
        needed = num_tokens - before if capacity is None else min(max(num_tokens, self.span.sinks), capacity)
        room = self.keys.shape[2]
        if needed <= room:
            if self.is_shared:
                self.keys, self.values, self.is_shared = self.keys.clone(), self.values.clone(), False
            return
        self.is_shared = False
        room = max(needed, self.max_tokens - before, room + GROWTH_TOKENS if room else 0)
        if capacity is not None:
            room = min(room, capacity)
        grown = []
        for old in (self.keys, self.values):
            # Zeros, because masked entries still enter the products.
            buffer = old.new_zeros((*old.shape[:2], room, old.shape[3]))
            buffer[:, :, : old.shape[2]] = old
            grown.append(buffer)
        self.keys, self.values = grown

    def _kept_in_order(self, offset: int) -> Tensor:
        """Return the buffer indices of the sinks, then of the ring from its oldest slot to its newest."""
        sinks, ring = self.span.sinks, self.span.num_recent
        assert ring is not None
        recent = torch.arange(max(min(sinks, offset), offset - ring), offset, device=self.device)
        return torch.cat([torch.arange(min(sinks, offset), device=self.device), sinks + (recent - sinks) % ring])

    def _write(self, offset: int, new: tuple[Tensor, Tensor]) -> None:
        """Write slots from `offset` on into the sinks and the ring of a finite span."""
        sinks, ring = self.span.sinks, self.span.num_recent
        assert ring is not None
        total = offset + new[0].shape[2]
        if total - offset == 1 and offset >= sinks and (self.padding is None or not sinks or self.has_sinks):
            place = sinks + (offset - sinks) % ring
            self.keys[:, :, place : place + 1], self.values[:, :, place : place + 1] = new
            return
        padding = None if self.padding is None or not sinks or self.has_sinks else self.padding.to(self.device)
        recent = torch.arange(min(max(offset, sinks, total - ring), total), total, device=self.device)
        for buffer, states in zip((self.keys, self.values), new, strict=True):
            if len(recent):
                buffer[:, :, sinks + (recent - sinks) % ring] = states[:, :, recent - offset]
            if self.padding is None and offset < sinks:
                buffer[:, :, offset : min(sinks, total)] = states[:, :, : sinks - offset]
            if padding is not None:
                source = padding[:, None] + torch.arange(sinks, device=self.device) - offset  # (B, S)
                fresh = ((source >= 0) & (source < states.shape[2]))[:, None, :, None]
                index = source.clamp(0, states.shape[2] - 1)[:, None, :, None]
                taken = states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
                buffer[:, :, :sinks] = torch.where(fresh, taken, buffer[:, :, :sinks])
        if padding is not None:
            self.has_sinks = total >= int(padding.max()) + sinks

    def reset(self) -> None:
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False
        self.num_tokens = 0
        self.padding = None
        self.before = ()
        self.is_shared = self.has_sinks = False

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise SpanError("a span cache cannot give back tokens; assisted decoding needs transformers' DynamicCache")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda states: states[indices.to(states.device)])
        if self.padding is not None:
            self.padding = self.padding[indices.to(self.padding.device)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace all keys and values by new tensors."""
        if self.is_initialized:
            self.keys, self.values, self.is_shared = change(self.keys), change(self.values), False
            self.before = tuple((change(keys), change(values)) for keys, values in self.before)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda states: states.repeat_interleave(repeats, dim=0))
        if self.padding is not None:
            self.padding = self.padding.repeat_interleave(repeats, dim=0)


class HeadSpansCacheLayer(_CountedLayer):
    """The keys and values of one layer whose key/value heads have spans of their own: a part for each group."""

    def __init__(self, span: HeadSpans, parts: Sequence[SpanCacheLayer]) -> None:
        super().__init__()
        self.span, self.parts = span, tuple(parts)
        self.is_initialized = all(part.is_initialized for part in parts)

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        return self.parts[0].num_tokens

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def padding(self) -> Tensor | None:
        return self.parts[0].padding

    @padding.setter
    def padding(self, padding: Tensor | None) -> None:
        for part in self.parts:
            part.padding = padding

    @property
    def storages(self) -> dict[int, int]:
        """Return the bytes of each piece of memory that this layer reads, by its address; unused room included."""
        return {address: held for part in self.parts for address, held in part.storages.items()}

    def fork(self, max_tokens: int = 0, copy: bool = False) -> HeadSpansCacheLayer:
        """Return a layer that goes on from the same tokens; `copy` gives full heads keys of their own."""
        return HeadSpansCacheLayer(self.span, [part.fork(max_tokens, copy) for part in self.parts])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for part, runs in zip(self.parts, self.span.groups.values(), strict=True):
            part.lazy_initialization(heads_of(key_states, runs), heads_of(value_states, runs))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new keys and values; return what `masformer.attention.heads.attend_by_head` takes."""
        if key_states.shape[1] != len(self.span.heads):
            raise SpanError(
                f"a cache for spans of {len(self.span.heads)} key/value heads got {key_states.shape[1]} of them"
            )
        keys = key_states.as_subclass(HeadKeys)
        keys.own_values = value_states
        keys.parts = tuple(
            part.update(heads_of(key_states, runs), heads_of(value_states, runs))
            for part, runs in zip(self.parts, self.span.groups.values(), strict=True)
        )
        self.is_initialized = True
        return keys, value_states

    def reset(self) -> None:
        for part in self.parts:
            part.reset()
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        self.parts[0].crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for part in self.parts:
            part.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        for part in self.parts:
            part.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for part in self.parts:
            part.batch_repeat_interleave(repeats)


def cache_layer(span: LayerSpan | HeadSpans, max_tokens: int = 0) -> SpanCacheLayer | HeadSpansCacheLayer:
    """Return an empty layer of a cache."""
    if isinstance(span, HeadSpans):
        return HeadSpansCacheLayer(span, [SpanCacheLayer(each, max_tokens) for each in span.groups])
    return SpanCacheLayer(span, max_tokens)


class Filled(Exception):
    """A forward pass that only fills a cache is done."""


class SpanCache(Cache):  # type: ignore[misc]
    """A `transformers` cache with one layer (`cache_layer`) a layer of the plan.

    Slots for `max_tokens` are allocated at once; a longer sequence still fits.
    """

    def __init__(self, plan: SpanPlan, max_tokens: int = 0) -> None:
        super().__init__(layers=[cache_layer(span, max_tokens) for span in plan])
        self.plan = plan
        # Some models compute keys or values from what is cached, so a fork cannot leave them where they are.
        self.copies_forks = False
        self.config: PreTrainedConfig | None = None  # of the model that uses it, for messages
        # Raise `Filled` once the last layer has stored its keys: in a prefill, nobody uses what it would make of them.
        self.raises_when_filled = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        try:
            states: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        except SpanError as error:
            raise error if self.config is None else error.of(self.config) from error
        if self.raises_when_filled and layer_idx == len(self.layers) - 1:
            raise Filled
        return states

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all keys and values that this cache reads, unused room included."""
        return num_bytes(self)

    def fork(self, max_tokens: int = 0) -> SpanCache:
        """Return a second cache that goes on from the same tokens; `max_tokens` counts these too."""
        other = SpanCache(self.plan)
        other.copies_forks, other.config = self.copies_forks, self.config
        other.layers = [layer.fork(max_tokens, copy=self.copies_forks) for layer in self.layers]
        return other

    def set_padding(self, attention_mask: Tensor | SpanMask | Mapping[str, Any] | None) -> None:
        """Take the left padding of each row from a mask, before the tokens that it adds are stored.

        A row that has held nothing but padding so far may turn out to be padded further.

        Args:
            attention_mask: (B, T), or what `span_mask` made of it, alone or by kind of layer; None pads no row.

        Raises:
            SpanError: A row is padded otherwise than when its first tokens were stored.
        """
        if attention_mask is None:
            if (hidden := self.layers[0].padding) is not None and bool(hidden.any()):
                raise SpanError("the cache has padded rows; give every call the attention_mask of all tokens so far")
            return
        mask = next(iter(attention_mask.values())) if isinstance(attention_mask, Mapping) else attention_mask
        padding = mask.padding if isinstance(mask, SpanMask) else left_padding(mask)
        seen, known = self.get_seq_length(), self.layers[0].padding
        if padding is None and known is None:
            return
        if known is None:
            assert padding is not None
            known = torch.zeros_like(padding)
        padding = torch.zeros_like(known) if padding is None else padding.to(known.device)
        is_open = known >= seen
        if not torch.equal(torch.where(is_open, known, padding), known):
            raise SpanError(
                f"attention_mask pads rows by {padding.tolist()} tokens, and by {known.tolist()} when the cache was "
                "filled; give every call the mask of all tokens so far"
            )
        for layer in self.layers:
            layer.padding = torch.where(is_open, torch.maximum(known, padding), known)


def num_bytes(*caches: SpanCache) -> int:
    """Return the bytes of all keys and values that some caches read; what forks share is counted once."""
    storages: dict[int, int] = {}
    for cache in caches:
        for layer in cache.layers:
            storages |= layer.storages
    return sum(storages.values())
