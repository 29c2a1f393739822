"""Decoding steps on CUDA of rows that read common runs of keys: two calls of `varlen_attn`, whatever there is to read.

The runs of all rows lie one after another, cut into pieces. A piece and the queries of the rows that read it are a
sequence of one call, the tails of the rows are those of another, and each row merges what is its own. Pieces begin at
fixed places of a run, so that a row's result does not depend on who else reads it, and so that a long run keeps more
than a few processors busy.

Nothing waits for the device, and the shapes are the same at each step but for the length of the tails; of a pinned
cache (`SpanCache.pin`) that is a number on the device.

Shapes: B rows, H query heads, K key/value heads, R = H / K * Tq queries of a key/value head, T tokens (Tq of the
queries), D head size, P pieces of a row at most, M pairs of a piece and a row that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from masformer.attention.calls import CAUSAL, EVERYTHING, Call
from masformer.attention.cuda import head_size_of, packed_states, raw_attention
from masformer.attention.full import JoinedLayer, Run

# Keys of a piece: enough for a processor, few enough that a document of some thousands is work for many of them.
PIECE_KEYS = 1024


@dataclass(frozen=True, kw_only=True)
class PackedRuns:
    """The runs of a batch, and which rows read which piece.

    Attributes:
        keys: (N, K, D), of all runs; a copy unless there is one run.
        values: (N, K, D).
        rows: (M,) the row of each pair.
        starts: (S + 1,) the first pair of each piece, and the end.
        cu_keys: (S + 1,) where the keys of each piece begin, and end.
        most: Rows that read a piece, and its keys, at most.
        pairs: (B, P) the pairs of each row; rows that have fewer repeat any.
        hidden: (1, B, P, 1) minus infinity where that is so, else 0.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    starts: Tensor
    cu_keys: Tensor
    most: tuple[int, int]
    pairs: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What the steps of a batch read besides the tails.

    Attributes:
        runs: None where no row has any.
        begin: (B,) where each row's tail begins; None is at 0.
    """

    runs: PackedRuns | None
    begin: Tensor | None


def pack(joined: JoinedLayer) -> Packed:
    """Return what the steps of a batch read, made at its first step and kept until its rows change."""
    if joined.packed is None:
        begin = None if joined.hidden is None else (joined.hidden[:, 0, 0] != 0).sum(dim=-1, dtype=torch.int32)
        runs = _packed_runs(joined.runs, len(joined.keys)) if joined.runs else None
        joined.packed = Packed(runs=runs, begin=begin)
    return joined.packed


def _packed_runs(runs: Sequence[Run], num_rows: int) -> PackedRuns:
    """Return the runs of so many rows, each once, in pieces."""
    readers: dict[tuple[int, ...], list[int]] = {}
    found: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for run in runs:
        name = run.keys.data_ptr(), *run.keys.shape
        readers.setdefault(name, []).extend(range(run.first, run.stop))
        found[name] = run.keys, run.values
    size = head_size_of(runs[0].keys, runs[0].values)
    packed = [packed_states(keys, values, size) for keys, values in found.values()]
    first, rows, counts, cu_keys = 0, list[int](), list[int](), [0]
    pairs: list[list[int]] = [[] for _ in range(num_rows)]
    for (keys, _, step), (parts, _), of_run in zip(packed, found.values(), readers.values(), strict=True):
        for part in range(len(parts)):
            stop = first + part * step + parts.shape[2]
            if first + part * step > cu_keys[-1]:  # unused room between two parts
                counts.append(0)
                cu_keys.append(first + part * step)
            while cu_keys[-1] < stop:
                for row in of_run:
                    pairs[row].append(len(rows))
                    rows.append(row)
                counts.append(len(of_run))
                cu_keys.append(min(cu_keys[-1] + PIECE_KEYS, stop))
        first += len(keys)
    most = max(map(len, pairs))
    device = packed[0][0].device
    hidden = torch.tensor([[0.0] * len(own) + [-torch.inf] * (most - len(own)) for own in pairs])
    if len(packed) == 1:
        keys, values, _ = packed[0]
    else:
        keys, values = (torch.cat([each[part] for each in packed]) for part in (0, 1))  # type: ignore[misc]
    return PackedRuns(
        keys=keys,
        values=values,
        rows=torch.tensor(rows).to(device),
        starts=torch.tensor([0, *accumulate(counts)], dtype=torch.int32).to(device),
        cu_keys=torch.tensor(cu_keys, dtype=torch.int32).to(device),
        most=(max(counts), max(stop - start for start, stop in pairwise(cu_keys))),
        pairs=torch.tensor([own + [0] * (most - len(own)) for own in pairs]).to(device),
        hidden=hidden[None, :, :, None].to(device),
    )


def attend_joined(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    joined: JoinedLayer,
    scale: float,
    learned_sinks: Tensor | None,
) -> Tensor:
    """Return (B, H, Tq, D): each row attends to its runs and its tail.

    Args:
        key: (B, K, T, D) of the tails, the new tokens' included.
    """
    runs, begin = (packed := pack(joined)).runs, packed.begin
    batch, heads, length, _ = query.shape
    kv_heads, size = key.shape[1], head_size_of(query, value)
    query = F.pad(query, (0, size - query.shape[3])) if query.shape[3] < size else query
    # The queries of one key/value head side by side: (B, R, K, D).
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, length, size)
    folded = grouped.permute(0, 2, 3, 1, 4).reshape(batch, -1, kv_heads, size)
    num_tail = key.shape[2] if joined.place is None else joined.place.slot.int() + 1
    out, total = _tails(query, folded, key, value, begin, num_tail, scale)
    if runs is not None or learned_sinks is not None:
        parts, totals = [out.unsqueeze(1)], [total.unsqueeze(2)]  # (B, 1, R, K, D), (K, B, 1, R)
        if runs is not None:
            found, sums = _whole(folded, runs, scale)
            parts.append(found[runs.pairs])
            totals.append(sums[:, runs.pairs] + runs.hidden.to(sums.dtype))
        if learned_sinks is not None:
            sinks = learned_sinks.to(total.dtype).view(kv_heads, 1, 1, -1).repeat_interleave(length, dim=3)
            totals.append(sinks.expand(-1, batch, -1, -1))
        shares = torch.cat(totals, dim=2).softmax(dim=2)[:, :, : sum(part.shape[1] for part in parts)]
        out = (torch.cat(parts, dim=1) * shares.permute(1, 2, 3, 0).unsqueeze(-1)).sum(dim=1)
    out = out.view(batch, -1, length, kv_heads, size).permute(0, 3, 1, 2, 4).reshape(batch, heads, length, size)
    return out[..., : value.shape[3]].to(value.dtype)


def _whole(folded: Tensor, runs: PackedRuns, scale: float) -> tuple[Tensor, Tensor]:
    """Return (M, R, K, D) attention of each pair's queries to its piece, and (K, M, R) sums of exponentials (log)."""
    asked = folded[runs.rows]
    each = folded.shape[1]
    call = Call(
        window=EVERYTHING,
        cu_queries=runs.starts * each,
        cu_keys=runs.cu_keys,
        most=(runs.most[0] * each, runs.most[1]),
    )
    out, total = raw_attention(asked.flatten(0, 1), runs.keys, runs.values, call, scale)
    return out.view_as(asked), total.view(len(total), len(asked), each)


