"""Sections of a study's report about losses on the same documents: parts of eval/perplexity.py, and placements."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.errors import UserError
from eval.records.journal import read_lines
from eval.records.schema import PerplexityRatio
from eval.reporting.perplexity_report import perplexity_of, with_interval
from eval.reporting.tables import Rows
from eval.scoring.significance import ratio_of_perplexities
from eval.studies.charts import ratio_chart, strip_chart
from eval.studies.section import Content, Given, Record, read_json, share, timed_alike

Line = Mapping[str, Any]
Lines = Mapping[str, Line]  # by document
Pair = tuple[Lines, Lines]  # of the reference and of a part, the same documents
Losses = Mapping[str, tuple[float, int]]  # by document: negative log likelihood in nats, tokens
Setting = tuple[str, int]  # task, maxlen

LEGEND = (
    "ratio: perplexity over that of the reference on the same tokens, 95% bootstrap interval over documents, paired. "
    "detectable: the smallest ratio that so many documents would have told from 1 with power 0.8. attention, cache, "
    "seconds: shares of the reference over the same documents."
)
_SHARED_LEGEND = "shared: documents with such tokens that both have measured, of which the ratio is."
_ALL_TASKS = "all tasks"
_RANDOM_LEGEND = " random better: of random plans, how many are; for plans of their cost alone."
_SAME = {"ratio": 1.0, "low": None, "high": None, "detectable": None}  # of full attention to itself

# Names that a search gives to its random placements.
_RANDOM = re.compile(r"random \d+")
# Of the source of data: what may differ where the content is the same.
_NAMES_OF_SOURCE = ("kind", "name", "version")


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the parts of a section have measured.

    Attributes:
        lines: By part.
        reference: None where it is not there.
        refused: By part and task, why it is not compared with the reference.
    """

    lines: Mapping[str, Mapping[Setting, Lines]]
    reference: str | None
    refused: Mapping[tuple[str, str], str]

    def pair(self, name: str, setting: Setting) -> Pair | None:
        """Return the lines of the documents that the reference and a part share; None where they do not compare."""
        if self.reference is None or (name, setting[0]) in self.refused:
            return None
        before, after = (self.lines[one].get(setting, {}) for one in (self.reference, name))
        shared = [document for document in before if document in after]
        if not shared:
            return None
        return {document: before[document] for document in shared}, {document: after[document] for document in shared}

    def pooled(self, name: str, maxlen: int) -> Pair | None:
        """Return what `pair` does over all tasks of the reference; None where there is one, or one does not compare."""
        settings = [] if self.reference is None else [one for one in self.lines[self.reference] if one[1] == maxlen]
        before: dict[str, Line] = {}
        after: dict[str, Line] = {}
        for setting in settings:
            if (pair := self.pair(name, setting)) is None:
                return None
            for pool, lines in zip((before, after), pair, strict=True):
                pool.update({f"{setting[0]} {document}": line for document, line in lines.items()})
        return (before, after) if len(settings) > 1 else None


def perplexity_section(given: Given) -> Content:
    """Return ratios of perplexities by length and by position."""
    content, records = Content(section=given.section), given.records()
    results = {
        name: {(one["task"], one["maxlen"]): one for one in read_json(folder / "scores.json")["results"]}
        for name, folder in given.folders.items()
    }
    lines = {name: _by_setting(read_lines(folder / "predictions.jsonl")) for name, folder in given.folders.items()}
    measured = _Measured(lines=lines, reference=given.reference, refused=_refused(given, records, lines))
    for (name, task), why in measured.refused.items():
        content.say(f"`{name}` is not compared with `{given.reference}` on {task}: {why}.")
    for name in given.others:
        content.say(_differences(given.reference, name, records))
    content.table("By length", _length_rows(given, measured, results))
    settings = sorted({setting for of_part in results.values() for setting in of_part})
    for task in dict.fromkeys(task for task, _ in settings):
        longest = max(setting for setting in settings if setting[0] == task)
        content.table(f"By position, {task} at {longest[1]:,}", _position_rows(given, measured, results, longest))
        _draw(content, given, measured, longest)
    content.say(timed_alike(records))
    content.say(f"{LEGEND} {_SHARED_LEGEND}")
    return content


def _by_setting(lines: Sequence[Line]) -> dict[Setting, dict[str, Line]]:
    found: dict[Setting, dict[str, Line]] = {}
    for line in lines:
        found.setdefault((line["task"], line["maxlen"]), {})[line["id"]] = line
    return found


def _refused(
    given: Given, records: Mapping[str, Record], lines: Mapping[str, Mapping[Setting, Lines]]
) -> dict[tuple[str, str], str]:
    """Return why a part is not compared with the reference on a task: other data, or other tokens of a document."""
    found: dict[tuple[str, str], str] = {}
    if given.reference is None:
        return found
    for name in given.others:
        for task, about in records[name]["tasks"].items():
            before = records[given.reference]["tasks"].get(task)
            if before is not None and _content_of(before) != _content_of(about):
                found[name, task] = "the data, or the version of the task, is another"
        for setting, of_reference in lines[given.reference].items():
            for document, line in lines[name].get(setting, {}).items():
                if document in of_reference and _length(line) != _length(of_reference[document]):
                    now, held = (
                        "{} tokens and {} left out".format(*_length(one)) for one in (line, of_reference[document])
                    )
                    why = f"'{document}' has {now} there and {held} here; give both one tokenizer and the same --tokens"
                    found.setdefault((name, setting[0]), why)
    return found


