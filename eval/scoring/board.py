"""Scored runs -> the board of a task: rows on the same examples, in order, with what may be said of them.

A row is a run at one template and length. The rows of a board answered the same examples about the same documents, so
that any two can be paired; runs on other examples are left out with the reason.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eval.errors import UserError
from eval.records.journal import fingerprint
from eval.reporting.charts import frontier
from eval.scoring.examples import Setting, values_of
from eval.scoring.profiles import headline, metric_columns
from eval.scoring.scored_run import ScoredRun, read_scored, settings_of
from eval.scoring.significance import ROUNDING, within_margin_of_best

Row = dict[str, Any]
Example = tuple[str, str, str]  # digests of its query, of its references, and of these with the document


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What ranking keeps of a scored run, whose lines may be many.

    Attributes:
        name: Of its folder, as seen from the one that is ranked.
        profiles: That it was scored under, by task.
        about: What made it, JSON-ready.
        tasks: Of its record, by name.
        examples: By task and id.
        documents: Of each task's examples, in the order of their ids.
        values: (N, K) scores by the task's headline metric, a row an example in the order of the ids.
        rows: What a board tells of each setting.
    """

    name: str
    profiles: Mapping[str, str]
    about: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, Mapping[str, Example]]
    documents: Mapping[str, Sequence[str]]
    values: Mapping[Setting, NDArray[Any]]
    rows: Mapping[Setting, Row]


def plain(text: object) -> str:
    """Return text in one line that can be written anywhere."""
    return " ".join(str(text).split()).encode("utf-8", "replace").decode()


def read_candidate(path: Path, name: str) -> Candidate:
    """Return a run that may be ranked.

    Args:
        path: Of the folder.
        name: What to call it.

    Raises:
        UserError: The folder holds no run, or a file of it cannot be read.
        UserError: It is no run of `eval/run.py`, has no scores that count, or has not ended.
    """
    run = read_scored(path)
    if run.num_absent:
        raise UserError(f"unfinished: {run.num_absent} of its predictions are not there yet")
    examples: dict[str, dict[str, Example]] = defaultdict(dict)
    for (task, example), digest in sorted(run.content.items()):
        line = run.examples[task, example]
        examples[task][example] = (fingerprint(line["query"]), fingerprint(line["references"]), digest)
    profiles = {task: run.scores["profiles"][task] for task in examples}
    columns = {task: metric_columns(profile)[headline(profile)] for task, profile in profiles.items()}
    return Candidate(
        name=name,
        profiles=profiles,
        about=_about(run),
        tasks={task: run.record["tasks"][task] for task in examples},
        examples=examples,
        documents={
            task: [run.examples[task, example]["document_id"] for example in of_task]
            for task, of_task in examples.items()
        },
        values={
            setting: values_of((lines[example] for example in examples[setting[0]]), columns[setting[0]])
            for setting, lines in run.lines.items()
        },
        rows={setting: _row(run, name, setting) for setting in run.lines},
    )


def _about(run: ScoredRun) -> dict[str, Any]:
    identity, sessions = run.record["identity"], run.record["sessions"]
    commands = dict.fromkeys(shlex.join(["eval/run.py", *session["command"]]) for session in sessions)
    machines = dict.fromkeys(
        f"{session['machine']['device']}, {session['world_size']} process(es), {session['threads']} thread(s) each"
        for session in sessions
    )
    return {
        "model": plain(identity["model"]["reference"]),
        "weights": {name: value for name, value in identity["model"].items() if name in ("files", "revision")},
        "plan": plain(run.record["plan_description"]),
        "dtype": plain(identity["dtype"]),
        "machines": [plain(machine) for machine in machines],
        "commits": list(dict.fromkeys(session["commit"] for session in sessions)),
        "commands": [plain(command) for command in commands],
    }


def _row(run: ScoredRun, name: str, setting: Setting) -> Row:
    task, template, maxlen = setting
    identity = run.record["identity"]
    results = [
        result
        for result in run.scores["results"]
        if (result["task"], result["template"], result["maxlen"], result["subset"]) == (*setting, "all")
    ]
    [model] = [result for result in results if result["kind"] == "model"]
    yardsticks = {result["system"]: result["metrics"] for result in results if result["kind"] == "yardstick"}
    counts = ("num_examples", "num_documents", "num_truncated", "metrics", "evidence_visible", "cost")
    return {
        "run": name,
        "model": plain(identity["model"]["reference"]),
        "plan": plain(run.record["plan_description"]),
        "dtype": plain(identity["dtype"]),
        "template": plain(template),
        "maxlen": maxlen,
        "settings": settings_of(run.record, task),
        **{field: model[field] for field in counts},
        "yardsticks": yardsticks,
    }


