"""Caches of several prompts joined to one batch, which reads what they share where it is, once.

Prompts that begin alike were filled as forks of one cache (`SpanCache.fork`). In a layer with full attention, the keys
of the common beginning are one run of memory; while the batch decodes, the queries of all rows that read a run become
the rows of one product, and each row merges its runs by their sums of exponentials. Only what is short and belongs to
one row alone is copied, into a tail where each step then adds a token. Any other layer copies what each row has kept,
so that the rows stand as they would with left padding.

    batch = join([first, second], room=128)
    model(last_tokens, attention_mask=left_padded, past_key_values=batch)

Shapes: B rows, H query heads, K key/value heads, G = H / K, T tokens, D head size.

Source: one product for all queries behind a common beginning is Hydragen's (arXiv 2402.05099, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from masformer.attention.cache import HeadSpansCacheLayer, SpanCache, SpanCacheLayer
from masformer.attention.tiles import ScoreRule
from masformer.errors import SpanError
from masformer.plans.shapes import changes_states
from masformer.plans.spans import HeadSpans, LayerSpan

# Tokens of a row's own runs that are copied into its tail: cheaper than products of their own at each step.
TAIL_TOKENS = 512
# Keys that one product over a run takes: in half precision torch copies them, and more memory than that is not used.
RUN_KEYS = 8192
# Half a run from which on two halves side by side are faster than the run.
_MIN_HALF = 256


@dataclass(frozen=True, kw_only=True)
class Run:
    """Keys and values (1, K, T, D) that rows [first, stop) see whole; its pieces begin at `place` among theirs."""

    keys: Tensor
    values: Tensor
    first: int
    stop: int
    place: int

    @property
    def num_pieces(self) -> int:
        """Return how many products it takes, each of a part of the keys."""
        return sum(len(keys) for _, keys, _ in self.pieces)

    @cached_property
    def pieces(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return the place, keys (P, K, T / P, D) and values of each product: P parts that go through one call.

        Few heads keep a CPU's threads no longer than the last of them works alone, so that halves go side by side.
        """
        found, place = [], self.place
        for keys, values in zip(*(torch.split(x, RUN_KEYS, dim=2) for x in (self.keys, self.values)), strict=True):
            count, rest = divmod(keys.shape[2], 2)
            if count < _MIN_HALF:
                found.append((place, keys, values))
                place += 1
                continue
            halves = [x[0, :, : 2 * count].unflatten(1, (2, count)).transpose(0, 1) for x in (keys, values)]
            found.append((place, halves[0], halves[1]))
            place += 2
            if rest:
                found.append((place, keys[:, :, -1:], values[:, :, -1:]))
                place += 1
        return found


class JoinedKeys(Tensor):
    """Keys (B, K, T, D) of the tail of each row; what is before the tail stays in its runs.

    Attributes:
        hidden: (B, 1, 1, T), minus infinity where a row's tail has not begun, else 0; None when all begin at once.
        num_tokens: Slots of the batch, left padding included, those of the present step too.
        own_values: The values that go with these keys: what attends must be given this very object.
    """

    runs: tuple[Run, ...]
    hidden: Tensor | None
    num_tokens: int
    own_values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class JoinedLayer(SpanCacheLayer):
    """The keys and values of a full layer for several rows, each at its own length.

    Runs stay where they are; the keys (1, K, T, D) and values of each row's tail are copied, with room for more tokens.
    """

    def __init__(
        self,
        span: LayerSpan,
        runs: Sequence[Run],
        tails: Sequence[tuple[Tensor, Tensor]],
        num_tokens: int,
        room: int,
    ) -> None:
        super().__init__(span)
        self.runs = tuple(runs)
        self.num_tokens = num_tokens
        lengths = [keys.shape[2] for keys, _ in tails]
        self.num_tail = max(lengths)
        buffers = []
        for part in range(2):
            like = tails[0][part]
            buffer = like.new_zeros((len(tails), like.shape[1], self.num_tail + room, like.shape[3]))
            for row, (tail, length) in enumerate(zip(tails, lengths, strict=True)):
                buffer[row, :, self.num_tail - length : self.num_tail] = tail[part][0]
            buffers.append(buffer)
        self.keys, self.values = buffers
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True
        self.hidden: Tensor | None = None
        if min(lengths) < self.num_tail:
            start = torch.tensor([self.num_tail - length for length in lengths], device=self.device)
            before = torch.arange(self.keys.shape[2], device=self.device) < start[:, None]
            self.hidden = torch.zeros(before.shape, dtype=self.dtype, device=self.device)
            self.hidden = self.hidden.masked_fill(before, -torch.inf)[:, None, None]

    @property
    def storages(self) -> dict[int, int]:
        found = [self.keys, self.values, *(states for run in self.runs for states in (run.keys, run.values))]
        return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new tokens, as many in each row; return what `joined_attention` takes."""
        first, num_new = self.num_tail, key_states.shape[2]
        if first + num_new > self.keys.shape[2]:
            raise SpanError(f"the room of a joined cache is used up after {self.num_tokens} tokens")
        self.keys[:, :, first : first + num_new] = key_states
        self.values[:, :, first : first + num_new] = value_states
        self.num_tail += num_new
        self.num_tokens += num_new
        keys = self.keys[:, :, : self.num_tail].as_subclass(JoinedKeys)
        keys.runs, keys.num_tokens = self.runs, self.num_tokens
        keys.hidden = None if self.hidden is None else self.hidden[..., : self.num_tail]
        keys.own_values = self.values[:, :, : self.num_tail]
        return keys, keys.own_values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        # The beams of a prompt stand side by side and read the same runs, so that only tails change places.
        self._each(lambda states: states[beam_idx.to(states.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.hidden is not None:
            self.hidden = self.hidden[indices.to(self.device)]
        chosen = indices.tolist()
        runs = []
        for run in self.runs:
            rows = [row for row, source in enumerate(chosen) if run.first <= source < run.stop]
            runs += [replace(run, first=first, stop=stop) for first, stop in _stretches(rows)]
        self.runs = tuple(runs)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.hidden is not None:
            self.hidden = self.hidden.repeat_interleave(repeats, dim=0)
        self.runs = tuple(replace(run, first=run.first * repeats, stop=run.stop * repeats) for run in self.runs)

    def fork(self, max_tokens: int = 0, copy: bool = False) -> SpanCacheLayer:
        raise SpanError("a joined cache cannot be forked")

    def reset(self) -> None:
        raise SpanError("a joined cache cannot be used again")


def _stretches(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return [first, stop) of each stretch of consecutive numbers."""
    starts = [0, *(at for at, (a, b) in enumerate(pairwise(rows), start=1) if b != a + 1), len(rows)]
    return [(rows[a], rows[b - 1] + 1) for a, b in pairwise(starts) if a < b]


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
    for index in range(len(joined.plan)):
        if not caches[0].layers[index].is_initialized:
            continue  # a layer that stores nothing
        layer = _join_layers([cache.layers[index] for cache in caches], lengths, room)
        layer.padding = None if padding is None else padding.to(layer.device)
        joined.layers[index] = layer
    return joined


