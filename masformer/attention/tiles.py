"""Exact attention in small tiles that stay in a core's cache, forward and backward.

A tile is a few dozen consecutive queries, of all query heads that share a key/value head, and the keys they see. Its
scores are ordinary matrix products with a softmax between them, so little beyond the span is ever computed.

Queries are split into lanes of equal length. All lanes take one step at a time: a step is one tile a lane, and the
tiles of a step go through each product together. A lane has its own copy of the keys it will need, in the order
sinks, keys before its first query, its own keys. As a window moves on, the sinks are written over the keys that it has
left behind, so that what a tile sees is always one run of memory:

    step 0   S S S S k0 k1 k2 k3 k4 k5 ...        step 1   . . S S S S k2 k3 k4 k5 ...

Scores, softmax and sums are in fp32 for bf16 and fp16 too.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens (Tq of the queries, Tk of the keys), D head size
(of the values it may differ), N lanes at once, R queries a tile, S sinks, W columns of scores: the sinks, after a
learned sink if there is one, and the keys that some query of the tile sees.

Source: tiling and the backward pass, which computes the weights again from queries and keys, are those of
FlashAttention, arXiv 2205.14135, sections 3.1 and B.4, without the running softmax: a span is short enough for whole
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masformer.hardware import multiplies_bfloat16
from masformer.plans.layer_spans import Blocks, Full, LayerSpan, Window

# What `lanes_of` cuts into tiles.
TILED = (Full, Window, Blocks)

# Scores that a thread works on at once, and a GPU: about a second-level cache, and few launches.
_BYTES_A_THREAD = 5 * 2**18
_BYTES_ON_DEVICE = 2**26
# Rows of a product: enough for the matrix units, few enough that little is computed beyond the span.
_PRODUCT_ROWS = 128
_MIN_QUERIES, _MAX_QUERIES = 16, 96
# Where a query sees everything, rows are long and few at a time.
_CAUSAL_QUERIES = 128


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """How a query-key product becomes a score x: scaled, then softcap * tanh(x / softcap) if there is a `softcap`."""

    scale: float
    softcap: float | None = None

    def of(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (..., Tq, Tk) scores in fp32 at least."""
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * self.scale
        return scores if self.softcap is None else self.softcap * (scores / self.softcap).tanh()


def product_dtype(value: Tensor) -> torch.dtype:
    """Return the dtype in which weights are multiplied with values."""
    # fp16 products are dozens of times slower than fp32 on a CPU, and bf16 ones on a CPU without instructions for them.
    is_slow = value.device.type == "cpu" and (
        value.dtype == torch.float16 or (value.dtype == torch.bfloat16 and not multiplies_bfloat16())
    )
    return torch.float32 if is_slow else value.dtype


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Runs of queries that are worked through side by side.

    Attributes:
        first: Position of the first lane's first query.
        length: Queries a lane.
        stride: Positions from one lane to the next.
        rows: Queries a tile (R); the last of a lane may have fewer.
        before: Keys before a lane's first query that it sees, sinks not counted.
        slides: The first key seen moves on with the query (a window); else it is the same for the whole lane.
        sinks: Keys at the start of the sequence that are seen besides (S); they lie before the others.
    """

    first: int
    length: int
    stride: int
    count: int
    rows: int
    before: int
    slides: bool = False
    sinks: int = 0


def lanes_of(span: LayerSpan, start: int, stop: int, groups: int, device: torch.device) -> Iterator[Lanes]:
    """Yield lanes that hold each query at positions [start, stop) once; G query heads share a key/value head."""
    causal = span.num_causal
    seeing_all = stop if causal is None else min(stop, causal)
    if start < seeing_all:
        length = seeing_all - start
        yield Lanes(first=start, length=length, stride=length, count=1, rows=_CAUSAL_QUERIES, before=start)
        start = seeing_all
    if start >= stop:
        return
    recent, sinks = span.num_recent, span.sinks
    assert recent is not None
    rows = max(_MIN_QUERIES, min(_MAX_QUERIES, _PRODUCT_ROWS // groups, recent // 4) // 16 * 16)
    at_once = _lanes_at_once(groups * rows * (sinks + recent + rows) * 4, device)
    if isinstance(span, Window):
        # Lanes of equal length, and a short one of what is left.
        length = max((stop - start) // at_once, min(rows, stop - start))
        count = (stop - start) // length
        for first, many, some in ((start, length, count), (start + count * length, (stop - start) % length, 1)):
            if many:
                yield Lanes(
                    first=first,
                    length=many,
                    stride=many,
                    count=some,
                    rows=rows,
                    before=recent - 1,
                    slides=True,
                    sinks=sinks,
                )
        return
    assert isinstance(span, Blocks)
    block = span.block
    # The rest of a block that began earlier, whole blocks, the beginning of one that goes on.
    whole = min(-(-start // block) * block, stop)
    last = max(whole, stop // block * block)
    groups_of_blocks = [(first, min(at_once, (last - first) // block)) for first in range(whole, last, at_once * block)]
    for first, length, count in (
        (start, whole - start, 1),
        *((first, block, count) for first, count in groups_of_blocks),
        (last, stop - last, 1),
    ):
        if length:
            yield Lanes(
                first=first,
                length=length,
                stride=block,
                count=count,
                rows=rows,
                before=span.previous * block + first % block,
                sinks=sinks,
            )


def _lanes_at_once(num_bytes: int, device: torch.device) -> int:
    """Return how many tiles, whose scores take `num_bytes` each, are worked on together."""
    if device.type != "cpu":
        return max(1, _BYTES_ON_DEVICE // num_bytes)
    threads = torch.get_num_threads()
    return max(1, _BYTES_A_THREAD // num_bytes) * threads


def tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: LayerSpan,
    offset: int,
    skip: int,
    scores: ScoreRule,
    learned_sinks: Tensor | None = None,
) -> Tensor:
    """Return (B, H, Tq, D) attention under a span, of which the first `skip` queries are left to the caller.

    Keys are all positions in order, or the sinks and then a run that ends at the last query.
    """
    # Tokens before heads, as the projection after attention takes them.
    work = _Work(span=span, offset=offset, skip=skip, scores=scores)
    by_token: Tensor = _TileAttention.apply(query, key, value, learned_sinks, work)  # type: ignore[no-untyped-call]
    return by_token.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The arguments of `tile_attention` that are no tensors."""

    span: LayerSpan
    offset: int
    skip: int
    scores: ScoreRule


