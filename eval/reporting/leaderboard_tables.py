"""A leaderboard as Markdown, CSV, and tables for a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.reporting.tables import (
    COST_LEGEND,
    Rows,
    as_columns,
    as_markdown,
    cost_cells,
    cost_table,
    count,
    percent,
    scrolls_table,
)
from eval.scoring.baselines import YARDSTICKS
from eval.scoring.board import describe_settings, varying
from eval.scoring.profiles import describe_profile, describe_profiles, metric_columns, metric_name
from eval.scoring.scrolls import describe_missing

Content = Mapping[str, Any]

_RANK_LEGEND = (
    "rank: by the mean of the metric that has an interval (95%, bootstrap over documents); rows that share a rank are "
    "equal. best observed: the highest mean. within margin: shown to lose less than the margin, which was fixed "
    "beforehand, to whichever row is truly best: the upper bound of the loss to every other row lies below it. The "
    "best observed has to pass as well, so nothing is owed to having picked it, and bounds are corrected for the "
    "number of rows: the chance of any false mark in the table is about 5% at most. frontier: no other row costs no "
    "more, is no worse, and is better in one of the two."
)
_WINDOW_LEGEND = (
    "oracle: sentences that this row's window showed, picked greedily with the references in hand; a reference line, "
    "no strict ceiling. common answer: what most examples have among their references. n: examples (documents where "
    "fewer). cut: examples whose context was truncated. evidence: share of the gold evidence that was shown."
)
RESCORE = (
    "Scores are made anew, without the model, by `python -m eval.score RUN`, with `--profile` under another profile."
)
LEGENDS = (_RANK_LEGEND, _WINDOW_LEGEND, COST_LEGEND)
_COSTS = {  # what each is, and the name of its column
    "attention_flops": ("attention operations of an example", "attn TFLOP"),
    "cache_bytes": ("bytes of keys and values", "cache MiB"),
    "seconds": ("seconds an example", "s/example"),
}
_BESIDE = {"visible_oracle": "oracle", "common_answer": "common answer"}  # yardsticks and their columns
_NAMES = ("model", "plan", "template", "dtype", "other settings", "run")  # columns whose cells others have chosen
_WIDTH = 120


def facts_of(content: Content) -> dict[str, str]:
    """Return what holds for all boards."""
    boards = content["boards"]
    metrics = ", ".join(dict.fromkeys(metric_name(board["metric"]) for board in boards))
    num_left_out = len({one["run"] for one in content["left_out"]})
    return {
        "ranked by": f"{metrics}; {describe_profiles({board['task']: board['profile'] for board in boards})}",
        "margin": f"less than {100 * content['margin']:g} below the best ({metrics} x 100), fixed beforehand",
        "frontier": f"{metrics} against {_COSTS[content['cost']][0]}",
        "runs": f"{len(content['runs'])} ranked, {num_left_out} left out",
    }


def describe_board(board: Content) -> str:
    """Return what a board ranks, in a sentence or two."""
    examples, documents = board["num_examples"], board["num_documents"]
    counted = f"{examples} examples" + (f" about {documents} documents" if documents != examples else "")
    scored = f"{metric_name(board['metric'])}, {describe_profile(board['profile'])}".replace("`", "")
    return (
        f"{board['description']}. Ranked by {scored}. {len(board['rows'])} rows of {board['num_runs']} run(s), all on "
        f"the same {counted} of the split {board['split']}."
    )


def marks(row: Content) -> str:
    """Return what is said of a row."""
    said = {
        "best observed": row["is_best"],
        "within margin": row["is_within_margin"],
        "frontier": row["is_on_frontier"],
    }
    return ", ".join(name for name, applies in said.items() if applies)


def board_table(board: Content, cost: str) -> Rows:
    """Return a header and the rows of a board, what matters most to the left.

    Args:
        board: Of the leaderboard.
        cost: Against which its frontier is drawn.
    """
    rows, metric = board["rows"], board["metric"]
    beside = [name for name in _BESIDE if any(name in row["yardsticks"] for row in rows)]
    has_template = len({row["template"] for row in rows}) > 1
    has_evidence = any(row["evidence_visible"] for row in rows)
    settings = varying(rows)
    table = []
    for row in rows:
        costs = _costs(row)
        cells = {"rank": str(row["rank"]), metric_name(metric): percent(row["metrics"][metric])}
        cells |= {"model": row["model"], "plan": row["plan"]}
        cells |= {"template": row["template"]} if has_template else {}
        cells |= {"maxlen": f"{row['maxlen']:,}", "marks": marks(row), _COSTS[cost][1]: costs[_COSTS[cost][1]]}
        cells |= {_BESIDE[name]: _mean(row["yardsticks"].get(name, {}).get(metric)) for name in beside}
        cells |= {metric_name(name): _mean(row["metrics"][name]) for name in row["metrics"] if name != metric}
        cells |= {"evidence %": _mean(row["evidence_visible"], 1)} if has_evidence else {}
        cells |= {"n": count(row), "cut": str(row["num_truncated"])} | costs | {"dtype": row["dtype"]}
        cells |= {"other settings": describe_settings(row, settings)} if settings else {}
        table.append(cells | {"run": row["run"]})
    return [list(table[0]), *(list(cells.values()) for cells in table)]


def scrolls_block(content: Content) -> tuple[str, Rows]:
    """Return what is said of the SCROLLS score, and its table; both empty where no system has two of its tasks."""
    found = content["scrolls_score"] or {"rows": [], "missing": []}
    rows = found["rows"]
    has_template = len({row["template"] for row in rows}) > 1
    names = [
        {"model": row["model"], "plan": row["plan"]}
        | ({"template": row["template"]} if has_template else {})
        | {"run": ", ".join(row["runs"])}
        for row in rows
    ]
    remarks = ["The mean of the seven tasks' headline scores, each as on its board."] if rows else []
    lacking: dict[str, list[str]] = {}
    for one in found["missing"]:
        lacking.setdefault(describe_missing(one | {"scores": one["has_scores"]}), []).extend(one["runs"])
    remarks += [f"{', '.join(runs)}: {text}" for text, runs in lacking.items()]
    return " ".join(remarks), scrolls_table(rows, names) if rows else []


def _mean(estimate: Mapping[str, float | None] | None, digits: int = 2) -> str:
    return "-" if estimate is None else percent({"mean": estimate["mean"], "low": None, "high": None}, digits)


def _costs(row: Content) -> dict[str, str]:
    """Return the cost columns by name."""
    names = cost_table([])[0][1:]
    return dict(zip(names, cost_cells(row["cost"]) if row["cost"] else ["-"] * len(names), strict=True))


def render_terminal(content: Content) -> str:
    """Return the boards for a terminal, without the columns that would not fit one."""
    parts = []
    for board in content["boards"]:
        full = board_table(board, content["cost"])
        kept = _columns_for_terminal(full[0], board["metric"], content["cost"])
        rows = [[row[index] for index in kept] for row in full]
        title = f"{board['task']}: {describe_board(board)}"
        notes = [textwrap.fill(note, _WIDTH) for note in board["notes"]]
        parts.append("\n".join([textwrap.fill(title, _WIDTH), "", as_columns(rows), *([""] if notes else []), *notes]))
    remark, table = scrolls_block(content)
    if remark:
        parts.append(
            "\n".join(["SCROLLS score", textwrap.fill(remark, _WIDTH), *(["", as_columns(table)] if table else [])])
        )
    lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in left_out_lines(content)]
    lines += [RESCORE] if lines else []
    parts.append("\n".join(["Left out:", *lines] if lines else ["Left out: nothing."]))
    facts = [f"{name}: {text.replace('`', '')}" for name, text in facts_of(content).items()]
    parts.append("\n".join([*facts, *(textwrap.fill(legend, _WIDTH) for legend in LEGENDS)]))
    return "\n\n".join(parts)


def _columns_for_terminal(header: Sequence[str], metric: str, cost: str) -> list[int]:
    shown = ("rank", "model", "plan", "template", "maxlen", metric_name(metric), "marks", *_BESIDE.values(), "run")
    return [index for index, name in enumerate(header) if name in (*shown, _COSTS[cost][1])]


def left_out_lines(content: Content) -> list[str]:
    """Return which runs are not ranked, and why."""
    return [
        f"{one['run']}{' (' + one['task'] + ')' if one['task'] else ''}: {one['reason']}" for one in content["left_out"]
    ]


def render_markdown(content: Content, plots: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Return `leaderboard.md`.

    Args:
        content: `leaderboard.json`.
        plots: Titles and paths of the pictures, by task.
    """
    parts = [f"# {_prose(title_of(content))}", "", *(f"- {name}: {text}" for name, text in facts_of(content).items())]
    for board in content["boards"]:
        parts += ["", f"## {_prose(board['task'])}", "", _prose(describe_board(board)), ""]
        parts += [as_markdown(_with_code(board_table(board, content["cost"])))]
        parts += [line for note in board["notes"] for line in ("", _prose(note))]
        parts += [line for title, path in plots[board["task"]] for line in ("", f"![{_prose(title)}]({path})")]
    remark, table = scrolls_block(content)
    if remark:
        parts += ["", "## SCROLLS score", "", _prose(remark), *(["", as_markdown(_with_code(table))] if table else [])]
    parts += ["", "## Left out", ""]
    lines = left_out_lines(content)
    parts += [*(f"- {_prose(line)}" for line in lines), "", RESCORE] if lines else ["Nothing."]
    parts += ["", "## Commands", "", "As each run recorded them; names of runs are folders.", ""]
    parts += [f"- {_code(one['run'])}: {_code(command)}" for one in content["runs"] for command in one["commands"]]
    parts += ["", "## What the columns mean", *(line for legend in LEGENDS for line in ("", legend)), ""]
    return "\n".join(parts)


