"""Sections of a study's report about losses on the same documents: parts of eval/perplexity.py, and placements."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eval.journal import read_lines
from eval.perplexity_report import with_interval
from eval.report import Rows
from eval.significance import PerplexityRatio, ratio_of_perplexities
from eval.study_charts import ratio_chart, strip_chart
from eval.study_section import Content, Given, read_json, share, timed_alike

Line = Mapping[str, Any]
Losses = Mapping[str, tuple[float, int]]  # by document: negative log likelihood in nats, tokens
Setting = tuple[str, int]  # task, maxlen

LEGEND = (
    "ratio: perplexity over that of the reference on the same tokens, 95% bootstrap interval over documents, paired. "
    "detectable: the smallest ratio that so many documents would have told from 1 with power 0.8. attention, cache, "
    "seconds: shares of the reference over the same documents."
)
_OTHER_TOKENS = "other tokens"

# Names that a search gives to its random placements.
_RANDOM = re.compile(r"random \d+")


def perplexity_section(given: Given) -> Content:
    """Return ratios of perplexities by length and by position."""
    content = Content(section=given.section)
    lines = {name: _by_setting(read_lines(folder / "predictions.jsonl")) for name, folder in given.folders.items()}
    results = {
        name: {(one["task"], one["maxlen"]): one for one in read_json(folder / "scores.json")["results"]}
        for name, folder in given.folders.items()
    }
    settings = sorted({setting for of_part in results.values() for setting in of_part})
    position = given.section.from_position
    rows = [_header(position)]
    for setting in settings:
        for name in given.folders:
            if setting in results[name]:
                before = lines[given.reference].get(setting) if given.reference else None
                is_reference = name == given.reference
                rows.append(
                    [
                        setting[0],
                        f"{setting[1]:,}",
                        name,
                        str(results[name][setting]["num_documents"]),
                        with_interval(results[name][setting]["metrics"]["perplexity"]),
                        *_compared(before, lines[name][setting], position, is_reference=is_reference),
                    ]
                )
    content.table("By length", rows)
    for task in dict.fromkeys(task for task, _ in settings):
        longest = max(setting for setting in settings if setting[0] == task)
        content.table(f"By position, {task} at {longest[1]:,}", _position_rows(given, lines, results, longest))
        _draw(content, given, lines, longest)
    content.say(timed_alike(given.records()))
    content.say(LEGEND)
    return content


def _by_setting(lines: Sequence[Line]) -> dict[Setting, dict[str, Line]]:
    found: dict[Setting, dict[str, Line]] = {}
    for line in lines:
        found.setdefault((line["task"], line["maxlen"]), {})[line["id"]] = line
    return found


def _header(position: int | None) -> list[str]:
    far = [] if position is None else [f"ratio from {position:,} on", "detectable"]
    return [
        *("task", "maxlen", "part", "n", "perplexity", "ratio", "detectable", *far),
        *("attention", "cache", "seconds"),
    ]


def _compared(
    before: Mapping[str, Line] | None, after: Mapping[str, Line], position: int | None, *, is_reference: bool
) -> list[str]:
    """Return the cells of a part beside the reference."""
    num_ratios = 1 if position is None else 2
    if before is None or not (shared := before.keys() & after.keys()):
        return ["-"] * (2 * num_ratios + 3)
    cells = []
    for first in (0, position)[:num_ratios]:
        ratio = _ratio(_losses(before, first or 0), _losses(after, first or 0))
        cells += ["1", ""] if is_reference else ratio_cells(ratio)
    for key in ("attention_flops", "cache_bytes", "seconds"):
        cells.append(share(*(_total(lines, shared, key) for lines in (after, before))))
    return cells


def _total(lines: Mapping[str, Line], names: set[str], key: str) -> float | None:
    values = [lines[name][key] for name in names]
    return None if None in values else float(sum(values))


def _losses(lines: Mapping[str, Line], first: int, stop: int | None = None) -> dict[str, tuple[float, int]]:
    """Return the losses of each document in buckets of positions from `first` to one below `stop`."""
    found = {}
    for name, line in lines.items():
        buckets = [b for b in line["buckets"] if b[0] >= first and (stop is None or b[1] <= stop)]
        found[name] = (sum(b[2] for b in buckets), sum(b[3] for b in buckets))
    return found


def _ratio(first: Losses, second: Losses) -> PerplexityRatio | str | None:
    """Return how the second differs on the documents of both, or why it cannot be said; None where nothing is."""
    names = [name for name in first if name in second]
    if any(first[name][1] != second[name][1] for name in names):
        return _OTHER_TOKENS
    counts = [first[name][1] for name in names]
    if not sum(counts):
        return None
    return ratio_of_perplexities([first[name][0] for name in names], [second[name][0] for name in names], counts)


def ratio_cells(ratio: PerplexityRatio | str | None) -> list[str]:
    """Return a ratio with its interval, and the smallest one that would have been found."""
    if not isinstance(ratio, PerplexityRatio):
        return [ratio or "-", "-"]
    interval = "" if ratio.low is None else f" [{ratio.low:.4f}, {ratio.high:.4f}]"
    return [f"{ratio.ratio:.4f}{interval}", "-" if ratio.detectable is None else f"{ratio.detectable:.4f}"]


def _position_rows(
    given: Given,
    lines: Mapping[str, Mapping[Setting, Mapping[str, Line]]],
    results: Mapping[str, Mapping[Setting, Line]],
    setting: Setting,
) -> Rows:
    """Return a row a bucket: the perplexity of the reference, and the ratio of each other part."""
    if given.reference is None or setting not in results[given.reference]:
        return []
    others = [name for name in given.others if setting in lines[name]]
    before = lines[given.reference][setting]
    rows = [["positions", f"{given.reference}: perplexity", *(f"{name}: ratio" for name in others)]]
    for bucket in results[given.reference][setting]["by_position"]:
        first, stop = bucket["first"], bucket["last"] + 1
        ratios = [_ratio(_losses(before, first, stop), _losses(lines[name][setting], first, stop)) for name in others]
        rows.append(
            [
                f"{first:,} to {bucket['last']:,}",
                with_interval(bucket["perplexity"]),
                *(ratio_cells(ratio)[0] for ratio in ratios),
            ]
        )
    return rows


def _draw(
    content: Content, given: Given, lines: Mapping[str, Mapping[Setting, Mapping[str, Line]]], setting: Setting
) -> None:
    """Add a chart of all positions, and one of those from the section's first on."""
    if given.reference is None or setting not in lines[given.reference]:
        return
    before = lines[given.reference][setting]
    for first in dict.fromkeys([0, given.section.from_position or 0]):
        rows = [{"name": given.reference, "share": 1.0, "ratio": 1.0, "low": None, "high": None}]
        for name in given.others:
            after = lines[name].get(setting, {})
            shared = before.keys() & after.keys()
            now, full = (_total(some, shared, "attention_flops") for some in (after, before))
            ratio = _ratio(_losses(before, first), _losses(after, first))
            if isinstance(ratio, PerplexityRatio) and now is not None and full:
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
        losses: dict[str, dict[str, tuple[float, int]]] = {}
        for line in read_lines(folder / "measurements.jsonl"):
            if line["part"] == "held-out":
                of_plan = losses.setdefault(line["plan"], {})
                of_plan[f"{line['task']} {line['id']}"] = line["negative_log_likelihood"], line["num_tokens"]
        full = next((losses[row["plan"]] for row in held_out if row["name"] == "full"), None)
        if full is None:
            content.say(f"`{name}` has not measured the plan `full`, so there is nothing to compare with.")
            continue
        _placements(content, name, held_out, {row["name"]: _ratio(full, losses[row["plan"]]) for row in held_out})
    content.say(LEGEND.replace("the reference", "full attention").replace(", seconds", ""))
    return content


def _placements(
    content: Content, part: str, held_out: Sequence[Line], found: Mapping[str, PerplexityRatio | str | None]
) -> None:
    """Add the tables and the chart of one search."""
    ratios = {name: ratio for name, ratio in found.items() if isinstance(ratio, PerplexityRatio)}
    by_chance = sorted(ratio.ratio for name, ratio in ratios.items() if _RANDOM.fullmatch(name))
    rows = [["plan", "n", "perplexity", "ratio", "detectable", "random better", "attention", "cache", "spans"]]
    points = []
    for row in sorted(held_out, key=lambda row: float(row["perplexity"])):
        name, ratio = row["name"], ratios.get(row["name"])
        if ratio is None:
            continue
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
                    f"{better} of {len(by_chance)}" if by_chance else "-",
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