class _TileAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, learned_sinks: Tensor | None, work: _Work
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, learned_sinks)
        ctx.work = work
        batch, heads, length, _ = query.shape
        by_token = value.new_empty((batch, length, heads, value.shape[3]))
        out = by_token.transpose(1, 2)
        for lanes in _lanes(query, key, value, learned_sinks, work):
            for tile in lanes.steps():
                lanes.load(tile)
                lanes.rows_of(out, tile).copy_(lanes.outputs(tile, lanes.weights(tile)))
        return by_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Who calls it may be under autocast; its sums stay wide.
        with torch.autocast(grads[0].device.type, enabled=False):
            query, key, value, learned_sinks = ctx.saved_tensors
            return (*_gradients(grads[0].transpose(1, 2), query, key, value, learned_sinks, ctx.work), None)


def _gradients(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, learned_sinks: Tensor | None, work: _Work
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the four tensors from that of the output, (B, H, Tq, D)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    grad_query = torch.zeros_like(query)
    grad_key, grad_value = (torch.zeros_like(x, dtype=wide) for x in (key, value))
    grad_sinks = None if learned_sinks is None else torch.zeros_like(learned_sinks, dtype=wide)
    for lanes in _lanes(query, key, value, learned_sinks, work):
        # Of sinks and of keys apart, which share their places.
        of_keys, of_values = (
            (x.new_zeros((lanes.lead, x.shape[2]), dtype=wide), torch.zeros_like(x, dtype=wide))
            for x in (lanes.keys, lanes.values)
        )
        for tile in lanes.steps():
            lanes.load(tile)
            weights = lanes.weights(tile, keep_scores=True)
            of_outputs = lanes.rows_of(grad_out, tile).transpose(0, 1).flatten(1, 2).to(wide)
            lanes.add(of_values, tile, weights.transpose(1, 2) @ of_outputs)
            of_weights = of_outputs @ lanes.seen(lanes.values, tile).to(wide).transpose(1, 2)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, wide)
            if grad_sinks is not None:
                grad_sinks[lanes.heads] += lanes.by_head(of_scores)[..., 0].sum((1, 2))
            of_products = lanes.through_softcap(of_scores, tile)
            lanes.rows_of(grad_query, tile).copy_(lanes.by_head(of_products @ lanes.seen(lanes.keys, tile)))
            lanes.add(of_keys, tile, of_products.transpose(1, 2) @ lanes.queries_of(tile))
        lanes.give_back(of_keys, grad_key)
        lanes.give_back(of_values, grad_value)
    return (
        grad_query,
        grad_key.to(key.dtype),
        grad_value.to(value.dtype),
        None if grad_sinks is None or learned_sinks is None else grad_sinks.to(learned_sinks.dtype),
    )