def _join_layers(
    layers: Sequence[SpanCacheLayer | HeadSpansCacheLayer], lengths: Sequence[int], room: int
) -> SpanCacheLayer | HeadSpansCacheLayer:
    parts = [
        _join_full(part, max(lengths), room) if part[0].span.is_full else _join_copies(part, lengths, room)
        for part in zip(*(layer.parts for layer in layers), strict=True)
    ]
    span = layers[0].span
    return HeadSpansCacheLayer(span, parts) if isinstance(span, HeadSpans) else parts[0]


def _join_full(layers: Sequence[SpanCacheLayer], longest: int, room: int) -> SpanCacheLayer:
    readers: dict[tuple[int, int], list[int]] = {}
    pieces: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for row, layer in enumerate(layers):
        held = layer.num_tokens - layer.num_before
        for keys, values in (*layer.before, (layer.keys[:, :, :held], layer.values[:, :, :held])):
            name = keys.data_ptr(), keys.shape[2]
            if keys.shape[2]:
                readers.setdefault(name, []).append(row)
                pieces[name] = keys, values
    runs: list[Run] = []
    tails: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
    room_left = [TAIL_TOKENS] * len(layers)
    # The last of a row's own are the ends of its prompt, which are short.
    for name, rows in reversed(readers.items()):
        keys, values = pieces[name]
        if len(rows) == 1 and keys.shape[2] <= room_left[rows[0]]:
            tails[rows[0]].append((keys, values))
            room_left[rows[0]] -= keys.shape[2]
        else:
            for first, stop in _stretches(rows):
                place = max(
                    (run.place + run.num_pieces for run in runs if first < run.stop and run.first < stop), default=0
                )
                runs.append(Run(keys=keys, values=values, first=first, stop=stop, place=place))
    nothing = tuple(states[:, :, :0] for states in (layers[0].keys, layers[0].values))
    own = [tuple(torch.cat(part, dim=2) for part in zip(nothing, *parts, strict=True)) for parts in tails]
    return JoinedLayer(layers[0].span, runs, own, longest, room)  # type: ignore[arg-type]


def _join_copies(layers: Sequence[SpanCacheLayer], lengths: Sequence[int], room: int) -> SpanCacheLayer:
    """Copy the sinks and the ring of each row, or all its keys where none may be dropped."""
    span, longest = layers[0].span, max(lengths)
    sinks, ring, slots = span.sinks, span.num_recent, longest + room
    if ring is None:
        sinks, ring = 0, slots
    joined = SpanCacheLayer(span)
    joined.dtype, joined.device, joined.is_initialized = layers[0].dtype, layers[0].device, True
    joined.num_tokens, joined.has_sinks = longest, min(lengths) >= sinks
    slots = min(max(slots, sinks), sinks + ring)
    buffers = []
    for part in range(2):
        like = (layers[0].keys, layers[0].values)[part]
        buffer = like.new_zeros((len(layers), like.shape[1], slots, like.shape[3]))
        for row, (layer, length) in enumerate(zip(layers, lengths, strict=True)):
            runs = [run[part] for run in (*layer.before, (layer.keys, layer.values))]
            states, pad = torch.cat(runs, dim=2)[0] if layer.before else runs[0][0], longest - length
            first = min(sinks, length)
            buffer[row, :, :first] = states[:, :first]
            recent = torch.arange(max(first, length - ring), length, device=joined.device)
            buffer[row, :, sinks + (recent + pad - sinks) % ring] = states[:, sinks + (recent - sinks) % ring]
        buffers.append(buffer)
    joined.keys, joined.values = buffers
    return joined


def row_bytes(joined: SpanCache, row: int, copies: int = 1) -> int:
    """Return the bytes of keys and values that a row reads, or its copies; what is shared counts whole, once."""
    total = 0
    for part in (part for layer in joined.layers if layer.is_initialized for part in layer.parts):
        total += copies * ((part.keys.nbytes + part.values.nbytes) // len(part.keys))
        for run in getattr(part, "runs", ()):
            if run.first <= row < run.stop:
                total += run.keys.nbytes + run.values.nbytes
    return total


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
