"""Sections of a study's report about losses on the same documents: parts of eval/perplexity.py, and placements."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from eval.errors import UserError
from eval.records.schema import (
    DocumentLoss,
    DocumentsTask,
    Estimate,
    HeldOutRow,
    PerplexityRatio,
    PerplexityResult,
    PerplexityScores,
    PlacementResult,
    StabilityRecord,
    UnitRecord,
)
from eval.reporting.perplexity_report import Units, perplexity_of, summed, units_of, with_interval
from eval.reporting.placement_report import task_of, unit_in_task
from eval.reporting.stability_report import describe_stability, stability_chart, stability_tables
from eval.reporting.tables import Rows
from eval.scoring.significance import ratios_of_perplexities
from eval.studies.charts import ratio_chart, strip_chart
from eval.studies.section import Draft, in_both, share

Lines = dict[str, DocumentLoss]  # by document
Setting = tuple[str, int]  # task, maxlen
Losses = Mapping[Hashable, Sequence[float]]  # both losses and the tokens, by task and document or cluster

LEGEND = (
    "ratio: perplexity over that of the reference on the same tokens, paired, 95% bootstrap interval over documents, "
    "or clusters of them, within their tasks; the intervals of a table hold for all its rows at once (max-T). "
    "detectable: the smallest ratio that so many documents would have told from 1 in this table with power 0.8. "
    "attention, cache, seconds: shares of the reference over the same documents."
)
_SHARED_LEGEND = "shared: documents, or clusters, with such tokens that both have measured, of which the ratio is."
_RANDOM_LEGEND = "random better: of random plans, how many are; for plans of their cost alone."

ALL_TASKS = "all tasks"
_ITSELF = PerplexityRatio(ratio=1.0, low=None, high=None, detectable=None, num_documents=0)
# Names that a search gives to its random placements.
_RANDOM = re.compile(r"random \d+")
# What may differ between sources of data whose content is the same.
_NAMES_OF_SOURCE = ("kind", "name", "version")


class Pair(NamedTuple):
    """What the reference and a part measured on the same documents, and what these are resampled as."""

    before: Lines
    after: Lines
    units: Units


Pairs = Mapping[str, Mapping[Setting, Pair]]  # by part


def write_perplexity(draft: Draft) -> None:
    """Write ratios of perplexities by length and by position."""
    scores = {name: draft.read(PerplexityScores, name, "scores.json") for name in draft.folders}
    results = {name: {(one.task, one.maxlen): one for one in some.results} for name, some in scores.items()}
    pairs = pairs_of(draft)
    for name in draft.others:
        if draft.reference and (unlike := _unlike(draft.records[draft.reference], draft.records[name])):
            draft.say(f"`{name}`, unlike `{draft.reference}`, {' and '.join(unlike)}.")
    draft.table("By length", _length_rows(draft, results, pairs))
    # The last setting of a task is its longest.
    for task, longest in dict(sorted({setting for some in results.values() for setting in some})).items():
        result = results[draft.reference].get((task, longest)) if draft.reference else None
        of_task = {name: pair for name in draft.others if (pair := pairs[name].get((task, longest))) is not None}
        if result is not None:
            draft.table(f"By position, {task} at {longest:,}", _position_rows(draft, result, of_task))
            _draw(draft, f"{task} {longest}", f"{task} at {longest:,}", of_task)
    draft.note_machines()
    draft.say(f"{LEGEND} {_SHARED_LEGEND}")


def pairs_of(draft: Draft) -> Pairs:
    """Return what of each part compares with the reference, and say what does not."""
    pairs: dict[str, dict[Setting, Pair]] = {name: {} for name in draft.folders}
    if draft.reference is None:
        return pairs
    lines = {
        name: {(task, maxlen): some for (task, _, maxlen), some in draft.lines(name).items()} for name in draft.folders
    }
    reference, units = lines[draft.reference], units_of(draft.examples(draft.reference))
    for name, of_part in pairs.items():
        refused = _refused(draft, name, reference, lines[name])
        for task, why in refused.items():
            draft.say(f"`{name}` is not compared with `{draft.reference}` on {task}: {why}.")
        for setting, before in reference.items():
            pair = Pair(*in_both(before, lines[name].get(setting, {})), units)
            if pair.before and setting[0] not in refused:
                of_part[setting] = pair
        for maxlen in sorted({maxlen for _, maxlen in reference}):
            settings = [setting for setting in reference if setting[1] == maxlen]
            if len(settings) > 1 and of_part.keys() >= set(settings):
                of_part[ALL_TASKS, maxlen] = _pooled({task: of_part[task, maxlen] for task, _ in settings})
    return pairs


def _pooled(pairs: Mapping[str, Pair]) -> Pair:
    """Return the pairs of several tasks as one."""
    before: Lines = {}
    after: Lines = {}
    for task, pair in pairs.items():
        before |= {f"{task} {name}": line for name, line in pair.before.items()}
        after |= {f"{task} {name}": line for name, line in pair.after.items()}
    [units, *_] = (pair.units for pair in pairs.values())  # of all tasks
    return Pair(before, after, units)


def _refused(
    draft: Draft, name: str, reference: Mapping[Setting, Lines], lines: Mapping[Setting, Lines]
) -> dict[str, str]:
    """Return the tasks on which a part is not compared with the reference: other data, or other tokens."""
    before = draft.records[str(draft.reference)].tasks
    refused = {
        task: "the data, or the version of the task, is another"
        for task, about in draft.records[name].tasks.items()
        if task in before and _content_of(before[task]) != _content_of(about)
    }
    for setting, of_reference in reference.items():
        for document, line in lines.get(setting, {}).items():
            if document in of_reference and (why := _other_tokens(line, of_reference[document])):
                refused.setdefault(setting[0], why)
    return refused


def _content_of(task: DocumentsTask) -> tuple[Any, ...]:
    """Return what differs between tasks whose documents may."""
    names = _NAMES_OF_SOURCE if "sha256" in task.source else ()
    return task.version, {key: value for key, value in task.source.items() if key not in names}


def _other_tokens(line: DocumentLoss, before: DocumentLoss) -> str:
    """Return how the tokens of a document differ from those that the reference read; empty where they are as many."""
    numbers = [(one.num_tokens, one.num_tokens_dropped) for one in (line, before)]
    if numbers[0] == numbers[1]:
        return ""
    there, here = (f"{read} tokens and {dropped} left out" for read, dropped in numbers)
    return f"'{line.id}' has {there} there and {here} here; give both one tokenizer and the same --tokens"


def _unlike(before: Any, after: Any) -> list[str]:
    """Return what a ratio may come from besides model and plan."""
    unlike = []
    if before.identity.dtype != after.identity.dtype:
        unlike.append(f"computes in {after.identity.dtype} instead of {before.identity.dtype}")
    first, second = ((one.identity.model.files or {}).get("tokenizer.json") for one in (before, after))
    if first and second and first != second:
        unlike.append("has another tokenizer.json, under which the documents that compare are of the same lengths")
    return unlike


def _length_rows(draft: Draft, results: Mapping[str, Mapping[Setting, PerplexityResult]], pairs: Pairs) -> Rows:
    """Return a row a part at each length of each task, and of all tasks where there are several."""
    position = draft.section.from_position
    far = [] if position is None else [f"ratio from {position:,} on", "shared", "detectable"]
    header = ["task", "maxlen", "part", "n", "perplexity", "ratio", "shared", "detectable", *far]
    rows = [[*header, "attention", "cache", "seconds"]]
    settings = sorted({setting for some in results.values() for setting in some})
    pooled = sorted({setting for some in pairs.values() for setting in some if setting[0] == ALL_TASKS})
    firsts = [0] if position is None else [0, position]
    # One table, in which all intervals hold.
    places = [(name, setting, first) for name in draft.folders for setting in pairs[name] for first in firsts]
    found = _ratios([losses_of(pairs[name][setting], first) for name, setting, first in places])
    ratios = dict(zip(places, found, strict=True))
    for task, maxlen in [*settings, *pooled]:
        for name in draft.folders:
            pair, result = pairs[name].get((task, maxlen)), results[name].get((task, maxlen))
            if result is not None:
                num_documents, perplexity = result.num_documents, result.metrics["perplexity"]
            elif task == ALL_TASKS and pair is not None:
                row = [losses[1:] for losses in losses_of(pair).values()]
                num_documents, perplexity = len(pair.after), perplexity_of(row)
            else:
                continue
            of_row = [
                ratios.get((name, (task, maxlen), first)) for first in ([0] if position is None else [0, position])
            ]
            costs = ("attention_flops", "cache_bytes", *(["seconds"] if draft.is_timed_alike(name) else []))
            cells = _compared(pair, of_row, costs, is_reference=name == draft.reference)
            rows.append([task, f"{maxlen:,}", name, str(num_documents), with_interval(perplexity), *cells])
    return rows


def _compared(
    pair: Pair | None, ratios: Sequence[PerplexityRatio | None], costs: Collection[str], *, is_reference: bool
) -> list[str]:
    """Return the cells of a part beside the reference, of these costs; a dash for the others."""
    cells = []
    for ratio in ratios:
        value, detectable = ("1", "") if ratio and is_reference else ratio_cells(ratio)
        cells += [value, str(ratio.num_documents) if ratio else "-", detectable]
    for key in ("attention_flops", "cache_bytes", "seconds"):
        cells.append(share(_total(pair.after, key), _total(pair.before, key)) if pair and key in costs else "-")
    return cells


def _total(lines: Lines, key: str) -> float | None:
    values = [getattr(line, key) for line in lines.values()]
    return None if None in values else float(sum(values))


def _losses(lines: Lines, first: int = 0, stop: int | None = None) -> dict[str, tuple[float, int]]:
    """Return the loss in nats and the tokens of each document, at positions from `first` to one below `stop`."""
    losses = {}
    for name, line in lines.items():
        buckets = [one for one in line.buckets if one[0] >= first and (stop is None or one[1] <= stop)]
        losses[name] = sum(loss for _, _, loss, _ in buckets), sum(tokens for _, _, _, tokens in buckets)
    return losses


def losses_of(pair: Pair, first: int = 0, stop: int | None = None) -> Losses:
    """Return the losses of both on these positions of the documents, or of clusters of them.

    Raises:
        UserError: A document has other tokens in one than in the other.
    """
    before, after = (_losses(lines, first, stop) for lines in (pair.before, pair.after))
    losses: list[tuple[Hashable, Sequence[float]]] = []
    for name, line in pair.before.items():
        (loss, tokens), (other, others) = before[name], after[name]
        if tokens != others:
            raise UserError(f"'{name}' has {tokens} tokens in one place and {others} in another")
        losses.append((unit_in_task(pair.units, line), (loss, other, tokens)))
    return summed(losses)


def _ratios(table: Sequence[Losses]) -> list[PerplexityRatio | None]:
    """Return how the seconds differ, intervals of all rows at once; None where there is no token."""
    known = [row for row in table if any(tokens for *_, tokens in row.values())]
    # The reference beside itself has no spread, and widens no other interval.
    found = iter(ratios_of_perplexities(known, task_of) if known else [])
    return [next(found) if any(tokens for *_, tokens in row.values()) else None for row in table]


def ratio_cells(ratio: PerplexityRatio | None) -> tuple[str, str]:
    """Return a ratio with its interval, and the smallest one that would have been found."""
    if ratio is None:
        return "-", "-"
    interval = "" if ratio.low is None else f" [{ratio.low:.4f}, {ratio.high:.4f}]"
    return f"{ratio.ratio:.4f}{interval}", "-" if ratio.detectable is None else f"{ratio.detectable:.4f}"


def _position_rows(draft: Draft, result: PerplexityResult, pairs: Mapping[str, Pair]) -> Rows:
    """Return a row a bucket: the perplexity of the reference, and the ratio of each other part."""
    rows = [["positions", f"{draft.reference}: perplexity", *(f"{name}: ratio" for name in pairs)]]
    buckets = result.by_position
    table = [losses_of(pair, bucket.first, bucket.last + 1) for bucket in buckets for pair in pairs.values()]
    found = iter(_ratios(table))
    for bucket in buckets:
        ratios = [ratio_cells(next(found))[0] for _ in pairs]
        rows.append([f"{bucket.first:,} to {bucket.last:,}", with_interval(bucket.perplexity), *ratios])
    return rows


def _draw(draft: Draft, file: str, setting: str, pairs: Mapping[str, Pair]) -> None:
    """Add a chart of all positions, and one of those from the section's first on."""
    for first in dict.fromkeys([0, draft.section.from_position or 0]):
        label = draft.section.label
        points = [_point(label(str(draft.reference)), 1.0, _ITSELF)]
        ratios = _ratios([losses_of(pair, first) for pair in pairs.values()])
        for (name, pair), ratio in zip(pairs.items(), ratios, strict=True):
            full, now = (_total(lines, "attention_flops") for lines in (pair.before, pair.after))
            if ratio is not None and now is not None and full:
                points.append(_point(label(name), now / full, ratio))
        if len(points) > 1:
            where = f"positions from {first:,} on" if first else "all positions"
            spec = ratio_chart(points, f"Perplexity, ratio to {label(str(draft.reference))}, {where}")
            draft.chart(f"{file} from {first}", f"{setting}, {where}: ratio of perplexities against attention", spec)


