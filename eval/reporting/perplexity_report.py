"""Measured losses -> perplexity with intervals, by length and by position, and tables for people.

Needs no model and no data set.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from eval.records.schema import (
    DocumentLoss,
    Estimate,
    ExampleRecord,
    PerplexityCost,
    PerplexityIdentity,
    PerplexityRecord,
    PerplexityResult,
    PositionLoss,
    Session,
    Unit,
)
from eval.reporting.columns import MAXLEN, PERPLEXITY_COSTS, Column, interval, legend_of, of_cost, text
from eval.reporting.tables import Rows, as_columns, as_markdown, code, describe_model, markdown, select, table_of
from eval.scoring.significance import interval_of_ratio

Units = Mapping[tuple[str, str], Unit]  # by task and example
Name = TypeVar("Name", bound=Hashable)

# Stands in the place of a prompt's name: documents are read as they are.
TEMPLATE = "text"


def legend() -> str:
    """Return what the columns of the tables mean."""
    intervals = "n: documents. tokens: predicted. Intervals: 95%, bootstrap over documents, or clusters of them."
    return f"{intervals} {legend_of(PERPLEXITY_COSTS)}"


def score_perplexity(
    lines: Sequence[DocumentLoss], examples: Sequence[ExampleRecord], system: str
) -> list[PerplexityResult]:
    """Return one result a task and length: perplexity with its interval, the same by position, and cost."""
    documents = {(example.task, example.id): example.document_id for example in examples}
    units = units_of(examples)
    groups: dict[tuple[str, int], list[DocumentLoss]] = defaultdict(list)
    for line in lines:
        groups[line.task, line.maxlen].append(line)
    return [
        PerplexityResult(
            task=task,
            template=TEMPLATE,
            system=system,
            maxlen=maxlen,
            num_documents=len({documents[task, line.id] for line in some}),
            num_truncated=sum(line.num_tokens_dropped > 0 for line in some),
            num_tokens=sum(line.num_tokens for line in some),
            metrics={"perplexity": perplexity_of(_losses(some, units))},
            by_position=_by_position(some, units),
            cost=_cost(some),
        )
        for (task, maxlen), some in groups.items()
    ]


def _losses(lines: Sequence[DocumentLoss], units: Units) -> list[list[float]]:
    """Return loss and tokens of each document, or of each cluster of them."""
    losses = ((units[line.task, line.id], (line.negative_log_likelihood, line.num_tokens)) for line in lines)
    return list(summed(losses).values())


def units_of(examples: Iterable[ExampleRecord]) -> dict[tuple[str, str], Unit]:
    """Return what each example is resampled as, by task and id: its cluster, or its document."""
    return {(example.task, example.id): example.unit for example in examples}


def summed(numbers: Iterable[tuple[Name, Sequence[float]]]) -> dict[Name, list[float]]:
    """Return the sums of numbers by name, each in its place, as losses and tokens of a cluster's documents."""
    sums: dict[Name, list[float]] = {}
    for name, of_one in numbers:
        known = sums.get(name)
        sums[name] = list(of_one) if known is None else [sum(pair) for pair in zip(known, of_one, strict=True)]
    return sums


def _by_position(lines: Sequence[DocumentLoss], units: Units) -> list[PositionLoss]:
    losses: dict[tuple[int, int], list[tuple[Unit, tuple[float, int]]]] = defaultdict(list)
    for line in lines:
        for start, stop, loss, num_tokens in line.buckets:
            losses[start, stop].append((units[line.task, line.id], (loss, num_tokens)))
    return [
        PositionLoss(
            first=start,
            last=stop - 1,
            num_tokens=sum(num_tokens for _, (_, num_tokens) in some),
            perplexity=perplexity_of(list(summed(some).values())),
        )
        for (start, stop), some in sorted(losses.items())
    ]


def _cost(lines: Sequence[DocumentLoss]) -> PerplexityCost:
    flops = [line.attention_flops for line in lines if line.attention_flops is not None]
    seconds = sum(line.seconds for line in lines)
    return PerplexityCost(
        tokens_per_second=sum(line.num_tokens for line in lines) / seconds if seconds else None,
        seconds=seconds / len(lines),
        peak_memory_bytes=max((line.peak_bytes for line in lines if line.peak_bytes is not None), default=None),
        cache_bytes=max((line.cache_bytes for line in lines if line.cache_bytes is not None), default=None),
        attention_flops=sum(flops) / len(flops) if len(flops) == len(lines) else None,
    )