def _content_of(task: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what differs between tasks whose documents may."""
    source = task["source"]
    names = _NAMES_OF_SOURCE if "sha256" in source else ()
    return task["version"], {key: value for key, value in source.items() if key not in names}


def _length(line: Line) -> tuple[int, int]:
    """Return the tokens of a document that are predicted, and those that are left out, at one length of windows."""
    return line["num_tokens"], line["num_tokens_dropped"]


def _differences(reference: str | None, name: str, records: Mapping[str, Record]) -> str:
    """Return what a ratio may come from besides model and plan; empty where nothing is known."""
    if reference is None:
        return ""
    before, after = (records[one]["identity"] for one in (reference, name))
    said = []
    if before["dtype"] != after["dtype"]:
        said.append(f"computes in {after['dtype']} instead of {before['dtype']}")
    held, now = (one["model"].get("files", {}).get("tokenizer.json") for one in (before, after))
    if held and now and held != now:
        said.append("has another tokenizer.json, under which the documents that compare are of the same lengths")
    return f"`{name}`, unlike `{reference}`, {' and '.join(said)}." if said else ""


def _length_rows(given: Given, measured: _Measured, results: Mapping[str, Mapping[Setting, Line]]) -> Rows:
    """Return a row a part at each length of each task, and of all tasks where there are several."""
    position = given.section.from_position
    far = [] if position is None else [f"ratio from {position:,} on", "shared", "detectable"]
    header = ["task", "maxlen", "part", "n", "perplexity", "ratio", "shared", "detectable", *far]
    rows = [[*header, "attention", "cache", "seconds"]]
    settings = sorted({setting for of_part in results.values() for setting in of_part})
    for setting in settings:
        for name in given.folders:
            if (result := results[name].get(setting)) is not None:
                about = [str(result["num_documents"]), with_interval(result["metrics"]["perplexity"])]
                cells = _compared(measured.pair(name, setting), position, is_reference=name == given.reference)
                rows.append([setting[0], f"{setting[1]:,}", name, *about, *cells])
    for maxlen in sorted({maxlen for _, maxlen in settings}):
        for name in given.folders:
            if (pair := measured.pooled(name, maxlen)) is not None:
                losses = _losses(pair[1], 0)
                about = [str(len(losses)), with_interval(perplexity_of(list(losses.values())))]
                cells = _compared(pair, position, is_reference=name == given.reference)
                rows.append([_ALL_TASKS, f"{maxlen:,}", name, *about, *cells])
    return rows


def _compared(pair: Pair | None, position: int | None, *, is_reference: bool) -> list[str]:
    """Return the cells of a part beside the reference."""
    starts = [0] if position is None else [0, position]
    if pair is None:
        return ["-"] * (3 * len(starts) + 3)
    cells = []
    for first in starts:
        ratio = _ratio(*(_losses(lines, first) for lines in pair))
        if ratio is None or not is_reference:
            value, detectable = ratio_cells(ratio)
            cells += [value, "-" if ratio is None else str(ratio.num_documents), detectable]
        else:
            cells += ["1", str(ratio.num_documents), ""]
    for key in ("attention_flops", "cache_bytes", "seconds"):
        cells.append(share(_total(pair[1], key), _total(pair[0], key)))
    return cells


def _total(lines: Lines, key: str) -> float | None:
    values = [line[key] for line in lines.values()]
    return None if None in values else float(sum(values))


def _losses(lines: Lines, first: int, stop: int | None = None) -> dict[str, tuple[float, int]]:
    """Return the losses of each document in buckets of positions from `first` to one below `stop`."""
    found = {}
    for name, line in lines.items():
        buckets = [b for b in line["buckets"] if b[0] >= first and (stop is None or b[1] <= stop)]
        found[name] = (sum(b[2] for b in buckets), sum(b[3] for b in buckets))
    return found


def _ratio(first: Losses, second: Losses) -> PerplexityRatio | None:
    """Return how the second differs on the documents of both; None where there is no token.

    Raises:
        UserError: A document has other tokens in one than in the other.
    """
    names = [name for name in first if name in second]
    for name in names:
        if first[name][1] != second[name][1]:
            raise UserError(f"'{name}' has {first[name][1]} tokens in one place and {second[name][1]} in another")
    counts = [first[name][1] for name in names]
    if not sum(counts):
        return None
    return ratio_of_perplexities([first[name][0] for name in names], [second[name][0] for name in names], counts)


def ratio_cells(ratio: PerplexityRatio | None) -> list[str]:
    """Return a ratio with its interval, and the smallest one that would have been found."""
    if ratio is None:
        return ["-", "-"]
    interval = "" if ratio.low is None else f" [{ratio.low:.4f}, {ratio.high:.4f}]"
    return [f"{ratio.ratio:.4f}{interval}", "-" if ratio.detectable is None else f"{ratio.detectable:.4f}"]


def _position_rows(
    given: Given, measured: _Measured, results: Mapping[str, Mapping[Setting, Line]], setting: Setting
) -> Rows:
    """Return a row a bucket: the perplexity of the reference, and the ratio of each other part."""
    if given.reference is None or setting not in results[given.reference]:
        return []
    pairs = {name: pair for name in given.others if (pair := measured.pair(name, setting)) is not None}
    rows = [["positions", f"{given.reference}: perplexity", *(f"{name}: ratio" for name in pairs)]]
    for bucket in results[given.reference][setting]["by_position"]:
        first, stop = bucket["first"], bucket["last"] + 1
        ratios = [_ratio(*(_losses(lines, first, stop) for lines in pair)) for pair in pairs.values()]
        rows.append(
            [
                f"{first:,} to {bucket['last']:,}",
                with_interval(bucket["perplexity"]),
                *(ratio_cells(ratio)[0] for ratio in ratios),
            ]
        )
    return rows


def _draw(content: Content, given: Given, measured: _Measured, setting: Setting) -> None:
    """Add a chart of all positions, and one of those from the section's first on."""
    for first in dict.fromkeys([0, given.section.from_position or 0]):
        rows = [{"name": given.reference, "share": 1.0, "ratio": 1.0, "low": None, "high": None}]
        for name in given.others:
            if (pair := measured.pair(name, setting)) is None:
                continue
            full, now = (_total(lines, "attention_flops") for lines in pair)
            ratio = _ratio(*(_losses(lines, first) for lines in pair))
            if ratio is not None and now is not None and full:
                rows.append(
                    {"name": name, "share": now / full, "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high}
                )
        if len(rows) > 1:
            where = f"positions from {first:,} on" if first else "all positions"
            title = f"{setting[0]} at {setting[1]:,}, {where}: ratio of perplexities against attention"
            named = f"{setting[0]} {setting[1]} from {first}"
            content.chart(named, title, ratio_chart(rows, f"Perplexity / {given.reference}'s, {where}"))


def placements_section(given: Given) -> Content:
    """Return plans of a search on held-out documents, and where random plans lie."""
    content = Content(section=given.section)
    for name, folder in given.folders.items():
        held_out = read_json(folder / "placement.json")["held_out"]
        if not any(row["name"] == "full" for row in held_out):
            content.say(f"`{name}` has not measured the plan `full`, so there is nothing to compare with.")
            continue
        _placements(content, name, held_out)
    content.say(LEGEND.replace("the reference", "full attention").replace(", seconds", "") + _RANDOM_LEGEND)
    return content


def _placements(content: Content, part: str, held_out: Sequence[Line]) -> None:
    """Add the tables and the chart of one search."""
    ratios = {
        row["name"]: PerplexityRatio(**row["to_full"] or _SAME | {"num_documents": row["num_documents"]})
        for row in held_out
    }
    random = [row for row in held_out if _RANDOM.fullmatch(row["name"])]
    by_chance = sorted(ratios[row["name"]].ratio for row in random)
    rows = [["plan", "n", "perplexity", "ratio", "detectable", "random better", "attention", "cache", "spans"]]
    points = []
    for row in sorted(held_out, key=lambda row: float(row["perplexity"])):
        name, ratio = row["name"], ratios[row["name"]]
        is_random = _RANDOM.fullmatch(name) is not None
        label = f"random ({len(by_chance)})" if is_random else name
        interval = {"low": None, "high": None} if is_random else {"low": ratio.low, "high": ratio.high}
        points.append({"name": label, "share": row["cost"]["flops"], "ratio": ratio.ratio, **interval})
        if not is_random:
            better = sum(other < ratio.ratio for other in by_chance)
            cells = ["1", ""] if name == "full" else ratio_cells(ratio)
            metric = {"mean": row["perplexity"], "low": row["low"], "high": row["high"]}
            rows.append(
                [
                    *(name, str(ratio.num_documents), with_interval(metric), *cells),
                    f"{better} of {len(by_chance)}" if any(row["cost"] == one["cost"] for one in random) else "-",
                    *(share(row["cost"]["flops"], 1), share(row["cost"]["cache"], 1), f"`{row['plan']}`"),
                ]
            )
    content.table(f"{part}, held-out documents", rows)
    if by_chance:
        content.say(
            f"{len(by_chance)} random plans: ratios from {by_chance[0]:.4f} to {by_chance[-1]:.4f}, median "
            f"{statistics.median(by_chance):.4f}."
        )
    if len(points) > 1:
        title = f"{part}: plans on held-out documents"
        content.chart(part, title, strip_chart(points, "Perplexity / full attention's"))
