"""The fastest way to compute windows on this CPU: measured once, at the first long prefill, and remembered.

Which of the exact ways wins depends on the CPU: tiles where it multiplies fp32 best, views of the keys in torch's fused
kernel where it has matrix units for bf16. Ways differ by rounding alone.

    MASFORMER_WINDOWS=tiles         take tiles, measure nothing
    MASFORMER_WINDOWS=64            take views of 64 queries
    MASFORMER_CACHE=/some/folder    remember in another folder than ~/.cache/masformer
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from masformer.errors import FinalSpanError
from masformer.hardware import processor_name
from masformer.plans.layer_spans import LayerSpan

TILES = "tiles"
# Queries of a view.
VIEWS = ("32", "64", "128")
# Queries from which on measuring pays, and queries that are measured.
LEAST_QUERIES, MEASURED_QUERIES = 1024, 512
_REPEATS = 3
_FILE = "windows.json"


def way_of(query: Tensor, key: Tensor, span: LayerSpan, needs_grad: bool, run: Callable[[str, int], object]) -> str:
    """Return the way to take for (B, H, Tq, D) queries in a window, as it was measured on this CPU.

    Args:
        key: (B, K, Tk, D).
        needs_grad: Gradients are computed too.
        run: Computes the last queries, so many of them, in a way.

    Raises:
        SpanError: MASFORMER_WINDOWS names no way.
    """
    if named := os.environ.get("MASFORMER_WINDOWS"):
        if named != TILES and (not named.isdecimal() or not int(named)):
            raise FinalSpanError(f"MASFORMER_WINDOWS is '{named}'; '{TILES}' or a number of queries was expected")
        return named
    length = query.shape[2]
    if length < LEAST_QUERIES:
        return TILES
    about = 2 ** (length.bit_length() - 1)
    dtype = str(query.dtype).removeprefix("torch.")
    name = f"{query.shape[1]} on {key.shape[1]} heads of {query.shape[3]}, {dtype}, {span}, {about} queries"
    name += ", with gradients" if needs_grad else ""
    taken = _taken(machine := _machine())
    if name not in taken:
        taken[name] = _read().get(machine, {}).get(name) or _measured(run)
        _remember(machine, name, taken[name])
    return taken[name]


def ways_taken() -> dict[str, str]:
    """Return the way that each shape of a window has taken in this process; empty where none was chosen."""
    if named := os.environ.get("MASFORMER_WINDOWS"):
        return {"all": named}
    return dict(_taken(_machine()))


def _machine() -> str:
    """Return what a measurement holds for."""
    return f"{_cpu()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


@functools.cache
def _cpu() -> str:
    isa = torch.backends.cpu.get_cpu_capability() + ("+AMX" if torch.cpu._is_amx_tile_supported() else "")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return f"{processor_name()}, {isa}{limit and f' up to {limit}'}"


@functools.cache
def _taken(machine: str) -> dict[str, str]:
    """Return the ways by shape that this process has taken, to which it adds."""
    return {}


def _measured(run: Callable[[str, int], object]) -> str:
    """Return the way with the least seconds; they take turns, after a round that is not counted."""
    seconds = dict.fromkeys((TILES, *VIEWS), float("inf"))
    for turn in range(_REPEATS + 1):
        for way in seconds:
            start = time.perf_counter()
            run(way, MEASURED_QUERIES)
            if turn:
                seconds[way] = min(seconds[way], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)


def _path() -> Path:
    folder = os.environ.get("MASFORMER_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "masformer") / _FILE


def _read() -> dict[str, dict[str, str]]:
    """Return the ways by shape of each machine; nothing of a file that is missing, damaged or not ours."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        found = json.loads(_path().read_text(encoding="utf-8"))
        return {
            str(machine): {str(name): way for name, way in ways.items() if way in (TILES, *VIEWS)}
            for machine, ways in found.items()
        }
    return {}


def _remember(machine: str, name: str, way: str) -> None:
    """Add a way to the file, which others may read and write at the same time; without a folder, forget it."""
    path, found = _path(), _read()
    if found.get(machine, {}).get(name) == way:
        return
    found.setdefault(machine, {})[name] = way
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_FILE)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, sort_keys=True)
        Path(temporary).replace(path)