def _point(name: str, of_attention: float, ratio: PerplexityRatio) -> dict[str, Any]:
    return {"name": name, "share": of_attention, "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}


def write_placements(draft: Draft) -> None:
    """Write what folds of a search found, its plans on held-out documents, and where random plans lie."""
    judged = False
    for name in draft.folders:
        result = draft.read(PlacementResult, name, "placement.json")
        if result.stability is not None:
            _write_folds(draft, name, result.stability, result.scores)
        held_out = result.held_out
        if any(row.name == "full" for row in held_out):
            judged = True
            _write_search(draft, name, sorted(held_out, key=lambda row: row.perplexity))
        elif held_out or result.stability is None:
            draft.say(f"`{name}` has not measured the plan `full`, so there is nothing to compare with.")
    if judged:
        draft.say(f"{LEGEND.replace('the reference', 'full attention').replace(', seconds', '')} {_RANDOM_LEGEND}")


def _write_folds(draft: Draft, part: str, stability: StabilityRecord, units: Sequence[UnitRecord]) -> None:
    """Write what the folds of one search found."""
    draft.say(f"`{part}`: {describe_stability(stability)}")
    for title, rows in stability_tables(stability):
        draft.table(f"{part}: {title[0].lower()}{title[1:]}", rows)
    draft.chart(f"{part} folds", f"{part}: folds that chose each unit", stability_chart(stability, units))


def _write_search(draft: Draft, part: str, held_out: Sequence[HeldOutRow]) -> None:
    """Write the table and the chart of one search."""
    random = [row for row in held_out if _RANDOM.fullmatch(row.name)]
    by_chance = sorted(_to_full(row).ratio for row in random)
    rows = [["plan", "n", "perplexity", "ratio", "detectable", "random better", "attention", "cache", "spans"]]
    points = []
    for row in held_out:
        ratio, cost = _to_full(row), row.cost
        if row in random:
            name = draft.section.label(f"random ({len(random)})")
            points.append(_point(name, cost["flops"], ratio) | {"low": None, "high": None})
            continue
        points.append(_point(draft.section.label(row.name), cost["flops"], ratio))
        perplexity = with_interval(Estimate(mean=row.perplexity, low=row.low, high=row.high))
        better = f"{sum(other < ratio.ratio for other in by_chance)} of {len(by_chance)}"
        cells = [row.name, str(ratio.num_documents), perplexity, *(ratio_cells(ratio) if row.to_full else ("1", ""))]
        cells.append(better if any(cost == one.cost for one in random) else "-")
        rows.append([*cells, share(cost["flops"], 1), share(cost["cache"], 1), f"`{row.plan}`"])
    draft.table(f"{part}, held-out documents", rows)
    if by_chance:
        ends, middle = f"{by_chance[0]:.4f} to {by_chance[-1]:.4f}", statistics.median(by_chance)
        draft.say(f"{len(random)} random plans: ratios from {ends}, median {middle:.4f}.")
    if len(points) > 1:
        spec = strip_chart(points, "Perplexity, ratio to full attention")
        draft.chart(part, f"{part}: plans on held-out documents", spec)


def _to_full(row: HeldOutRow) -> PerplexityRatio:
    return row.to_full or replace(_ITSELF, num_documents=row.num_documents)