def _lanes(query: Tensor, key: Tensor, value: Tensor, learned_sinks: Tensor | None, work: _Work) -> Iterator[_Lanes]:
    """Yield all lanes, those of one shape and one key/value head at a time; each overwrites what was there before."""
    groups = query.shape[1] // key.shape[1]
    stop = work.offset + query.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    narrow = product_dtype(value)
    for shape in lanes_of(work.span, work.offset + work.skip, stop, groups, query.device):
        lead = shape.sinks + (learned_sinks is not None)
        width = lead + shape.before + shape.length
        rows = shape.count * groups * shape.rows
        widest = lead + shape.before + (shape.rows if shape.slides else shape.length)
        products = query.new_empty(rows * widest, dtype=wide)
        buffers = {
            "keys": key.new_zeros((shape.count, width, key.shape[3]), dtype=wide),
            "values": value.new_zeros((shape.count, width, value.shape[3]), dtype=narrow),
            "queries": query.new_empty(rows * query.shape[3], dtype=wide),
            "products": products,
            "narrowed": products if narrow == wide else torch.empty_like(products, dtype=narrow),
            "results": value.new_empty(rows * value.shape[3], dtype=narrow),
        }
        minus = torch.full((shape.rows, shape.rows), -torch.inf, device=query.device, dtype=wide)
        hidden = torch.stack([minus.tril(-1), minus.triu(1)], dim=1)
        for row in range(len(query)):
            for head in range(key.shape[1]):
                heads = slice(head * groups, (head + 1) * groups)
                lanes = _Lanes(
                    shape=shape,
                    query=query,
                    row=row,
                    head=head,
                    heads=heads,
                    groups=groups,
                    first_query=shape.first - work.offset,
                    first_key=shape.first - shape.before - (stop - key.shape[2]),
                    lead=lead,
                    learned=None if learned_sinks is None else learned_sinks[heads, None],
                    how=work.scores,
                    hidden=hidden,
                    sinks=(key[row, head, : shape.sinks], value[row, head, : shape.sinks]),
                    **buffers,
                )
                lanes.keys[:, lead:] = lanes.copies_of(key)
                lanes.values[:, lead:] = lanes.copies_of(value)
                yield lanes


