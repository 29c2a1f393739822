"""The fastest way to compute attention on this CPU: measured once, at the first long prefill, and remembered.

Which of the exact ways wins depends on the CPU: torch's fused kernel where it has matrix units for bf16, a kernel of
our own (`avx512`) on others with AVX-512, tiles where there is neither. Ways differ by rounding alone.
`MASFORMER_WAYS="attention=torch window=tiles"` takes these and measures nothing; `window=64` takes views of 64 queries
in torch's kernel (`masformer.tuning`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from masformer.attention import avx512
from masformer.errors import OneLineError
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import LayerSpan
from masformer.tuning import WAYS, choose, named_way, note, settled

# What is computed: windows of many queries, and everything else.
WINDOW, ATTENTION = "window", "attention"
TORCH, TILES, AVX512 = "torch", "tiles", "avx512"
# Queries of a view.
VIEWS = ("32", "64", "128")
_WINDOWS = (TILES, *VIEWS, AVX512)
# Queries from which on measuring pays, and queries that are measured.
LEAST_QUERIES, MEASURED_QUERIES = 1024, 512

Runs = tuple[tuple[Tensor, Tensor], ...]


def is_avx512(query: Tensor, *runs: tuple[Tensor, Tensor]) -> bool:
    """Return whether attention of (B, H, Tq, D) queries to keys and values (B, K, Tk, D) is left to `avx512`.

    Nothing is measured: of few queries it is always the faster one, and of soft-capped scores.

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way, or `avx512` where there is none.
    """
    named = named_way(ATTENTION, (TORCH, AVX512))
    if AVX512 in (named, named_way(WINDOW, _WINDOWS)) and (reason := avx512.why_not()):
        raise OneLineError(f"{WAYS} names '{AVX512}', which this machine does not have: {reason}; leave it out")
    way = named or settled(ATTENTION) or AVX512
    if way != AVX512 or not avx512.takes(query, *runs):
        return False
    note(ATTENTION, AVX512)
    return True


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
    is_ours = is_avx512(query, (key, value))
    ways = (TILES, *VIEWS, *([AVX512] if is_ours else []))
    named = named_way(WINDOW, _WINDOWS)
    if named or query.shape[2] < LEAST_QUERIES:
        return named if named in ways else ways[-1 if is_ours else 0]
    case = f"{_case(query, key)}, {span}"
    case += ", with gradients" if needs_grad else ""
    return choose(WINDOW, case, {way: partial(run, way, MEASURED_QUERIES) for way in ways})


def causal_way(query: Tensor, key: Tensor, run: Callable[[str, int], object]) -> str:
    """Return the way where (B, H, Tq, D) queries see all before them and `avx512` can attend; as `window_way`."""
    if query.shape[2] < LEAST_QUERIES:
        return AVX512
    return choose(ATTENTION, _case(query, key), {way: partial(run, way, MEASURED_QUERIES) for way in (TORCH, AVX512)})


def _case(query: Tensor, key: Tensor) -> str:
    return f"{query.shape[1]} on {key.shape[1]} heads of {query.shape[3]}, {dtype_name(query.dtype)}"