def _tails(
    query: Tensor,
    folded: Tensor,
    key: Tensor,
    value: Tensor,
    begin: Tensor | None,
    num_tail: int | Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (B, R, K, D) attention of each row to its tail, and (K, B, R) sums of exponentials (log).

    Args:
        num_tail: How many of the keys hold a token, (1,) or a number.
    """
    batch, heads, length, size = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    keys, values, step = packed_states(key, value, size)
    rows = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
    used = rows.new_zeros(batch) + num_tail if begin is None else num_tail - begin
    cu_keys = (rows * step).clamp(max=len(keys))  # there is no room behind the last row
    if begin is not None:
        cu_keys = cu_keys + F.pad(begin, (0, 1))
    if length == 1:
        each = heads // kv_heads
        call = Call(window=EVERYTHING, cu_queries=rows * each, cu_keys=cu_keys, most=(each, num_keys))
        out, total = raw_attention(folded.flatten(0, 1), keys, values, call, scale, used)
        return out.view_as(folded), total.view(kv_heads, batch, each)
    # Later queries see more, which queries side by side could not.
    call = Call(window=CAUSAL, cu_queries=rows * length, cu_keys=cu_keys, most=(length, num_keys))
    asked = query.transpose(1, 2).reshape(batch * length, heads, size)
    out, total = raw_attention(asked, keys, values, call, scale, used)
    out = out.view(batch, length, kv_heads, -1, size).permute(0, 3, 1, 2, 4)
    total = total.view(kv_heads, -1, batch, length).transpose(1, 2)
    return out.reshape(folded.shape), total.reshape(kv_heads, batch, -1)
