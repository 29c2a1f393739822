"""The fastest way to compute attention on this CPU: measured once, at the first long prefill, and remembered.

Which of the exact ways wins depends on the CPU: torch's fused kernel where it has matrix units for bf16, a kernel of
our own (`simd`) on others with AVX-512 or AVX2, tiles where there is neither. Ways differ by rounding alone.
`MASFORMER_WAYS="attention=torch"` goes without our kernel; `window=tiles` takes tiles, and `window=64` views of 64
queries in torch's kernel, for windows without soft caps and learned sinks (`masformer.tuning`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from masformer.attention import simd
from masformer.errors import OneLineError
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import LayerSpan
from masformer.tuning import WAYS, choose, named_way, note, settled

# What is computed: windows of many queries, and everything else.
WINDOW, ATTENTION = "window", "attention"
TORCH, TILES, SIMD = "torch", "tiles", "simd"
# Queries of a view.
VIEWS = ("32", "64", "128")
_WINDOWS = (TILES, *VIEWS, SIMD)
# Queries from which on measuring pays, and queries that are measured.
LEAST_QUERIES, MEASURED_QUERIES = 1024, 512


def is_simd(query: Tensor, *runs: tuple[Tensor, Tensor]) -> bool:
    """Return whether `simd` may attend from (B, H, Tq, D) queries to keys and values (B or 1, K, Tk, D).

    Long prefills are measured besides (`window_way`, `causal_way`).

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way, or `simd` where there is none or it is ruled out.
    """
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    named, named_for_windows = named_way(ATTENTION, (TORCH, SIMD)), named_way(WINDOW, _WINDOWS)
    if SIMD in (named, named_for_windows) and (reason := simd.why_not()):
        raise OneLineError(f"{WAYS} names '{SIMD}', which this machine does not have: {reason}; leave it out")
    if (named, named_for_windows) == (TORCH, SIMD):
        raise OneLineError(f"{WAYS} names '{SIMD}' for {WINDOW} and rules it out for {ATTENTION}; leave out one")
    way = named or settled(ATTENTION)
    if way not in (TORCH, SIMD):  # none, or one of another version
        way = TORCH if simd.why_not() else SIMD
    taken = way == SIMD and simd.takes(query, *runs)
    if named != TORCH and taken == (way == SIMD):  # what the environment names holds for this process alone
        note(ATTENTION, way)
    return taken


def window_way(
    query: Tensor, key: Tensor, value: Tensor, span: LayerSpan, needs_grad: bool, run: Callable[[str, int], object]
) -> str:
    """Return the way to take for (B, H, Tq, D) queries in a window, as it was measured on this CPU.

    Args:
        key: (B, K, Tk, D).
        value: (B, K, Tk, D).
        run: Computes the last queries, so many of them, in a way.

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way.
    """
    is_ours = is_simd(query, (key, value))
    ways = (TILES, *VIEWS, *([SIMD] if is_ours else []))
    named = named_way(WINDOW, _WINDOWS)
    case = f"{_case(query, key)}, {span}"
    case += ", with gradients" if needs_grad else ""
    if query.shape[2] < LEAST_QUERIES:
        named = named or settled(f"{WINDOW} {case}") or (SIMD if is_ours else TILES)
    if named:
        return named if named in ways else TILES
    return choose(WINDOW, case, {way: partial(run, way, MEASURED_QUERIES) for way in ways})


def causal_way(query: Tensor, key: Tensor, run: Callable[[str, int], object]) -> str:
    """Return the way where (B, H, Tq, D) queries see all before them and `simd` can attend; as `window_way`."""
    if query.shape[2] < LEAST_QUERIES:
        return settled(f"{ATTENTION} {_case(query, key)}") or SIMD
    return choose(ATTENTION, _case(query, key), {way: partial(run, way, MEASURED_QUERIES) for way in (TORCH, SIMD)})


def _case(query: Tensor, key: Tensor) -> str:
    return f"{query.shape[1]} on {key.shape[1]} heads of {query.shape[3]}, {dtype_name(query.dtype)}"
