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

from eval.records.engines import describe_clock, engine_facts
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


def legend(of: str | None = None) -> str:
    """Return what the columns of the tables mean; `of` is what is measured, as in the record."""
    intervals = "n: documents. tokens: predicted. Intervals: 95%, bootstrap over documents, or clusters of them."
    if of == "references":
        intervals += (
            " nats: negative log likelihood a token of the references, end token included. to shortest, to previous: "
            "nats more than at these lengths, paired by example; below 0, the longer window helps."
        )
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
    results = [
        PerplexityResult(
            task=task,
            template=some[0].template,
            system=system,
            maxlen=maxlen,
            num_documents=len({documents[task, line.id] for line in some}),
            num_truncated=sum(line.num_tokens_dropped > 0 for line in some),
            num_tokens=sum(line.num_tokens for line in some),
            metrics={"perplexity": perplexity_of(_losses(some, units))},
            # A reference stands at another place at each length.
            by_position=_by_position(some, units) if some[0].template == TEMPLATE else [],
            cost=_cost(some),
        )
        for (task, maxlen), some in groups.items()
    ]
    lengths = {task: sorted(maxlen for name, maxlen in groups if name == task) for task, _ in groups}
    return [
        replace(result, metrics=result.metrics | _of_references(result, groups, lengths[result.task], units))
        if result.template != TEMPLATE
        else result
        for result in results
    ]


def _of_references(
    result: PerplexityResult,
    groups: Mapping[tuple[str, int], Sequence[DocumentLoss]],
    lengths: Sequence[int],
    units: Units,
) -> dict[str, Estimate]:
    """Return the loss a token of references, and what it is more than at the shortest length and the one before."""
    task, maxlen = result.task, result.maxlen
    lines = groups[task, maxlen]
    metrics = {"nats": _mean_loss(_losses(lines, units))}
    place = lengths.index(maxlen)
    for name, other in (("nats_to_shortest", lengths[0]), ("nats_to_previous", lengths[max(place - 1, 0)])):
        before = {line.id: line for line in groups[task, other]}
        pairs = [(line, before[line.id]) for line in lines if line.id in before]
        differences = (
            (units[task, one.id], (one.negative_log_likelihood - two.negative_log_likelihood, one.num_tokens))
            for one, two in pairs
        )
        if other != maxlen:
            metrics[name] = _mean_loss(list(summed(differences).values()))
    return metrics


def _mean_loss(pairs: Sequence[Sequence[float]]) -> Estimate:
    """Return total loss over total tokens of (loss, tokens) pairs, one a document or cluster, with its interval."""
    tokens = sum(num_tokens for _, num_tokens in pairs)
    if not tokens:
        return Estimate(mean=None, low=None, high=None)
    low, high = interval_of_ratio([loss for loss, _ in pairs], [num_tokens for _, num_tokens in pairs])
    return Estimate(mean=sum(loss for loss, _ in pairs) / tokens, low=low, high=high)


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
    loss = _mean_loss(pairs)
    return Estimate(mean=_exp(loss.mean), low=_exp(loss.low), high=_exp(loss.high))


def _exp(loss: float | None) -> float | None:
    """Return exp(loss); None for what is not known and for what no float holds."""
    return math.exp(loss) if loss is not None and loss < 700 else None


def render_perplexity_report(
    record: PerplexityRecord, results: Sequence[PerplexityResult], notes: Sequence[str]
) -> str:
    """Return `report.md`."""
    identity, session = record.identity, record.sessions[-1]
    kind = "Perplexity" if identity.of is None else "Likelihood of references"
    parts = [
        f"# {kind}, {', '.join(record.tasks)}: {markdown(identity.model.label)}",
        "",
        f"- model: {markdown(describe_model(identity.model, identity.dtype, session))}",
        *_engine_lines(identity, session),
        f"- spans: {markdown(code(record.plan_description))}",
        f"- tokens: {_describe_tokens(identity)}",
        f"- machine: {markdown(session.machine.device)}, {session.world_size} x {session.threads} threads",
        f"- code: commit {markdown(session.commit or 'unknown')}{', with uncommitted changes' * bool(session.dirty)}",
    ]
    for task in record.tasks:
        if some := select(results, task=task):
            parts += ["", f"## {task}", "", as_markdown(perplexity_table(some))]
            if identity.of is None:
                parts += ["", "By position, a column a length:", "", as_markdown(position_table(some))]
    return "\n".join([*parts, "", *map(markdown, notes), markdown(legend(identity.of)), ""])


def _describe_tokens(identity: PerplexityIdentity) -> str:
    """Return which tokens are scored."""
    if identity.tokens is None:
        return "those of references, each after the prompt that leaves room for it within the length"
    read = f"the first {identity.tokens:,} of each document at most, in windows of the length"
    if identity.stride is None:
        return read
    return f"{read} that overlap; after the first, the last {identity.stride:,} tokens of each are scored"


def _engine_lines(identity: PerplexityIdentity, session: Session) -> list[str]:
    """Return lines on the server that measured; nothing where a model was loaded here."""
    facts = engine_facts(identity.engine, session)
    if clock := describe_clock(identity.engine, session):
        facts |= {"seconds": clock}
    return [f"- {name}: {markdown(text)}" for name, text in facts.items()]


def print_perplexity(record: PerplexityRecord, results: Sequence[PerplexityResult], notes: Sequence[str]) -> None:
    """Print the tables of each task, what else is to be known, and the legend."""
    for task in record.tasks:
        if some := [result for result in results if result.task == task]:
            print(f"\n{task}\n{as_columns(perplexity_table(some))}")
            if record.identity.of is None:
                print(f"\n{as_columns(position_table(some))}")
    print("\n" + "\n".join([*notes, textwrap.fill(legend(record.identity.of), 100)]))


def _metric(name: str, heading: str) -> Column:
    unknown = Estimate(mean=None, low=None, high=None)
    return Column(heading=heading, show=lambda result: with_interval(result.metrics.get(name, unknown), 3))


_PERPLEXITY = Column(heading="perplexity", show=lambda result: with_interval(result.metrics["perplexity"]))
_NATS = [_metric("nats", "nats"), _metric("nats_to_shortest", "to shortest")]
_NATS += [_metric("nats_to_previous", "to previous")]


def perplexity_table(results: Sequence[PerplexityResult]) -> Rows:
    """Return a header and one row a length."""
    columns = [
        MAXLEN,
        replace(text("num_documents"), heading="n"),
        Column(key="num_tokens", heading="tokens"),
        *(_NATS if "nats" in results[0].metrics else [_PERPLEXITY]),
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


def with_interval(estimate: Estimate, digits: int = 2) -> str:
    """Return a perplexity, or nats, with its interval, whose ends have fewer digits; a dash for one not known."""
    if estimate.mean is None:
        return "-"
    return f"{estimate.mean:.{digits + 1}f}" + interval(estimate.low, estimate.high, f".{digits}f")
