"""What a run will take, before any weights load: tokens, time, memory."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator

from eval.generation.groups import Group, Needs, WorkPlan
from eval.records.journal import Key
from eval.reporting.tables import as_columns
from masformer.attention.prefill import CHUNK_TOKENS

# Part of the memory that the weights leave, for keys and values; the rest is for activations and what else runs.
_SHARE = 0.5
_UNKNOWN_MEMORY = 8 * 2**30


def memory_budget(device: torch.device, weight_bytes: int, environ: Mapping[str, str], device_map: str | None) -> int:
    """Return the bytes that a process may give to keys and values, by default.

    Args:
        device: Of this process.
        weight_bytes: Of the model.
        environ: Holds `LOCAL_WORLD_SIZE` where a launcher started several processes on this machine.
        device_map: Set where one model is spread over all devices.
    """
    if device.type == "cuda":
        devices = range(torch.cuda.device_count()) if device_map else [device]
        total = sum(torch.cuda.get_device_properties(each).total_memory for each in devices)
        return int(max(total - weight_bytes, total // 8) * _SHARE)
    total = _machine_memory() // int(environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(max(total - weight_bytes, total // 8) * _SHARE)


def _machine_memory() -> int:
    """Return the bytes of this machine, or fewer where a container has a limit."""
    found = []
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        found.append(int(meminfo.read_text().split("MemTotal:")[1].split()[0]) * 1024)
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        found.append(int(text))
    return min(found, default=_UNKNOWN_MEMORY)


def describe_plan(
    work: WorkPlan, missing: Container[Key], needs: Needs, budget: int, dtype: torch.dtype, accelerator: Accelerator
) -> str:
    """Return what a run would do, for people.

    Args:
        work: What is to be predicted.
        missing: Predictions that are not there yet.
        needs: What tokens cost.
        budget: Bytes for keys and values.
        dtype: Of weights, keys and values.
        accelerator: Of this process.
    """
    groups = [group for group in work.groups if any(key in missing for key in group.keys)]
    tallies: dict[tuple[str, str, int], list[int]] = {}
    for group in groups:
        for key in group.keys:
            task, template, _, maxlen = key
            num_prompt, kept, dropped = work.sizes[key]
            tally = tallies.setdefault((task, template, maxlen), [0] * 5)
            for column, value in enumerate((1, int(dropped > 0), num_prompt, kept, dropped)):
                tally[column] += value
    rows = [["task", "template", "maxlen", "examples", "cut", "prompt tokens", "context kept", "dropped"]]
    rows += [
        [task, template, f"{n:,}", *(f"{cell:,}" for cell in tally)] for (task, template, n), tally in tallies.items()
    ]
    units = [unit for group in groups for unit in group.units]
    asked = sum(unit.asked + len(unit.keys) for unit in units)
    prefilled = sum(unit.prefilled + unit.num_rows for unit in units)
    speed = _speed(needs, dtype, accelerator.device)
    prefill, decode = sum(unit.prefill_cost for unit in units), sum(unit.decode_cost for unit in units)
    held = max((_held(group, budget) for group in groups), default=0)
    count = accelerator.num_processes
    rows_at_once = max((group.num_rows for group in groups), default=0)
    num_prompts = sum(unit.num_rows for unit in units)
    weights = needs.num_weights * dtype.itemsize
    seconds = [_hours(cost / speed / count) for cost in (prefill + decode, prefill, decode)]
    facts = {
        "groups": f"{len(groups)}, of {num_prompts:,} distinct prompts; up to {rows_at_once} decode together",
        "tokens": f"{prefilled:,} to prefill at most, of {asked:,} asked for ({prefilled / max(asked, 1):.2f})",
        "time": f"about {seconds[0]}: {seconds[1]} to prefill and up to {seconds[2]} to decode",
        "": f"{count} process(es) at {speed / 1e9:,.0f} GFLOP/s, by a product timed now; right within a factor of two",
        "memory": f"{weights / 2**30:.2f} GiB of weights and up to {held / 2**30:.2f} GiB of keys and values a process "
        f"(budget {budget / 2**30:.2f})",
    }
    lines = [f"{name:8}{text}" for name, text in facts.items()]
    return "\n".join([as_columns(rows), "", *lines, "nothing was written, and no weights were loaded"])


def _held(group: Group, budget: int) -> float:
    """Return the bytes of keys and values that a group holds at once."""
    num_bytes, prompts = sum(unit.num_bytes for unit in group.units), sum(unit.num_rows for unit in group.units)
    return min(num_bytes, max(budget, num_bytes / prompts))


def _speed(needs: Needs, dtype: torch.dtype, device: torch.device) -> float:
    """Return operations a second of a product such as a prefill of this model makes."""
    size = int(needs.config.get_text_config(decoder=True).hidden_size)
    rows, weights = (
        torch.ones(shape, dtype=dtype, device=device) for shape in ((CHUNK_TOKENS, size), (size, 4 * size))
    )
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((rows @ weights)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * CHUNK_TOKENS * size * 4 * size / best


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