def _with_code(table: Rows) -> Rows:
    header, *rows = table
    return [
        header,
        *([_code(cell) if name in _NAMES else cell for name, cell in zip(header, row, strict=True)] for row in rows),
    ]


def title_of(content: Content) -> str:
    """Return the title of the page."""
    return f"Leaderboard: {', '.join(board['task'] for board in content['boards'])}"


def _prose(text: str) -> str:
    """Return text that Markdown shows as it is, however it was meant."""
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;")).replace("\\|", "|")


def _code(text: str) -> str:
    """Return text as code, which Markdown takes as it is."""
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}" if text else ""


def render_csv(content: Content) -> str:
    """Return `leaderboard.csv`: fractions and base units; what is not known is empty."""
    lines = [_plain_row(board, row) for board in content["boards"] for row in board["rows"]]
    lines += [_plain_score(row) for row in (content["scrolls_score"] or {"rows": []})["rows"]]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _plain_score(row: Content) -> dict[str, Any]:
    """Return a SCROLLS score as a row whose task is none of the boards'."""
    same = ("model", "plan", "dtype", "template")
    found = {"task": "scrolls_score", "run": ", ".join(row["runs"]), **{name: row[name] for name in same}}
    return {**found, "maxlen_tokens": row["maxlen"], **dict(_fractions("scrolls_score", row))}


