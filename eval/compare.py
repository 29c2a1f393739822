"""Compare two runs on the same examples: differences with intervals, tests, and the examples that changed most.

    python -m eval.compare RUN_A RUN_B [--metric rouge1] [--margin 0.01]
    python -m eval.compare RUN RUN --maxlen-a 1024 --maxlen-b 8192

Positive differences favour the second run. Runs whose examples, references or profiles differ are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import UserError
from eval.jobs import CommandParser, margin_share, run_command
from eval.records.read_run import profiles_of
from eval.reporting.tables import COMPARISON_LEGEND, as_columns, comparison_table
from eval.scoring.examples import Setting, compare_lines, correct, values_of
from eval.scoring.profiles import describe_profiles, headline, metric_columns, metric_name
from eval.scoring.scored_run import ScoredRun, read_scored, settings_of
from eval.scoring.significance import MARGIN, combined

_NUM_CHANGED = 5
_SUBSETS = ("all", "always_truncated")
_WIDTH = 120


def check_comparable(first: ScoredRun, second: ScoredRun) -> None:
    """Check that two runs answered the same examples and were scored alike.

    Raises:
        UserError: They did not; it says in what they differ.
    """
    shared = shared_tasks(first, second)
    if not shared:
        tasks = [list(dict.fromkeys(task for task, _ in run.content)) for run in (first, second)]
        raise UserError(f"tasks differ: {', '.join(tasks[0])} in {first.path}, {', '.join(tasks[1])} in {second.path}")
    for task in shared:
        _check_profiles(first, second, task)
        versions = [run.record["tasks"][task]["version"] for run in (first, second)]
        if versions[0] != versions[1]:
            raise UserError(
                f"versions of task {task} differ: {versions[0]} in {first.path}, {versions[1]} in {second.path}"
            )
        for run, other in ((first, second), (second, first)):
            alone = [key for key in run.content if key[0] == task and key not in other.content]
            if alone and other.num_absent:
                raise UserError(
                    f"{other.path} lacks {other.num_absent} predictions, of '{alone[0][1]}' of {task} among them; "
                    "finish it by its own command, or give the other run's --limit"
                )
            if alone:
                raise UserError(
                    f"examples differ: {len(alone)} of {task} are in {run.path} and not in {other.path}, "
                    f"'{alone[0][1]}' among them; give both runs the same --limit and --split"
                )
        for key, digest in first.content.items():
            if key[0] == task and digest != second.content[key]:
                held, now = first.examples[key], second.examples[key]
                what = next((name for name in ("references", "query") if held[name] != now[name]), "document")
                raise UserError(
                    f"examples differ: '{key[1]}' of {task} has another {what} in {first.path} than in {second.path}; "
                    "compare runs on the same data"
                )


def _check_profiles(first: ScoredRun, second: ScoredRun, task: str) -> None:
    held, now = (run.scores["profiles"][task] for run in (first, second))
    if held != now:
        # Back to its own, where that is what is wanted: an override would change the other tasks too.
        override = "" if profiles_of(second.record)[task] == held else f" --profile {held}"
        raise UserError(
            f"profiles of {task} differ: {held} in {first.path}, {now} in {second.path}; run: python -m eval.score "
            f"{second.path}{override}"
        )


def compare_runs(
    first: ScoredRun,
    second: ScoredRun,
    metrics: Sequence[str],
    margin: float,
    maxlens: tuple[int | None, int | None] = (None, None),
) -> dict[str, Any]:
    """Return what the second run has over the first, JSON-ready.

    P values are corrected (Holm) over all rows of a subset, which make one table. The subset `always_truncated`,
    between lengths, holds the examples that both truncate, unless that is none or all.

    Args:
        first: A scored run.
        second: One that `check_comparable` accepts beside it.
        metrics: Of the profiles; empty takes all. A task is compared by those that its profile has.
        margin: Of non-inferiority, fixed beforehand.
        maxlens: Of each run, which to compare; None for each that both have.

    Raises:
        UserError: They have no length and template in common, or no such metric.
    """
    profiles = {task: first.scores["profiles"][task] for task in shared_tasks(first, second)}
    _check_metrics(metrics, list(dict.fromkeys(profiles.values())))
    table, changed = [], []
    for one, other in _settings(first, second, maxlens):
        columns = metric_columns(profiles[one[0]])
        for subset, names in _subsets(first.lines[one], second.lines[other]):
            mine, theirs = (
                {name: run.lines[at][name] for name in names} for run, at in ((first, one), (second, other))
            )
            for metric in [name for name in metrics or columns if name in columns]:
                names_of_row = {"name": _name(one, other), "task": one[0], "template": one[1], "metric": metric}
                about = {**names_of_row, "maxlen_a": one[2], "maxlen_b": other[2], "subset": subset}
                table.append(about | compare_lines(mine, theirs, columns[metric], margin))
        changed += _changes(first, second, one, other)
    if not table:
        asked = [f"--maxlen-{letter} {maxlen}" for letter, maxlen in zip("ab", maxlens, strict=True) if maxlen]
        runs = [first] if first.path == second.path else [first, second]
        has = [
            f"{run.path} has {'; '.join(f'{task} {template} {n:,}' for task, template, n in run.lines)}" for run in runs
        ]
        where = f" with {' and '.join(asked)}" if asked else ""
        raise UserError(f"no task, template and length in common{where}: {', and '.join(has)}")
    return {
        "a": _about(first),
        "b": _about(second),
        "profiles": profiles,
        "margin": margin,
        "differences": _differences(first, second),
        "comparisons": [
            row for subset in _SUBSETS for row in correct([row for row in table if row["subset"] == subset])
        ],
        "changed_most": [
            change
            for task in profiles
            for change in sorted((one for one in changed if one["task"] == task), key=_by_size)[:_NUM_CHANGED]
        ],
    }


def _by_size(change: Mapping[str, Any]) -> float:
    return -abs(float(change["difference"]))


def _check_metrics(metrics: Sequence[str], profiles: Sequence[str]) -> None:
    known = dict.fromkeys(metric for profile in profiles for metric in metric_columns(profile))
    for metric in metrics:
        if metric not in known:
            raise UserError(f"profile {', '.join(profiles)} has no metric '{metric}'; known: {', '.join(known)}")


def shared_tasks(first: ScoredRun, second: ScoredRun) -> list[str]:
    """Return the tasks that both have answers of."""
    tasks = [dict.fromkeys(task for task, _ in run.content) for run in (first, second)]
    return [task for task in tasks[0] if task in tasks[1]]


def _settings(
    first: ScoredRun, second: ScoredRun, maxlens: tuple[int | None, int | None]
) -> Iterator[tuple[Setting, Setting]]:
    for task, template, maxlen in sorted(first.lines):
        if maxlens[0] in (None, maxlen):
            other = task, template, maxlen if maxlens[1] is None else maxlens[1]
            if other in second.lines:
                yield (task, template, maxlen), other


def _subsets(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, list[str]]]:
    shared = [name for name in first if name in second]
    if shared:
        yield "all", shared
    truncated = [name for name in shared if first[name]["is_truncated"] and second[name]["is_truncated"]]
    lengths = {line["maxlen"] for lines in (first, second) for line in lines.values()}
    if len(lengths) > 1 and 0 < len(truncated) < len(shared):
        yield "always_truncated", truncated


def _differences(first: ScoredRun, second: ScoredRun) -> dict[str, list[Any]]:
    """Return the settings that differ besides model and plan, by name, with both values."""
    held, now = _settings_of_all(first), _settings_of_all(second)
    return {name: [held[name], now[name]] for name in held if name in now and held[name] != now[name]}


def _settings_of_all(run: ScoredRun) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": run.record["identity"]["dtype"]}
    for task, about in run.record["tasks"].items():
        found |= {f"{name} of {task}": value for name, value in settings_of(run.record, task).items()}
        found |= {f"template {name} of {task}": template["text"] for name, template in about["templates"].items()}
    return found


def _name(one: Setting, other: Setting) -> str:
    lengths = f"{one[2]:,}" if one[2] == other[2] else f"{one[2]:,} to {other[2]:,}"
    return f"{one[0]}, {one[1]}, {lengths}"


def _about(run: ScoredRun) -> dict[str, Any]:
    model = run.record["identity"]["model"]["reference"]
    return {"run": str(run.path), "model": model, "plan": run.record["plan_description"], "num_absent": run.num_absent}


def _changes(first: ScoredRun, second: ScoredRun, one: Setting, other: Setting) -> list[dict[str, Any]]:
    profile = first.scores["profiles"][one[0]]
    columns = metric_columns(profile)[headline(profile)]
    shared = [name for name in first.lines[one] if name in second.lines[other]]
    before, after = (
        combined(values_of((lines[name] for name in shared), columns))
        for lines in (first.lines[one], second.lines[other])
    )
    order = np.argsort(-np.abs(after - before), kind="stable")[:_NUM_CHANGED]
    return [
        {
            "name": _name(one, other),
            "task": one[0],
            "metric": headline(profile),
            "id": shared[index],
            "a": float(before[index]),
            "b": float(after[index]),
            "difference": float(after[index] - before[index]),
        }
        for index in order
    ]


def render_comparison(content: Mapping[str, Any]) -> str:
    """Return a comparison for a terminal."""
    parts = [
        f"{letter.upper()}: {content[letter]['run']}: {content[letter]['model']}, {content[letter]['plan']}"
        + (f" ({content[letter]['num_absent']} predictions not there yet)" if content[letter]["num_absent"] else "")
        for letter in "ab"
    ]
    parts += [
        f"differ in {name}: {_short(held)} | {_short(now)}" for name, (held, now) in content["differences"].items()
    ]
    parts += ["", f"B minus A; {describe_profiles(content['profiles']).replace('`', '')}", ""]
    for subset in _SUBSETS:
        rows = [row for row in content["comparisons"] if row["subset"] == subset]
        if rows:
            parts += ["Where both lengths cut:", ""] if subset == "always_truncated" else []
            parts += [as_columns(comparison_table(rows, "task, template, maxlen")), ""]
    parts += ["Examples that changed most, by the headline metric of each:", ""]
    rows = [["example", "task, template, maxlen", "metric", "A", "B", "change"]]
    rows += [
        [
            one["id"],
            one["name"],
            metric_name(one["metric"]),
            f"{100 * one['a']:.2f}",
            f"{100 * one['b']:.2f}",
            f"{100 * one['difference']:+.2f}",
        ]
        for one in content["changed_most"]
    ]
    return "\n".join([*parts, as_columns(rows), "", textwrap.fill(COMPARISON_LEGEND, _WIDTH)])


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("python -m eval.compare", __doc__)
    parser.add_argument("first", metavar="RUN_A", type=Path, help="folder of a run")
    parser.add_argument("second", metavar="RUN_B", type=Path, help="folder of another, or of the same")
    parser.add_argument("--metric", metavar="NAME", nargs="+", default=[], help="default: all of each task's profile")
    parser.add_argument("--maxlen-a", metavar="N", type=int, help="length of the first run (default: all)")
    parser.add_argument("--maxlen-b", metavar="N", type=int, help="length of the second (default: the first's)")
    parser.add_argument(
        "--margin", metavar="X", type=margin_share, default=MARGIN, help=f"of non-inferiority (default: {MARGIN})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Compare, and return the exit status: 0, or 2 after one line on what is wrong."""
    asked = _parse(arguments)

    def work() -> None:
        first, second = read_scored(asked.first), read_scored(asked.second)
        check_comparable(first, second)
        content = compare_runs(first, second, asked.metric, asked.margin, (asked.maxlen_a, asked.maxlen_b))
        print(json.dumps(content, indent=2, ensure_ascii=False) if asked.json else render_comparison(content))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
