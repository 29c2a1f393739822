"""Attention in a layer whose key/value heads see differently: each group of heads that see alike is a layer of its own.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from masformer.errors import SpanError
from masformer.plans.spans import HeadSpans, LayerSpan

# Attention of some heads: query, key, value, span, learned sinks -> (B, h, Tq, D).
Attend = Callable[[Tensor, Tensor, Tensor, LayerSpan, Tensor | None], Tensor]


class HeadKeys(Tensor):
    """The new tokens' keys of all heads.

    Attributes:
        parts: The (B, k, Tk, D) keys and values that each group sees.
        own_values: The new tokens' values: what attends must be given this very object.
    """

    parts: tuple[tuple[Tensor, Tensor], ...]
    own_values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def heads_of(states: Tensor, runs: Sequence[tuple[int, int]], size: int = 1, dim: int = 1) -> Tensor:
    """Return the states of runs of heads [first, stop), each of `size` entries; of a single run it is a view."""
    parts = [states.narrow(dim, first * size, (stop - first) * size) for first, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def attend_by_head(
    attend: Attend, query: Tensor, key: Tensor, value: Tensor, spans: HeadSpans, learned_sinks: Tensor | None
) -> Tensor:
    """Return (B, H, Tq, D) attention in which each key/value head has its own span."""
    if key.shape[1] != len(spans.heads):
        raise SpanError(f"a layer with spans of {len(spans.heads)} key/value heads got {key.shape[1]} of them")
    size = query.shape[1] // key.shape[1]
    outs: dict[int, Tensor] = {}
    for index, (span, runs) in enumerate(spans.groups.items()):
        keys, values = key.parts[index] if isinstance(key, HeadKeys) else (heads_of(x, runs) for x in (key, value))
        sinks = None if learned_sinks is None else heads_of(learned_sinks, runs, size, dim=0)
        out = attend(heads_of(query, runs, size), keys, values, span, sinks).transpose(1, 2)
        pieces = torch.split(out, [(stop - first) * size for first, stop in runs], dim=2)
        outs |= {first: piece for (first, _), piece in zip(runs, pieces, strict=True)}
    # In memory tokens before heads, as the output projection takes it.
    return torch.cat([outs[first] for first in sorted(outs)], dim=2).transpose(1, 2)
