"""The fastest way to compute windows on this CPU: measured once, at the first long prefill, and remembered.

Which of the exact ways wins depends on the CPU: tiles where it multiplies fp32 best, views of the keys in torch's fused
kernel where it has matrix units for bf16. Ways differ by rounding alone. `MASFORMER_WAYS="window=tiles"` takes tiles
and measures nothing, `window=64` takes views of 64 queries (`masformer.tuning`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from masformer.hardware import dtype_name
from masformer.plans.layer_spans import LayerSpan
from masformer.tuning import choose, named_way

TOPIC, TILES = "window", "tiles"
# Queries of a view.
VIEWS = ("32", "64", "128")
# Queries from which on measuring pays, and queries that are measured.
LEAST_QUERIES, MEASURED_QUERIES = 1024, 512


def way_of(query: Tensor, key: Tensor, span: LayerSpan, needs_grad: bool, run: Callable[[str, int], object]) -> str:
    """Return the way to take for (B, H, Tq, D) queries in a window, as it was measured on this CPU.

    Args:
        key: (B, K, Tk, D).
        run: Computes the last queries, so many of them, in a way.

    Raises:
        OneLineError: `MASFORMER_WAYS` names an unknown way.
    """
    length = query.shape[2]
    if length < LEAST_QUERIES:
        return named_way(TOPIC, (TILES, *VIEWS)) or TILES
    case = f"{query.shape[1]} on {key.shape[1]} heads of {query.shape[3]}, {dtype_name(query.dtype)}, {span}"
    case += ", with gradients" if needs_grad else ""
    return choose(TOPIC, case, {way: partial(run, way, MEASURED_QUERIES) for way in (TILES, *VIEWS)})
