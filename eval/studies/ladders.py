"""A section of a study's report about context ladders: what each rung gains over the smallest length."""

from __future__ import annotations

from collections.abc import Sequence

from eval.records.schema import LadderRecord, LadderRung
from eval.reporting.ladder_page import LEGEND, interval_of, is_seen, ladder_chart, tables_of
from eval.scoring.ladder import RUNGS
from eval.studies.folder import LADDER, has_ladder
from eval.studies.section import Draft

_HEADINGS = ("shown, points or %", "used, nats a token", "said, %", "credited, points")
_SEEN = "*: a gain that is seen."


def write_ladders(draft: Draft) -> None:
    """Write where each part loses the tokens of longer windows, in words, a table and a picture."""
    header = ["part", "task", "maxlen", "documents", *_HEADINGS]
    rows, pictures = [header], []
    for name, folder in draft.folders.items():
        if not has_ladder(folder):
            draft.say(f"`{name}` has no ladder of its present answers.")
            continue
        record = draft.read(LadderRecord, name, LADDER)
        if not record.rungs:
            draft.say(f"`{name}` has no rungs: they take two lengths, and documents that the smaller one cuts.")
        for at, rungs in tables_of(record.rungs).items():
            draft.say(f"`{name}`, {', '.join(at)}. {record.words['/'.join(at)]}")
            rows += _rows(name, at, rungs)
            pictures.append((f"{name} {' '.join(at)}", f"{name}: context ladder, {', '.join(at)}", ladder_chart(rungs)))
    draft.table("Gains over the smallest length", rows)
    for file, title, spec in pictures:
        draft.chart(file, title, spec)
    if pictures:
        draft.say(f"{LEGEND} {_SEEN}")


def _rows(part: str, at: tuple[str, str], rungs: Sequence[LadderRung]) -> list[list[str]]:
    """Return a row a length."""
    by_length: dict[int, dict[str, LadderRung]] = {}
    for rung in rungs:
        by_length.setdefault(rung.maxlen, {})[rung.rung] = rung
    return [
        [
            part,
            ", ".join(at),
            f"{length:,}",
            _range([one.num_documents for one in of_length.values()]),
            *(_cell(of_length.get(rung)) for rung in RUNGS),
        ]
        for length, of_length in sorted(by_length.items())
    ]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _cell(rung: LadderRung | None) -> str:
    if rung is None:
        return "-"
    return f"{interval_of(rung)}{' *' if is_seen(rung) else ''}"
