"""What a run will take, before any weights load: tokens, time, memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate

import torch

from eval.generation.groups import DocumentPrompts, Group, Size
from eval.generation.requests import Requests
from eval.runtime.memory import copy_bytes
from eval.runtime.processes import AcceleratedProcess
from eval.runtime.speed import in_hours, product_speed


def describe_plan(
    groups: Sequence[Group],
    requests: Requests,
    size: Size,
    dtype: torch.dtype,
    process: AcceleratedProcess,
    *,
    measures_references: bool = False,
) -> str:
    """Return what a run would do, for people.

    Args:
        groups: All groups of the run, or of its shard.
        requests: What is answered already.
        size: What tokens cost.
        dtype: dtype of weights, keys and values.
        process: This process.
        measures_references: The likelihood of each reference is measured after its prompt.
    """
    groups = [group for group in groups if any(key not in requests.existing for key in group.keys)]
    tallies: dict[tuple[str, str, int], list[int]] = {}
    for unit in (unit for group in groups for unit in group.units):
        for (task, template, _, maxlen), (num_prompt, kept, dropped) in unit.sizes.items():
            tally = tallies.setdefault((task, template, maxlen), [0] * 5)
            for column, value in enumerate((1, int(dropped > 0), num_prompt, kept, dropped)):
                tally[column] += value
    rows = [["task", "template", "maxlen", "examples", "cut", "prompt tokens", "context kept", "dropped"]]
    rows += [
        [task, template, f"{n:,}", *(f"{cell:,}" for cell in tally)] for (task, template, n), tally in tallies.items()
    ]
    units = [unit for group in groups for unit in group.units]
    requested = sum(unit.requested + len(unit.keys) for unit in units)
    prefilled = sum(unit.prefilled + unit.num_rows for unit in units)
    width = int(size.config.get_text_config(decoder=True).hidden_size)
    speed = product_speed(width, dtype, process.device)
    prefill, decode = sum(unit.prefill_cost for unit in units), sum(unit.decode_cost for unit in units)
    references = sum(_reference_cost(unit, size) for unit in units) if measures_references else 0
    count, budget = process.count, requests.grouping.memory_budget
    cache = max(map(_cache_bytes, groups), default=0)
    rows_at_once = max(map(_rows_at_once, groups), default=0)
    num_prompts = sum(unit.num_rows for unit in units)
    weights = size.num_weights * dtype.itemsize
    copies = copy_bytes(weights, dtype, os.environ) if process.device.type == "cpu" else 0
    seconds = [in_hours(cost / speed / count) for cost in (prefill + decode + references, prefill, decode, references)]
    work = [f"{seconds[1]} to prefill", f"up to {seconds[2]} to decode"]
    work += [f"{seconds[3]} for likelihoods of references"] * measures_references
    facts = {
        "groups": f"{len(groups)}, of {num_prompts:,} distinct prompts; up to {rows_at_once} decode together",
        "tokens": f"{prefilled:,} to prefill at most, of {requested:,} asked for ({prefilled / max(requested, 1):.2f})",
        "time": f"about {seconds[0]}: {', '.join(work[:-1])} and {work[-1]}",
        "": f"{count} process(es) at {speed / 1e9:,.0f} GFLOP/s, by a product timed now; right within a factor of two",
        "memory": f"{weights / 2**30:.2f} GiB of weights, up to {copies / 2**30:.2f} GiB of copies of them, and up to "
        f"{cache / 2**30:.2f} GiB of keys and values a process (budget {budget / 2**30:.2f})",
    }
    lines = [f"{name:8}{text}" for name, text in facts.items()]
    return "\n".join([_columns(rows), "", *lines, "nothing was written, and no weights were loaded"])


def _reference_cost(unit: DocumentPrompts, size: Size) -> int:
    """Return the operations of the references of each prompt, all of whose tokens are read at once."""
    source, asked = unit.source, {(template, example_id) for _, template, example_id, _ in unit.sizes}
    references = {example.id: example.references for example in source.examples}
    lengths = {
        (template, name): [len(kept) for kept, _ in source.reference_tokens(template, references[name])]
        for template, name in asked
    }
    return sum(
        size.decode(num_prompt, length)
        for (_, template, name, _), (num_prompt, _, _) in unit.sizes.items()
        for length in lengths[template, name]
    )


def _rows_at_once(group: Group) -> int:
    """Return how many prompts decode together, as many as rows and, in the mean of the group, memory allow."""
    num_prompts, num_bytes = sum(unit.num_rows for unit in group.units), sum(unit.num_bytes for unit in group.units)
    return max(1, min(group.num_rows, num_prompts, int(num_prompts * group.memory_budget / max(num_bytes, 1))))


def _cache_bytes(group: Group) -> float:
    """Return the bytes of keys and values that a group needs at once: those of its largest documents."""
    units = sorted(group.units, key=lambda unit: -unit.num_bytes)
    before = accumulate((unit.num_rows for unit in units), initial=0)
    num_bytes = sum(unit.num_bytes for unit, rows in zip(units, before, strict=False) if rows < group.num_rows)
    return min(num_bytes, max(group.memory_budget, max(unit.num_bytes / unit.num_rows for unit in units)))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
