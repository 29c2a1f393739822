"""Scores as tables for people: quality with intervals, cost beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.rouge_profiles import METRICS

_COLUMNS = (
    *("maxlen", "n", "cut", "R1", "R2", "RL", "RLsum"),
    *("prefill tok/s", "decode tok/s", "s/example", "peak GiB", "cache MiB", "attn TFLOP"),
)


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a header and one row a length: ROUGE F x 100 with its interval, then cost."""
    rows = [list(_COLUMNS)]
    for result in results:
        cost = result["cost"]
        rows.append(
            [
                f"{result['maxlen']:,}",
                _count(result),
                str(result["num_truncated"]),
                *(_percent(result["metrics"][metric]) for metric in METRICS),
                number_or_dash(cost["prefill_tokens_per_second"], 1),
                number_or_dash(cost["decode_tokens_per_second"], 1),
                number_or_dash(cost["seconds"], 1),
                number_or_dash(cost["peak_memory_bytes"], 2, 2**30),
                number_or_dash(cost["cache_bytes"], 1, 2**20),
                number_or_dash(cost["attention_flops"], 3, 10**12),
            ]
        )
    return rows


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = [rows[0], ["---:"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_text(rows: Sequence[list[str]]) -> str:
    """Return the table for a terminal: quality, and cost below it, because together they are too wide."""
    quality = 3 + len(METRICS)
    cost = [row[:1] + row[quality:] for row in rows]
    return f"{as_columns([row[:quality] for row in rows])}\n\n{as_columns(cost)}"


def as_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal, columns to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def render_report(run: Mapping[str, Any], results: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """Return `report.md`; what produced the numbers is that of the last session that generated any."""
    identity, session = run["identity"], run["sessions"][-1]
    parts = [f"# {', '.join(run['tasks'])}: {identity['model']['reference']}", ""]
    facts = {
        "model": f"`{identity['model']['reference']}` ({identity['model']['source']}), {identity['dtype']}",
        "spans": f"`{run['plan_description']}`",
        "truncation": f"keeps {_KEEPS[identity['truncation']]} of the context",
        "ROUGE profile": f"`{identity['profile']}`, F x 100, 95% bootstrap interval over documents",
        "machine": f"{session['machine']['device']}, {session['world_size']} process(es), "
        f"{session['threads']} torch thread(s) each",
        "sessions": f"{len(run['sessions'])}, all in run.json",
        "code": f"commit {session['commit'] or 'unknown'}{', with uncommitted changes' if session['dirty'] else ''}",
    }
    parts += [f"- {name}: {text}" for name, text in facts.items()]
    for task in run["tasks"]:
        of_task = [result for result in results if result["task"] == task]
        if not of_task:
            continue
        settings = run["tasks"][task]
        parts += ["", f"## {task}", ""]
        about = (
            f"{settings['description']}. Split `{settings['split']}`, room for {settings['max_new_tokens']} new tokens"
        )
        parts += [f"{about}."]
        for template in settings["templates"]:
            of_template = [result for result in of_task if result["template"] == template]
            parts += ["", f"Template `{template}`:", "", as_markdown(table(of_template))] if of_template else []
    parts += ["", *notes, LEGEND, ""]
    return "\n".join(parts)


_KEEPS = {"head": "the beginning", "middle": "both ends", "tail": "the end"}

LEGEND = (
    "n: examples (documents where fewer). cut: examples whose context was truncated. prefill and decode: tokens of all "
    "examples over their seconds, in one process; what prompts share counts for each of them, and decoding is that of "
    "a whole batch. peak: device memory on a GPU, resident memory of the process (weights and libraries included) on a "
    "CPU. cache: keys and values at the end, allocated. attn: attention's matrix products for one example, in closed "
    "form."
)


def _count(result: Mapping[str, Any]) -> str:
    examples, documents = result["num_examples"], result["num_documents"]
    return str(examples) if examples == documents else f"{examples} ({documents})"


def _percent(metric: Mapping[str, float | None]) -> str:
    mean, low, high = (metric[name] for name in ("mean", "low", "high"))
    assert mean is not None
    if low is None or high is None:
        return f"{100 * mean:.2f}"
    return f"{100 * mean:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def number_or_dash(value: float | None, digits: int, unit: float = 1) -> str:
    """Return a number in some unit, or a dash for one that is not known."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"
