"""What a search for a placement found -> its files, tables and plots. Needs no model and no data set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eval.records.run_folder import RunFolder
from eval.reporting.charts import save_charts
from eval.reporting.placement_charts import frontier_chart, held_out_chart, unit_chart
from eval.reporting.tables import as_columns, as_markdown, number_or_dash
from eval.scoring.significance import interval_of_ratio, ratio_of_perplexities

LEGEND = (
    "ppl: perplexity of the tokens that count. attention, cache: of this plan relative to full attention, in closed "
    "form at the length that is named. to full: perplexity relative to that of the plan `full`, paired. Intervals: "
    "95%, bootstrap over documents."
)
_PLOTS = r"units|frontier|held-out"
_BEST_UNITS = 12


def held_out_rows(
    judged: Mapping[str, tuple[str, Mapping[str, float]]], lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what each plan came to on the held-out documents.

    Args:
        judged: Text form and cost of each, by name.
        lines: Measurements of the held-out documents.
    """
    rows: list[dict[str, Any]] = []
    full: dict[tuple[str, str], float] = {}
    for name, (plan, cost) in sorted(judged.items(), key=lambda item: item[0] != "full"):
        own = [line for line in lines if line["plan"] == plan]
        if not own:
            continue
        losses, counts = ([line[key] for line in own] for key in ("negative_log_likelihood", "num_tokens"))
        low, high = interval_of_ratio(losses, counts)
        if name == "full":
            full = {(line["task"], line["id"]): line["negative_log_likelihood"] for line in own}
        to_full = None
        if full and name != "full":
            base = [full[line["task"], line["id"]] for line in own]
            to_full = asdict(ratio_of_perplexities(base, losses, counts))
        rows.append(
            {
                "name": name,
                "plan": plan,
                "num_documents": len(own),
                "perplexity": math.exp(sum(losses) / sum(counts)),
                "low": None if low is None else math.exp(low),
                "high": None if high is None else math.exp(high),
                "to_full": to_full,
                "cost": dict(cost),
            }
        )
    return rows


def read_placement(folder: RunFolder) -> dict[str, Any]:
    """Return what an earlier search in the folder found; where there was none, nothing found."""
    file = folder.path / "placement.json"
    nothing: dict[str, Any] = {"units": None, "local": None, "budget": None, "rank": "none", "cost_at": None}
    nothing |= {"scores": [], "found": [], "frontier": [], "chosen": None}
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else nothing


def write_placement(folder: RunFolder, record: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write `placement.json`, the plans as files that `--plan` takes, the report and its plots.

    Args:
        folder: Of the search.
        record: Its `run.json`.
        found: What `placement.json` will hold.
    """
    folder.write_json("placement.json", found)
    for file in (folder.path / "plans").glob("frontier-*.json"):
        file.unlink()
    for index, entry in enumerate(found["frontier"]):
        folder.write_json(f"plans/frontier-{index:02}.json", entry)
    if found["chosen"] is not None:
        folder.write_json("plan.json", found["chosen"])
    charts = {}
    if found["scores"]:
        charts["units"] = unit_chart(found["scores"], found["rank"])
        charts["frontier"] = frontier_chart(found["found"], found["frontier"])
    if found["held_out"]:
        charts["held-out"] = held_out_chart(found["held_out"])
    save_charts(folder.path / "plots", charts, _PLOTS)
    folder.write_text("report.md", _report(record, found, list(charts)))


def describe(found: Mapping[str, Any]) -> str:
    """Return the tables for a terminal."""
    blocks = [f"{title}\n{as_columns(rows)}" for title, rows in _tables(found)]
    return "\n\n".join([*blocks, LEGEND])


def _report(record: Mapping[str, Any], found: Mapping[str, Any], charts: Sequence[str]) -> str:
    identity, session = record["identity"], record["sessions"][-1]
    parts = [
        f"# Placement of full attention: {identity['model']['reference']}",
        "",
        f"- model: `{identity['model']['reference']}` ({identity['model']['source']}), {identity['dtype']}",
        f"- documents of {identity['maxlen']:,} tokens; losses count from token {identity['score_from']:,}",
        f"- machine: {session['machine']['device']}, {session['world_size']} x {session['threads']} threads",
        f"- last session: {session['seconds']:,.0f} s of measuring, {session['num_layers_run']:,} layers computed",
        f"- code: commit {session['commit'] or 'unknown'}{', with uncommitted changes' if session['dirty'] else ''}",
    ]
    if found["chosen"] is not None:
        parts += [
            f"- placed: {found['units']}; the others `{found['local']}`",
            f"- budget `{found['budget']}`, costs at {found['cost_at']:,} tokens; ranked by {found['rank']}",
            "",
            f"Found: `{found['chosen']['text']}` (`plan.json`, which `--plan` takes)",
        ]
    for title, rows in _tables(found):
        parts += ["", f"## {title}", "", as_markdown(rows)]
    parts += ["", *(f"![{name}](plots/{name}.svg)" for name in charts), "", LEGEND, ""]
    return "\n".join(parts)


def _tables(found: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    tables = []
    if found["scores"]:
        title = "What each is worth alone" if found["rank"] == "scan" else "Slope of the loss by each gate, halfway"
        tables.append((f"{title} (best first)", _unit_table(found["scores"], found["rank"])))
        tables.append(("On the frontier of loss and attention, calibration documents", _found_table(found["frontier"])))
    if found["held_out"]:
        tables.append(
            (
                f"On held-out documents, costs at {found['held_out_cost_at']:,} tokens",
                _held_out_table(found["held_out"]),
            )
        )
    return tables


def _unit_table(scores: Sequence[Mapping[str, Any]], rank: str) -> list[list[str]]:
    best = sorted(scores, key=lambda score: -score["only_full"])[:_BEST_UNITS]
    if rank == "gates":
        return [["unit", "nats a unit of the gate"], *([score["unit"], f"{score['only_full']:.4f}"] for score in best)]
    rows = [["unit", "only this full: nats gained", "only this local: nats lost"]]
    return rows + [
        [score["unit"], f"{score['only_full']:.4f}", number_or_dash(score["only_local"], 4)] for score in best
    ]


def _found_table(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["layers", "ppl", "attention", "cache", "plan"]]
    return rows + [
        [
            f"{entry['cost']['layers']:.3g}",
            f"{entry['perplexity']:.3f}",
            f"{entry['cost']['flops']:.1%}",
            f"{entry['cost']['cache']:.1%}",
            entry["text"],
        ]
        for entry in entries
    ]


def _held_out_table(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["name", "n", "ppl", "to full", "attention", "cache", "plan"]]
    for line in sorted(lines, key=lambda line: line["perplexity"]):
        interval = "" if line["low"] is None else f" [{line['low']:.2f}, {line['high']:.2f}]"
        rows.append(
            [
                line["name"],
                str(line["num_documents"]),
                f"{line['perplexity']:.3f}{interval}",
                _ratio_cell(line["to_full"]),
                f"{line['cost']['flops']:.1%}",
                f"{line['cost']['cache']:.1%}",
                line["plan"],
            ]
        )
    return rows


def _ratio_cell(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return "-"
    interval = "" if ratio["low"] is None else f" [{ratio['low'] - 1:+.2%}, {ratio['high'] - 1:+.2%}]"
    return f"{ratio['ratio'] - 1:+.2%}{interval}"