@dataclass(frozen=True, kw_only=True)
class _Lanes:
    """Lanes of one shape, of one row and key/value head, and the memory they work in. A tile is (start, rows).

    Attributes:
        lead: Columns before the keys: a learned sink and the sinks.
        hidden: (R, 2, R), -inf where a query does not see: among the first keys of a window, among the last keys.
        keys: (N, lead + before + length, D), fp32 at least.
        values: Likewise, in the dtype in which weights meet them.
    """

    shape: Lanes
    query: Tensor
    row: int
    head: int
    heads: slice
    groups: int
    first_query: int
    first_key: int
    lead: int
    learned: Tensor | None
    how: ScoreRule
    hidden: Tensor
    sinks: tuple[Tensor, Tensor]
    keys: Tensor
    values: Tensor
    queries: Tensor
    products: Tensor
    narrowed: Tensor
    results: Tensor

    def steps(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.shape.length, self.shape.rows):
            yield start, min(self.shape.rows, self.shape.length - start)

    def load(self, tile: tuple[int, int]) -> None:
        """Copy the tile's queries, and put the sinks before its keys."""
        rows = self.rows_of(self.query, tile)
        self.by_head(self.queries_of(tile)).copy_(rows)
        first = self.columns(tile).start
        for states, sinks in zip((self.keys, self.values), self.sinks, strict=True):
            states[:, first : first + self.lead - len(sinks)] = 0
            states[:, first + self.lead - len(sinks) : first + self.lead] = sinks

    def columns(self, tile: tuple[int, int]) -> slice:
        """Return which of a lane's keys the tile sees, those before the first key included."""
        start, rows = tile
        return slice(start if self.shape.slides else 0, self.lead + self.shape.before + start + rows)

    def seen(self, states: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return the view (N, W, D) of keys or values."""
        return states[:, self.columns(tile)]

    def room(self, buffer: Tensor, tile: tuple[int, int], size: int) -> Tensor:
        """Return the view (N, G R, size) of a flat buffer."""
        shape = (self.shape.count, self.groups * tile[1], size)
        return buffer[: shape[0] * shape[1] * shape[2]].view(shape)

    def queries_of(self, tile: tuple[int, int]) -> Tensor:
        return self.room(self.queries, tile, self.query.shape[-1])

    def rows_of(self, states: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return the view (G, N, R, D) of the tile's rows of (B, H, Tq, D)."""
        first, (_, rows), stride = self.first_query + tile[0], tile, self.shape.stride
        stop = first + (self.shape.count - 1) * stride + rows
        return states[self.row, self.heads, first:stop].unfold(1, rows, stride).transpose(2, 3)

    def copies_of(self, states: Tensor) -> Tensor:
        """Return the view (N, before + length, D) of (B, K, Tk, D); lanes overlap."""
        length = self.shape.before + self.shape.length
        stop = self.first_key + (self.shape.count - 1) * self.shape.stride + length
        return states[self.row, self.head, self.first_key : stop].unfold(0, length, self.shape.stride).transpose(1, 2)

    def by_head(self, states: Tensor) -> Tensor:
        """Return (G, N, R, X) of (N, G R, X)."""
        return states.view(len(states), self.groups, -1, states.shape[2]).transpose(0, 1)

    def weights(self, tile: tuple[int, int], keep_scores: bool = False) -> Tensor:
        """Return (N, G R, W) attention weights, over the scores unless these are kept."""
        keys = self.seen(self.keys, tile)
        scores = self.room(self.products, tile, keys.shape[1])
        torch.baddbmm(scores, self.queries_of(tile), keys.transpose(1, 2), beta=0, alpha=self.how.scale, out=scores)
        if self.how.softcap is not None:
            scores.div_(self.how.softcap).tanh_().mul_(self.how.softcap)
        if self.learned is not None:
            self.by_head(scores)[..., 0] = self.learned[:, None]
        self.hide(scores, tile[1])
        return torch.softmax(scores, -1, out=torch.empty_like(scores) if keep_scores else scores)

    def hide(self, scores: Tensor, rows: int) -> None:
        """Set what a query does not see to -inf: a triangle of the last keys and, in a window, one of the first."""
        many, width = scores.shape[0] * self.groups, scores.shape[2]
        apart = scores.view(many, rows, width)
        hidden = self.hidden[:rows, :, :rows]
        distance = width - self.lead - rows
        if self.shape.slides and distance >= rows:
            # Both triangles in one call: they are as far apart in each row.
            ends = apart.as_strided(
                (many, rows, 2, rows), (rows * width, width, distance, 1), apart.storage_offset() + self.lead
            )
            ends += hidden
            return
        if self.shape.slides:
            apart[..., self.lead : self.lead + rows] += hidden[:, 0]
        apart[..., distance + self.lead :] += hidden[:, 1]

    def outputs(self, tile: tuple[int, int], weights: Tensor) -> Tensor:
        """Return (G, N, R, D)."""
        if weights.dtype != self.narrowed.dtype:
            weights = self.room(self.narrowed, tile, weights.shape[-1]).copy_(weights)
        results = self.room(self.results, tile, self.values.shape[-1])
        return self.by_head(torch.bmm(weights, self.seen(self.values, tile), out=results))

    def through_softcap(self, grad: Tensor, tile: tuple[int, int]) -> Tensor:
        """Return the gradient of query-key products from that of the scores, which `weights` has kept."""
        if self.how.softcap is not None:
            scores = self.room(self.products, tile, grad.shape[-1])
            # Hidden scores are infinite, and have no gradient.
            grad = grad * (1 - (scores / self.how.softcap).square()).nan_to_num(0, 0, 0)
        return grad * self.how.scale

    def add(self, total: tuple[Tensor, Tensor], tile: tuple[int, int], states: Tensor) -> None:
        """Add (N, W, D) to the sums over (lead, D) and over (N, lead + before + length, D)."""
        columns = self.columns(tile)
        total[0].add_(states[:, : self.lead].sum(0))
        total[1][:, columns.start + self.lead : columns.stop] += states[:, self.lead :]

    def give_back(self, total: tuple[Tensor, Tensor], grad: Tensor) -> None:
        """Add those sums to (B, K, Tk, D)."""
        ours, sinks = grad[self.row, self.head], self.shape.sinks
        ours[:sinks] += total[0][self.lead - sinks :]
        for lane, states in enumerate(total[1][:, self.lead :]):
            first = self.first_key + lane * self.shape.stride
            ours[first : first + len(states)] += states
