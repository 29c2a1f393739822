"""Which stretches of packed queries see which stretches of packed keys, call by call of `varlen_attn`.

A call knows full, causal and windowed attention of sequences. Any other span is a few calls over the same queries,
whose outputs are merged by their sums of exponentials (`masformer.attention.cuda`):

| span | calls |
| --- | --- |
| full, or every query sees all before it | causal |
| window | window |
| ... with sinks | and: later queries to the sinks; the few queries that are just leaving the sinks behind, causal |
| blocks | each block, causal; one for each of the previous blocks; later queries to the sinks |

Rows, left padding and packed documents are sequences of one call. Queries that see nothing in a call are a sequence
without keys, and keys that nobody sees are one without queries, so that nothing is copied to leave something out.
On the CPU, `masformer.attention.kernels` attends in the same pieces one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from masformer.attention.visibility import cached_slots
from masformer.plans.layer_spans import Blocks, LayerSpan, Window

EVERYTHING, CAUSAL = (-1, -1), (-1, 0)  # windows


class Piece(NamedTuple):
    """One sequence among packed ones; its keys are all positions in order, or the sinks and then a run to the last."""

    query: int
    num_queries: int
    key: int
    num_keys: int
    position: int  # of the first query

    @property
    def gap(self) -> int:
        """Return the positions between the sinks and the run."""
        return self.position + self.num_queries - self.num_keys


class Stretch(NamedTuple):
    """Consecutive queries, and the consecutive keys that they see in one call."""

    query: int
    num_queries: int
    key: int
    num_keys: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call is given besides queries, keys and values.

    Attributes:
        window: Keys to the left and to the right that are seen; -1 is all.
        cu_queries: (N + 1,) where the queries of each sequence begin, and end.
        cu_keys: (N + 1,) where the keys of each sequence begin, and end.
        most: Most queries and most keys of a sequence.
        queries: Indices of the packed queries that take part; None is all in order.
        keys: Indices of the packed keys that take part; None is all in order.
    """

    window: tuple[int, int]
    cu_queries: Tensor
    cu_keys: Tensor
    most: tuple[int, int]
    queries: Tensor | None = None
    keys: Tensor | None = None


def pieces_of(starts: Sequence[Sequence[int]], length: int, num_keys: int, step: int, offset: int) -> Iterator[Piece]:
    """Yield the sequences of each row, which begin at some of its tokens; on a cache it is one that begins at 0."""
    for row, firsts in enumerate(starts):
        for first, stop in zip(firsts, [*firsts[1:], length], strict=True):
            count = stop - first
            yield Piece(row * length + first, count, row * step + first, num_keys if offset else count, offset)


# All keys' indices: kept for the spans of a pass.
@functools.lru_cache(maxsize=8)
def kept_pieces(
    span: LayerSpan, offset: int, length: int, padding: tuple[int, ...], step: int, device: torch.device
) -> tuple[tuple[Piece, ...], Tensor]:
    """Return the sequences of padded rows on a cache, and the indices of the packed keys that are not padding."""
    slots = cached_slots(span, offset, length, torch.tensor(padding), torch.device("cpu")).expand(len(padding), -1)
    pieces, indices, at = [], [], 0
    for row, pad in enumerate(padding):
        kept = (slots[row] >= pad).nonzero().flatten()
        first = min(max(pad - offset, 0), length)
        pieces.append(Piece(row * length + first, length - first, at, len(kept), max(offset - pad, 0)))
        indices.append(kept + row * step)
        at += len(kept)
    return tuple(pieces), torch.cat(indices).to(device)


@functools.lru_cache(maxsize=64)
def calls_of(
    span: LayerSpan, pieces: tuple[Piece, ...], num_queries: int, num_keys: int, device: torch.device
) -> tuple[Call, ...]:
    """Return the calls that together are attention under a span; the first is about all queries."""
    pieces = tuple(piece for piece in pieces if piece.num_queries)

    def call(stretches: Iterable[Stretch], window: tuple[int, int], **gathered: bool) -> Call:
        return call_of(tuple(stretches), window, num_queries, num_keys, device, **gathered)

    causal = span.num_causal
    if causal is None or all(piece.position + piece.num_queries <= causal for piece in pieces):
        return (call((Stretch(*piece[:4]) for piece in pieces), CAUSAL),)
    if isinstance(span, Window):
        found = [call((_run(piece, span) for piece in pieces), (span.span - 1, 0))]
        leaving = [stretch for piece in pieces for stretch in _leaving(piece, span)]
        if leaving:
            found.append(call(leaving, CAUSAL, gather_queries=True, gather_keys=True))
    else:
        assert isinstance(span, Blocks)
        found = [call(_blocks(pieces, span.block, 0), CAUSAL)]
        found += [call(_blocks(pieces, span.block, back), EVERYTHING) for back in range(1, span.previous + 1)]
    later = [stretch for piece in pieces for stretch in _later(piece, span)]
    if later:
        found.append(call(later, EVERYTHING, gather_keys=True))
    return tuple(found)