def rank(
    candidates: Sequence[Candidate], task: str, profile: str, margin: float, cost: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the board of a task, JSON-ready, and why runs were left out, by name.

    Args:
        candidates: At least one; all have the task, scored under the profile.
        task: To rank.
        profile: Of its scores.
        margin: That "as good as the best" allows.
        cost: Against which the frontier is drawn.
    """
    chosen, left_out = _choose(candidates, task)
    metric = headline(profile)
    entries = [
        (one.rows[setting], one.values[setting]) for one in chosen for setting in one.values if setting[0] == task
    ]
    passed = within_margin_of_best(
        {str(index): values for index, (_, values) in enumerate(entries)}, chosen[0].documents[task], margin
    )
    rows = [row | {"is_within_margin": passed[str(index)]} for index, (row, _) in enumerate(entries)]
    rows.sort(key=lambda row: (-row["metrics"][metric]["mean"], row["run"], row["template"], row["maxlen"]))
    best = _on_frontier(rows, metric, cost)
    means = [row["metrics"][metric]["mean"] for row in rows]
    for index, row in enumerate(rows):
        row["rank"] = 1 + sum(mean > row["metrics"][metric]["mean"] + ROUNDING for mean in means)
        row["is_best"] = row["rank"] == 1
        row["is_on_frontier"] = index in best
    about = chosen[0].tasks[task]
    board = {
        "task": task,
        "profile": profile,
        "metric": metric,
        "description": plain(about["description"]),
        "version": about["version"],
        "split": plain(about["split"]),
        "num_runs": len(chosen),
        "num_examples": rows[0]["num_examples"],
        "num_documents": rows[0]["num_documents"],
        "is_one_machine": len({machine for one in chosen for machine in one.about["machines"]}) < 2,
        "notes": list(_notes(chosen, rows, task, cost)),
        "rows": rows,
    }
    return board, left_out


def _on_frontier(rows: Sequence[Row], metric: str, cost: str) -> set[int]:
    known = [index for index, row in enumerate(rows) if row["cost"] and row["cost"][cost] is not None]
    points = [(rows[index]["cost"][cost], round(rows[index]["metrics"][metric]["mean"], 12)) for index in known]
    return {known[index] for index in frontier(points)}


def _choose(candidates: Sequence[Candidate], task: str) -> tuple[list[Candidate], dict[str, str]]:
    """Return the runs on the example set that most of them share, the larger of two, and why others are left out."""
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(fingerprint(one.tasks[task]["version"], one.examples[task]), []).append(one)
    chosen = max(groups.values(), key=lambda group: (len(group), len(group[0].examples[task])))
    others = [one for group in groups.values() if group is not chosen for one in group]
    return chosen, {one.name: plain(_difference(one, chosen[0], task)) for one in others}


def _difference(one: Candidate, ranked: Candidate, task: str) -> str:
    """Return in what a run's examples are others than those that are ranked."""
    versions = one.tasks[task]["version"], ranked.tasks[task]["version"]
    if versions[0] != versions[1]:
        return f"has version {versions[0]} of the task where {versions[1]} is ranked"
    held, asked = one.examples[task], ranked.examples[task]
    if len(held) != len(asked):
        return f"has {len(held)} examples where {len(asked)} are ranked"
    absent = next((example for example in asked if example not in held), None)
    if absent is not None:
        return f"has other examples than those ranked: '{absent}' is not among them"
    example = next(example for example in asked if held[example] != asked[example])
    parts = zip(("query", "set of references", "document"), held[example], asked[example], strict=True)
    what = next(part for part, mine, theirs in parts if mine != theirs)
    return f"has another {what} under id '{example}' than those ranked"


def _notes(chosen: Sequence[Candidate], rows: Sequence[Row], task: str, cost: str) -> Iterator[str]:
    """Yield what a reader of a board has to know before comparing its rows, in sentences."""
    if len({machine for one in chosen for machine in one.about["machines"]}) > 1:
        machines = {one.name: " and ".join(one.about["machines"]) for one in chosen}
        found = "; ".join(f"{machine}: {', '.join(names)}" for machine, names in _grouped(machines.items()))
        yield f"Speeds, times and peak memory were measured in different places and do not compare: {found}."
    for model in dict.fromkeys(one.about["model"] for one in chosen):
        weights = {one.name: fingerprint(one.about["weights"]) for one in chosen if one.about["model"] == model}
        if len(set(weights.values())) > 1:
            groups = ", and in ".join(", ".join(names) for _, names in _grouped(weights.items()))
            yield f"A model of the same name has other weights in {groups}."
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for one in chosen:
        for template, about in one.tasks[task]["templates"].items():
            texts[template][one.name] = about["text"]
    for template, by_run in texts.items():
        if len(set(by_run.values())) > 1:
            groups = ", and in ".join(", ".join(names) for _, names in _grouped(by_run.items()))
            yield f"The template {plain(template)} has other words in {groups}."
    unknown = sum(not row["cost"] or row["cost"][cost] is None for row in rows)
    if unknown:
        yield f"{unknown} row(s) have no known {cost} and are not on the frontier."
    if not any(row["is_within_margin"] for row in rows):
        yield (
            f"No row is shown to be within the margin of the best, the best observed included: with "
            f"{rows[0]['num_documents']} document(s) and {len(rows)} rows, differences are not known well enough."
        )


def _grouped(items: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, value in items:
        groups.setdefault(value, []).append(name)
    return list(groups.items())


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of settings that are not the same in all rows."""
    names = dict.fromkeys(name for row in rows for name in row["settings"])
    return [name for name in names if len({json.dumps(row["settings"].get(name)) for row in rows}) > 1]


def describe_settings(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return these settings of a row, for people."""
    found = ((name, row["settings"].get(name)) for name in names)
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found)
