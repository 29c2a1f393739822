"""What a cache holds of one layer: an object for each kind of layer, and what all of them can do (`CacheLayer`).

| kind | holds |
| --- | --- |
| `FullLayer` | every key; a fork reads the keys of others where they are (`masformer.attention.full`) |
| `LatentLayer` | the same, for models that compute keys or values from what is held: a fork copies |
| `JoinedLayer` | every key of several rows, of which some read the same (`masformer.attention.full`) |
| `RingLayer` | the sinks and the last keys, of windows and blocks |
| `HeadsLayer` | a layer of these kinds for each group of key/value heads that see alike (`masformer.attention.heads`) |
| `StateLayer` | no keys, but states of a convolution, of linear attention or of a recurrence |
| `AttentionAndStates` | keys and states, where one layer has both |

A layer that reads the keys of another one, or works on each token alone, stays empty.

Shapes: B batch, K key/value heads, T tokens, D head size.

Source: the layers of `cache_utils.py` in transformers 5.23, whose `Cache` calls these.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from masformer.errors import SpanError
from masformer.plans.spans import HeadSpans, LayerSpan

if TYPE_CHECKING:
    from masformer.attention.full import JoinedLayer

# Tokens by which a buffer grows: rare enough that copying is a small part of decoding them.
GROWTH_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a cache has handed to the attention of a layer, where there is more to see than the keys (B, K, T, D).

    Attributes:
        value: The values that go with these keys.
        runs: (B, K, T, D) keys and values that lie before them.
        joined: The layer whose rows read further runs.
        parts: The keys and values of each group of heads, and what is seen besides these.
    """

    value: Tensor
    runs: tuple[tuple[Tensor, Tensor], ...] = ()
    joined: JoinedLayer | None = None
    parts: tuple[tuple[Tensor, Tensor, Seen | None], ...] = ()


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of a cache that has keys and knows how many tokens it was given, of which it may keep some.

    Attributes:
        span: What the layer sees.
        num_tokens: Tokens that it was given, left padding included.
        padding: (B,) left-padding tokens of each row; None when no row has any.
        parts: Itself, or its groups of heads.
        seen: What the last `update` has returned, if that was not all there is to see.
    """

    is_sliding = False
    is_croppable = False
    span: LayerSpan | HeadSpans
    num_tokens: int
    padding: Tensor | None
    parts: tuple[KeyLayer, ...]
    seen: Seen | None = None

    @property
    @abstractmethod
    def storages(self) -> dict[int, int]:
        """Return the bytes of each piece of memory that this layer reads, by its address; unused room included."""

    @abstractmethod
    def fork(self, max_tokens: int = 0) -> Self:
        """Return a layer that goes on from the same tokens, with room for `max_tokens`."""

    @classmethod
    @abstractmethod
    def join(cls, layers: Sequence[Self], lengths: Sequence[int], room: int) -> CacheLayer:
        """Return a layer of one row for each of these, as left padding to the longest would have it.

        Args:
            lengths: Tokens that each has been given.
            room: Tokens that there is to be room for.
        """

    @abstractmethod
    def row(self, row: int, padding: int) -> CacheLayer:
        """Return a layer of one row of a joined one, without its so many tokens of left padding, for `join` alone."""

    @abstractmethod
    def row_bytes(self, row: int, copies: int = 1) -> int:
        """Return the bytes that a row reads, or its copies; what is shared counts whole, once."""

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def get_max_length(self) -> int:
        return -1


class Place:
    """The slot of buffers at which the next token goes, as a number on their device; in a ring it comes round.

    Attributes:
        slot: (1,).
    """

    def __init__(self, slot: int, first: int, ring: int | None, device: torch.device) -> None:
        self.slot = torch.tensor([slot], device=device)
        self.first, self.ring = first, ring

    def advance(self) -> None:
        """Go on by a token."""
        self.slot.add_(1)
        if self.ring is not None:
            self.slot.sub_(self.first).remainder_(self.ring).add_(self.first)


class KeyLayer(CacheLayer):
    """The keys and values of heads that see alike; slots for `max_tokens`, when known, are allocated at once.

    Attributes:
        place: Where one token more a row goes, when what is handed out is always the whole buffer; None where its
            length grows. Who sets it lets it advance (`SpanCache.pin`).
    """

    span: LayerSpan
    place: Place | None = None

    def __init__(self, span: LayerSpan, max_tokens: int = 0) -> None:
        super().__init__()
        self.span = span
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.padding = None
        self.first_draft: int | None = None  # tokens before those that may be taken back

    @property
    def parts(self) -> tuple[KeyLayer, ...]:  # type: ignore[override]
        return (self,)

    @property
    def storages(self) -> dict[int, int]:
        return storages_of((self.keys, self.values) if self.is_initialized else ())

    def next_place(self, most_padding: int) -> tuple[int, int, int | None] | None:
        """Return the arguments of a `Place`; None where what is handed out must grow."""
        return None

    def put(self, place: Place, new: tuple[Tensor, Tensor]) -> None:
        """Store one token a row at a place."""
        for buffer, states in zip((self.keys, self.values), new, strict=True):
            buffer.index_copy_(2, place.slot, states)
        self.num_tokens += 1

    def row_bytes(self, row: int, copies: int = 1) -> int:
        return copies * ((self.keys.nbytes + self.values.nbytes) // len(self.keys)) if self.is_initialized else 0

    def draft(self) -> None:
        """Let `commit` say how many tokens of the next update stay; there are several."""
        self.first_draft = self.num_tokens

    def commit(self, count: int) -> None:
        """Keep the first tokens since `draft`, so many, as if no others had come."""
        assert self.first_draft is not None
        self.num_tokens, self.first_draft = self.first_draft + count, None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in (key_states, value_states))
        self.is_initialized = True

    def like(self, *arguments: Any) -> Self:
        """Return a layer of the same kind and tokens, without keys."""
        other = type(self)(self.span, *arguments)
        other.num_tokens, other.padding = self.num_tokens, self.padding
        if self.is_initialized:
            other.dtype, other.device, other.is_initialized = self.dtype, self.device, True
        return other

    def grow(self, room: int) -> None:
        """Make buffers of so many slots that begin with those of now."""
        grown = []
        for old in (self.keys, self.values):
            # Zeros, because masked entries still enter the products.
            buffer = old.new_zeros((*old.shape[:2], room, old.shape[3]))
            buffer[:, :, : old.shape[2]] = old
            grown.append(buffer)
        self.keys, self.values = grown

    def reset(self) -> None:
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False
        self.num_tokens = 0
        self.padding = None

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise SpanError("a span cache cannot give back tokens; assisted decoding needs transformers' DynamicCache")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.each(lambda states: states[indices.to(states.device)])
        if self.padding is not None:
            self.padding = self.padding[indices.to(self.padding.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.each(lambda states: states.repeat_interleave(repeats, dim=0))
        if self.padding is not None:
            self.padding = self.padding.repeat_interleave(repeats, dim=0)

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace all keys and values by new tensors."""
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
        self.place = None


