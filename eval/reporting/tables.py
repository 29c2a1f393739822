"""Scores as tables for people: quality with intervals and yardsticks, paired comparisons, cost."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.scoring.profiles import describe_profile, describe_profiles, metric_name
from eval.scoring.scrolls import SCROLLS_TASKS, describe_missing
from eval.scoring.significance import MIN_DOCUMENTS

Result = Mapping[str, Any]
Rows = list[list[str]]

_WIDTH = 120
_SYSTEM_NAMES = {
    "visible_oracle": "visible oracle",
    "lead": "lead",
    "tail": "tail",
    "query_echo": "query echo",
    "common_answer": "common answer",
}
_KEEPS = {"head": "the beginning", "middle": "both ends", "tail": "the end"}

LEGEND = (
    "n: examples (documents where fewer). cut: examples whose context was truncated. lead, tail: as many words as "
    "references have in the median, from either end of what was shown. visible oracle: sentences that were shown, "
    "picked greedily with the references in hand; a reference line, no strict ceiling. common answer: what most "
    "examples have among their references. evidence: share of the gold evidence that was shown."
)
COST_LEGEND = (
    "prefill and decode: tokens of all examples over their seconds, in one process; what prompts share counts for each "
    "of them, and decoding is that of a whole batch. peak: device memory on a GPU, resident memory of the process "
    "(weights and libraries included) on a CPU. cache: keys and values at the end, allocated. attn: attention's matrix "
    "products for one example, in closed form."
)
COMPARISON_LEGEND = (
    "difference: second minus first on the same examples, x 100, 95% bootstrap interval over documents. p: "
    "permutation of whole documents; Holm: corrected for the rows of the table. detectable: the smallest difference "
    "that so many documents would have shown with power 0.8. as good: the interval of the loss lies within the margin, "
    "which was fixed beforehand."
)


def system_name(result: Result) -> str:
    """Return what tables call what wrote a result."""
    return "model" if result["kind"] == "model" else _SYSTEM_NAMES[result["system"]]


def select(results: Sequence[Result], **fields: Any) -> list[Result]:
    """Return the results that have these fields."""
    return [result for result in results if all(result[name] == value for name, value in fields.items())]


def quality_table(results: Sequence[Result]) -> Rows:
    """Return a header and rows of one task, template and subset: the model at each length, its yardsticks below."""
    metrics = list(results[0]["metrics"])
    has_evidence = any(result["evidence_visible"] for result in results)
    rows = [["maxlen", "system", "n", "cut", *map(metric_name, metrics), *(["evidence %"] if has_evidence else [])]]
    order = ["model", *_SYSTEM_NAMES.values()]
    for maxlen in dict.fromkeys(result["maxlen"] for result in results):
        of_length = select(results, maxlen=maxlen)
        for result in sorted(of_length, key=lambda result: order.index(system_name(result))):
            is_model = result["kind"] == "model"
            rows.append(
                [
                    f"{maxlen:,}",
                    system_name(result),
                    count(result) if is_model else "",
                    str(result["num_truncated"]) if is_model else "",
                    *(percent(result["metrics"][metric]) for metric in metrics),
                ]
            )
            if has_evidence:
                rows[-1].append(percent(result["evidence_visible"], 1) if result["evidence_visible"] else "")
    return rows


def cost_table(results: Sequence[Result]) -> Rows:
    """Return a header and one row a length, of the model's results."""
    rows = [["maxlen", "prefill tok/s", "decode tok/s", "s/example", "peak GiB", "cache MiB", "attn TFLOP"]]
    for result in results:
        cost = result["cost"]
        if cost is not None:
            rows.append([f"{result['maxlen']:,}", *cost_cells(cost)])
    return rows


def cost_cells(cost: Mapping[str, float | None]) -> list[str]:
    """Return a result's costs, in the units of `cost_table`."""
    return [
        number_or_dash(cost["prefill_tokens_per_second"], 1),
        number_or_dash(cost["decode_tokens_per_second"], 1),
        number_or_dash(cost["seconds"], 1),
        number_or_dash(cost["peak_memory_bytes"], 2, 2**30),
        number_or_dash(cost["cache_bytes"], 1, 2**20),
        number_or_dash(cost["attention_flops"], 3, 10**12),
    ]


