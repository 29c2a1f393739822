"""Scored runs -> the board of a task: rows on the same examples, in order, with what may be said of them.

A row is a run at one template and length. The rows of a board answered the same examples about the same documents, so
that any two can be paired; runs on other examples are left out with the reason.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eval.errors import UserError
from eval.records.engines import LOCAL, clock_of, clocks_apart, describe_engine, engine_details, name_engine
from eval.records.journal import fingerprint
from eval.records.schema import Board, BoardRow, RankedRun, Result, Session, TaskRecord, Unit, UsedMetric
from eval.records.typed import to_json
from eval.records.windows import HEAD, window_of
from eval.scoring.bootstrap import ROUNDING
from eval.scoring.claims import within_margin_of_best
from eval.scoring.examples import Setting, setting_of, values_of
from eval.scoring.metric_files import metric_of, values_by_key
from eval.scoring.profiles import PROFILES, headline, metric_columns, metric_range
from eval.scoring.rank_ranges import rank_ranges
from eval.scoring.scored_run import ScoredRun, read_scored, settings_of
from eval.scoring.shared_metrics import made_alike, with_rooms
from tasks.command import as_launched

_COUNTS = (
    *("num_examples", "num_documents", "num_clusters", "num_samples"),
    *("num_truncated", "words", "num_ended_by_length", "flaws"),
)

Example = tuple[str, str, str]  # digests of its query, of its references, and of these with the document


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What ranking keeps of a scored run, whose lines may be many.

    Attributes:
        examples: Digests of the examples, by task and id.
        documents: Document or cluster of each example, by task, in the order of the examples' ids.
        values: (N, K) scores by the task's headline metric, a row an example in the order of the ids.
    """

    profiles: Mapping[str, str]
    about: RankedRun
    tasks: Mapping[str, TaskRecord]
    examples: Mapping[str, Mapping[str, Example]]
    documents: Mapping[str, Sequence[Unit]]
    values: Mapping[Setting, NDArray[Any]]
    rows: Mapping[Setting, BoardRow]
    further: Mapping[str, UsedMetric]

    @property
    def name(self) -> str:
        return self.about.run


def plain(text: object) -> str:
    """Return text in one line that can be written anywhere."""
    return " ".join(str(text).split()).encode("utf-8", "replace").decode()


def shorten(references: Iterable[str]) -> dict[str, str]:
    """Return a name for each model: its reference, or the last parts of an absolute path.

    Three parts, or as many as tell all paths apart; the parts above depend on the machine.
    """
    references = list(dict.fromkeys(references))
    parts = {name: Path(name).parts[1:] for name in references if Path(name).is_absolute()}
    num_parts = 3
    while len({path[-num_parts:] for path in parts.values()}) < len(set(parts.values())):
        num_parts += 1
    return {name: "/".join(parts[name][-num_parts:]) if name in parts else name for name in references}


def command_for_readers(session: Session) -> str:
    """Return the command line of a session as it is typed, with its paths shortened; empty where it has none."""
    if not session.command:
        return ""
    words = [part for word in session.command for part in word.partition("=")]
    names = shorten(words)
    shown = iter(names[part] for part in words)
    return as_launched(["eval/run.py", *map("".join, zip(shown, shown, shown, strict=True))])


def read_candidate(path: Path, name: str) -> Candidate:
    """Return a run that may be ranked, under a name.

    Raises:
        UserError: The folder holds no run, or a file of it cannot be read.
        UserError: It is no run of `eval/run.py`, has no scores that count, has not ended, or has no window `head`.
    """
    run = read_scored(path)
    if run.num_absent and run.record.until is not None:
        raise UserError("stopped by --until, so that its means are not those of a number of documents fixed beforehand")
    if run.num_absent:
        raise UserError(f"unfinished: {run.num_absent} of its predictions are not there yet")
    # Other windows show evidence that nobody has who knows no reference.
    lines = {setting: of_setting for setting, of_setting in run.lines.items() if window_of(setting[1]) == HEAD}
    if not lines:
        raise UserError(f"all of its answers are through other windows than {HEAD}, which rank no system")
    examples: dict[str, dict[str, Example]] = defaultdict(dict)
    for (task, example), digest in sorted(run.content.items()):
        record = run.examples[task, example]
        examples[task][example] = (fingerprint(record.query), fingerprint(record.references), digest)
    profiles = {task: run.scores.profiles[task] for task in examples}
    columns = {task: metric_columns(profile)[headline(profile)] for task, profile in profiles.items()}
    about = _about(run, name)
    return Candidate(
        profiles=profiles,
        about=about,
        tasks={task: run.record.tasks[task] for task in examples},
        examples=examples,
        documents={
            task: [run.examples[task, example].unit for example in of_task] for task, of_task in examples.items()
        },
        values={
            setting: values_of((of_setting[example] for example in examples[setting[0]]), columns[setting[0]])
            for setting, of_setting in lines.items()
        },
        rows={setting: _row(run, about, setting) for setting in lines},
        further=run.scores.further or {},
    )


