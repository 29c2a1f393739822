"""Measured losses -> perplexity with intervals, by length and by position, and tables for people.

Needs no model and no data set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.tables import as_markdown, number_or_dash
from eval.scoring.significance import interval_of_ratio

# Stands in the place of a prompt's name: documents are read as they are.
TEMPLATE = "text"

LEGEND = (
    "n: documents. tokens: predicted. Intervals: 95%, bootstrap over documents. peak: device memory on a GPU, resident "
    "memory of the process on a CPU. cache: keys and values after the longest window. attn: attention's matrix "
    "products for one document, in closed form."
)


def score_lines(
    lines: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]], system: str
) -> list[dict[str, Any]]:
    """Return one result a task and length: perplexity with its interval, the same by position, and cost."""
    documents = {(line["task"], line["id"]): line["document_id"] for line in examples}
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["task"], line["maxlen"]].append(line)
    results = []
    for (task, maxlen), some in groups.items():
        by_bucket: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
        for line in some:
            for start, stop, loss, count in line["buckets"]:
                by_bucket[start, stop].append((loss, count))
        flops = [line["attention_flops"] for line in some if line["attention_flops"] is not None]
        peaks = [line["peak_bytes"] for line in some if line["peak_bytes"] is not None]
        seconds = sum(line["seconds"] for line in some)
        num_tokens = sum(line["num_tokens"] for line in some)
        results.append(
            {
                "task": task,
                "template": TEMPLATE,
                "system": system,
                "maxlen": maxlen,
                "num_documents": len({documents[task, line["id"]] for line in some}),
                "num_truncated": sum(line["num_tokens_dropped"] > 0 for line in some),
                "num_tokens": num_tokens,
                "metrics": {
                    "perplexity": perplexity_of(
                        [(line["negative_log_likelihood"], line["num_tokens"]) for line in some]
                    )
                },
                "by_position": [
                    {"first": start, "last": stop - 1, "num_tokens": sum(count for _, count in pairs)}
                    | {"perplexity": perplexity_of(pairs)}
                    for (start, stop), pairs in sorted(by_bucket.items())
                ],
                "cost": {
                    "tokens_per_second": num_tokens / seconds if seconds else None,
                    "seconds": seconds / len(some),
                    "peak_memory_bytes": max(peaks, default=None),
                    "cache_bytes": max(line["cache_bytes"] for line in some),
                    "attention_flops": sum(flops) / len(flops) if len(flops) == len(some) else None,
                },
            }
        )
    return results


def perplexity_of(pairs: Sequence[tuple[float, int]]) -> dict[str, float | None]:
    """Return exp(total loss / total tokens) of (loss, tokens) pairs, one a document, with its interval."""
    tokens = sum(count for _, count in pairs)
    if not tokens:
        return {"mean": None, "low": None, "high": None}
    low, high = interval_of_ratio([loss for loss, _ in pairs], [count for _, count in pairs])
    return {
        "mean": _exp(sum(loss for loss, _ in pairs) / tokens),
        "low": None if low is None else _exp(low),
        "high": None if high is None else _exp(high),
    }


def _exp(loss: float) -> float | None:
    """Return exp(loss); None for what no float holds."""
    return math.exp(loss) if loss < 700 else None


def render_perplexity_report(
    record: Mapping[str, Any], results: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> str:
    """Return `report.md`."""
    identity, session = record["identity"], record["sessions"][-1]
    parts = [
        f"# Perplexity, {', '.join(record['tasks'])}: {identity['model']['reference']}",
        "",
        f"- model: `{identity['model']['reference']}` ({identity['model']['source']}), {identity['dtype']}",
        f"- spans: `{record['plan_description']}`",
        f"- tokens: the first {identity['tokens']:,} of each document at most, in windows of the length",
        f"- machine: {session['machine']['device']}, {session['world_size']} x {session['threads']} threads",
        f"- code: commit {session['commit'] or 'unknown'}{', with uncommitted changes' if session['dirty'] else ''}",
    ]
    for task in record["tasks"]:
        some = [result for result in results if result["task"] == task]
        if some:
            parts += ["", f"## {task}", "", as_markdown(table(some)), "", "By position, a column a length:", ""]
            parts += [as_markdown(position_table(some))]
    return "\n".join([*parts, "", *notes, LEGEND, ""])


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["maxlen", "n", "tokens", "perplexity", "tok/s", "peak GiB", "cache MiB", "attn TFLOP"]]
    for result in results:
        cost = result["cost"]
        rows.append(
            [
                f"{result['maxlen']:,}",
                str(result["num_documents"]),
                f"{result['num_tokens']:,}",
                with_interval(result["metrics"]["perplexity"]),
                number_or_dash(cost["tokens_per_second"], 0),
                number_or_dash(cost["peak_memory_bytes"], 2, 2**30),
                number_or_dash(cost["cache_bytes"], 1, 2**20),
                number_or_dash(cost["attention_flops"], 3, 10**12),
            ]
        )
    return rows


def position_table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    found = [{bucket["first"]: bucket for bucket in result["by_position"]} for result in results]
    rows = [["position", *(f"{result['maxlen']:,}" for result in results)]]
    for first in sorted({first for buckets in found for first in buckets}):
        last = max(buckets[first]["last"] for buckets in found if first in buckets)
        cells = [with_interval(buckets[first]["perplexity"]) if first in buckets else "" for buckets in found]
        rows.append([f"{first:,} to {last:,}", *cells])
    return rows


def with_interval(metric: Mapping[str, float | None]) -> str:
    """Return a perplexity with its interval, a dash for one that is not known."""
    mean, low, high = (metric[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.2f}, {high:.2f}]"
