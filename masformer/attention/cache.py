"""A key/value cache that keeps what its spans can still see, and nothing else.

A layer with full attention keeps every key in a buffer that grows by steps. A layer with a finite span keeps its sinks
and a ring of its last keys, and a layer without attention the states that it carries; `masformer.attention.layers` has
all kinds. `visibility.cached_slots` says which slots a layer returns.

    cache = SpanCache(plan)
    model(input_ids, past_key_values=cache)
    cache.num_bytes

A converted model makes one by itself, inside `generate` too (`masformer.convert`).

`cache.fork()` is a second cache that goes on from the same tokens, neither seeing what the other writes. A fork reads
the keys of full layers where they are and keeps its own apart (`layers.Seen`); each of the two copies a ring
when it first writes to it, and states at once. So a fork costs its states by itself, and afterwards what is written and
at most one span a layer. `join` makes one cache of the rows of several, which read where they are what they share:

    batch = join([first, second], room=128)
    model(last_tokens, attention_mask=left_padded, past_key_values=batch)

`split` gives its rows back, each with what it was given since, so that they join others.

Tokens that may be wrong go through the model between `draft` and `commit`, which keeps those that are right.

Shapes: B batch, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from masformer.attention.full import FullLayer, LatentLayer
from masformer.attention.heads import HeadsLayer
from masformer.attention.layers import AttentionAndStates, CacheLayer, KeyLayer, Place, RingLayer, StateLayer
from masformer.attention.visibility import Offset, SpanMask, is_slow_to_read, left_padding
from masformer.errors import SpanError
from masformer.plans.shapes import changes_states, layers_with_states
from masformer.plans.spans import NO_ATTENTION, HeadSpans, LayerSpan, SpanPlan

# What a cache has of a layer: keys, or states alone.
AnyLayer: TypeAlias = CacheLayer | StateLayer


def cache_layer(span: LayerSpan | HeadSpans, max_tokens: int = 0, *, is_latent: bool = False) -> CacheLayer:
    """Return an empty layer of a cache for attention.

    Args:
        max_tokens: Tokens that there is to be room for at once.
        is_latent: Keys or values are computed from what is held, at each step anew.
    """
    if isinstance(span, HeadSpans):
        return HeadsLayer(span, [_key_layer(each, max_tokens, is_latent) for each in span.groups])
    return _key_layer(span, max_tokens, is_latent)


def _key_layer(span: LayerSpan, max_tokens: int, is_latent: bool) -> RingLayer | FullLayer:
    kind = RingLayer if span.num_recent is not None else LatentLayer if is_latent else FullLayer
    return kind(span, max_tokens)


def _layers(plan: SpanPlan, max_tokens: int, config: PreTrainedConfig | None = None) -> list[AnyLayer]:
    """Return the empty layers of a cache for a model; without its config, as most models need them."""
    is_latent, with_states = (changes_states(config), layers_with_states(config)) if config else (False, ())
    count, layers = getattr(config, "number_of_conv_states", 1), []
    for index, span in enumerate(plan):
        if span == NO_ATTENTION:  # one that works on each token alone never gets a state
            layers.append(StateLayer(count))
            continue
        attention = cache_layer(span, max_tokens, is_latent=is_latent)
        layers.append(AttentionAndStates(attention, StateLayer(count)) if index in with_states else attention)
    return layers


class Filled(Exception):
    """A forward pass that only fills a cache is done."""


class SpanCache(Cache):  # type: ignore[misc]
    """A `transformers` cache with one layer a layer of the plan, of the kind that the model needs.

    Slots for `max_tokens` are allocated at once; a longer sequence still fits.
    """

    layers: list[AnyLayer]
    # What attention sees besides keys that were handed out, as long as these very tensors exist.
    handed: WeakTensorKeyDictionary  # Tensor -> Seen

    def __init__(self, plan: SpanPlan, max_tokens: int = 0) -> None:
        super().__init__(layers=_layers(plan, max_tokens))
        self.plan, self.max_tokens = plan, max_tokens
        self.config: PreTrainedConfig | None = None  # of the model that uses it
        # Raise `Filled` once the last layer has stored its keys: in a prefill, nobody uses what it would make of them.
        self.raises_when_filled = False
        self.handed = WeakTensorKeyDictionary()
        # Slots of the last attention mask whose padding the layers know.
        self.num_masked: int | None = None
        # Padding of the first attention layer, and its numbers.
        self._lengths: tuple[Tensor, tuple[int, ...]] | None = None

    def fit(self, config: PreTrainedConfig) -> None:
        """Take the kinds of layers that a model needs, before its first token."""
        if self.config is not config:
            if not self.get_seq_length():
                self.layers = _layers(self.plan, self.max_tokens, config)
            self.config = config

    @property
    def attention(self) -> list[CacheLayer]:
        """Return the layers that have attention."""
        return [layer for layer in self.layers if isinstance(layer, CacheLayer)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        try:
            states: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        except SpanError as error:
            raise error if self.config is None else error.of(self.config) from error
        layer = self.layers[layer_idx]
        if isinstance(layer, CacheLayer) and layer.seen is not None:
            self.handed[states[0]], layer.seen = layer.seen, None
        is_last = layer_idx == len(self.layers) - 1
        if self.raises_when_filled and is_last and not isinstance(self.layers[-1], AttentionAndStates):
            raise Filled
        return states

    def get_query_offset(self, layer_idx: int = 0) -> Offset:
        offset = Offset(super().get_query_offset(layer_idx))
        offset.cache = self
        return offset

    @property
    def padding_lengths(self) -> tuple[int, ...] | None:
        """Return the left-padding tokens of each row, read once for all steps; None when no row has any."""
        if (padding := self.attention[0].padding) is None:
            return None
        if self._lengths is None or self._lengths[0] is not padding:
            self._lengths = padding, tuple(padding.tolist())
        return self._lengths[1]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all keys, values and states that this cache reads, unused room included."""
        return num_bytes(self)

    def fork(self, max_tokens: int = 0) -> SpanCache:
        """Return a second cache that goes on from the same tokens; `max_tokens` counts these too."""
        other = SpanCache(self.plan)
        other.config = self.config
        other.layers = [layer.fork(max_tokens) for layer in self.layers]
        return other

    @property
    def can_draft(self) -> bool:
        """Return whether tokens can be taken back: states have no memory of what they were."""
        return all(isinstance(layer, CacheLayer) and not isinstance(layer, AttentionAndStates) for layer in self.layers)

    def draft(self) -> None:
        """Let `commit` say how many of the tokens of the next pass stay; there are several."""
        for layer in self._parts():
            layer.draft()

    def commit(self, count: int) -> None:
        """Keep the first tokens of the pass since `draft`, so many of each row, as if no others had come."""
        for layer in self._parts():
            layer.commit(count)

    def pin(self) -> list[Place] | None:
        """Let tokens that come one a row go where numbers on the device say, and buffers be handed out whole.

        Every step then does the same on the device, whatever the length of the text. The caller lets the places advance
        after each pass, and no pass may have several tokens a row; choosing other rows ends it.

        Returns:
            The places; None where a layer has states, or hands out what is not full yet.
        """
        parts, most = self._parts(), max(self.padding_lengths or (0,))
        wanted = [part.next_place(most) for part in parts]
        if not self.can_draft or None in wanted:
            return None
        places: dict[Any, Place] = {}
        for part, name in zip(parts, wanted, strict=True):
            assert name is not None
            if name not in places:
                places[name] = Place(*name, device=part.device)
            part.place = places[name]
        return list(places.values())

    @property
    def counts(self) -> list[int]:
        """The tokens that each part of a layer was given; a pass that was only recorded is undone by setting them."""
        return [part.num_tokens for part in self._parts()]

    @counts.setter
    def counts(self, counts: Sequence[int]) -> None:
        for part, count in zip(self._parts(), counts, strict=True):
            part.num_tokens = count

    def _parts(self) -> list[KeyLayer]:
        # One that reads the keys of another has none.
        return [part for layer in self.attention for part in layer.parts if part.is_initialized]

    def set_padding(self, attention_mask: Tensor | SpanMask | Mapping[str, Any] | None) -> None:
        """Take the left padding of each row from a mask, before the tokens that it adds are stored.

        A row that has held nothing but padding so far may turn out to be padded further.

        Args:
            attention_mask: (B, T), or what `span_mask` made of it, alone or by kind of layer; None pads no row.

        Raises:
            SpanError: A row is padded otherwise than when its first tokens were stored.
        """
        if attention_mask is None:
            if (hidden := self.attention[0].padding) is not None and bool(hidden.any()):
                raise SpanError("the cache has padded rows; give every call the attention_mask of all tokens so far")
            return
        mask: Any = attention_mask
        if isinstance(mask, Mapping):  # that of other layers is another
            mask = next(each for each in mask.values() if isinstance(each, SpanMask))
        seen, known = self.get_seq_length(), self.attention[0].padding
        if isinstance(mask, SpanMask):
            padding = mask.padding
        else:
            is_next = self.num_masked == seen and mask.shape[1] == seen + 1
            self.num_masked = mask.shape[1]
            if is_next and is_slow_to_read(mask):
                return  # reading it again at each step would keep the device waiting
            slots = torch.arange(mask.shape[1], device=mask.device)
            if known is not None and torch.equal(mask.bool(), slots >= known.to(mask.device)[:, None]):
                return  # as in most steps
            padding = left_padding(mask)
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
        known = torch.where(is_open, torch.maximum(known, padding), known)
        for layer in self.attention:
            layer.padding = known


