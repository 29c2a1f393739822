"""A rating sheet: one file with the answers of some runs and, line by line, what people give them.

    {"sheet": 1, "scales": {"overall": [1, 5]}, "seed": 0, "answers": "DIGEST"}
    {"document_id": "plos/doc-1", "document": "..."}
    {"answer": "0-0", "screen": 0, "system": "runs/a", "length": 8192, "prediction": "...", "references": [...], ...}
    {"answer": "0-0", "rater": "anna", "ratings": {"overall": 4}, "time": "...", "crc32": "5f2b81c0"}

Lines are only ever appended; of two ratings of one answer by one rater the last counts. `eval.meta` reads the file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.ratings.rows import lacks_line_end, read_rows, user_errors
from eval.records.disk import write_whole
from eval.records.journal import append_lines, open_journal, sha256
from eval.records.read_run import RunInputs, open_run, read_inputs
from eval.records.schema import Prediction
from eval.scoring.examples import scored_text

VERSION = 1
MAX_CARDS = 6


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is rated, in whole numbers that are one key each."""

    name: str
    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Scale:
        """Return a scale from NAME or NAME:LOW-HIGH; by default from 1 to 5.

        Raises:
            UserError: It has no name, or no two digits.
        """
        name, _, ends = text.partition(":")
        low, _, high = (ends or "1-5").partition("-")
        if not name.strip() or not (len(low) == len(high) == 1 and low.isdecimal() and high.isdecimal() and low < high):
            raise UserError(f"scale '{text}' is none; give NAME, or NAME:LOW-HIGH with digits, such as overall:1-5")
        return cls(name=name.strip(), low=int(low), high=int(high))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of one run."""

    key: str
    screen: int
    id: str
    document_id: str
    cluster_id: str | None
    system: str
    length: int
    condition: str
    query: str | None
    references: list[str]
    prediction: str
    window_spans: list[list[int]]

    def line(self) -> dict[str, Any]:
        """Return its line of the sheet."""
        fields = {name: value for name, value in vars(self).items() if name != "key" and value is not None}
        return {"answer": self.key, **fields}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What is rated: screens of answers about one document and query each."""

    scales: Sequence[Scale]
    seed: int
    documents: Mapping[str, str]
    answers: Sequence[Answer]

    @property
    def header(self) -> dict[str, Any]:
        """Return the first line; its digest tells whether a file is of these answers."""
        digest = sha256(json.dumps([one.line() for one in self.answers], sort_keys=True))
        scales = {one.name: [one.low, one.high] for one in self.scales}
        return {"sheet": VERSION, "scales": scales, "seed": self.seed, "answers": digest}

    def check(self, ratings: Mapping[str, Any], where: str) -> None:
        """Check ratings that a file has.

        Raises:
            UserError: There is no such scale, or a rating is not on it.
        """
        scales = {one.name: one for one in self.scales}
        for name, value in ratings.items():
            if name not in scales or type(value) is not int or not scales[name].low <= value <= scales[name].high:
                raise UserError(f"{where}: {name[:40]!r} is rated {str(value)[:40]!r}, which the scales do not have")

    def screens(self) -> list[list[Answer]]:
        """Return the answers of each screen."""
        found: dict[int, list[Answer]] = {}
        for one in self.answers:
            found.setdefault(one.screen, []).append(one)
        return list(found.values())

    def cards(self, rater: str) -> list[list[list[Answer]]]:
        """Return, for each screen, its different texts in an order of this rater, each with the answers that it is."""
        screens = []
        for number, answers in enumerate(self.screens()):
            by_text: dict[str, list[Answer]] = {}
            for one in answers:
                by_text.setdefault(one.prediction.strip(), []).append(one)
            cards = list(by_text.values())
            random.Random(f"{self.seed}/{rater}/{number}").shuffle(cards)
            screens.append(cards)
        return screens


