"""The fastest way to compute attention on this CPU: measured once, at the first long prefill or step, and remembered.

Which of the exact ways wins depends on the CPU: torch's fused kernel where it has matrix units for bf16, a kernel of
our own (`simd`) on others with AVX-512 or AVX2, tiles where there is neither. Ways differ by rounding alone.

| topic | what is computed | ways |
| --- | --- | --- |
| window | many queries in a window | tiles, views of 32, 64 or 128 queries in torch's kernel, simd |
| pattern | many queries under other spans, soft caps or learned sinks | tiles, simd |
| attention | many queries that see all before them | torch, simd |
| step | a few queries a row | torch, simd |

`MASFORMER_WAYS="window=64"` takes a way without measuring; `attention=torch` rules simd out for all topics, and
`attention=simd` takes it for all but windows that name no other (`masformer.tuning`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from masformer import compiled
from masformer.attention import simd
from masformer.errors import OneLineError
from masformer.hardware import dtype_name
from masformer.plans.layer_spans import LayerSpan
from masformer.tuning import TOPICS, WAYS, choose, named_way, note, remembered, settle, settled

WINDOW, PATTERN, ATTENTION, STEP = "window", "pattern", "attention", "step"
TORCH, TILES, SIMD = "torch", "tiles", "simd"
# Queries of a view.
VIEWS = TOPICS[WINDOW][1:-1]
# Queries that are measured: the last ones of as many at least. What fewer of them take is little beside the rest of a
# prefill. Of queries that see all before them there are twice as many, so that most see what is usual.
MEASURED_QUERIES = 512
# Keys from which on a step is measured.
MEASURED_KEYS = 1024


def check_attention_ways(device: torch.device) -> None:
    """Raise what `named_ways` raises, before weights load, where a model is to compute on a processor."""
    if device.type == "cpu":
        named_ways()


def named_ways() -> Mapping[str, str | None]:
    """Return what `MASFORMER_WAYS` names for each topic of attention.

    Raises:
        OneLineError: It names an unknown way, or `simd` where there is none or it is ruled out.
    """
    named = _named(os.environ.get(WAYS, ""))
    topic = next((topic for topic in named if named[topic] == SIMD), None)
    if topic:
        compiled.require(simd.SOURCE, SIMD)
    if topic and named[ATTENTION] == TORCH:
        raise OneLineError(f"{WAYS} names '{SIMD}' for {topic} and rules it out for {ATTENTION}; leave out one")
    return named


def is_simd(query: Tensor, *runs: tuple[Tensor, Tensor]) -> bool:
    """Return whether `simd` may attend from (B, H, Tq, D) queries to keys and values (B or 1, K, Tk, D).

    Raises:
        OneLineError: As `named_ways`.
    """
    if query.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    named = named_ways()
    way = named[ATTENTION] or settled(ATTENTION)
    if way not in TOPICS[ATTENTION]:  # none, or one of another version
        way = TORCH if simd.why_not() else SIMD
    taken = way == SIMD and simd.takes(query, *runs)
    if named[ATTENTION] != TORCH and taken == (way == SIMD):  # the environment holds for this process alone
        note(ATTENTION, way)
    return taken


@cache
def _named(text: str) -> Mapping[str, str | None]:
    """Return what the text of `MASFORMER_WAYS` names for each topic."""
    named = {topic: named_way(topic, TOPICS[topic]) for topic in (WINDOW, PATTERN, ATTENTION, STEP)}
    if named[ATTENTION] == SIMD:
        named |= {topic: named[topic] or SIMD for topic in (PATTERN, STEP)}
    return named


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
    ways = (TILES, *VIEWS, *([SIMD] if is_simd(query, (key, value)) else []))
    if named := named_way(WINDOW, TOPICS[WINDOW]):
        return named if named in ways else TILES
    case = f"{_case(query, key)}, {span}" + (", with gradients" if needs_grad else "")
    return _choose(WINDOW, case, ways, _on_last(run), query.shape[2] >= MEASURED_QUERIES)


def pattern_way(query: Tensor, key: Tensor, what: str, run: Callable[[str, int], object]) -> str:
    """Return the way where `simd` can attend and torch has tiles alone; `what` names span and scores."""
    is_long = query.shape[2] >= MEASURED_QUERIES
    return _choose(PATTERN, f"{_case(query, key)}, {what}", TOPICS[PATTERN], _on_last(run), is_long)


def causal_way(query: Tensor, key: Tensor, run: Callable[[str, int], object]) -> str:
    """Return the way where (B, H, Tq, D) queries see all before them and `simd` can attend; as `window_way`."""
    is_long = query.shape[2] >= 2 * MEASURED_QUERIES
    return _choose(ATTENTION, _case(query, key), TOPICS[ATTENTION], _on_last(run), is_long)


def step_way(query: Tensor, key: Tensor, what: str, num_keys: int, run: Callable[[str], object]) -> str:
    """Return the way where few queries a row see so many keys and `simd` can attend; `what` names cache and scores."""
    case = f"{_case(query, key)}, {what}" + (", several tokens" if query.shape[2] > 1 else "")
    return _choose(STEP, case, TOPICS[STEP], run, num_keys >= MEASURED_KEYS)


def described(what: object, query: Tensor, value: Tensor, softcap: float | None, learned_sinks: Tensor | None) -> str:
    """Return what the speed of a pattern or a step depends on besides its queries and keys."""
    parts = [
        str(what),
        "soft caps" if softcap is not None else "",
        "learned sinks" if learned_sinks is not None else "",
        f"values of {value.shape[3]}" if value.shape[3] != query.shape[3] else "",
    ]
    return ", ".join(part for part in parts if part)


def _on_last(run: Callable[[str, int], object]) -> Callable[[str], object]:
    return lambda way: run(way, MEASURED_QUERIES)


def _choose(topic: str, case: str, ways: Sequence[str], run: Callable[[str], object], is_measured: bool) -> str:
    """Return the way that the environment names, or the fastest one.

    What is not worth measuring takes what an earlier process measured, or our own kernel, and keeps to it.
    """
    if named := _named(os.environ.get(WAYS, ""))[topic]:
        return named
    if is_measured:
        return choose(topic, case, {way: partial(run, way) for way in ways})
    key = f"{topic} {case}, short"
    way = settled(key)
    if way is None or way not in ways:
        way = remembered(topic, case, ways) or (SIMD if SIMD in ways else ways[0])
    settle(key, way)
    return way


def _case(query: Tensor, key: Tensor) -> str:
    return f"{query.shape[1]} on {key.shape[1]} heads of {query.shape[3]}, {dtype_name(query.dtype)}"