def comparison_table(comparisons: Sequence[Result], label: str) -> Rows:
    """Return a header and one row a comparison.

    Args:
        comparisons: Of one table, each with `name`, what was compared with what.
        label: Of the first column.
    """
    rows = [[label, "metric", "n", "difference", "p", "Holm", "wins/ties/losses", "detectable", "verdict"]]
    for one in comparisons:
        rows.append(
            [
                one["name"],
                metric_name(one["metric"]),
                count(one),
                signed_percent(one),
                _p_value(one["p_value"]),
                _p_value(one["p_holm"]),
                f"{one['wins']}/{one['ties']}/{one['losses']}",
                number_or_dash(one["detectable"], 2, 0.01),
                verdict(one),
            ]
        )
    return rows


def verdict(comparison: Result) -> str:
    """Return what a comparison lets one say of the second setting."""
    p, margin = comparison["p_holm"], 100 * comparison["margin"]
    is_different = p is not None and p < 0.05
    if is_different and comparison["difference"] > 0:
        return "better"
    as_good = f"as good, margin {margin:g}" if comparison["non_inferior"] else ""
    if is_different:
        return f"worse, within the margin of {margin:g}" if as_good else "worse"
    return as_good or "not settled"


def name_settings(comparison: Result) -> str:
    """Return which settings of a run a comparison is of."""
    first, second = comparison["first"], comparison["second"]
    if first["template"] == second["template"]:
        return f"{first['maxlen']:,} to {second['maxlen']:,}"
    return f"{first['template']} to {second['template']} at {first['maxlen']:,}"


