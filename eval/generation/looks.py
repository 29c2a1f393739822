"""A run that stops as soon as it has shown something: documents in the order of their hashes, a look after every few.

    looks = Looks(config, record, data, saved, template)
    requests = looks.begin(requests, lines)     # looks again at what earlier sessions answered
    for part in looks.groups(requests, process, lines_of):
        ...                                     # answer this part

A document is complete at all lengths before the next group begins, and clusters stay together. Groups follow from the
settings alone, and a resumed run looks where an undisturbed one did, so both come to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.config.run import RunConfig
from eval.config.until import THIS, Until
from eval.errors import UserError
from eval.generation.recorded_claim import has_answers
from eval.generation.requests import PromptSource, Requests
from eval.records.journal import fingerprint, sha256
from eval.records.merging import merge_examples
from eval.records.run_folder import RunFolder
from eval.records.schema import Key, Prediction, RunRecord, Unit, UntilRecord, unit_of
from eval.runtime.processes import Process
from eval.runtime.provenance import utc_now
from eval.scoring.scored_run import ScoredRun, read_scored
from eval.scoring.watch import Side, Watch, lines_beside
from tasks import Example, LoadedExamples
from tasks.readers.sampling import place_of

# Rows of a group at least, so that a batch or the requests of a server are full.
_LEAST_ROWS = 16
Lines = Mapping[Key, Prediction]


class Looks:
    """Forms the groups of a run with `--until`, and says after each whether it stops.

    Args:
        config: Settings of the run.
        record: Its `run.json`, without what `--until` says.
        data: Examples by task.
        saved: What the folder has of `--until`; None for a folder without answers.
        template: Prompts that are compared.

    Raises:
        UserError: The folder asked for another comparison, or the other run cannot stand beside this one.
    """

    def __init__(
        self,
        config: RunConfig,
        record: RunRecord,
        data: Mapping[str, LoadedExamples],
        saved: UntilRecord | None,
        template: str,
    ) -> None:
        assert config.until is not None
        assert config.stopping is not None
        self.until, self.seed = config.stopping, config.sample_seed
        other = read_scored(Path(self.until.folder)) if self.until.folder else None
        self.state = _record_of(config.until, self.until, self.seed, other, saved)
        self.watch = None if self.until.metric is None else _watch(config, self.until, record, data, other, template)
        self._groups: list[list[PromptSource]] = []
        self._units: list[tuple[str, Unit]] = []
        self._num_done = 0
        self._spent = self.state.seconds

    def begin(self, requests: Requests, lines: Lines) -> Requests:
        """Return the requests of this session: all documents in order; of a stopped run those that it answered.

        Raises:
            UserError: Documents were added in front of those that were answered.
        """
        self._units, self._groups = _form(requests, self.seed)
        before, self.state = self.state, replace(self.state, num_all=len(self._units), stopped=None)
        if before.order is not None and before.order != self._order(before.num_answered):
            raise UserError(
                "--until takes documents in one order, and the folder has answered others than the first of these; "
                "give the same --limit or a larger --sample, or another folder with --output"
            )
        while self._num_done < len(self._groups) and self.state.stopped is None:
            if any(key not in lines for source in self._groups[self._num_done] for key in source.fingerprints):
                break
            self._look(lines)
        if self._is_late() and self.state.stopped is None:
            self.state = replace(self.state, stopped="time")
        return self.answered(requests) if self.state.stopped else self._of(requests, self._groups)

    def groups(self, requests: Requests, process: Process, lines_of: Callable[[], Lines]) -> Iterator[Requests]:
        """Yield a part of the requests after the other, and look after each, until one look ends the run.

        Args:
            requests: What `begin` returned.
            process: This process; the main one decides.
            lines_of: Returns what all processes have answered.
        """
        started = time.monotonic()
        while self.state.stopped is None:
            part = self._of(requests, [self._groups[self._num_done]])
            if part.num_missing:
                yield part
            process.wait()
            if process.is_main:
                self.state = replace(self.state, seconds=self._spent + time.monotonic() - started)
                self._look(lines_of())
                if self.state.stopped is None and self._is_late():
                    self.state = replace(self.state, stopped="time")
            else:
                self._num_done += 1
            self.state = process.broadcast(self.state)

    def answered(self, requests: Requests) -> Requests:
        """Return the requests about the documents that the run has come to."""
        return self._of(requests, self._groups[: self._num_done])

    def _look(self, lines: Lines) -> None:
        """Judge what the next group says beside those before."""
        group = self._groups[self._num_done]
        self._num_done += 1
        num_answered = len({unit for sources in self._groups[: self._num_done] for unit in map(_unit_of, sources)})
        self.state = replace(self.state, num_answered=num_answered, order=self._order(num_answered))
        if self.watch is not None:
            self.watch.add([example.id for source in group for example in source.examples], lines)
            self.state = self.watch.judged(self.state)
        if self.state.stopped is None and self._num_done == len(self._groups):
            self.state = replace(self.state, stopped="all documents")

    def _is_late(self) -> bool:
        return self.until.seconds is not None and self.state.seconds >= self.until.seconds

    def _order(self, num_units: int) -> str:
        return fingerprint(self._units[:num_units])

    @staticmethod
    def _of(requests: Requests, groups: Sequence[Sequence[PromptSource]]) -> Requests:
        return replace(requests, sources=[source for group in groups for source in group])


def open_looks(
    config: RunConfig,
    record: RunRecord,
    data: Mapping[str, LoadedExamples],
    folder: RunFolder,
    before: RunRecord | None,
    template: str,
) -> Looks | None:
    """Return what may stop a run; None without `--until`. Arguments are those of `Looks`, and the run's folder.

    Raises:
        UserError: The folder has answers that were not looked at for this.
    """
    if config.stopping is None:
        return None
    saved = before.until if before and has_answers(folder.path) else None
    if before is not None and saved is None and config.stopping.metric and has_answers(folder.path):
        raise UserError(
            f"output folder {folder.path} has answers already, which --until did not ask for; what stops a run is "
            "fixed before the first answer: leave --until out, or give another folder with --output"
        )
    return Looks(config, record, data, saved, template)


def _record_of(text: str, until: Until, seed: int, other: ScoredRun | None, saved: UntilRecord | None) -> UntilRecord:
    """Return the record of what is asked for; that of the folder, if it has one, with the time that is given now.

    Raises:
        UserError: The folder has another comparison, or the other run was changed.
    """
    asked = UntilRecord(
        asked=text,
        metric=until.metric,
        subject=until.subject,
        beside=until.beside,
        differs=until.differs,
        margin=until.margin,
        other=None if other is None else other.scores.predictions,
        sample_seed=seed,
        recorded=utc_now(),
    )
    if saved is None:
        return asked
    fixed = ("metric", "subject", "beside", "differs", "margin", "sample_seed")
    if any(getattr(saved, name) != getattr(asked, name) for name in fixed):
        raise UserError(
            f"--until is '{text}', and the folder's answers were looked at for '{saved.asked}', order "
            f"{saved.sample_seed}; what is compared is fixed before the first answer: change the time alone, or give "
            "another folder with --output"
        )
    if saved.other != asked.other:
        raise UserError(
            f"--until: the answers in {until.folder} are others than when this run began; restore them, or give "
            "another folder with --output"
        )
    return replace(saved, asked=text)


def _watch(
    config: RunConfig,
    until: Until,
    record: RunRecord,
    data: Mapping[str, LoadedExamples],
    other: ScoredRun | None,
    template: str,
) -> Watch:
    """Return what compares the sides. Raises `UserError` where the other run cannot stand beside this one."""
    [(task, loaded)] = data.items()
    profile = config.profile or config.tasks[task].profile
    examples = merge_examples([], data)
    sides: dict[str, Side] = {}
    for name, side, facing in (
        ("subject", until.subject, until.beside),
        ("beside", until.beside, until.subject),
    ):
        if side == THIS or side.isdecimal():
            sides[name] = config.maxlen[0] if side == THIS else int(side)
            continue
        assert other is not None
        maxlen = config.maxlen[0] if facing == THIS else int(facing)
        contents = {
            one.id: fingerprint(sha256(one.context), one.query, list(one.references)) for one in loaded.examples
        }
        sides[name] = lines_beside(other, profile, (task, template, maxlen), contents)
    units = _units_of(loaded.examples)
    return Watch(record, examples, units, task, profile, template, metric=str(until.metric), **sides)


def _unit_of(source: PromptSource) -> tuple[str, Unit]:
    """Return the document or cluster of the examples about a context: where a text has several names, the first."""
    return source.task, _own_unit(source.examples[0])


def _units_of(examples: Iterable[Example]) -> dict[str, Unit]:
    """Return what `_unit_of` says of each example, by its id."""
    firsts: dict[tuple[str, Any], Example] = {}
    return {one.id: _own_unit(firsts.setdefault((one.context, one.kept), one)) for one in examples}


def _own_unit(example: Example) -> Unit:
    return unit_of(example.document_id, example.cluster_id)


def _form(requests: Requests, seed: int) -> tuple[list[tuple[str, Unit]], list[list[PromptSource]]]:
    """Return documents or clusters in the order of `--sample`, and their prompts in groups of at least a batch."""
    by_unit: dict[tuple[str, Unit], list[PromptSource]] = {}
    for source in requests.sources:
        by_unit.setdefault(_unit_of(source), []).append(source)
    units = sorted(by_unit, key=lambda unit: (place_of(unit[1][1], seed), unit))
    least = max(_LEAST_ROWS, requests.grouping.batch_size) * requests.grouping.num_shares
    groups: list[list[PromptSource]] = []
    num_rows = least
    for unit in units:
        if num_rows >= least:
            groups.append([])
            num_rows = 0
        groups[-1] += by_unit[unit]
        num_rows += sum(len(one.fingerprints) * one.settings.num_rows for one in by_unit[unit])
    return units, groups
