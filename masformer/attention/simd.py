"""Attention on CPUs with AVX-512 or AVX2, by a kernel in C++ (`simd.cpp`) that is compiled when it is first wanted.

It takes fp32 and bf16; without instructions for bf16 (AVX512-BF16) the numbers of a block of keys are widened to fp32.

    if takes(query, (key, value)):
        out, lse = attend(query, [Keys(key, value, causal_bounds(query.shape[2], key.shape[2]))], scale=scale)

Where it cannot be compiled (`masformer.compiled`) nothing is taken and torch computes everything.

Shapes: B batch, H query heads, K key/value heads, T tokens (Tq of the queries, Tk of the keys), D head size (of the
values it may differ).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from masformer import compiled
from masformer.attention.parts import Part
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import Blocks, Full, LayerSpan, Window

SPANS = (Full, Window, Blocks)
SOURCE = Path(__file__).with_suffix(".cpp")
_DTYPES = (torch.float32, torch.bfloat16)
# Numbers of a key that are multiplied together, and of a value that are computed together.
_KEY_STEP, _VALUE_STEP = 2, 8


class Keys(NamedTuple):
    """Keys that some rows read, and what each query sees of them.

    Attributes:
        key: (B, K, Tk, D), or (1, K, Tk, D) that all these rows read.
        value: (B or 1, K, Tk, D).
        bounds: int32 (B or 1, Tq, 2), the first key that a query sees, and the one after the last; None is all keys.
        rows: The first row that reads them, and the one after the last; None is all rows. Keys of several rows, and
            bounds, are those of all rows.
    """

    key: Tensor
    value: Tensor
    bounds: Tensor | None = None
    rows: tuple[int, int] | None = None


class _Run(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_void_p),
        ("value", ctypes.c_void_p),
        ("key_strides", ctypes.c_int64 * 3),
        ("value_strides", ctypes.c_int64 * 3),
        ("num_keys", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("stop_row", ctypes.c_int64),
        ("bounds", ctypes.c_void_p),
        ("bounds_row", ctypes.c_int64),
    )


class _Problem(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("query_strides", ctypes.c_int64 * 3),
        ("out_strides", ctypes.c_int64 * 3),
        ("rows", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("value_size", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("num_runs", ctypes.c_int32),
        ("runs", ctypes.POINTER(_Run)),
    )


def takes(query: Tensor, *runs: tuple[Tensor, Tensor]) -> bool:
    """Return whether `attend` computes attention of (B, H, Tq, D) queries to these keys and values (B or 1, K, Tk, D).

    Gradients, compilation, tracing and transforms of functions are left to torch, as is what does not fit together.
    """
    if query.device.type != "cpu" or query.dtype not in _DTYPES or not query.numel() or compiled.is_watched():
        return False
    states = [query, *(each for run in runs for each in run)]
    if torch.is_grad_enabled() and any(each.requires_grad for each in states):
        return False
    if any(each.dtype != query.dtype or each.stride(3) != 1 or type(each) is not Tensor for each in states):
        return False
    rows, heads, _, size = query.shape
    _, key_heads, _, value_size = runs[0][1].shape
    for key, value in runs:
        if key.shape[0] not in (1, rows) or key.shape[:3] != value.shape[:3] or key.shape[1] != key_heads:
            return False
        if (key.shape[3], value.shape[3]) != (size, value_size) or not key.device == value.device == query.device:
            return False
    fits = heads % key_heads == 0 and size % _KEY_STEP == 0 and value_size % _VALUE_STEP == 0
    return fits and _function(query.dtype) is not None


def attend(query: Tensor, runs: Sequence[Keys], *, scale: float, softcap: float | None = None) -> Part:
    """Return (B, H, Tq, D) attention to the keys of all runs, and its (B, H, Tq) log-sum-exp in fp32.

    A query that sees no key gets zeros and minus infinity. Call `takes` first.

    Raises:
        MemoryError: Memory does not suffice.
    """
    rows, heads, length, size = query.shape
    value_size = runs[0].value.shape[3]
    # In the memory order of the (B, Tq, H, D) that models go on with.
    out = query.new_empty((rows, length, heads, value_size)).transpose(1, 2)
    lse = query.new_empty((rows, heads, length), dtype=torch.float32)
    given = (_Run * len(runs))()
    for run, (key, value, bounds, read) in zip(given, runs, strict=True):
        run.key, run.value, run.num_keys = key.data_ptr(), value.data_ptr(), key.shape[2]
        for strides, states in ((run.key_strides, key), (run.value_strides, value)):
            strides[:] = states.stride()[:3]
            if states.shape[0] == 1:
                strides[0] = 0
        run.first_row, run.stop_row = read or (0, rows)
        assert 0 <= run.first_row < run.stop_row <= rows
        if bounds is not None:
            assert bounds.shape[1:] == (length, 2)
            run.bounds, run.bounds_row = bounds.data_ptr(), 0 if len(bounds) == 1 else bounds.stride(0)
    problem = _Problem(
        query.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        query.stride()[:3],
        out.stride()[:3],
        rows,
        heads,
        runs[0].key.shape[1],
        length,
        size,
        value_size,
        scale,
        softcap or 0,
        torch.get_num_threads(),
        len(runs),
        given,
    )
    function = _function(query.dtype)
    assert function is not None
    if function(ctypes.byref(problem)):
        raise MemoryError(f"no memory for attention to {sum(run.num_keys for run in given):,} keys")
    return out, lse


@functools.lru_cache(maxsize=16)
def bounds_of(span: LayerSpan, offset: int, length: int, num_keys: int) -> tuple[tuple[slice, Tensor], ...]:
    """Return the runs of the keys that a cache hands out for several new tokens, and what each query sees of them.

    Args:
        span: One of `SPANS`.
        offset: Position of the first query.
        num_keys: Keys that there are: the sinks, and then those of consecutive positions up to the last.
    """
    position = torch.arange(offset, offset + length, device="cpu")
    if isinstance(span, Blocks):
        first = (position // span.block - span.previous) * span.block
    elif isinstance(span, Window):
        first = position - span.span + 1
    else:
        first = torch.zeros_like(position)
    start = min(span.sinks, num_keys)
    gap = offset + length - num_keys
    found = []
    for keys, low, skipped in ((slice(start), torch.zeros_like(first), 0), (slice(start, num_keys), first, gap)):
        if keys != slice(0):
            bounds = torch.stack([low, position + 1], dim=1) - (skipped + (keys.start or 0))
            found.append((keys, bounds.clamp(min=0).to(torch.int32)[None]))
    return tuple(found)


def causal_bounds(length: int, num_keys: int) -> Tensor:
    """Return the bounds (1, Tq, 2) of queries that see no key after their own; the last key is that of the last."""
    return bounds_of(Full(), num_keys - length, length, num_keys)[-1][1]


def why_not() -> str:
    """Return why the kernel is unavailable; an empty string where it is there, or compiled now."""
    return compiled.why_not(SOURCE)


@functools.cache
def _function(dtype: torch.dtype) -> ctypes._NamedFuncPointer | None:
    if (library := compiled.library(SOURCE)) is None:
        return None
    function = library[f"masformer_attend_{dtype_name(dtype)}"]
    function.argtypes, function.restype = [ctypes.POINTER(_Problem)], ctypes.c_int
    return function