def _about(run: ScoredRun, name: str) -> RankedRun:
    identity, sessions = run.record.identity, run.record.sessions
    model = identity.model
    adapter = None if model.adapter is None else to_json(model.adapter)
    weights = {"revision": model.revision, "files": model.files, "adapter": adapter, "quantize": model.quantize}
    machines = dict.fromkeys(_place_of(one, name_engine(identity.engine)) for one in sessions)
    commands = dict.fromkeys(command for one in sessions if (command := command_for_readers(one)))
    return RankedRun(
        run=name,
        model=plain(model.label),
        weights={part: value for part, value in weights.items() if value is not None},
        plan=plain(run.record.plan_description),
        dtype=plain(identity.dtype),
        machines=[plain(machine) for machine in machines],
        commits=list(dict.fromkeys(one.commit for one in sessions)),
        commands=[plain(command) for command in commands],
    )


def _place_of(session: Session, engine: str) -> str:
    """Return where and how the seconds of a session were taken: those of a request depend on how many run beside it."""
    if engine == "endpoint":
        place = f"a server, asked from {session.machine.device}"
    else:
        place = f"{session.machine.device}, {session.world_size} process(es), {session.threads} thread(s) each"
    at_once = (session.engine or {}).get("concurrency")
    return f"{place}, {at_once} request(s) at a time" if at_once else place


def _row(run: ScoredRun, about: RankedRun, setting: Setting) -> BoardRow:
    results = [one for one in run.scores.results if setting_of(one) == setting and one.subset == "all"]
    [model] = [one for one in results if one.kind == "model"]
    engine = run.record.identity.engine
    of_setting = (model.task, model.template, "model")
    useful = [one for one in run.scores.useful_lengths or () if (one.task, one.template, one.kind) == of_setting]
    return BoardRow(
        run=about.run,
        model=about.model,
        plan=about.plan,
        dtype=about.dtype,
        engine=plain(describe_engine(engine, run.record.sessions)) if engine else None,
        template=plain(model.template),
        maxlen=model.maxlen,
        settings=settings_of(run.record, model.task),
        **{name: getattr(model, name) for name in _COUNTS},
        metrics=model.metrics,
        further=model.further,
        evidence_visible=model.evidence_visible,
        useful_length=useful[0] if useful else None,
        cost=model.cost,
        yardsticks={one.system: one.metrics for one in results if one.kind == "yardstick"},
    )


def rank(
    candidates: Sequence[Candidate], task: str, profile: str, margin: float, cost: str
) -> tuple[Board, dict[str, str]]:
    """Return the board of a task, and why runs were left out, by name.

    All candidates, at least one, were scored under the profile. The frontier is drawn against a field of `Cost`.
    """
    chosen, left_out = _choose(candidates, task)
    metric = headline(profile)
    entries = [
        (one.rows[setting], one.values[setting]) for one in chosen for setting in one.values if setting[0] == task
    ]
    values_by_row = {str(index): values for index, (_, values) in enumerate(entries)}
    documents, within = chosen[0].documents[task], metric_range(profile, metric)
    are_answers = PROFILES[profile].has_common_answer
    passed = within_margin_of_best(values_by_row, documents, margin, within=within, are_answers=are_answers)
    ranges = rank_ranges(values_by_row, documents, within=within)
    rows = [
        replace(row, is_within_margin=passed[str(index)], rank_range=list(ranges[str(index)]))
        for index, (row, _) in enumerate(entries)
    ]
    rows.sort(key=lambda row: (-row.metrics[metric].value, row.run, row.template, row.maxlen))
    further, apart = made_alike(
        {one.name: with_rooms(one.further, {task: one.tasks[task].max_new_tokens}) for one in chosen}
    )
    values = values_by_key(further)
    rows = [_with_further(row, {metric for metric in further if (row.run, metric) not in apart}) for row in rows]
    on_frontier = _on_frontier(rows, metric, cost)
    means = [row.metrics[metric].value for row in rows]
    ranks = [1 + sum(other > mean + ROUNDING for other in means) for mean in means]
    rows = [
        replace(row, rank=place, is_best=place == 1, is_on_frontier=index in on_frontier)
        for index, (row, place) in enumerate(zip(rows, ranks, strict=True))
    ]
    about = chosen[0].tasks[task]
    board = Board(
        task=task,
        profile=profile,
        metric=metric,
        description=plain(about.description),
        version=about.version,
        split=plain(about.split),
        num_runs=len(chosen),
        num_examples=rows[0].num_examples,
        num_documents=rows[0].num_documents,
        is_one_machine=len({machine for one in chosen for machine in one.about.machines}) < 2,
        notes=[*_notes(chosen, rows, task, cost), *_other_margins(rows, margin), *apart.values()],
        further={key: one for key, one in values.items() if any(row.further and key in row.further for row in rows)}
        or None,
        rows=rows,
    )
    return board, left_out