def _run(piece: Piece, span: Window) -> Stretch:
    """Return all queries and the keys that are consecutive up to the last."""
    skipped = span.sinks if piece.gap else 0
    return Stretch(piece.query, piece.num_queries, piece.key + skipped, piece.num_keys - skipped)


def _leaving(piece: Piece, span: Window) -> Iterator[Stretch]:
    """Yield the queries whose window has left some sinks but not all, and the sinks up to the last that it has left."""
    first = max(span.span, piece.position)
    stop = min(span.span + span.sinks, piece.position + piece.num_queries)
    if first < stop:
        yield Stretch(piece.query + first - piece.position, stop - first, piece.key, stop - span.span)


def _blocks(pieces: Iterable[Piece], block: int, back: int) -> Iterator[Stretch]:
    """Yield the queries of each block, and the keys of the block so many before it: of its own, those up to them."""
    for piece in pieces:
        end = piece.position + piece.num_queries
        for start in range(piece.position // block * block, end, block):
            first, stop = max(start, piece.position), min(start + block, end)
            seen = start - back * block
            if seen >= 0:
                yield Stretch(
                    piece.query + first - piece.position,
                    stop - first,
                    piece.key + seen - piece.gap,
                    block if back else stop - start,
                )


def _later(piece: Piece, span: Window | Blocks) -> Iterator[Stretch]:
    """Yield queries, and the sinks that they see in no other call: all of them, or of blocks those left behind."""
    end = piece.position + piece.num_queries
    first = piece.position
    if isinstance(span, Blocks):
        for start in range(piece.position // span.block * span.block, end, span.block):
            left = start - span.previous * span.block
            if left >= span.sinks:
                first = max(start, piece.position)
                break
            stop = min(start + span.block, end)
            if left > 0:
                yield Stretch(piece.query + first - piece.position, stop - first, piece.key, left)
            first = stop
    else:
        first = max(span.span + span.sinks, piece.position)
    if first < end and span.sinks:
        yield Stretch(piece.query + first - piece.position, end - first, piece.key, span.sinks)


# Making numbers on a device takes longer than a call, and all layers of a span make the same.
@functools.lru_cache(maxsize=256)
def call_of(
    stretches: tuple[Stretch, ...],
    window: tuple[int, int],
    num_queries: int,
    num_keys: int,
    device: torch.device,
    *,
    gather_queries: bool = False,
    gather_keys: bool = False,
) -> Call:
    """Return the call in which stretches see their keys; of what is not gathered, gaps are sequences too."""
    queries = keys = None
    if gather_queries:
        queries = _indices((stretch.query, stretch.num_queries) for stretch in stretches)
    if gather_keys:
        keys = _indices((stretch.key, stretch.num_keys) for stretch in stretches)
    cu_queries, cu_keys = [0], [0]
    for stretch in stretches:
        if not gather_queries and stretch.query > cu_queries[-1]:
            cu_queries.append(stretch.query)
            cu_keys.append(cu_keys[-1])
        if not gather_keys and stretch.key > cu_keys[-1]:
            cu_queries.append(cu_queries[-1])
            cu_keys.append(stretch.key)
        cu_queries.append(cu_queries[-1] + stretch.num_queries)
        cu_keys.append(cu_keys[-1] + stretch.num_keys)
    # What is left over at the end.
    cu_queries += [len(queries) if queries is not None else num_queries] * 2
    cu_keys += [cu_keys[-1], len(keys) if keys is not None else num_keys]
    most = (_most(cu_queries), _most(cu_keys))

    def on_device(numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=device)

    return Call(
        window=window,
        cu_queries=on_device(cu_queries, torch.int32),
        cu_keys=on_device(cu_keys, torch.int32),
        most=most,
        queries=None if queries is None else on_device(queries, torch.long),
        keys=None if keys is None else on_device(keys, torch.long),
    )


def _most(starts: Sequence[int]) -> int:
    return max(stop - start for start, stop in pairwise(starts))


def _indices(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return the numbers of all ranges, each given by its first number and its length."""
    return [number for first, count in ranges for number in range(first, first + count)]
