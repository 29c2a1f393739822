"""Attention and cache of a layer whose key/value heads see differently: each group that sees alike is one of its own.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from masformer.attention.layers import KeyLayer, Seen, Several
from masformer.errors import SpanError
from masformer.plans.spans import HeadSpans, LayerSpan

# Attention of some heads: query, key, value, span, learned sinks, what is seen besides -> (B, h, Tq, D).
Attend = Callable[[Tensor, Tensor, Tensor, LayerSpan, Tensor | None, Seen | None], Tensor]


class HeadsLayer(Several):
    """The keys and values of one layer whose key/value heads have spans of their own: a part for each group."""

    span: HeadSpans

    def __init__(self, span: HeadSpans, parts: Sequence[KeyLayer]) -> None:
        super().__init__()
        self.span = span
        self.members = self.parts = tuple(parts)
        self.is_initialized = all(part.is_initialized for part in parts)

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        return self.parts[0].num_tokens

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def fork(self, max_tokens: int = 0) -> HeadsLayer:
        return HeadsLayer(self.span, [part.fork(max_tokens) for part in self.parts])

    @classmethod
    def join(cls, layers: Sequence[HeadsLayer], lengths: Sequence[int], room: int) -> HeadsLayer:
        groups = zip(*(layer.parts for layer in layers), strict=True)
        return cls(layers[0].span, [type(group[0]).join(group, lengths, room) for group in groups])

    def row(self, row: int, padding: int) -> HeadsLayer:
        return HeadsLayer(self.span, [part.row(row, padding) for part in self.parts])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        for part, runs in zip(self.parts, self.span.groups.values(), strict=True):
            part.lazy_initialization(heads_of(key_states, runs), heads_of(value_states, runs))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, D) new keys and values; return these, of which each group's are `seen` besides."""
        if key_states.shape[1] != len(self.span.heads):
            raise SpanError(
                f"a cache for spans of {len(self.span.heads)} key/value heads got {key_states.shape[1]} of them"
            )
        parts = []
        for part, runs in zip(self.parts, self.span.groups.values(), strict=True):
            keys, values = part.update(heads_of(key_states, runs), heads_of(value_states, runs))
            parts.append((keys, values, part.seen))
        self.seen = Seen(value=value_states, parts=tuple(parts))
        self.is_initialized = True
        return key_states, value_states

    def reset(self) -> None:
        super().reset()
        self.is_initialized = False


def heads_of(states: Tensor, runs: Sequence[tuple[int, int]], size: int = 1, dim: int = 1) -> Tensor:
    """Return the states of runs of heads [first, stop), each of `size` entries; of a single run it is a view."""
    parts = [states.narrow(dim, first * size, (stop - first) * size) for first, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def attend_by_head(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: HeadSpans,
    learned_sinks: Tensor | None,
    seen: Seen | None = None,
) -> Tensor:
    """Return (B, H, Tq, D) attention in which each key/value head has its own span."""
    if key.shape[1] != len(spans.heads):
        raise SpanError(f"a layer with spans of {len(spans.heads)} key/value heads got {key.shape[1]} of them")
    size = query.shape[1] // key.shape[1]
    outs: dict[int, Tensor] = {}
    for index, (span, runs) in enumerate(spans.groups.items()):
        keys, values, besides = seen.parts[index] if seen else (heads_of(key, runs), heads_of(value, runs), None)
        sinks = None if learned_sinks is None else heads_of(learned_sinks, runs, size, dim=0)
        out = attend(heads_of(query, runs, size), keys, values, span, sinks, besides).transpose(1, 2)
        pieces = torch.split(out, [(stop - first) * size for first, stop in runs], dim=2)
        outs |= {first: piece for (first, _), piece in zip(runs, pieces, strict=True)}
    # In memory tokens before heads, as the output projection takes it.
    return torch.cat([outs[first] for first in sorted(outs)], dim=2).transpose(1, 2)