def _plain_row(board: Content, row: Content) -> dict[str, Any]:
    same = ("run", "model", "plan", "dtype", "template")
    found: dict[str, Any] = {"task": board["task"], "profile": board["profile"], "rank": row["rank"]}
    found |= {name: row[name] for name in same}
    found["maxlen_tokens"] = row["maxlen"]
    found |= {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value)
        for name, value in row["settings"].items()
    }
    found |= {name: row[name] for name in ("num_examples", "num_documents", "num_truncated")}
    for metric in metric_columns(board["profile"]):
        found |= dict(_fractions(metric, row["metrics"][metric]))
        for system in YARDSTICKS:
            found |= dict(_fractions(f"{system}_{metric}", row["yardsticks"].get(system, {}).get(metric)))
    found |= dict(_fractions("evidence_visible", row["evidence_visible"]))
    cost = row["cost"] or {}
    found |= {
        "prefill_tokens_per_second": cost.get("prefill_tokens_per_second"),
        "decode_tokens_per_second": cost.get("decode_tokens_per_second"),
        "seconds_per_example": cost.get("seconds"),
        "peak_memory_bytes": cost.get("peak_memory_bytes"),
        "cache_bytes": cost.get("cache_bytes"),
        "attention_flops_per_example": cost.get("attention_flops"),
    }
    return found | {name: row[name] for name in ("is_best", "is_within_margin", "is_on_frontier")}


def _fractions(name: str, estimate: Mapping[str, float | None] | None) -> Iterator[tuple[str, float | None]]:
    for part in ("mean", "low", "high"):
        yield f"{name}_{part}_fraction", estimate[part] if estimate else None
