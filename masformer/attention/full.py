"""The keys of a layer that keeps all of them: of one text, of a fork that reads others', of rows that share some.

Prompts that begin alike were filled as forks of one cache. The keys of the common beginning are one run of memory;
while a batch decodes, the queries of all rows that read a run become the rows of one product, and each row merges its
runs by their sums of exponentials (`masformer.attention.joined`). Only what is short and belongs to one row alone is
copied, into a tail where each step then adds a token.

Shapes: B rows, K key/value heads, T tokens, D head size.

Source: one product for all queries behind a common beginning is Hydragen's (arXiv 2402.05099, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from masformer.attention.layers import GROWTH_TOKENS, KeyLayer, Seen, storages_of
from masformer.errors import SpanError
from masformer.plans.layer_spans import LayerSpan, stretches

if TYPE_CHECKING:
    from masformer.attention.cuda_joined import Packed
    from masformer.attention.joined import Listed

# Tokens of a row's own runs that are copied into its tail: cheaper than products of their own at each step.
TAIL_TOKENS = 512
# Keys of a half from which on a run is read as two halves side by side: few heads are soon done, and then the last of
# them keeps one thread of a CPU while the others wait.
_MIN_HALF = 256


class FullLayer(KeyLayer):
    """Every key of a text, in a buffer that grows by steps; of a fork, those that it has written itself."""

    def __init__(self, span: LayerSpan, max_tokens: int = 0) -> None:
        super().__init__(span, max_tokens)
        # Keys and values (B, K, T, D) that other caches wrote.
        self.before: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def num_before(self) -> int:
        """Return the tokens whose keys another cache wrote."""
        return sum(keys.shape[2] for keys, _ in self.before)

    @property
    def runs(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the keys and values that hold tokens: those of others, then its own."""
        held = self.num_tokens - self.num_before
        return (*self.before, (self.keys[:, :, :held], self.values[:, :, :held]))

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Return copies of all keys and values in one piece."""
        keys, values = (torch.cat(states, dim=2) for states in zip(*self.runs, strict=True))
        return keys, values

    @property
    def storages(self) -> dict[int, int]:
        return storages_of([states for pair in self.before for states in pair]) | super().storages

    def fork(self, max_tokens: int = 0) -> Self:
        other = self.like(max_tokens)
        if self.is_initialized:
            own = self.runs[-1]
            other.before = self.runs if own[0].shape[2] else self.before
            other.keys, other.values = (x[:, :, :0].clone() for x in own)
        return other

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new keys and values; return its own, those of others are `seen` besides."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.num_before
        first, held = self.num_tokens - before, self.num_tokens - before + key_states.shape[2]
        room = self.keys.shape[2]
        if held > room:
            self.grow(max(held, self.max_tokens - before, room + GROWTH_TOKENS if room else 0))
        self.num_tokens += key_states.shape[2]
        self.keys[:, :, first:held], self.values[:, :, first:held] = key_states, value_states
        keys, values = self.keys[:, :, :held], self.values[:, :, :held]
        self.seen = Seen(value=values, runs=self.before) if self.before else None
        return keys, values

    @classmethod
    def join(cls, layers: Sequence[Self], lengths: Sequence[int], room: int) -> KeyLayer:
        if layers[0].span.is_full:
            return _joined(layers, max(lengths), room)
        # A pattern that hides keys which it must keep.
        rows = layers[0].like()
        rows.num_tokens = max(lengths)
        rows.keys, rows.values = _aligned([layer.whole for layer in layers], room)
        return rows

    def row(self, row: int, padding: int) -> FullLayer:
        alone = self.like()
        alone.num_tokens, alone.padding = self.num_tokens - padding, None
        alone.keys, alone.values = (x[row : row + 1, :, padding : self.num_tokens] for x in (self.keys, self.values))
        return alone

    def reset(self) -> None:
        super().reset()
        self.before = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        super().each(change)
        self.before = tuple((change(keys), change(values)) for keys, values in self.before)


class LatentLayer(FullLayer):
    """What a model computes its keys or values from, at each step anew: it must get all of it at once."""

    def fork(self, max_tokens: int = 0) -> Self:
        other = self.like(max_tokens)
        if self.is_initialized:
            other.keys, other.values = self.whole
        return other

    @classmethod
    def join(cls, layers: Sequence[Self], lengths: Sequence[int], room: int) -> KeyLayer:
        raise SpanError("rows whose keys are computed at each step anew do not join")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Keys (P, K, T / P, D) and values of P pieces that rows [first, stop) see whole.

    The pieces of a row's runs have places of their own, these from `place` on.
    """

    keys: Tensor
    values: Tensor
    first: int
    stop: int
    place: int

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Return views (1, K, T, D) of keys and values; the pieces lie one after another."""
        pieces, heads, length, _ = self.keys.shape
        keys, values = (
            x.as_strided((1, heads, pieces * length, x.shape[3]), (0, *x.stride()[1:]))
            for x in (self.keys, self.values)
        )
        return keys, values


class JoinedLayer(KeyLayer):
    """The keys and values of a full layer for several rows, each at its own length.

    Runs stay where they are; the keys (1, K, T, D) and values of each row's tail are copied, with room for more tokens.

    Attributes:
        hidden: (B, 1, 1, T), minus infinity where a row's tail has not begun, else 0; None when all begin at once.
        packed: The runs as a GPU reads them, once it has.
        listed: The runs as `simd` reads them, once it has.
    """

    packed: Packed | None = None
    listed: Listed | None = None

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
        self._num_before = num_tokens - max(lengths)
        self.keys, self.values = _aligned(tails, room)
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True
        self.hidden: Tensor | None = None
        if min(lengths) < self.num_tail:
            start = torch.tensor([self.num_tail - length for length in lengths], device=self.device)
            before = torch.arange(self.keys.shape[2], device=self.device) < start[:, None]
            self.hidden = torch.zeros(before.shape, dtype=self.dtype, device=self.device)
            self.hidden = self.hidden.masked_fill(before, -torch.inf)[:, None, None]

    @property
    def num_tail(self) -> int:
        """Return the tokens of the longest tail."""
        return self.num_tokens - self._num_before

    def hidden_of(self, keys: Tensor) -> Tensor | None:
        """Return (B or 1, 1, 1, T), minus infinity where the handed keys of a tail hold no token, else 0, or None."""
        hidden = None if self.hidden is None else self.hidden[..., : keys.shape[2]]
        if self.place is None:
            return hidden
        hidden = keys.new_zeros((1, 1, 1, keys.shape[2])) if hidden is None else hidden
        return hidden.masked_fill(torch.arange(keys.shape[2], device=keys.device) > self.place.slot, -torch.inf)

    @property
    def storages(self) -> dict[int, int]:
        states = [states for run in self.runs for states in (run.keys, run.values)]
        if self.packed is not None and (runs := self.packed.runs) is not None:
            states += [runs.keys, runs.values]
        return storages_of(states) | super().storages

    def row_bytes(self, row: int, copies: int = 1) -> int:
        read = [run for run in self.runs if run.first <= row < run.stop]
        return super().row_bytes(row, copies) + sum(run.keys.nbytes + run.values.nbytes for run in read)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new tokens, as many in each row; return the tails, the runs are `seen` besides."""
        first, num_new = self.num_tail, key_states.shape[2]
        if first + num_new > self.keys.shape[2]:
            raise SpanError(f"the room of a joined cache is used up after {self.num_tokens} tokens")
        if self.place is not None:
            self.put(self.place, (key_states, value_states))
            keys, values = self.keys, self.values
        else:
            self.keys[:, :, first : first + num_new] = key_states
            self.values[:, :, first : first + num_new] = value_states
            self.num_tokens += num_new
            keys, values = (x[:, :, : self.num_tail] for x in (self.keys, self.values))
        self.seen = Seen(value=values, joined=self)
        return keys, values

    def next_place(self, most_padding: int) -> tuple[int, int, int | None] | None:
        return self.num_tail, 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        # The beams of a prompt stand side by side and read the same runs, so that only tails change places.
        self.each(lambda states: states[beam_idx.to(states.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.hidden is not None:
            self.hidden = self.hidden[indices.to(self.device)]
        chosen = indices.tolist()
        runs = []
        for run in self.runs:
            rows = [row for row, source in enumerate(chosen) if run.first <= source < run.stop]
            runs += [replace(run, first=first, stop=stop) for first, stop in stretches(rows)]
        self.runs, self.packed, self.listed = tuple(runs), None, None

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.hidden is not None:
            self.hidden = self.hidden.repeat_interleave(repeats, dim=0)
        self.runs = tuple(replace(run, first=run.first * repeats, stop=run.stop * repeats) for run in self.runs)
        self.packed = self.listed = None

    def fork(self, max_tokens: int = 0) -> Self:
        raise SpanError("a joined cache cannot be forked")

    def row(self, row: int, padding: int) -> FullLayer:
        begin = 0 if self.hidden is None else int(self.hidden[row].count_nonzero())
        alone = FullLayer(self.span)
        alone.dtype, alone.device, alone.is_initialized = self.dtype, self.device, True
        alone.num_tokens = self.num_tokens - padding
        alone.before = tuple(run.whole for run in self.runs if run.first <= row < run.stop)
        alone.keys, alone.values = (x[row : row + 1, :, begin : self.num_tail] for x in (self.keys, self.values))
        return alone

    @classmethod
    def join(cls, layers: Sequence[Self], lengths: Sequence[int], room: int) -> KeyLayer:
        raise SpanError("a joined cache cannot be joined again; `split` it before")

    def reset(self) -> None:
        raise SpanError("a joined cache cannot be used again")


def _aligned(rows: Sequence[tuple[Tensor, Tensor]], room: int) -> list[Tensor]:
    """Return buffers of keys and values (B, K, longest + room, D) in which all rows (1, K, T, D) end side by side."""
    longest = max(keys.shape[2] for keys, _ in rows)
    buffers = []
    for states in zip(*rows, strict=True):
        buffer = states[0].new_zeros((len(rows), states[0].shape[1], longest + room, states[0].shape[3]))
        for row, own in enumerate(states):
            buffer[row, :, longest - own.shape[2] : longest] = own[0]
        buffers.append(buffer)
    return buffers


def _joined(layers: Sequence[FullLayer], longest: int, room: int) -> JoinedLayer:
    readers: dict[tuple[int, int], list[int]] = {}
    pieces: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for row, layer in enumerate(layers):
        for keys, values in layer.runs:
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
            continue
        if keys.shape[2] >= 2 * _MIN_HALF:
            if keys.shape[2] % 2:  # the last key would be a product of its own
                for row in rows:
                    tails[row].append((keys[:, :, -1:], values[:, :, -1:]))
            half = keys.shape[2] // 2
            keys, values = (x[0, :, : 2 * half].unfold(1, half, half).permute(1, 0, 3, 2) for x in (keys, values))
        for first, stop in stretches(rows):
            beside = [run.place + len(run.keys) for run in runs if first < run.stop and run.first < stop]
            place = max(beside, default=0)
            runs.append(Run(keys=keys, values=values, first=first, stop=stop, place=place))
    nothing = tuple(states[:, :, :0] for states in (layers[0].keys, layers[0].values))
    own = [tuple(torch.cat(part, dim=2) for part in zip(nothing, *parts, strict=True)) for parts in tails]
    return JoinedLayer(layers[0].span, runs, own, longest, room)  # type: ignore[arg-type]
