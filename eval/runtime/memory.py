"""Memory: what this process has used, and what it may give to keys and values."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import Cache

from eval.runtime.processes import num_local_processes
from masformer import SpanCache
from masformer.linear import may_copy

# Part of the memory that the weights leave, for keys and values; the rest is for activations and other programs.
_SHARE = 0.5
_UNKNOWN_MEMORY = 8 * 2**30


def memory_budget(
    device: torch.device, weight_bytes: int, dtype: torch.dtype, environ: Mapping[str, str], device_map: str | None
) -> int:
    """Return the default bytes for keys and values in a process.

    Args:
        device: Device of this process.
        weight_bytes: Bytes of the model's weights.
        dtype: Of the weights.
        environ: Variables; `LOCAL_WORLD_SIZE` is the number of processes on this machine.
        device_map: Set where one model is spread over all devices.
    """
    if device.type == "cuda":
        devices = range(torch.cuda.device_count()) if device_map else [device]
        total = sum(torch.cuda.get_device_properties(each).total_memory for each in devices)
    else:
        total = _machine_memory() // num_local_processes(environ)
        weight_bytes += 0 if device_map else copy_bytes(weight_bytes, dtype, environ)
    return int(max(total - weight_bytes, total // 8) * _SHARE)


def copy_bytes(weight_bytes: int, dtype: torch.dtype, environ: Mapping[str, str]) -> int:
    """Return the bytes that copies of weights on a processor, for faster products, may take beside these.

    With the weights they take half of a process's memory at most, else there are none.
    """
    fits = 4 * weight_bytes <= _machine_memory() // num_local_processes(environ)
    return weight_bytes if fits and may_copy(dtype) else 0


def _machine_memory() -> int:
    """Return the bytes of this machine, or fewer where a container has a limit."""
    limits = []
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        limits.append(int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024)
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        limits.append(int(text))
    return min(limits, default=_UNKNOWN_MEMORY)


def reset_peak(device: torch.device) -> None:
    """Measure the most memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux keeps the peak of a process, and begins anew after this; elsewhere it is that of the process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory since `reset_peak`; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident_bytes("VmHWM")


def resident_bytes(field: str) -> int | None:
    """Return resident memory of this process, now (VmRSS) or at the most (VmHWM); None off Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def storage_bytes(cache: Cache) -> int:
    """Return the bytes of a cache's keys, values and states, from real storage."""
    if isinstance(cache, SpanCache):
        return cache.num_bytes
    held: list[Any] = [*getattr(cache, "linear_cache", ())]
    for layer in cache.layers:
        held += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        for states in ("conv_states", "recurrent_states"):
            held += getattr(layer, states, {}).values()
    return sum(states.untyped_storage().nbytes() for states in held if isinstance(states, torch.Tensor))