def gather(
    runs: Sequence[Path], scales: Sequence[Scale], lengths: Sequence[int], num_examples: int, seed: int
) -> Sheet:
    """Return a sheet of the examples that all runs have, so many of them, drawn by a hash of their names.

    Args:
        lengths: Lengths whose answers are rated; empty for all.

    Raises:
        UserError: The runs do not belong together, or give one answer an example or more than a screen holds.
    """
    found: dict[tuple[str, str], list[tuple[str, Prediction]]] = {}
    read = [(path, _inputs(path)) for path in runs]
    names = _names([path for path, _ in read])
    for name, (_, inputs) in zip(names, read, strict=True):
        for one in inputs.predictions:
            if not lengths or one.maxlen in lengths:
                template = "" if len(inputs.record.tasks[one.task].templates) == 1 else f" {one.template}"
                found.setdefault((one.task, one.id), []).append((f"{name}{template}", one))
    most = max((len(answers) for answers in found.values()), default=0)
    if not most:
        raise UserError(f"no run has an answer at {', '.join(map(str, lengths))} tokens; give other --maxlen")
    if most < 2 or most > MAX_CARDS:
        what = "nothing to compare" if most < 2 else f"more than the {MAX_CARDS} that stand side by side"
        raise UserError(f"an example has {most} answers, {what}; give more runs or lengths, or fewer by --maxlen")
    whole = [key for key, answers in found.items() if len(answers) == most]
    drawn = sorted(whole, key=lambda key: sha256(f"{seed}/{key[0]}/{key[1]}"))[:num_examples]
    documents: dict[str, str] = {}
    answers = []
    for screen, key in enumerate(drawn):
        example, text = _same_example(key, read)
        name = f"{example.task}/{example.document_id}"
        documents[name] = text
        for index, (system, one) in enumerate(found[key]):
            answers.append(
                Answer(
                    key=f"{screen}-{index}",
                    screen=screen,
                    id=f"{one.task}/{one.id}",
                    document_id=name,
                    cluster_id=None if example.cluster_id is None else f"{example.task}/{example.cluster_id}",
                    system=system,
                    length=one.maxlen,
                    condition=one.truncation or "",
                    query=example.query,
                    references=example.references,
                    prediction=one.text,
                    window_spans=one.context_spans,
                )
            )
    return Sheet(scales=scales, seed=seed, documents=documents, answers=answers)


def _inputs(path: Path) -> RunInputs:
    folder, record = open_run(path)
    inputs = read_inputs(folder, record)
    shown = [replace(one, text=scored_text(one, record)) for one in inputs.predictions]
    return replace(inputs, predictions=shown)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its last part, or all of its path where two share that."""
    short = [path.resolve().name for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"a folder is given twice: {', '.join(map(str, paths))}")
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _same_example(key: tuple[str, str], read: Iterable[tuple[Path, RunInputs]]) -> tuple[Any, str]:
    """Return an example and its document, which all runs that have it must share."""
    first: tuple[Path, Any, str] | None = None
    for path, inputs in read:
        example = next((one for one in inputs.examples if (one.task, one.id) == key), None)
        if example is None:
            continue
        text = next(
            one.text for one in inputs.documents if (one.task, one.document_id) == (key[0], example.document_id)
        )
        if first is None:
            first = path, example, text
        elif (example.query, example.references, text) != (first[1].query, first[1].references, first[2]):
            raise UserError(f"example '{key[1]}' of {path} is not that of {first[0]}; give runs on the same data")
    assert first is not None
    return first[1:]


# The file


class SheetFile:
    """The file of a sheet, open for ratings.

    Args:
        path: Made with all answers if it does not exist; it must be of this sheet if it does.

    Raises:
        UserError: It is of other answers, or cannot be read or written.
    """

    def __init__(self, path: Path, sheet: Sheet) -> None:
        self.path, self._sheet = path, sheet
        # By answer and rater.
        self.ratings: dict[tuple[str, str], dict[str, int]] = {}
        if path.exists():
            self._read()
        else:
            documents = [{"document_id": name, "document": text} for name, text in sheet.documents.items()]
            lines = [sheet.header, *documents, *(one.line() for one in sheet.answers)]
            content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            # JSON spells half of a pair of surrogates, which has no UTF-8, as Python does.
            write_whole(path.parent, path.name, content.encode(errors="backslashreplace"))

    @user_errors()
    def _read(self) -> None:
        rows = read_rows(self.path)
        if not rows or rows[0].fields != self._sheet.header:
            raise UserError(
                f"{self.path} is a sheet of other answers, scales or seed; give the command that made it, or another "
                "file with --output"
            )
        if lacks_line_end(self.path):
            # Not before the header is known: it may be another file.
            open_journal(self.path.parent, self.path.name).close()
            rows = read_rows(self.path)
        for row in rows[1:]:
            if "ratings" in row.fields:
                ratings = row.row("ratings").fields
                self._sheet.check(ratings, row.where)
                self.ratings[row.text("answer"), row.text("rater")] = dict(ratings)

    def rate(self, answers: Iterable[Answer], rater: str, ratings: Mapping[str, int]) -> None:
        """Append what a rater gives to answers, and wait until it is on the disk.

        Raises:
            UserError: The disk refuses.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        keys = [one.key for one in answers]
        lines = [{"answer": key, "rater": rater, "ratings": dict(ratings), "time": time} for key in keys]
        with open_journal(self.path.parent, self.path.name) as stream:
            append_lines(stream, lines)
        self.ratings.update({(key, rater): dict(ratings) for key in keys})

    def given(self, answers: Sequence[Answer], rater: str) -> dict[str, int]:
        """Return what a rater has given to the answers of a card; nothing where a kill left them different."""
        first, *others = (self.ratings.get((one.key, rater), {}) for one in answers)
        return first if all(other == first for other in others) else {}