def num_bytes(*caches: SpanCache) -> int:
    """Return the bytes of all keys, values and states that some caches read; what forks share is counted once."""
    storages: dict[int, int] = {}
    for cache in caches:
        for layer in cache.layers:
            storages |= layer.storages
    return sum(storages.values())


def can_join(config: PreTrainedConfig) -> bool:
    """Return whether caches of a converted model join: some models make keys or values anew each step."""
    return not changes_states(config)


def join(caches: Sequence[SpanCache], room: int) -> SpanCache:
    """Return a cache of one row for each of these, as left padding to the longest would have it.

    What the caches hold stays theirs and is read where it is; do not write to them while the joined one is in use.
    Caches that share runs must stand side by side; each has one row without padding and holds a token at least. There
    is room for as many more tokens.
    """
    lengths = [cache.get_seq_length() for cache in caches]
    longest = max(lengths)
    joined = SpanCache(caches[0].plan)
    padding = None if min(lengths) == longest else torch.tensor([longest - length for length in lengths])
    joined.config = caches[0].config
    for index, first in enumerate(caches[0].layers):
        if isinstance(first, CacheLayer) and not first.is_initialized:
            continue  # it reads the keys of another
        layer = type(first).join([cache.layers[index] for cache in caches], lengths, room)
        if isinstance(layer, CacheLayer):
            layer.padding = None if padding is None else padding.to(layer.device)
        joined.layers[index] = layer
    return joined


def split(joined: SpanCache, rows: Iterable[int]) -> list[SpanCache]:
    """Return a cache for each of these rows of a joined one, without padding, to be joined with others.

    Nothing is copied: they read the memory of the joined one, which is not used any more.
    """
    padding = joined.padding_lengths
    return [_row(joined, row, padding[row] if padding else 0) for row in rows]


def _row(joined: SpanCache, row: int, padding: int) -> SpanCache:
    cache = SpanCache(joined.plan)
    cache.config = joined.config
    for index, layer in enumerate(joined.layers):
        if not isinstance(layer, CacheLayer) or layer.is_initialized:
            cache.layers[index] = layer.row(row, padding)
    return cache


def row_bytes(joined: SpanCache, row: int, copies: int = 1) -> int:
    """Return the bytes of keys, values and states that a row reads, or its copies; what is shared counts once."""
    return sum(layer.row_bytes(row, copies) for layer in joined.layers)
