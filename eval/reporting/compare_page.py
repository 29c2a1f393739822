"""Two runs side by side as a page that opens offline: what was found, each document as a point, and the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.records.read_run import RunInputs, open_run, read_inputs
from eval.records.schema import Comparison
from eval.reporting.board_labels import shorten_plan
from eval.reporting.charts import Chart, Layer, layer, panels_of, quantity, tooltip
from eval.reporting.columns import ANSWERS, COMPARISON_LEGEND, Column, interval, outcome, scale_of, units_of
from eval.reporting.finding import judged
from eval.reporting.page import (
    PAGE_BYTES,
    RESERVE_BYTES,
    Heading,
    Prose,
    Section,
    as_table,
    num_json_bytes,
    render_page,
)
from eval.reporting.samples import describe_columns, joined_texts
from eval.reporting.tables import code, comparison_table
from eval.scoring.baselines import num_words
from eval.scoring.board import shorten
from eval.scoring.compare_runs import (
    Change,
    RunComparison,
    changes_between,
    name_comparison,
    settings_of_both,
)
from eval.scoring.examples import scored_text
from eval.scoring.length_parts import LengthPart, length_parts
from eval.scoring.profiles import PROFILES, describe_profiles, headline, metric_name
from eval.scoring.scored_run import ScoredRun

Maxlens = tuple[int | None, int | None]

_NUM_PANELS = 12  # settings that have a panel
_NUM_UNSETTLED = 2  # comparisons that are not settled and have a sentence each
_COLUMNS = [*ANSWERS, Column(key="words", heading="words")]


@dataclass(frozen=True, kw_only=True)
class _Changed:
    """One example of one pair of settings, with the words of both answers."""

    change: Change
    document: str
    words: tuple[int, int]
    answers: tuple[dict[str, Any], dict[str, Any]]


def render_comparison_page(content: RunComparison, first: ScoredRun, second: ScoredRun, maxlens: Maxlens) -> str:
    """Return the page of a comparison.

    It shows no texts where one of the runs was scored with `--no-texts`.

    Raises:
        UserError: The answers cannot be read.
    """
    names = _names(first, second, maxlens)
    inputs = [read_inputs(*open_run(run.path)) for run in (first, second)]
    with_texts = first.scores.texts and second.scores.texts
    changed = list(_changed(first, second, maxlens, inputs, with_texts=with_texts))
    sections: list[Section] = [
        Heading(text="What changed"),
        *(Prose(text=text, is_lead=True) for text in _found(content, names)),
    ]
    sections += [_documents(changed, names), *_wins(content, names)]
    sections += _lengths(list(length_parts(first, second, maxlens)), names)
    sections += [
        Heading(text="All comparisons"),
        Prose(text=f"{code(names[1])} minus {code(names[0])}; {describe_profiles(content.profiles)}."),
    ]
    for subset, title in (("all", "All examples"), ("always_truncated", "Where both lengths cut")):
        rows = [row for row in [*content.comparisons, *content.further] if row.subset == subset]
        if rows:
            table = comparison_table(rows, "task, template, maxlen", name_comparison)
            sections.append(as_table(title, table))
    sections += [Prose(text=f"Left out: {text}.") for text in content.left_out]
    sections += [Prose(text=content.claim)] if content.claim else []
    sections += [Prose(text=COMPARISON_LEGEND)]
    title = f"{names[1]} against {names[0]}: {', '.join(content.profiles)}"
    return render_page(title, _facts(content, names), sections, _samples(changed, inputs[0], content, names))


def _names(first: ScoredRun, second: ScoredRun, maxlens: Maxlens) -> tuple[str, str]:
    """Return what the two sides are called: their folders, with lengths or parents where these are the same."""
    paths = [run.path.absolute() for run in (first, second)]
    names = [path.name for path in paths]
    if names[0] == names[1]:
        names = ["/".join(path.parts[-2:]) for path in paths]
    if names[0] == names[1]:
        lengths = [f" at {maxlen:,}" if maxlen else "" for maxlen in maxlens]
        names = [f"{paths[0].name}{lengths[0] or ' (A)'}", f"{paths[0].name}{lengths[1] or ' (B)'}"]
    one, other = (name.encode("utf-8", "replace").decode() for name in names)
    return one, other


def _facts(content: RunComparison, names: tuple[str, str]) -> list[tuple[str, str]]:
    """Return what both sides are; folders and models without the parts of paths that are of this machine."""
    models = shorten((content.a.model, content.b.model))
    facts = [
        (f"{letter}: {name}", f"{code(models[side.model])}, {code(shorten_plan(side.plan))}")
        for letter, name, side in zip("AB", names, (content.a, content.b), strict=True)
    ]
    facts += [
        (f"{letter} is not complete", f"{side.num_absent} predictions are not there yet")
        for letter, side in (("A", content.a), ("B", content.b))
        if side.num_absent
    ]
    return facts + [
        (f"differ in {name}", " | ".join(code(json.dumps(value, ensure_ascii=False)) for value in values))
        for name, values in content.differences.items()
    ]


def _headlines(content: RunComparison) -> list[Comparison]:
    """Return the comparisons by the headline of each task, of all examples."""
    return [
        row for row in content.comparisons if row.subset == "all" and row.metric == headline(content.profiles[row.task])
    ]


def _found(content: RunComparison, names: tuple[str, str]) -> Iterator[str]:
    """Yield what was found, a sentence a setting: by its headline, else by each metric that was asked for.

    Those of one length that are not settled, though they could be, have one together where they are more than
    `_NUM_UNSETTLED`.
    """
    rows = _headlines(content) or [row for row in [*content.comparisons, *content.further] if row.subset == "all"]
    templates = {one.template for row in rows for one in (row.first, row.second)}
    unsettled = [row for row in rows if _is_unsettled(row)]
    if len(unsettled) <= _NUM_UNSETTLED:
        unsettled = []
    for row in rows:
        if row in unsettled:
            continue
        sides = list(map(code, names))
        is_of_one_length = row.first.maxlen == row.second.maxlen
        for place, side in enumerate((row.first, row.second)):
            # Those of one length and template are named once, with the second.
            if (place or not is_of_one_length) and not names[place].endswith(f" at {side.maxlen:,}"):
                sides[place] += f" at {side.maxlen:,} tokens"
            if len(templates) > 1 and (place or row.first.template != row.second.template):
                sides[place] += f" under template {side.template}"
        task = f" on {row.task}" if len(content.profiles) > 1 else ""
        yield judged(row, f"{sides[1]}{task}", sides[0])
    if unsettled:
        yield _unsettled(unsettled, names, are_all=len(unsettled) == len(rows))


def _unsettled(rows: Sequence[Comparison], names: tuple[str, str], *, are_all: bool) -> str:
    """Return one sentence on comparisons that are not settled, with the least and greatest numbers of each metric."""
    numbers: list[str] = []
    for metric in dict.fromkeys(row.metric for row in rows):
        of_metric = [(row, scale_of(row.value)) for row in rows if row.metric == metric]
        found = _range([scale * row.difference for row, scale in of_metric], "+.1f")
        could = _range([scale * row.detectable for row, scale in of_metric if row.detectable is not None], ".1f")
        numbers.append(f"{metric_name(metric)} {found}{could and f', where {could} would show'}")
    which = f"in all {len(rows)} comparisons" if are_all else f"in the other {len(rows)} comparisons"
    units = f"n = {_range([units_of(row)[0] for row in rows], 'd')} {units_of(rows[0])[1]}"
    sides = f"{code(names[1])} is not shown to be better or worse than {code(names[0])}"
    return f"{sides} {which}: {'; '.join(numbers)}; {units}."


def _is_unsettled(row: Comparison) -> bool:
    can_be = row.low is not None and row.needs_documents is None
    return outcome(row) == "not settled" and can_be and row.first.maxlen == row.second.maxlen


def _range(values: Sequence[float], form: str) -> str:
    """Return the least and the greatest value in a form of `format`, or one where they read alike."""
    ends = [f"{end(values):{form}}" for end in (min, max)] if values else [""]
    return " to ".join(dict.fromkeys(ends))


def _changed(
    first: ScoredRun, second: ScoredRun, maxlens: Maxlens, inputs: Sequence[RunInputs], *, with_texts: bool
) -> Iterator[_Changed]:
    """Yield each example of each pair of settings."""
    predictions = [{one.key: one for one in of_run.predictions} for of_run in inputs]
    for one, other in settings_of_both(first, second, maxlens):
        lines = first.lines[one], second.lines[other]
        for change in changes_between(*lines, first.scores.profiles[one[0]]):
            answers: list[dict[str, Any]] = []
            words: list[int] = []
            for place, (run, setting) in enumerate(((first, one), (second, other))):
                task, template, maxlen = setting
                prediction = predictions[place][task, template, change.id, maxlen]
                words.append(num_words(scored_text(prediction, run.record)))
                costs = {column.key: getattr(prediction, column.key) for column in ANSWERS}
                answers.append(
                    {
                        "text": joined_texts(prediction, lambda answer: answer.text) if with_texts else None,
                        "scores": lines[place][change.id].metrics,
                        "kept": [],
                        "words": words[-1],
                        **{key: round(value, 3) if isinstance(value, float) else value for key, value in costs.items()},
                    }
                )
            yield _Changed(
                change=change,
                document=lines[0][change.id].document_id,
                words=(words[0], words[1]),
                answers=(answers[0], answers[1]),
            )


def _points(changed: Sequence[_Changed]) -> list[dict[str, Any]]:
    """Return a point a document and setting: the means of its examples, those of the first settings alone."""
    groups: dict[tuple[str, str], list[_Changed]] = {}
    for one in changed:
        groups.setdefault((one.change.name, one.document), []).append(one)
    settings = list(dict.fromkeys(setting for setting, _ in groups))[:_NUM_PANELS]
    points = []
    for (setting, document), members in groups.items():
        if setting in settings:
            before, after = (
                100 * float(np.mean([getattr(one.change, side) for one in members])) for side in ("a", "b")
            )
            gain = round(after - before, 6)
            most = max(members, key=lambda one: abs(one.change.difference)).change
            points.append(
                {
                    "panel": setting,
                    "document": document,
                    "a": before,
                    "b": after,
                    "change": gain,
                    "outcome": "loss" if gain < 0 else "gain" if gain > 0 else "tie",
                    "words": float(np.mean([one.words[1] - one.words[0] for one in members])),
                    "id": most.id,
                    "task": most.task,
                }
            )
    return points


_OUTCOMES = ("gain", "loss", "tie")


def _documents(changed: Sequence[_Changed], names: tuple[str, str]) -> Chart:
    """Return the chart of documents: the first run along one axis and the second along the other."""
    points = _points(changed)
    ends = [value for point in points for value in (point["a"], point["b"])]
    low, high = min(ends) - 2, max(ends) + 2
    metrics = ", ".join(dict.fromkeys(metric_name(one.change.metric) for one in changed))
    scale = {"domain": [low, high], "nice": False, "zero": False}
    x = quantity("a", f"{names[0]}, {metrics} × 100", scale=scale, axis={"tickCount": 5})
    y = quantity("b", f"{names[1]}, {metrics} × 100", scale=scale, axis={"tickCount": 5})
    diagonal = layer(
        [{"a": end, "b": end} for end in (low, high)],
        {"type": "line", "style": "yardstick", "strokeDash": [4, 3]},
        x=x,
        y=y,
    )
    shown = {"type": "point", "filled": True, "size": 75, "opacity": 0.8, "cursor": "pointer"}
    layers = [diagonal, {"mark": shown, "encoding": {"x": x, "y": y, **_colours(names), "tooltip": _tooltip(names)}}]
    caption = (
        f"Each point is a document: above the dashed line {code(names[1])} is better, below it {code(names[0])}. "
        "A click shows its answers."
    )
    if (num_settings := len({one.change.name for one in changed})) > _NUM_PANELS:
        caption += f" The first {_NUM_PANELS} of {num_settings} settings have a panel."
    settings = list(dict.fromkeys(point["panel"] for point in points))
    spec = panels_of(points, layers, settings, "Scores of documents.", height=230)
    spec["usermeta"]["shows"] = "sample"
    return Chart(title="Document by document", caption=caption, spec=spec)


def _colours(names: tuple[str, str]) -> dict[str, Layer]:
    better = {"gain": f"better under {names[1]}", "loss": f"better under {names[0]}", "tie": "the same"}
    legend = {"title": None, "orient": "bottom", "labelExpr": f"({json.dumps(better)})[datum.label]", "columns": 1}
    scale = {"domain": list(_OUTCOMES)}
    field = {"field": "outcome", "type": "nominal", "scale": scale}
    return {"color": {**field, "legend": legend}, "shape": {**field, "legend": legend}}


def _tooltip(names: tuple[str, str]) -> list[Layer]:
    return tooltip(
        document=("", ""),
        a=(names[0], ".2f"),
        b=(names[1], ".2f"),
        change=("change", "+.2f"),
        words=("change in words", "+.0f"),
    )


def _wins(content: RunComparison, names: tuple[str, str]) -> Iterator[Section]:
    """Yield how many examples each side wins, a row a setting; nothing where the headline is not compared."""
    rows = [["task, template, maxlen", f"better under {names[1]}", "the same", f"better under {names[0]}", "n"]]
    rows += [
        [name_comparison(row), *map(str, (row.wins, row.ties, row.losses, row.num_examples))]
        for row in _headlines(content)
    ]
    if len(rows) > 1:
        yield as_table("Wins and losses: examples, by the headline metric", rows)


def _lengths(parts: Sequence[LengthPart], names: tuple[str, str]) -> Iterator[Section]:
    """Yield what of the change is length; nothing where answers have no leads."""
    if not parts:
        return
    rows = [["task, template, maxlen", "words A", "words B", "change", "of the lead", "beyond length"]]
    for part in parts:
        words = ["-" if count is None else f"{count:.0f}" for count in part.words]
        beyond = f"{100 * (part.beyond.mean or 0.0):+.2f}{interval(part.beyond.low, part.beyond.high, '+.1f', 100)}"
        rows.append([part.name, *words, f"{100 * part.change:+.2f}", f"{100 * part.of_length:+.2f}", beyond])
    yield Heading(text="What of it is length")
    yield Prose(
        text="Scores rise with words. The lead is the first words of what the model was shown, as many as its answer "
        f"has, so its change from {code(names[0])} to {code(names[1])} needs no model. Beyond length is what is left, "
        "with its 95% interval over documents, of this row alone. Words are those of an answer, in the median."
    )
    metrics = ", ".join(dict.fromkeys(metric_name(part.metric) for part in parts))
    yield as_table(f"Change of {metrics} × 100", rows)


def _samples(
    changed: Sequence[_Changed], inputs: RunInputs, content: RunComparison, names: tuple[str, str]
) -> dict[str, Any]:
    """Return the samples of `render_page`, the largest change first: side A is length 1, and side B length 2."""
    examples = {(one.task, one.id): one for one in inputs.examples}
    shown = []
    for one in sorted(changed, key=lambda one: -abs(one.change.difference)):
        example = examples[one.change.task, one.change.id]
        has_texts = one.answers[0]["text"] is not None
        shown.append(
            {
                "task": example.task,
                "id": example.id,
                "document": example.document_id,
                "query": example.query if has_texts else None,
                "references": example.references if has_texts else None,
                "evidence": None,
                "oracle": [],
                "answers": [
                    {"template": one.change.name, "maxlen": place, "name": name, **answer}
                    for place, name, answer in zip((1, 2), names, one.answers, strict=True)
                ],
            }
        )
    kept, room = shown, PAGE_BYTES - RESERVE_BYTES
    while len(kept) > 1 and (num_bytes := num_json_bytes(kept)) > room:
        kept = kept[: min(len(kept) - 1, int(len(kept) * room / num_bytes))]
    metrics = dict.fromkeys(metric for one in changed for metric in one.answers[0]["scores"])
    return {
        "metrics": {metric: metric_name(metric) for metric in metrics},
        "columns": describe_columns(_COLUMNS),
        "headlines": {task: PROFILES[name].headline[-1] for task, name in content.profiles.items()},
        "documents": {},
        "examples": kept,
        "names": {"1": names[0], "2": names[1]},
        "note": ""
        if len(kept) == len(shown)
        else f"The {len(kept):,} of {len(shown):,} examples that changed most: a page of 10 MB holds no more.",
    }