def _with_further(row: BoardRow, metrics: Collection[str]) -> BoardRow:
    """Return a row with the values of these further metrics alone."""
    kept = {key: one for key, one in (row.further or {}).items() if metric_of(key) in metrics}
    return replace(row, further=kept or None)


def result_of(board: Board, row: BoardRow, system: str, baseline: str | None = None) -> Result:
    """Return a row of a board as the result of its model, or of a baseline, under a name."""
    return Result(
        task=board.task,
        profile=board.profile,
        system=system,
        kind="yardstick" if baseline else "model",
        subset="all",
        **{name: getattr(row, name) for name in ("template", "maxlen", *_COUNTS)},
        metrics=row.yardsticks[baseline] if baseline else row.metrics,
        evidence_visible=None if baseline else row.evidence_visible,
        cost=None if baseline else row.cost,
    )


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which (cost, quality) points no other point beats, cheapest first.

    A point is beaten by one that costs no more and is no worse, and better in one of the two.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] > points[kept[-1]][1] or points[index] == points[kept[-1]]:
            kept.append(index)
    return kept


def _cost_of(row: BoardRow, cost: str) -> float | None:
    value: float | None = getattr(row.cost, cost, None)
    return value


def clocks_of(rows: Iterable[BoardRow]) -> dict[str, list[str]]:
    """Return the runs whose seconds are known, by what their seconds are."""
    timed = dict.fromkeys(
        (row.run, clock_of(row.settings.get("engine"))) for row in rows if _cost_of(row, "seconds") is not None
    )
    return _grouped(timed)


def _on_frontier(rows: Sequence[BoardRow], metric: str, cost: str) -> set[int]:
    """Return which rows are on the frontier; a row whose cost is not known is not.

    None is where seconds were taken in different ways.
    """
    if cost == "seconds" and len(clocks_of(rows)) > 1:
        return set()
    costs = {index: value for index, row in enumerate(rows) if (value := _cost_of(row, cost)) is not None}
    known = list(costs)
    points = [(costs[index], round(rows[index].metrics[metric].value, 12)) for index in known]
    return {known[place] for place in frontier(points)}


def _choose(candidates: Sequence[Candidate], task: str) -> tuple[list[Candidate], dict[str, str]]:
    """Return the runs on the example set that most of them share, the larger of two, and why others are left out."""
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(fingerprint(one.tasks[task].version, one.examples[task]), []).append(one)
    chosen = max(groups.values(), key=lambda group: (len(group), len(group[0].examples[task])))
    others = [one for group in groups.values() if group is not chosen for one in group]
    return chosen, {one.name: plain(_difference(one, chosen[0], task)) for one in others}


def _difference(one: Candidate, ranked: Candidate, task: str) -> str:
    """Return how a run's examples differ from those that are ranked."""
    versions = one.tasks[task].version, ranked.tasks[task].version
    if versions[0] != versions[1]:
        return f"has version {versions[0]} of the task where {versions[1]} is ranked"
    own, expected = one.examples[task], ranked.examples[task]
    if len(own) != len(expected):
        return f"has {len(own)} examples where {len(expected)} are ranked"
    absent = next((example for example in expected if example not in own), None)
    if absent is not None:
        return f"has other examples than those ranked: '{absent}' is not among them"
    example = next(example for example in expected if own[example] != expected[example])
    parts = zip(("query", "set of references", "document"), own[example], expected[example], strict=True)
    what = next(part for part, digest, expected_digest in parts if digest != expected_digest)
    return f"has another {what} under id '{example}' than those ranked"