class RingLayer(KeyLayer):
    """The sinks and a ring of the last keys of a layer with a finite span.

    Keys carry their rotary position from when they were written, so the order inside the ring does not matter to the
    one token that is decoded; a prefill on top gets the kept keys in order. A fork and its origin read the same buffer
    until either writes.
    """

    def __init__(self, span: LayerSpan, max_tokens: int = 0) -> None:
        super().__init__(span, max_tokens)
        self.is_shared = False
        # With padding, each row's sinks are its own first tokens, and there only when the last of them is.
        self.has_sinks = False
        # Slots by which the ring of a row that was taken from a batch is turned, until it is joined.
        self.turned = 0
        # Keys and values of drafted tokens: in the ring they would be where what a token before them sees still is.
        self.drafted: tuple[Tensor, Tensor] | None = None

    @property
    def ring(self) -> int:
        """Return the most keys that the ring holds."""
        recent = self.span.num_recent
        assert recent is not None
        return recent

    @property
    def capacity(self) -> int:
        """Return the most entries this layer ever holds."""
        return self.span.sinks + self.ring

    def fork(self, max_tokens: int = 0) -> Self:
        other = self.like(max_tokens)
        other.has_sinks = self.has_sinks
        if self.is_initialized:
            other.keys, other.values = self.keys, self.values
            self.is_shared = other.is_shared = True
        return other

    def next_place(self, most_padding: int) -> tuple[int, int, int | None] | None:
        sinks, ring = self.span.sinks, self.ring
        is_full = self.num_tokens - most_padding >= self.capacity
        if self.is_shared or not is_full or not self.span.keeps_only_seen:
            return None
        return sinks + (self.num_tokens - sinks) % ring, sinks, ring

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new keys and values; return those that the queries of the same tokens may see."""
        assert not self.turned
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.place is not None:
            self.put(self.place, (key_states, value_states))
            return self.keys, self.values
        offset, num_new = self.num_tokens, key_states.shape[2]
        self._reserve(offset + num_new)
        self.num_tokens += num_new
        new = (key_states, value_states)
        if num_new == 1:
            self._write(offset, new)
            held = min(self.num_tokens, self.capacity)
            return self.keys[:, :, :held], self.values[:, :, :held]
        if offset == 0:
            seen = new
        else:
            kept = self._kept_in_order(offset)
            seen = (
                torch.cat([*(self.keys[:, :, part] for part in kept), key_states], dim=2),
                torch.cat([*(self.values[:, :, part] for part in kept), value_states], dim=2),
            )
        if self.first_draft is None:
            self._write(offset, new)
        else:
            self.drafted = new
        return seen

    def commit(self, count: int) -> None:
        assert self.first_draft is not None
        assert self.drafted is not None
        keys, values = self.drafted
        self._write(self.first_draft, (keys[:, :, :count], values[:, :, :count]))
        self.drafted = None
        super().commit(count)

    def _reserve(self, num_tokens: int) -> None:
        """Make room of our own for `num_tokens` slots, growing by steps."""
        # Never less than the sinks, so that these have their place from the first token on.
        needed = min(max(num_tokens, self.span.sinks), self.capacity)
        room = self.keys.shape[2]
        if needed > room:
            self.grow(min(max(needed, self.max_tokens, room + GROWTH_TOKENS if room else 0), self.capacity))
        elif self.is_shared:
            self.keys, self.values = self.keys.clone(), self.values.clone()
        self.is_shared = False

    def _kept_in_order(self, offset: int) -> tuple[slice, slice, slice]:
        """Return the parts of the buffer: the sinks, the ring from its oldest slot on, and the rest of the ring."""
        sinks, ring = self.span.sinks, self.ring
        oldest = max(min(sinks, offset), offset - ring)
        start, count = sinks + (oldest - sinks) % ring, offset - oldest
        stop = min(start + count, sinks + ring)
        return slice(min(sinks, offset)), slice(start, stop), slice(sinks, sinks + count - (stop - start))

    def _write(self, offset: int, new: tuple[Tensor, Tensor]) -> None:
        """Write slots from `offset` on into the sinks and the ring."""
        sinks, ring = self.span.sinks, self.ring
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

    @classmethod
    def join(cls, layers: Sequence[Self], lengths: Sequence[int], room: int) -> RingLayer:
        sinks, longest = layers[0].span.sinks, max(lengths)
        joined = layers[0].like()
        joined.num_tokens, joined.has_sinks = longest, min(lengths) >= sinks
        slots = min(max(longest + room, sinks), joined.capacity)
        for name in ("keys", "values"):
            like = getattr(layers[0], name)
            # Zeros where nothing is written: masked entries still enter the products.
            make = like.new_empty if min(lengths) >= slots else like.new_zeros
            setattr(joined, name, make((len(layers), like.shape[1], slots, like.shape[3])))
        for row, (layer, length) in enumerate(zip(layers, lengths, strict=True)):
            joined._copy(row, longest - length, layer, length)
        return joined

    def row(self, row: int, padding: int) -> RingLayer:
        alone = self.like()
        alone.num_tokens, alone.padding, alone.turned = self.num_tokens - padding, None, padding
        alone.keys, alone.values = self.keys[row : row + 1], self.values[row : row + 1]
        return alone

    def _copy(self, row: int, padding: int, other: RingLayer, length: int) -> None:
        """Take over what another layer has of a text of so many tokens, for a row with padding before it."""
        sinks, ring = self.span.sinks, self.ring
        first = min(sinks, length)
        pieces = [(0, 0, first)]
        start = max(first, length - ring)
        while start < length:  # neither ring comes round within a piece
            at, to = ((start + turned - sinks) % ring for turned in (other.turned, padding))
            count = min(ring - max(at, to), length - start)
            pieces.append((sinks + at, sinks + to, count))
            start += count
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for at, to, count in pieces:
                mine[row, :, to : to + count] = theirs[0, :, at : at + count]

    def reset(self) -> None:
        super().reset()
        self.is_shared = self.has_sinks = False

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        super().each(change)
        self.is_shared = False


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """States of one layer, each (B, ...), which do not grow with the text; of a padded row they know no padding."""

    def fork(self, max_tokens: int = 0) -> StateLayer:
        """Return a layer that goes on from the same tokens."""
        return copy.deepcopy(self)

    @classmethod
    def join(cls, layers: Sequence[StateLayer], lengths: Sequence[int], room: int) -> StateLayer:
        """Return a layer of one row for each of these."""
        joined = layers[0].fork()
        for name in ("conv_states", "recurrent_states"):
            found = [getattr(layer, name) for layer in layers]
            for index, states in getattr(joined, name).items():
                if states is not None:
                    getattr(joined, name)[index] = torch.cat([row[index] for row in found])
        return joined

    def row(self, row: int, padding: int) -> StateLayer:
        """Return a layer of one row."""
        alone = copy.copy(self)
        alone.conv_states, alone.recurrent_states = dict(self.conv_states), dict(self.recurrent_states)
        alone._each(lambda states: states[row : row + 1])
        return alone

    @property
    def states(self) -> list[Tensor]:
        """Return all states, (B, ...) each."""
        held = (*self.conv_states.values(), *self.recurrent_states.values())
        return [states for states in held if states is not None]

    @property
    def storages(self) -> dict[int, int]:
        """Return the bytes of each piece of memory that this layer reads, by its address."""
        return storages_of(self.states)

    def row_bytes(self, row: int, copies: int = 1) -> int:
        """Return the bytes of the states of a row, or of its copies."""
        return copies * sum(states.nbytes // len(states) for states in self.states)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise SpanError("states cannot give back tokens")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda states: states[indices.to(states.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda states: states.repeat_interleave(repeats, dim=0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for held in (self.conv_states, self.recurrent_states):
            held |= {index: change(states) for index, states in held.items() if states is not None}


class Several(CacheLayer):
    """A layer made of others, its `members`, each of which does what it is asked for."""

    members: tuple[CacheLayer | StateLayer, ...]

    @property
    def padding(self) -> Tensor | None:
        return self.parts[0].padding

    @padding.setter
    def padding(self, padding: Tensor | None) -> None:
        for part in self.parts:
            part.padding = padding

    @property
    def storages(self) -> dict[int, int]:
        return {address: held for member in self.members for address, held in member.storages.items()}

    def row_bytes(self, row: int, copies: int = 1) -> int:
        return sum(member.row_bytes(row, copies) for member in self.members)

    def reset(self) -> None:
        for member in self.members:
            member.reset()

    def crop(self, tokens_to_remove: int) -> None:
        for member in self.members:
            member.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for member in self.members:
            member.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        for member in self.members:
            member.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for member in self.members:
            member.batch_repeat_interleave(repeats)


class AttentionAndStates(Several, LinearAttentionCacheLayerMixin):  # type: ignore[misc]
    """A layer that has both: the keys of its attention, and the states of what works beside it."""

    def __init__(self, attention: CacheLayer, states: StateLayer) -> None:
        self.members = self.attention, self.beside = attention, states
        self.number_of_states = states.number_of_states

    def __getattr__(self, name: str) -> Any:
        if name in ("attention", "beside"):  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.attention if hasattr(self.attention, name) else self.beside, name)

    @property
    def seen(self) -> Seen | None:
        return self.attention.seen

    @seen.setter
    def seen(self, seen: Seen | None) -> None:
        self.attention.seen = seen

    def fork(self, max_tokens: int = 0) -> AttentionAndStates:
        return AttentionAndStates(self.attention.fork(max_tokens), self.beside.fork())

    @classmethod
    def join(cls, layers: Sequence[AttentionAndStates], lengths: Sequence[int], room: int) -> AttentionAndStates:
        keys, states = [layer.attention for layer in layers], [layer.beside for layer in layers]
        return cls(type(keys[0]).join(keys, lengths, room), StateLayer.join(states, lengths, room))

    def row(self, row: int, padding: int) -> AttentionAndStates:
        return AttentionAndStates(self.attention.row(row, padding), self.beside.row(row, padding))

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise SpanError("a layer with attention and states begins each by itself")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.attention.update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.beside.update_conv_state(*args, **kwargs)  # type: ignore[no-any-return]

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.beside.update_recurrent_state(*args, **kwargs)  # type: ignore[no-any-return]


def storages_of(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Return the bytes of the memory behind tensors, by its address."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}