def perplexity_of(pairs: Sequence[Sequence[float]]) -> Estimate:
    """Return exp(total loss / total tokens) of (loss, tokens) pairs, one a document or cluster, with its interval."""
    tokens = sum(num_tokens for _, num_tokens in pairs)
    if not tokens:
        return Estimate(mean=None, low=None, high=None)
    low, high = interval_of_ratio([loss for loss, _ in pairs], [num_tokens for _, num_tokens in pairs])
    return Estimate(mean=_exp(sum(loss for loss, _ in pairs) / tokens), low=_exp(low), high=_exp(high))


def _exp(loss: float | None) -> float | None:
    """Return exp(loss); None for what is not known and for what no float holds."""
    return math.exp(loss) if loss is not None and loss < 700 else None


def render_perplexity_report(
    record: PerplexityRecord, results: Sequence[PerplexityResult], notes: Sequence[str]
) -> str:
    """Return `report.md`."""
    identity, session = record.identity, record.sessions[-1]
    windows = "in windows of the length"
    if identity.stride is not None:
        windows += f" that overlap; after the first, the last {identity.stride:,} tokens of each are scored"
    parts = [
        f"# Perplexity, {', '.join(record.tasks)}: {markdown(identity.model.label)}",
        "",
        f"- model: {markdown(describe_model(identity.model, identity.dtype, session))}",
        *_engine_line(identity, session),
        f"- spans: {markdown(code(record.plan_description))}",
        f"- tokens: the first {identity.tokens:,} of each document at most, {windows}",
        f"- machine: {markdown(session.machine.device)}, {session.world_size} x {session.threads} threads",
        f"- code: commit {markdown(session.commit or 'unknown')}{', with uncommitted changes' * bool(session.dirty)}",
    ]
    for task in record.tasks:
        if some := select(results, task=task):
            parts += ["", f"## {task}", "", as_markdown(perplexity_table(some)), "", "By position, a column a length:"]
            parts += ["", as_markdown(position_table(some))]
    return "\n".join([*parts, "", *map(markdown, notes), markdown(legend()), ""])


def _engine_line(identity: PerplexityIdentity, session: Session) -> list[str]:
    """Return a line on the server that measured; nothing where a model was loaded here."""
    if not identity.engine:
        return []
    engine, told = identity.engine["name"], session.engine or {}
    known = [str(told[name]) for name in ("name", "version") if told.get(name) not in (None, engine)]
    where = f" at {told['address']}" if told.get("address") else ""
    at_once = f"{told.get('concurrency', 1)} requests at a time{where}, whose seconds count each by itself"
    return [f"- engine: {markdown(', '.join([engine, *known, at_once]))}"]


def print_perplexity(record: PerplexityRecord, results: Sequence[PerplexityResult], notes: Sequence[str]) -> None:
    """Print the tables of each task, what else is to be known, and the legend."""
    for task in record.tasks:
        if some := [result for result in results if result.task == task]:
            print(f"\n{task}\n{as_columns(perplexity_table(some))}\n\n{as_columns(position_table(some))}")
    print("\n" + "\n".join([*notes, textwrap.fill(legend(), 100)]))


def perplexity_table(results: Sequence[PerplexityResult]) -> Rows:
    """Return a header and one row a length."""
    columns = [
        MAXLEN,
        replace(text("num_documents"), heading="n"),
        Column(key="num_tokens", heading="tokens"),
        Column(heading="perplexity", show=lambda result: with_interval(result.metrics["perplexity"])),
    ]
    return table_of([*columns, *map(of_cost, PERPLEXITY_COSTS)], results)


def position_table(results: Sequence[PerplexityResult]) -> Rows:
    """Return a header and one row a range of positions, with a column a length."""
    found = [{part.first: part for part in result.by_position} for result in results]
    rows = [["position", *(f"{result.maxlen:,}" for result in results)]]
    for first in sorted({first for parts in found for first in parts}):
        last = max(parts[first].last for parts in found if first in parts)
        cells = [with_interval(parts[first].perplexity) if first in parts else "" for parts in found]
        rows.append([f"{first:,} to {last:,}", *cells])
    return rows


def with_interval(estimate: Estimate) -> str:
    """Return a perplexity with its interval, a dash for one that is not known."""
    if estimate.mean is None:
        return "-"
    return f"{estimate.mean:.3f}" + interval(estimate.low, estimate.high, ".2f")