def _notes(chosen: Sequence[Candidate], rows: Sequence[BoardRow], task: str, cost: str) -> Iterator[str]:
    """Yield what a reader of a board has to know before comparing its rows, in sentences."""
    machines = _grouped((one.name, " and ".join(one.about.machines)) for one in chosen)
    if len({machine for one in chosen for machine in one.about.machines}) > 1:
        places = "; ".join(f"{machine}: {', '.join(names)}" for machine, names in machines.items())
        yield f"Speeds, times and peak memory were measured in different places and do not compare: {places}."
    if apart := clocks_apart(clocks_of(rows)):
        yield apart + (" No row is on the frontier." if cost == "seconds" else "")
    for model in dict.fromkeys(one.about.model for one in chosen):
        of_model = [one for one in chosen if one.about.model == model]
        weights = _grouped((one.name, fingerprint(one.about.weights)) for one in of_model if one.about.weights)
        if len(weights) > 1:
            yield f"A model of the same name has other weights in {_listed(weights)}."
        unknown = [one.name for one in of_model if not one.about.weights]
        if unknown and weights:
            yield f"A model of the same name has weights that nothing pins in {', '.join(unknown)}."
    for template in dict.fromkeys(name for one in chosen for name in one.tasks[task].templates):
        texts = _grouped(
            (one.name, one.tasks[task].templates[template].text)
            for one in chosen
            if template in one.tasks[task].templates
        )
        if len(texts) > 1:
            yield f"The template {plain(template)} has other words in {_listed(texts)}."
    num_unknown = sum(_cost_of(row, cost) is None for row in rows)
    if num_unknown:
        yield f"{num_unknown} row(s) have no known {cost} and are not on the frontier."
    if not any(row.is_within_margin for row in rows):
        first = rows[0]
        count = (
            f"{first.num_documents} document(s)" if first.num_clusters is None else f"{first.num_clusters} cluster(s)"
        )
        yield (
            f"No row is shown to be within the margin of the best, the best observed included: with {count} and "
            f"{len(rows)} rows, differences are not known well enough."
        )


def _other_margins(rows: Sequence[BoardRow], margin: float) -> Iterator[str]:
    """Yield which useful lengths have another margin than the board, in a sentence."""
    useful = {row.run: row.useful_length.margin for row in rows if row.useful_length is not None}
    others = _grouped((run, f"{100 * own:g}") for run, own in useful.items() if own != margin)
    if others:
        runs = "; ".join(f"{', '.join(names)}: {own}" for own, names in others.items())
        yield f"Useful lengths have the margin under which a run was scored, which is not {100 * margin:g} in {runs}."


def _grouped(items: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return names by value."""
    groups: dict[str, list[str]] = {}
    for name, value in items:
        groups.setdefault(value, []).append(name)
    return groups


def _listed(groups: Mapping[str, Sequence[str]]) -> str:
    return ", and in ".join(", ".join(names) for names in groups.values())


def varying(rows: Sequence[BoardRow]) -> list[str]:
    """Return the names of settings, besides the engine, that are not the same in all rows."""
    names = dict.fromkeys(name for row in rows for name in row.settings if name != "engine")
    return [name for name in names if len({json.dumps(row.settings.get(name)) for row in rows}) > 1]


def engines_of(rows: Sequence[BoardRow]) -> dict[str, str]:
    """Return the engine of each run, with what else it says where engines of one name differ; empty where all agree."""
    engines = {row.run: row.settings.get("engine") or {} for row in rows}
    names = {row.run: row.engine or LOCAL for row in rows}
    found = {}
    for run, name in names.items():
        alike = [engine_details(engines[other]) for other in names if names[other] == name]
        unlike = [key for key in alike[0] if len({json.dumps(one.get(key)) for one in alike}) > 1]
        told = (f"{key}={json.dumps(engine_details(engines[run]).get(key))}" for key in unlike)
        found[run] = f"{name}: {', '.join(told)}" if unlike else name
    return found if len(set(found.values())) > 1 else {}


def describe_settings(row: BoardRow, names: Sequence[str]) -> str:
    """Return these settings of a row, for people."""
    found = ((name, row.settings.get(name)) for name in names)
    return ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found)