def as_markdown(rows: Sequence[Sequence[str]], num_names: int = 0) -> str:
    """Return a Markdown table, numbers to the right and so many first columns, of names, to the left."""
    lines = [rows[0], [":---" if index < num_names else "---:" for index in range(len(rows[0]))], *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal, columns to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def scrolls_table(rows: Sequence[Mapping[str, Any]], names: Sequence[Mapping[str, str]]) -> Rows:
    """Return a header and one row a SCROLLS score, the seven headline scores behind it.

    Args:
        rows: Entries of `scores` of `eval.scoring.scrolls`.
        names: Cells that go before each, by the name of their column.
    """
    table = []
    for row, before in zip(rows, names, strict=True):
        cells = {**before, "maxlen": f"{row['maxlen']:,}", "SCROLLS score": percent(row)}
        cells |= {task: f"{100 * row['tasks'][task]:.2f}" for task in SCROLLS_TASKS}
        table.append(cells)
    return [list(table[0]), *(list(cells.values()) for cells in table)]


Block = tuple[str, str, Rows]  # title, remark, table


def scrolls_blocks(scores: Mapping[str, Any]) -> Iterator[Block]:
    """Return the table of the SCROLLS score, where a run has one, and what is missing."""
    found = scores["scrolls_score"]
    if found is not None:
        names = [{"templates": row["template"]} if row["template"] else {} for row in found["scores"]]
        table = scrolls_table(found["scores"], names) if found["scores"] else []
        yield "SCROLLS score", describe_missing(found), table


def blocks_of(record: Result, scores: Mapping[str, Any], task: str) -> Iterator[Block]:
    """Return the tables of a task in reading order.

    Args:
        record: `run.json`.
        scores: `scores.json`.
        task: Of the run.
    """
    of_task = select(scores["results"], task=task)
    for template in record["tasks"][task]["templates"]:
        everything = select(of_task, template=template, subset="all")
        if not everything:
            continue
        where = f"{task}, template {template}"
        truncated = select(of_task, template=template, subset="always_truncated")
        yield f"Quality: {where}", "" if truncated else _which_are_cut(everything), quality_table(everything)
        if truncated:
            documents = max(result["num_documents"] for result in truncated)
            remark = f"The {documents} document(s) that every length truncates; short ones dilute the comparison."
            yield f"Quality where every length cuts: {where}", remark, quality_table(truncated)
        yield f"Cost: {where}", "", cost_table(everything)
    for subset, where in (("all", ""), ("always_truncated", " where every length cuts")):
        if table := select(scores["comparisons"], task=task, subset=subset):
            named = [dict(one) | {"name": name_settings(one)} for one in table]
            yield f"Comparisons{where}: {task}", "", comparison_table(named, "first to second")


def _which_are_cut(results: Sequence[Result]) -> str:
    """Return why there is no table of the examples that every length truncates."""
    longest = max(select(results, kind="model"), key=lambda result: int(result["maxlen"]))
    return "Every length truncates all of them." if longest["num_truncated"] else "The greatest length truncates none."


def facts_of(record: Result, scores: Mapping[str, Any]) -> dict[str, str]:
    """Return what produced the numbers: that of the last session that generated any."""
    identity, session = record["identity"], record["sessions"][-1]
    return {
        "model": f"`{identity['model']['reference']}` ({identity['model']['source']}), {identity['dtype']}",
        "spans": f"`{record['plan_description']}`",
        "truncation": f"keeps {_KEEPS[identity['truncation']]} of the context",
        "metrics": f"{describe_profiles(profiles_shown(scores))}; {describe_intervals(scores['results'])}",
        "machine": f"{session['machine']['device']}, {session['world_size']} process(es), "
        f"{session['threads']} torch thread(s) each",
        "sessions": f"{len(record['sessions'])}, all in run.json",
        "code": f"commit {session['commit'] or 'unknown'}{', with uncommitted changes' if session['dirty'] else ''}",
    }


def profiles_shown(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return the profile of each task that has results."""
    return {result["task"]: result["profile"] for result in scores["results"]}


def describe_task(record: Result, scores: Mapping[str, Any], task: str) -> str:
    """Return what a task asks and how its answers are scored, in sentences."""
    about, beside = record["tasks"][task], scores["yardsticks"][task]
    profile, budget = scores["profiles"][task], beside["word_budget"]
    said = [f"{about['description']}. Split `{about['split']}`, room for {about['max_new_tokens']} new tokens."]
    said.append(f"Scores: {describe_profile(profile)}.")
    if budget is None:
        said.append(
            "Of what needs no model the common answer alone is scored: sentences of a document match no choice."
        )
    else:
        said.append(f"Lead and tail have {budget} words; the oracle aims at {beside['objective']}.")
    return " ".join(said)


def describe_intervals(results: Sequence[Result]) -> str:
    """Return what stands behind the means, or why nothing does."""
    if any(estimate["low"] is not None for result in results for estimate in result["metrics"].values()):
        return "95% bootstrap intervals over documents"
    return f"no intervals: fewer than {MIN_DOCUMENTS} documents"


def render_report(record: Result, scores: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return `report.md`."""
    parts = [f"# {', '.join(record['tasks'])}: {record['identity']['model']['reference']}", ""]
    parts += [f"- {name}: {text}" for name, text in facts_of(record, scores).items()]
    for task in record["tasks"]:
        blocks = list(blocks_of(record, scores, task))
        if not blocks:
            continue
        parts += ["", f"## {task}", "", describe_task(record, scores, task)]
        for title, remark, rows in blocks:
            parts += ["", f"### {title}", "", *([remark, ""] if remark else []), as_markdown(rows)]
    for title, remark, rows in scrolls_blocks(scores):
        parts += ["", f"## {title}", "", *([remark, ""] if remark else []), *([as_markdown(rows)] if rows else [])]
    return "\n".join([*parts, "", *notes, "", LEGEND, "", COMPARISON_LEGEND, "", COST_LEGEND, ""])


def render_terminal(record: Result, scores: Mapping[str, Any]) -> str:
    """Return the same tables for a terminal."""
    named = describe_profiles(profiles_shown(scores)).replace("`", "")
    parts = [textwrap.fill(f"{named}; {describe_intervals(scores['results'])}", _WIDTH)]
    blocks = [block for task in record["tasks"] for block in blocks_of(record, scores, task)]
    for title, remark, rows in [*blocks, *scrolls_blocks(scores)]:
        parts.append("\n".join([title, *([textwrap.fill(remark, _WIDTH)] if remark else [])]))
        parts += [as_columns(rows)] if rows else []
    return "\n\n".join(parts)


def count(result: Result) -> str:
    """Return the number of examples, and that of documents where there are fewer."""
    examples, documents = result["num_examples"], result["num_documents"]
    return str(examples) if examples == documents else f"{examples} ({documents})"


def percent(metric: Mapping[str, float | None], digits: int = 2) -> str:
    """Return an estimate x 100 with its interval."""
    mean, low, high = (metric[name] for name in ("mean", "low", "high"))
    assert mean is not None
    if low is None or high is None:
        return f"{100 * mean:.{digits}f}"
    return f"{100 * mean:.{digits}f} [{100 * low:.1f}, {100 * high:.1f}]"


def signed_percent(comparison: Result) -> str:
    """Return a difference x 100 with its interval."""
    low, high = comparison["low"], comparison["high"]
    interval = "" if low is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * comparison['difference']:+.2f}{interval}"


def number_or_dash(value: float | None, digits: int, unit: float = 1) -> str:
    """Return a number in some unit, or a dash for one that is not known."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"


def _p_value(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
