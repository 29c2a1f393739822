"""What windows tell apart: contrasts of two windows of the same documents, paired by document.

    for one in compare_windows(scored):
        print(one.contrast, one.maxlen, one.difference)

Each is the second window minus the first, so that a positive number is what the second has over the first:

- `not_in_window`: the evidence alone, and the window without it: what is lost where the evidence is not shown.
- `not_used`: the evidence alone, and the window that holds it: what is lost although it is shown.
- `position`: the evidence in front, and in its place: what is lost because of where it stands.
- `document`: the document, and another one in its place: what does not come from elsewhere.

Where no example has a place in `not_used` with the window `evidence`, `oracle` stands in for it. In `not_in_window` it
does not: it is what the window shows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from eval.records.schema import Contrast, ContrastName, WindowRecord
from eval.records.windows import (
    EVIDENCE,
    EVIDENCE_FIRST,
    FOREIGN,
    HEAD,
    ORACLE,
    WITHOUT_EVIDENCE,
    base_of,
    shown_of,
    window_of,
)
from eval.scoring.baselines import visible_share
from eval.scoring.claims import MARGIN
from eval.scoring.comparisons import Compare, compare_lines
from eval.scoring.examples import Scored
from eval.scoring.profiles import headline

Lines = Mapping[str, Scored]


class _Rule(NamedTuple):
    """The windows of a contrast, of several the first that has an example, and what examples need to be in it."""

    first: str
    second: tuple[str, ...]
    needs_evidence: bool = True
    is_shown: bool = False


_RULES: dict[ContrastName, _Rule] = {
    "not_in_window": _Rule(WITHOUT_EVIDENCE, (EVIDENCE,)),
    "not_used": _Rule(HEAD, (EVIDENCE, ORACLE), is_shown=True),
    "position": _Rule(HEAD, (EVIDENCE_FIRST,), is_shown=True),
    "document": _Rule(FOREIGN, (HEAD,), needs_evidence=False),
}


class _Row(NamedTuple):
    """A contrast before it is computed; examples that are left out, and those with the same prompt, are not in it."""

    name: ContrastName
    first: Lines
    second: Lines
    num_left_out: int
    num_same_prompts: int


def compare_windows(scored: Sequence[Scored], margin: float = MARGIN) -> list[Contrast]:
    """Return the contrasts of each task, template and length, by the headline metric; none without windows.

    Left out are examples without evidence and, where the window should hold it, those whose evidence it does not show
    whole. All contrasts of a task make one table, at whose level all of its claims hold.
    """
    by_task: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        if one.is_model:
            by_task[one.line.task].append(one)
    return [contrast for of_task in by_task.values() for contrast in _contrasts(of_task, margin)]


def _contrasts(scored: Sequence[Scored], margin: float) -> Iterator[Contrast]:
    rows = list(_rows(scored))
    profile = scored[0].profile
    table = [
        Compare(
            {name: one.line for name, one in row.first.items()},
            {name: one.line for name, one in row.second.items()},
            headline(profile),
            profile,
        )
        for row in rows
    ]
    for row, result in zip(rows, compare_lines(table, margin), strict=True):
        sources = Counter(_about(one, row.first[name]).source for name, one in row.second.items())
        yield Contrast(
            **vars(replace(result, num_same_prompts=row.num_same_prompts)),
            contrast=row.name,
            num_gold=sources["gold"],
            num_oracle=sources["oracle"],
            num_left_out=row.num_left_out,
        )


def _rows(scored: Sequence[Scored]) -> Iterator[_Row]:
    settings: dict[tuple[str, int], dict[str, dict[str, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for one in scored:
        of_setting = settings[base_of(one.line.template), one.line.maxlen]
        of_setting[window_of(one.line.template)][one.line.id] = one
    for of_setting in settings.values():
        for name, rule in _RULES.items():
            first, seconds = of_setting.get(rule.first, {}), (of_setting.get(window, {}) for window in rule.second)
            rows = (_row(name, rule, first, second) for second in seconds)
            yield from [row for row in rows if row.first][:1]


def _row(name: ContrastName, rule: _Rule, first: Lines, second: Lines) -> _Row:
    shared = [example for example in first if example in second]
    taken = [example for example in shared if _has_place(rule, first[example], second[example])]
    differing = [example for example in taken if _shown(first[example]) != _shown(second[example])]
    return _Row(
        name=name,
        first={example: first[example] for example in differing},
        second={example: second[example] for example in differing},
        num_left_out=len(shared) - len(taken),
        num_same_prompts=len(taken) - len(differing),
    )


def _has_place(rule: _Rule, first: Scored, second: Scored) -> bool:
    if not rule.needs_evidence:
        return True
    evidence = _about(second, first).evidence
    share = visible_share(evidence, first.prediction.context_spans)
    return share is not None and (not rule.is_shown or share == 1)


def _about(one: Scored, other: Scored) -> WindowRecord:
    """Return what the first of two predictions with a window records of it."""
    found = one.prediction.window or other.prediction.window
    assert found is not None
    return found


def _shown(one: Scored) -> tuple[str, list[list[int]]]:
    document, spans = shown_of(one.prediction, one.line.document_id)
    return document, [list(span) for span in spans]
